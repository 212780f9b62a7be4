"""The teacher: an autoregressive model as a conditional flow."""

import copy
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor

from dd2_lightning.errors import InputTypeError
from dd2_lightning.flow import Flow
from dd2_lightning.layout import Layout
from dd2_lightning.models.backbone import Backbone
from dd2_lightning.models.tokenizer import Tokenizer
from dd2_lightning.models.walk import Walk
from dd2_lightning.sampling import Sampling

if TYPE_CHECKING:
    from dd2_lightning.models.dd1 import DD1Student


def check_labels(labels: Tensor, num_classes: int) -> None:
    """Refuse labels that no class has, with a ``ValueError``; shapes have no values, nor has a CUDA graph."""
    if isinstance(labels, FakeTensor) or (labels.is_cuda and torch.cuda.is_current_stream_capturing()):
        return
    bad = labels[(labels < 0) | (labels >= num_classes)]
    if len(bad):
        raise ValueError(f"label {bad[0].item()} is out of range: the model has classes 0..{num_classes - 1}")


class Teacher(nn.Module, ABC):
    """A model that can be distilled; a family may override :meth:`student_backbone` and :meth:`dd1_student`."""

    sampling_type: ClassVar[type[Sampling]] = Sampling  # the family's sampling settings
    config: dict[str, Any]  # sizes that JSON can hold, from which :meth:`from_config` builds the same shapes
    backbone: Backbone  # features from tokens
    tokenizer: Tokenizer  # between images and tokens
    layout: Layout  # the order of the tokens
    num_classes: int  # classes; the null label is not counted
    token_dim: int  # C

    @classmethod
    @abstractmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Build a teacher with fresh weights; a ``ValueError`` names the size that makes no model."""

    @abstractmethod
    def flow(self, tokens: Tensor, labels: Tensor, sampling: Sampling | None = None) -> Flow:
        """The conditional flow of every token given the tokens before its position.

        Tokens are indices (B, n) or embeddings (B, n, C), labels (B,). Without ``sampling`` it is the conditional
        model without guidance and truncation.
        """

    @abstractmethod
    def walk(self, labels: Tensor, sampling: Sampling | None = None, prefix: Tensor | None = None) -> Walk[Flow]:
        """Go through the positions with a key-value cache, after a prefix of indices or embeddings."""

    @abstractmethod
    def sample(
        self,
        labels: Tensor,
        sampling: Sampling | None = None,
        generator: torch.Generator | None = None,
        prefix: Tensor | None = None,
        uniforms: Tensor | None = None,
        until: int | None = None,
    ) -> Tensor:
        """Draw sequences: indices (B, n), or embeddings (B, n, C) where tokens are continuous.

        Random numbers are those of a generator on the labels' device, or ``uniforms`` (B, n). The tokens of the first
        positions may be given as a ``prefix``, of which a codebook teacher snaps embeddings to their nearest codes.
        With ``until`` only so many positions are drawn.
        """

    def embed(self, tokens: Tensor) -> Tensor:
        """Tokens as embeddings, (B, n, C)."""
        return tokens

    def encode(self, images: Tensor) -> Tensor:
        """Images (B, channels, H, W) in [0, 1] -> tokens as :meth:`sample` gives them."""
        return self.tokenizer.encode(images)

    def decode(self, tokens: Tensor) -> Tensor:
        """Indices (B, n) or embeddings (B, n, C) -> images (B, channels, H, W) in [0, 1]."""
        return self.tokenizer.decode(self.embed(tokens))

    def resolve_sampling(self, sampling: Sampling | None) -> Sampling:
        """Convert common sampling settings to the family's class, extra options disabled; refuse another family's."""
        sampling = sampling or Sampling()
        if type(sampling) is self.sampling_type:
            return sampling
        if type(sampling) is Sampling:
            return self.sampling_type(**vars(sampling))
        raise InputTypeError(
            f"{type(sampling).__name__} is for teachers of another family; this one has {self.sampling_type.__name__}"
        )

    def adopt_tokenizer(self) -> None:
        """Copy to the backbone what it uses of a tokenizer that was just trained; by default nothing."""

    def continuous(self) -> Self:
        """A trainable copy that reads embeddings, where a release reads indices only; its input layer is fresh.

        The copy has a method ``input_error(original)``: how far its input layer is from the embedding table, (V,).
        """
        raise InputTypeError("this teacher reads embeddings as it is: there is nothing to adapt")

    def student_backbone(self) -> Backbone:
        """A trainable backbone for a student: a copy of the teacher's, unless the family overrides this."""
        return copy.deepcopy(self.backbone).requires_grad_(True)

    def dd1_student(self) -> "DD1Student":
        """A trainable network for the baseline DD1, with the teacher's weights wherever it has the same layers."""
        name = type(self).__name__
        raise InputTypeError(f"{name} has no network for DD1: override dd1_student (docs/own_teacher.md)")
