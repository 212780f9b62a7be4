"""The teacher: an autoregressive model read as an exact conditional flow."""

import copy
from itertools import islice
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from dd2_lightning.errors import InputTypeError
from dd2_lightning.flow import CodebookFlow
from dd2_lightning.layout import Layout
from dd2_lightning.models.backbone import Backbone
from dd2_lightning.models.codebook import nearest_code
from dd2_lightning.models.layers import Cache
from dd2_lightning.models.tokenizer import Tokenizer
from dd2_lightning.models.walk import Walk
from dd2_lightning.sampling import Sampling, draw, keep_top_k

if TYPE_CHECKING:
    from dd2_lightning.models.dd1 import DD1Student


def check_labels(labels: Tensor, num_classes: int) -> None:
    """Refuse labels that no class has.

    Raises:
        ValueError: naming the first bad label and the valid range.
    """
    bad = labels[(labels < 0) | (labels >= num_classes)]
    if len(bad):
        raise ValueError(f"label {bad[0].item()} is out of range: the model has classes 0..{num_classes - 1}")


class CodebookTeacher(nn.Module):
    """A causal backbone, a classifier over a codebook, and the tokenizer the codebook belongs to.

    A family adds ``config``, its plain sizes, and the class method ``from_config`` that builds the same shapes from
    them. It overrides :meth:`guide`, :meth:`truncate` and :meth:`student_backbone` where it differs, has its own
    :meth:`dd1_student` if the baseline DD1 is to be run with it, and its own ``sampling_type`` where it is sampled with
    more than the common settings.

    Args:
        backbone: features from tokens.
        classifier: ``(features (B, n, d), labels) -> logits (B, n, V)``.
        tokenizer: owner of the codebook.
    """

    sampling_type: ClassVar[type[Sampling]] = Sampling

    def __init__(self, backbone: Backbone, classifier: nn.Module, tokenizer: Tokenizer):
        super().__init__()
        self.backbone, self.classifier, self.tokenizer = backbone, classifier, tokenizer

    @property
    def layout(self) -> Layout:
        """Tokens per position."""
        return self.backbone.layout

    @property
    def num_classes(self) -> int:
        """Number of classes; the null label is not counted."""
        return self.backbone.num_classes

    @property
    def token_dim(self) -> int:
        """C."""
        return self.backbone.token_dim

    @property
    def codebook(self) -> Tensor:
        """(V, C)."""
        return self.tokenizer.codebook

    def are_indices(self, tokens: Tensor) -> bool:
        """Whether tokens are integer indices (B, n), rather than floating embeddings (B, n, C).

        Raises:
            InputTypeError: a ``TypeError``, for anything else.
        """
        integer = not (tokens.is_floating_point() or tokens.is_complex() or tokens.dtype == torch.bool)
        if tokens.ndim == 2 and integer:
            return True
        if tokens.ndim == 3 and tokens.is_floating_point() and tokens.shape[-1] == self.token_dim:
            return False
        raise InputTypeError(
            f"tokens are integer indices (B, n) or floating embeddings (B, n, {self.token_dim}), "
            f"got {tokens.dtype} {tuple(tokens.shape)}"
        )

    def embed(self, tokens: Tensor) -> Tensor:
        """Codebook vectors of indices (B, n), and embeddings (B, n, C) as they are: (B, n, C).

        Raises:
            InputTypeError: see :meth:`are_indices`.
        """
        return self.codebook[tokens.long()] if self.are_indices(tokens) else tokens  # a byte would be taken for a mask

    def snap(self, tokens: Tensor) -> Tensor:
        """Nearest code of every token: (B, n, C) -> indices (B, n)."""
        return nearest_code(tokens, self.codebook)

    def prepare(self, tokens: Tensor) -> Tensor:
        """What the backbone reads, from indices (B, n) or embeddings (B, n, C): by default embeddings.

        Raises:
            InputTypeError: a ``TypeError``, for anything else, and for embeddings where a family reads indices only.
        """
        return self.embed(tokens)

    def settle(self, sampling: Sampling | None) -> Sampling:
        """Sampling settings as the family has them; its own are off where only the common ones are given.

        Raises:
            InputTypeError: for the settings of another family.
        """
        sampling = sampling or Sampling()
        if type(sampling) is self.sampling_type:
            return sampling
        if type(sampling) is Sampling:
            return self.sampling_type(**vars(sampling))
        raise InputTypeError(
            f"{type(sampling).__name__} is for teachers of another family; this one has {self.sampling_type.__name__}"
        )

    def guide(self, cond: Tensor, uncond: Tensor, sampling: Sampling, positions: Tensor) -> Tensor:
        """Classifier-free guidance: uncond + s (cond - uncond).

        Args:
            cond: logits with the label, (B, n', V).
            uncond: logits with the null label, (B, n', V).
            sampling: the family's own; its ``guidance_scale`` s is in the family's convention.
            positions: position number of each of the n' tokens, (n',).
        """
        return uncond + sampling.guidance_scale * (cond - uncond)

    def truncate(self, logits: Tensor, sampling: Sampling) -> Tensor:
        """Temperature (1e-5 at least), top-k and top-p on guided logits (B, n', V); what is cut becomes -inf."""
        logits = keep_top_k(logits / max(sampling.temperature, 1e-5), sampling.top_k)
        if sampling.top_p < 1:
            ordered, order = logits.sort(-1, descending=True)
            mass = ordered.softmax(-1).cumsum(-1)
            # the token that carries the sum across top_p stays: a token goes if the ones before it suffice
            gone = (mass > sampling.top_p).roll(1, -1)
            gone[..., 0] = False
            logits = logits.masked_fill(gone.gather(-1, order.argsort(-1)), -torch.inf)
        return logits

    def choose(
        self, flow: CodebookFlow, sampling: Sampling, chance: Tensor, position: int, generator: torch.Generator | None
    ) -> Tensor:
        """The tokens of one position of a sample.

        Args:
            flow: of the position.
            sampling: the family's own.
            chance: uniform numbers, (B, n_i).
            position: its number.
            generator: for settings that need more numbers than that.

        Returns:
            Indices (B, n_i), or embeddings (B, n_i, C) for settings that make soft tokens.
        """
        return draw(flow, chance)

    def adopt_tokenizer(self) -> None:
        """Copy what the backbone needs of a tokenizer that was just trained; most families need nothing."""

    def continuous(self) -> "CodebookTeacher":
        """A copy that reads embeddings, for families whose release reads indices only; its input is still untrained.

        Raises:
            InputTypeError: where there is nothing to adapt.
        """
        raise InputTypeError("this teacher reads embeddings as it is: there is nothing to adapt")

    def input_error(self, original: "CodebookTeacher") -> Tensor:
        """How far the input of a :meth:`continuous` copy is from the original's, summed over channels, (V,)."""
        raise InputTypeError("this teacher reads embeddings as it is: there is nothing to adapt")

    def student_backbone(self) -> Backbone:
        """What a student reads with: a trainable copy of the teacher's backbone, unless the family says otherwise."""
        return copy.deepcopy(self.backbone).requires_grad_(True)

    def dd1_student(self) -> "DD1Student":
        """A trainable network for the baseline DD1, with the teacher's weights wherever it has the same layers.

        Raises:
            InputTypeError: for a family that does not say what its network is.
        """
        raise InputTypeError(
            f"{type(self).__name__} has no network for DD1: override dd1_student, for instance with "
            f"dd2_lightning.models.dd1_table.DD1Causal"
        )

    def logits(self, tokens: Tensor, labels: Tensor, guidance_scale: float | None = None) -> Tensor:
        """Next-token logits before truncation, in float32.

        Args:
            tokens: indices (B, n) or embeddings (B, n, C); whole positions.
            labels: (B,).
            guidance_scale: None for the conditional logits themselves.

        Returns:
            (B, n, V).

        Raises:
            ValueError: for a label that no class has.
            TypeError: see :meth:`prepare`.
        """
        check_labels(labels, self.num_classes)
        return self._logits(self.prepare(tokens), labels, self.settle(Sampling(guidance_scale)))

    def predict(self, prepared: Tensor, labels: Tensor) -> Tensor:
        """Logits (B, n, V) of one pass, as training wants them: labels (B,) may be the null label.

        Args:
            prepared: see :meth:`prepare`.
            labels: 0..num_classes.
        """
        return self.classifier(self.backbone(prepared, labels), labels).float()

    def _logits(self, tokens: Tensor, labels: Tensor, sampling: Sampling, cache: Cache | None = None) -> Tensor:
        if sampling.guidance_scale is None:
            return self.classifier(self._features(tokens, labels, cache), labels).float()
        both = torch.cat([labels, torch.full_like(labels, self.num_classes)])
        features = self._features(torch.cat([tokens, tokens]), both, cache)
        cond, uncond = self.classifier(features, both).float().chunk(2)
        span = self.layout.span(cache.positions - 1) if cache else slice(cond.shape[1])
        positions = self.layout.position_of_token(tokens.device)[span]
        return self.guide(cond, uncond, sampling, positions)

    def _features(self, tokens: Tensor, labels: Tensor, cache: Cache | None) -> Tensor:
        return self.backbone.next_position(tokens, labels, cache) if cache else self.backbone(tokens, labels)

    def _flow(self, tokens: Tensor, labels: Tensor, sampling: Sampling | None, cache: Cache | None) -> CodebookFlow:
        sampling = self.settle(sampling)
        logits = self._logits(tokens, labels, sampling, cache)
        return CodebookFlow(self.codebook, self.truncate(logits, sampling).log_softmax(-1))

    def flow(self, tokens: Tensor, labels: Tensor, sampling: Sampling | None = None) -> CodebookFlow:
        """The exact conditional flow of every token given the tokens before its position.

        Args:
            tokens: indices (B, n) or embeddings (B, n, C).
            labels: (B,).
            sampling: guidance and truncation; None for the raw conditional model.
        """
        return self._flow(self.prepare(tokens), labels, sampling, None)

    def unmasked_cache(self) -> Cache:
        """A cache with which positions that enter together, a prefix and the first after it, all see each other.

        It makes a slip of DD1's release: there, a VAR that goes on from given scales reads them without its mask. For
        comparison with its figures only.

        Raises:
            InputTypeError: for a family whose release has no such slip.
        """
        raise InputTypeError(f"{type(self).__name__} never reads a prefix without its mask: that is a slip of VAR's")

    def walk(
        self,
        labels: Tensor,
        sampling: Sampling | None = None,
        prefix: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Walk:
        """Go through the positions with a key-value cache.

        Args:
            labels: (B,).
            sampling: guidance and truncation.
            prefix: tokens of the first positions, indices or embeddings.
            cache: a fresh one, if not the usual.
        """
        check_labels(labels, self.num_classes)
        if prefix is None:
            prefix = labels.new_zeros(len(labels), 0)
        cache = cache or Cache()
        return Walk(
            self.layout,
            lambda tokens: self._flow(tokens, labels, sampling, cache),
            self.prepare,
            self.prepare(prefix),
        )

    @torch.no_grad()
    def sample(
        self,
        labels: Tensor,
        sampling: Sampling | None = None,
        generator: torch.Generator | None = None,
        prefix: Tensor | None = None,
        chance: Tensor | None = None,
        until: int | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """Draw sequences.

        Args:
            labels: (B,).
            sampling: guidance and truncation.
            generator: random source, on the labels' device.
            prefix: tokens of the first positions; they are kept, snapped to their nearest codes.
            chance: the uniform numbers themselves, (B, n), instead of a generator.
            until: stop after this many positions; None draws all.
            cache: a fresh one, if not the usual.

        Returns:
            Indices (B, n); embeddings (B, n, C) if the family's sampling settings make soft tokens. With ``until``,
            those of the first positions.
        """
        sampling = self.settle(sampling)
        walk = self.walk(labels, sampling, prefix, cache)
        if chance is None:
            chance = torch.rand(len(labels), self.layout.length, generator=generator, device=labels.device)
        drawn = [labels.new_zeros(len(labels), 0)]
        if walk.position:
            drawn.append(prefix if self.are_indices(prefix) else self.snap(prefix))
        until = self.layout.num_positions if until is None else until
        for flow in islice(walk, max(0, until - walk.position)):
            drawn.append(self.choose(flow, sampling, chance[:, walk.span], walk.position, generator))
            walk.append(drawn[-1])
        if drawn[-1].is_floating_point():
            drawn = [self.embed(tokens) for tokens in drawn]
        return torch.cat(drawn, 1)

    @torch.no_grad()
    def refine(
        self,
        tokens: Tensor,
        labels: Tensor,
        steps: int,
        sampling: Sampling | None = None,
        generator: torch.Generator | None = None,
        chance: Tensor | None = None,
    ) -> Tensor:
        """Teacher-refined sampling (alg. 4): re-sample the last ``steps - 1`` positions of a one-step draft.

        Args:
            tokens: one-step sequence, (B, n, C).
            labels: (B,).
            steps: total steps k: 1 returns the draft, N + 1 is the teacher itself.
            sampling: guidance and truncation.
            generator: random source.
            chance: the uniform numbers themselves, (B, n), instead of a generator.

        Returns:
            Tokens, (B, n, C).

        Raises:
            ValueError: if ``steps`` is not in 1..N+1.
        """
        self.check_steps(steps)
        if steps == 1:
            return tokens
        kept = tokens[:, : self.layout.offsets[self.layout.num_positions + 1 - steps]]
        drawn = self.sample(labels, sampling, generator, kept, chance)
        return torch.cat([kept, self.embed(drawn[:, kept.shape[1] :])], 1)

    def check_steps(self, steps: int) -> None:
        """Refuse a number of steps that :meth:`refine` cannot take.

        Raises:
            ValueError: if it is not in 1..N+1.
        """
        N = self.layout.num_positions
        if not 1 <= steps <= N + 1:
            raise ValueError(f"steps must be in 1..{N + 1} for a teacher of {N} positions, got {steps}")

    def encode(self, images: Tensor) -> Tensor:
        """Pictures (B, channels, H, W) in [0, 1] -> indices (B, n)."""
        return self.tokenizer.encode(images)

    def decode(self, tokens: Tensor) -> Tensor:
        """Indices (B, n) or embeddings (B, n, C) -> pictures (B, channels, H, W) in [0, 1]."""
        return self.tokenizer.decode(self.embed(tokens))
