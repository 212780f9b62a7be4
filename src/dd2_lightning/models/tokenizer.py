"""Tokenizers: images to tokens and back, and the training losses of those with a VQ codebook."""

import math
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dd2_lightning.errors import PixelsMissingError
from dd2_lightning.layout import Layout
from dd2_lightning.models.codebook import perplexity, reseed_dead_codes

PIXELS = 1 << 20
"""Pixels that are decoded at a time: 16 images of side 256, whose maps take 3 GB."""

PIXELS_MISSING = (
    "this tokenizer holds a codebook but no encoder and decoder: it cannot read or draw images. A teacher that was "
    "converted with --latent-only gets them by converting the full tokenizer file"
)


class TokenizerLosses(NamedTuple):
    """Losses of a VQ tokenizer on a batch, scalars (), and what it draws; ``loss`` and ``pixels`` have gradients."""

    loss: Tensor  # weighted reconstruction (of pixels in [-1, 1]) + codebook + weighted commitment
    reconstruction: Tensor  # mean squared error of pixels in [0, 1]
    codebook: Tensor  # squared distance of the codes from the latents
    commitment: Tensor  # the same distance, as the encoder is charged for it, unweighted
    perplexity: Tensor  # exponential of the entropy of code usage in the batch, between 1 and V
    pixels: Tensor  # the reconstructions (B, channels, S, S), in about [-1, 1]


class Tokenizer(nn.Module):
    """Images to tokens and back; one without pixel networks overrides neither :meth:`encode` nor :meth:`decode`.

    Only the tokenizer of a teacher with a codebook has a ``codebook``: vectors as they are used, (V, C).
    """

    layout: Layout  # the order of the tokens
    has_images: bool = True  # whether it can encode and decode

    if TYPE_CHECKING:  # subclasses have a property, an attribute or a buffer

        @property
        def codebook(self) -> Tensor: ...

    def look_up(self, indices: Tensor) -> Tensor:
        """The codes of indices (B, n): (B, n, C)."""
        return self.codebook[indices]

    def encode(self, images: Tensor) -> Tensor:
        """Images (B, channels, H, W) in [0, 1] -> indices (B, n), or embeddings where tokens are continuous."""
        raise PixelsMissingError(PIXELS_MISSING)

    def decode(self, tokens: Tensor) -> Tensor:
        """Embeddings (B, n, C), on the codebook or off it -> images (B, channels, H, W) in [0, 1]."""
        raise PixelsMissingError(PIXELS_MISSING)

    def check_pixels(self) -> None:
        """Raise a :class:`PixelsMissingError` where there are no networks to encode and decode."""
        if not self.has_images:
            raise PixelsMissingError(PIXELS_MISSING)

    def rescale_codebook(self, rms: float) -> None:
        """Give the codebook's entries this root mean square without changing an image; nothing if it is fixed."""


class Quantised(NamedTuple):
    """A latent map in codes."""

    indices: Tensor  # nearest codes, (B, n)
    residuals: Tensor  # the vectors that were quantised, (B, n, C)
    # the sum of the codes after each scale (one without scales), (K, B, C, H, W), differentiable in the codebook
    maps: Tensor


class VQTokenizer(Tokenizer, ABC):
    """Encoder, quantiser, decoder.

    Networks between images in [-1, 1], of ``image_shape`` (channels, S, S), and latent maps (B, C, H, H) are encoder,
    decoder, and the convolutions after the one and before the other; None leaves a codebook, which can be distilled
    without images. The quantiser maps ``latent map -> Quantised``; its ``embedding`` is the codebook as stored.
    """

    def __init__(
        self,
        networks: tuple[nn.Module, nn.Module, nn.Module, nn.Module] | None,
        quantiser: nn.Module,
        layout: Layout,
        image_shape: tuple[int, int, int],
    ):
        super().__init__()
        self.has_images = networks is not None
        if networks is not None:
            self.encoder, self.decoder, self.quant_conv, self.post_quant_conv = networks
        self.quantize: nn.Module = quantiser
        self.layout, self.image_shape = layout, image_shape

    def latents(self, images: Tensor) -> Tensor:
        """The map that is quantised: images (B, channels, S, S) in [0, 1] -> (B, C, H, H); refuses other sizes."""
        self.check_pixels()
        if images.shape[1:] != self.image_shape:
            raise ValueError(f"this tokenizer reads images (B, *{self.image_shape}), got {tuple(images.shape)}")
        return self.quant_conv(self.encoder(2 * images - 1))

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        return self.quantize(self.latents(images)).indices

    @abstractmethod
    def latent_map(self, tokens: Tensor) -> Tensor:
        """The latent map (B, C, H, H) of embeddings (B, n, C)."""

    def decode_map(self, latents: Tensor) -> Tensor:
        """Latent map (B, C, H, H) -> pixels (B, channels, S, S) in about [-1, 1], not clamped."""
        self.check_pixels()
        return self.decoder(self.post_quant_conv(latents))

    def decode(self, tokens: Tensor) -> Tensor:
        size = max(1, PIXELS // math.prod(self.image_shape[1:]))
        images = [self.decode_map(self.latent_map(part)) for part in tokens.split(size)]
        return (torch.cat(images).clamp(-1, 1) + 1) / 2

    def training_losses(
        self,
        images: Tensor,
        generator: torch.Generator | None = None,
        reconstruction_weight: float = 1.0,
        commitment_weight: float = 0.25,
    ) -> TokenizerLosses:
        """Reconstruction (through a straight-through estimator), codebook and commitment losses of images in [0, 1].

        The latter two are averaged over the maps of all scales, so that every scale alone brings the map nearer. A
        ``generator`` draws which unused codes are re-seeded; without one none is.
        """
        f = self.latents(images)
        indices, residuals, maps = self.quantize(f)
        codebook = F.mse_loss(maps, f.detach().expand_as(maps))
        commitment = F.mse_loss(f.expand_as(maps), maps.detach())
        pixels = self.decode_map(f + (maps[-1] - f).detach())
        reconstruction = F.mse_loss(pixels, 2 * images - 1)
        stored = self.quantize.get_parameter("embedding.weight")
        counts = torch.bincount(indices.flatten(), minlength=len(stored))
        if generator is not None:
            # the graph holds gathered codes, not the table, so writing to it leaves backward alone
            reseed_dead_codes(stored, counts, residuals.flatten(0, 1), generator)
        return TokenizerLosses(
            reconstruction_weight * reconstruction + codebook + commitment_weight * commitment,
            reconstruction.detach() / 4,
            codebook.detach(),
            commitment.detach(),
            perplexity(counts),
            pixels,
        )
