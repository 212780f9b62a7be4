"""Distilled Decoding 1 (DD1, arXiv 2412.17153), the main baseline, as released in ``microsoft/distilled_decoding``.

The teacher's flow, integrated position after position from noise ε_i, ends on one code q_i. That map makes a
trajectory X_0 = ε, ..., X_N = q of partly finished sequences,

    X_t = (q of the first t positions, ε of the others),

where t counts *finished positions*, from 0; it is no flow time. A student predicts X_N from X_t for two values of t, so
that it can sample in one call or in two. Token i depends on its noise and on earlier positions, as the map does.
Guidance is in the pairs (ε, q); the student has neither guidance nor a null label.
"""

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn

from dd2_lightning.layout import Layout
from dd2_lightning.models.codebook import nearest_code
from dd2_lightning.models.layers import exact_linear, init_linear, layer_norm


class DD1Prediction(NamedTuple):
    """The predicted end of a trajectory: continuous tokens (B, n, C), and logits over the codes (B, n, V)."""

    tokens: Tensor
    logits: Tensor


class ContinuousHead(nn.Module):
    """Features to continuous tokens: Linear( LN(h)·(1 + b + c) + (a + c) ); a, b are learned, c is the class vector."""

    def __init__(self, width: int, token_dim: int):
        super().__init__()
        self.scale_shift_table = nn.Parameter(torch.randn(2, width) / width**0.5)
        self.linear = nn.Linear(width, token_dim)
        init_linear(self.linear)

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        """(B, n, width), (B, width) -> (B, n, C), in float32 or wider."""
        shift, scale = self.scale_shift_table[:, None, None] + c[None, :, None]
        return exact_linear(self.linear, layer_norm(h) * (1 + scale) + shift)


class DD1Student(nn.Module, ABC):
    """A network from a point of the trajectory to its end.

    The class has a slot in front of the n tokens, and nothing is shifted: token i is read and predicted at slot i. A
    slot sees itself and the slots of earlier positions: ``mask``, (n + 1, n + 1). A two-row table marks data (row 1:
    the class, finished positions) and noise (row 0). State-dict keys are those of the release.
    """

    # last words of the keys of tensors in a release's file that are not learned
    CONSTANTS: ClassVar[tuple[str, ...]] = ()
    position: Tensor
    mask: Tensor

    def __init__(self, layout: Layout, token_dim: int, num_classes: int, width: int):
        super().__init__()
        self.layout, self.token_dim, self.num_classes, self.width = layout, token_dim, num_classes, width
        self.n_d_embed = nn.Embedding(2, width)
        nn.init.trunc_normal_(self.n_d_embed.weight, std=0.02)
        self.final_layer_conti = ContinuousHead(width, token_dim)
        cpu = torch.device("cpu")  # constants, also where the network is built on "meta"
        position = torch.cat([torch.tensor([-1], device=cpu), layout.position_of_token(cpu)])
        diagonal = torch.eye(len(position), dtype=torch.bool, device=cpu)
        self.register_buffer("position", position, persistent=False)
        self.register_buffer("mask", (position[:, None] > position) | diagonal, persistent=False)

    @abstractmethod
    def features(self, x: Tensor, labels: Tensor, flags: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, n, d) and class vectors (B, d) of x = X_t (B, n, C) and the slots' marks (B or 1, n + 1, d)."""

    @abstractmethod
    def classify(self, h: Tensor, c: Tensor) -> Tensor:
        """Features (B, n, d), class vectors (B, d) -> logits (B, n, V), in float32 or wider."""

    def forward(self, x: Tensor, labels: Tensor, t: int | Tensor) -> DD1Prediction:
        """Predict the end of the trajectory from x = X_t (B, n, C), with t one number or one a row, (B,)."""
        finished = self.position < torch.as_tensor(t, device=x.device).view(-1, 1)
        h, c = self.features(x, labels, self.n_d_embed(finished.long()))
        return DD1Prediction(self.final_layer_conti(h, c), self.classify(h, c))

    @classmethod
    def is_constant(cls, key: str) -> bool:
        """Whether the tensor of this key in a release's file is not learned."""
        return key.rsplit(".", 1)[-1] in cls.CONSTANTS

    def start_from(self, backbone: nn.Module, classifier: nn.Module, but: str) -> Self:
        """Load a teacher's tensors, except those whose keys begin with ``but``; all others keep their values."""
        tensors = {**backbone.state_dict(), **classifier.state_dict()}
        kept = {key: self.convert_tensor(key, value) for key, value in tensors.items() if not key.startswith(but)}
        self.load_state_dict({**self.state_dict(), **kept})
        return self

    def convert_tensor(self, key: str, tensor: Tensor) -> Tensor:
        """Convert a tensor of the teacher to that of this network."""
        return tensor


def is_finished(layout: Layout, t: int | Tensor, device: torch.device) -> Tensor:
    """Which tokens belong to the first t positions: t one number or (B,) -> (1 or B, n, 1)."""
    return layout.position_of_token(device)[:, None] < torch.as_tensor(t, device=device).view(-1, 1, 1)


def trajectory_point(layout: Layout, tokens: Tensor, noise: Tensor, t: int | Tensor) -> Tensor:
    """X_t: tokens (B, n, C) at the first t positions, noise (B, n, C) at the others; t one number or (B,)."""
    return torch.where(is_finished(layout, t, noise.device), tokens, noise)


def joined(
    layout: Layout, codebook: Tensor, x: Tensor, prediction: DD1Prediction, t: int | Tensor, split: int
) -> Tensor:
    """The sequence after a call at t, (B, n, C): finished positions of x = X_t, and the prediction at the others.

    In the first ``split`` positions a token is a codebook vector, of the most likely code or, where it is finished, the
    nearest; in the others it is continuous, with its gradient.
    """
    finished = is_finished(layout, t, x.device)
    codes = torch.where(finished[..., 0], nearest_code(x, codebook), prediction.logits.argmax(-1))
    tokens = torch.where(finished, x, prediction.tokens)
    return torch.where(is_finished(layout, split, x.device), codebook[codes], tokens)
