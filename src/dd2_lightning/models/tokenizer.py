"""Tokenizers: images to tokens and back, and the training losses of those with a VQ codebook."""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dd2_lightning.errors import PixelsMissingError
from dd2_lightning.layout import Layout
from dd2_lightning.models.codebook import perplexity, reseed_dead_codes

PIXELS_MISSING = (
    "this tokenizer holds a codebook but no encoder and decoder: it cannot read or draw images. A teacher that was "
    "converted with --latent-only gets them by converting the full tokenizer file"
)


class TokenizerLosses(NamedTuple):
    """Losses of a VQ tokenizer on a batch, all scalars (); only ``loss`` has a gradient.

    Attributes:
        loss: weighted reconstruction (of pixels in [-1, 1]) + codebook + weighted commitment.
        reconstruction: mean squared error of pixels in [0, 1].
        codebook: squared distance of the codes from the latents.
        commitment: the same distance, as the encoder is charged for it, unweighted.
        perplexity: exponential of the entropy of code usage in the batch, between 1 and V.
    """

    loss: Tensor
    reconstruction: Tensor
    codebook: Tensor
    commitment: Tensor
    perplexity: Tensor


class Tokenizer(nn.Module):
    """Images to tokens and back; one without pixel networks overrides neither :meth:`encode` nor :meth:`decode`.

    Attributes:
        layout: the order of the tokens.
        codebook: vectors as they are used, (V, C); only the tokenizer of a teacher with a codebook has it.
        has_images: whether it can encode and decode; False for a codebook without pixel networks.
    """

    layout: Layout
    has_images: bool = True

    if TYPE_CHECKING:  # subclasses have a property, an attribute or a buffer

        @property
        def codebook(self) -> Tensor: ...

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
    """A latent map in codes.

    Attributes:
        indices: nearest codes, (B, n).
        residuals: the vectors that were quantised, (B, n, C).
        maps: the sum of the codes after each scale (a single one without scales), (K, B, C, H, W); differentiable in
            the codebook.
    """

    indices: Tensor
    residuals: Tensor
    maps: Tensor


class Quantiser(Protocol):
    """A module from latent maps (B, C, H, H) to codes; ``embedding`` is the codebook as stored."""

    embedding: nn.Embedding

    def __call__(self, f: Tensor) -> Quantised:
        """Quantise a map."""


class VQTokenizer(Tokenizer, ABC):
    """Encoder, quantiser, decoder.

    Args:
        networks: between images in [-1, 1] and latent maps (B, C, H, H): encoder, decoder, and the convolutions after
            the one and before the other; None leaves a codebook, which can be distilled without images.
        quantiser: a module, see :class:`Quantiser`.
        layout: the order of the tokens.
        image_shape: channels, height and width.
    """

    def __init__(
        self,
        networks: tuple[nn.Module, nn.Module, nn.Module, nn.Module] | None,
        quantiser: Quantiser,
        layout: Layout,
        image_shape: tuple[int, int, int],
    ):
        super().__init__()
        self.has_images = networks is not None
        if networks is not None:
            self.encoder, self.decoder, self.quant_conv, self.post_quant_conv = networks
        self.quantize = quantiser
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
        return (self.decode_map(self.latent_map(tokens)).clamp(-1, 1) + 1) / 2

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
        stored = self.quantize.embedding.weight
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
        )
