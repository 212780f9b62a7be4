"""The teacher: an autoregressive model read as an exact conditional flow."""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dd2_lightning.errors import PixelsMissingError
from dd2_lightning.flow import CodebookFlow
from dd2_lightning.layout import Layout
from dd2_lightning.models.backbone import Backbone
from dd2_lightning.models.codebook import nearest_code
from dd2_lightning.models.layers import Cache
from dd2_lightning.models.walk import Walk
from dd2_lightning.sampling import Sampling, draw, keep_top_k


class TokenizerLosses(NamedTuple):
    """Losses of a VQ tokenizer on a batch, all scalars ().

    Attributes:
        loss: what to differentiate: weighted reconstruction (of pixels in [-1, 1]) + codebook + weighted commitment.
        reconstruction: mean squared error of pixels in [0, 1]; no gradient.
        codebook: how far the codes are from the latents; no gradient.
        commitment: the same distance, as the encoder is charged for it, unweighted; no gradient.
        perplexity: exponential of the entropy of code usage in the batch, between 1 and V.
    """

    loss: Tensor
    reconstruction: Tensor
    codebook: Tensor
    commitment: Tensor
    perplexity: Tensor


class Tokenizer(nn.Module, ABC):
    """Pictures to tokens and back. It owns grid sides and pixels; a :class:`Layout` holds counts only.

    Attributes:
        layout: the order of the tokens.
        has_pictures: whether it can encode and decode; False for a bare codebook.
    """

    layout: Layout
    has_pictures: bool = True

    @property
    @abstractmethod
    def codebook(self) -> Tensor:
        """Codebook vectors as they are used, (V, C)."""

    @abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """Pictures (B, channels, H, W) in [0, 1] -> indices (B, n)."""

    @abstractmethod
    def decode(self, tokens: Tensor) -> Tensor:
        """Embeddings (B, n, C), on the codebook or off it -> pictures (B, channels, H, W) in [0, 1]."""

    def training_losses(
        self, images: Tensor, generator: torch.Generator | None = None, reconstruction_weight: float = 1.0
    ) -> TokenizerLosses:
        """Losses on pictures (B, channels, H, W); ``generator`` draws which unused codes are re-seeded, None: none."""
        raise NotImplementedError(f"{type(self).__name__} cannot be trained here")

    def check_pixels(self) -> None:
        """Refuse to encode or decode without the networks for it.

        Raises:
            PixelsMissingError: saying how the teacher comes to have them.
        """
        if not self.has_pictures:
            raise PixelsMissingError(
                "this tokenizer holds a codebook but no encoder and decoder: it cannot read or draw pictures. "
                "A teacher that was converted with --latent-only gets them by converting the full tokenizer file"
            )

    def rescale_codebook(self, rms: float) -> None:
        """Give the codebook's entries this root mean square without changing a picture; nothing if it is fixed."""


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

    Families override :meth:`guide`, :meth:`truncate` and :meth:`student_backbone`.

    Args:
        backbone: features from tokens.
        classifier: ``(features (B, n, d), labels) -> logits (B, n, V)``.
        tokenizer: owner of the codebook.
    """

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

    def embed(self, indices: Tensor) -> Tensor:
        """Codebook vectors of indices: (B, n) -> (B, n, C)."""
        return self.codebook[indices.long()]  # a byte would be taken for a mask

    def snap(self, tokens: Tensor) -> Tensor:
        """Nearest code of every token: (B, n, C) -> indices (B, n)."""
        return nearest_code(tokens, self.codebook)

    def prepare(self, tokens: Tensor) -> Tensor:
        """What the backbone reads, from indices (B, n) or embeddings (B, n, C).

        Raises:
            TypeError: for anything else.
        """
        integer = not (tokens.is_floating_point() or tokens.is_complex() or tokens.dtype == torch.bool)
        if tokens.ndim == 2 and integer:
            return self.embed(tokens)
        if tokens.ndim == 3 and tokens.is_floating_point() and tokens.shape[-1] == self.token_dim:
            return tokens
        raise TypeError(
            f"tokens are integer indices (B, n) or floating embeddings (B, n, {self.token_dim}), "
            f"got {tokens.dtype} {tuple(tokens.shape)}"
        )

    def guide(self, cond: Tensor, uncond: Tensor, scale: float, positions: Tensor) -> Tensor:
        """Classifier-free guidance: uncond + scale (cond - uncond).

        Args:
            cond: logits with the label, (B, n', V).
            uncond: logits with the null label, (B, n', V).
            scale: guidance scale in the family's convention.
            positions: position number of each of the n' tokens, (n',).
        """
        return uncond + scale * (cond - uncond)

    def truncate(self, logits: Tensor, sampling: Sampling) -> Tensor:
        """Temperature, top-k and top-p on guided logits (B, n', V); tokens that are cut become -inf."""
        logits = keep_top_k(logits / sampling.temperature, sampling.top_k)
        if sampling.top_p < 1:
            ordered, order = logits.sort(-1, descending=True)
            mass = ordered.softmax(-1).cumsum(-1)
            # the token that carries the sum across top_p stays: a token goes if the ones before it suffice
            gone = (mass > sampling.top_p).roll(1, -1)
            gone[..., 0] = False
            logits = logits.masked_fill(gone.gather(-1, order.argsort(-1)), -torch.inf)
        return logits

    def adopt_tokenizer(self) -> None:
        """Copy what the backbone needs of a tokenizer that was just trained; most families need nothing."""

    def student_backbone(self) -> Backbone:
        """A trainable backbone for a student, initialised as far as the family can."""
        raise NotImplementedError(f"{type(self).__name__} does not say what its student reads with")

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
        return self._logits(self.prepare(tokens), labels, guidance_scale)

    def _logits(
        self, tokens: Tensor, labels: Tensor, guidance_scale: float | None, cache: Cache | None = None
    ) -> Tensor:
        if guidance_scale is None:
            return self.classifier(self._features(tokens, labels, cache), labels).float()
        both = torch.cat([labels, torch.full_like(labels, self.num_classes)])
        features = self._features(torch.cat([tokens, tokens]), both, cache)
        cond, uncond = self.classifier(features, both).float().chunk(2)
        span = self.layout.span(cache.positions - 1) if cache else slice(cond.shape[1])
        positions = self.layout.position_of_token(tokens.device)[span]
        return self.guide(cond, uncond, guidance_scale, positions)

    def _features(self, tokens: Tensor, labels: Tensor, cache: Cache | None) -> Tensor:
        return self.backbone.next_position(tokens, labels, cache) if cache else self.backbone(tokens, labels)

    def _flow(self, tokens: Tensor, labels: Tensor, sampling: Sampling | None, cache: Cache | None) -> CodebookFlow:
        sampling = sampling or Sampling()
        logits = self._logits(tokens, labels, sampling.guidance_scale, cache)
        return CodebookFlow(self.codebook, self.truncate(logits, sampling).log_softmax(-1))

    def flow(self, tokens: Tensor, labels: Tensor, sampling: Sampling | None = None) -> CodebookFlow:
        """The exact conditional flow of every token given the tokens before its position.

        Args:
            tokens: indices (B, n) or embeddings (B, n, C).
            labels: (B,).
            sampling: guidance and truncation; None for the raw conditional model.
        """
        return self._flow(self.prepare(tokens), labels, sampling, None)

    def walk(self, labels: Tensor, sampling: Sampling | None = None, prefix: Tensor | None = None) -> Walk:
        """Go through the positions with a key-value cache.

        Args:
            labels: (B,).
            sampling: guidance and truncation.
            prefix: tokens of the first positions, indices or embeddings.
        """
        check_labels(labels, self.num_classes)
        if prefix is None:
            prefix = self.codebook.new_zeros(len(labels), 0, self.token_dim)
        cache = Cache()
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
    ) -> Tensor:
        """Draw sequences.

        Args:
            labels: (B,).
            sampling: guidance and truncation.
            generator: random source, on the labels' device.
            prefix: tokens of the first positions; they are kept, snapped to their nearest codes.
            chance: the uniform numbers themselves, (B, n), instead of a generator.

        Returns:
            Indices (B, n).
        """
        walk = self.walk(labels, sampling, prefix)
        if chance is None:
            chance = torch.rand(len(labels), self.layout.length, generator=generator, device=labels.device)
        indices = []
        if walk.position:
            indices.append(prefix if prefix.ndim == 2 else self.snap(prefix))
        for flow in walk:
            indices.append(draw(flow, chance[:, walk.span]))
            walk.append(indices[-1])
        return torch.cat(indices, 1)

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
        N = self.layout.num_positions
        if not 1 <= steps <= N + 1:
            raise ValueError(f"steps must be in 1..{N + 1} for a teacher of {N} positions, got {steps}")
        if steps == 1:
            return tokens
        kept = tokens[:, : self.layout.offsets[N + 1 - steps]]
        indices = self.sample(labels, sampling, generator, kept, chance)
        return torch.cat([kept, self.embed(indices[:, kept.shape[1] :])], 1)

    def encode(self, images: Tensor) -> Tensor:
        """Pictures (B, channels, H, W) in [0, 1] -> indices (B, n)."""
        return self.tokenizer.encode(images)

    def decode(self, tokens: Tensor) -> Tensor:
        """Indices (B, n) or embeddings (B, n, C) -> pictures (B, channels, H, W) in [0, 1]."""
        return self.tokenizer.decode(self.prepare(tokens))
