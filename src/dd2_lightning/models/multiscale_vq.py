"""VAR's multi-scale residual VQ tokenizer (arXiv 2404.02905, sec. 3), under the names of the public release."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from dd2_lightning.models.convnets import GROUPS, Decoder, Encoder, conv3x3
from dd2_lightning.models.pyramid import ScalePyramid
from dd2_lightning.models.teacher import Tokenizer


def check_sizes(owner: object, *names: str) -> None:
    """Refuse sizes that are not positive integers.

    Raises:
        ValueError: naming the key.
    """
    for name in names:
        value = getattr(owner, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}: must be a positive integer, got {value!r}")


@dataclass(frozen=True)
class MultiScaleVQConfig:
    """Sizes of a tokenizer; the defaults are the released one's.

    Attributes:
        sides: side of the token map of each scale.
        codebook_size: V.
        token_dim: C.
        image_channels: colours of the pictures.
        ch: base width of the pixel networks, a multiple of 32.
        ch_mult: width of each resolution over ``ch``, the finest first. Pictures have side
            ``sides[-1] * 2 ** (len(ch_mult) - 1)``.
        num_res_blocks: residual blocks a resolution (the decoder has one more).
        num_phi: number of residual convolutions shared by the scales.

    Raises:
        ValueError: naming the key that is wrong.
    """

    sides: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
    codebook_size: int = 4096
    token_dim: int = 32
    image_channels: int = 3
    ch: int = 160
    ch_mult: tuple[int, ...] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 2
    num_phi: int = 4

    def __post_init__(self):
        for name in ("sides", "ch_mult"):
            value = getattr(self, name)
            if not isinstance(value, list | tuple) or not value or not all(isinstance(v, int) and v > 0 for v in value):
                raise ValueError(f"{name}: must be a list of positive integers, got {value!r}")
            object.__setattr__(self, name, tuple(value))
        check_sizes(self, "codebook_size", "token_dim", "image_channels", "ch", "num_res_blocks", "num_phi")
        if any(a >= b for a, b in zip(self.sides, self.sides[1:], strict=False)):
            raise ValueError(f"sides: must be strictly increasing, got {self.sides}")
        if self.ch % GROUPS:
            raise ValueError(f"ch: must be a multiple of {GROUPS}, the groups of the norms, got {self.ch}")

    @property
    def image_size(self) -> int:
        """Side of the pictures."""
        return self.sides[-1] * 2 ** (len(self.ch_mult) - 1)


class Quantised(NamedTuple):
    """A latent map taken apart into scales.

    Attributes:
        indices: nearest codes, (B, n).
        residuals: the vectors that were quantised, (B, n, C).
        maps: accumulated map after each scale, (K, B, C, H, H); differentiable in codebook and phi.
    """

    indices: Tensor
    residuals: Tensor
    maps: Tensor


class TokenizerLosses(NamedTuple):
    """One training batch of a tokenizer; all but ``loss`` and ``hits`` are for the log.

    Attributes:
        loss: what is minimised, ().
        reconstruction: mean squared error of pixels in [-1, 1], ().
        codebook: how far the maps of codes are from the encoder's map, ().
        commitment: the same number as a loss of the encoder, ().
        perplexity: exponential of the entropy of code usage in the batch, (), at most V.
        hits: how often each code was chosen, (V,).
    """

    loss: Tensor
    reconstruction: Tensor
    codebook: Tensor
    commitment: Tensor
    perplexity: Tensor
    hits: Tensor


class MultiScaleQuantiser(nn.Module):
    """Residual quantisation over the scales of a pyramid, with one codebook used as stored.

    Args:
        sides: side of each scale.
        codebook_size: V.
        token_dim: C.
        num_phi: residual convolutions.
    """

    def __init__(self, sides: tuple[int, ...], codebook_size: int, token_dim: int, num_phi: int):
        super().__init__()
        self.embedding = nn.Embedding(codebook_size, token_dim)
        self.quant_resi = ScalePyramid(sides, token_dim, num_phi)

    def nearest(self, z: Tensor) -> Tensor:
        """Index of the nearest code (Euclidean): (..., C) -> (...)."""
        codebook = self.embedding.weight.detach()
        return (z @ codebook.T - codebook.square().sum(-1) / 2).argmax(-1)

    def forward(self, f: Tensor) -> Quantised:
        """Quantise a latent map (B, C, H, H) scale by scale, each scale what the coarser ones left over."""
        pyramid, target = self.quant_resi, f.detach()
        f_hat, indices, residuals, maps = None, [], [], []
        for k in range(len(pyramid.sides)):
            rest = target if f_hat is None else target - f_hat.detach()
            residuals.append(pyramid.area_down(rest, k))
            indices.append(self.nearest(residuals[-1]))
            f_hat = pyramid.accumulate(f_hat, self.embedding(indices[-1]), k)
            maps.append(f_hat)
        return Quantised(torch.cat(indices, 1), torch.cat(residuals, 1), torch.stack(maps))


class MultiScaleVQ(Tokenizer):
    """Pictures to a pyramid of token maps and back.

    Its state dict has the keys of the release, except the usage statistics ``quantize.ema_vocab_hit_SV``
    (see :func:`dd2_lightning.models.var.from_published`).

    Args:
        config: sizes.
    """

    def __init__(self, config: MultiScaleVQConfig):
        super().__init__()
        self.config = config
        sizes = (config.image_channels, config.ch, config.ch_mult, config.num_res_blocks, config.token_dim)
        self.encoder = Encoder(*sizes)
        self.decoder = Decoder(*sizes)
        self.quant_conv = conv3x3(config.token_dim, config.token_dim)
        self.post_quant_conv = conv3x3(config.token_dim, config.token_dim)
        self.quantize = MultiScaleQuantiser(config.sides, config.codebook_size, config.token_dim, config.num_phi)
        self.layout = self.quantize.quant_resi.layout

    @property
    def codebook(self) -> Tensor:
        """(V, C), as stored."""
        return self.quantize.embedding.weight

    def latents(self, images: Tensor) -> Tensor:
        """The map that is quantised: pictures (B, channels, S, S) in [0, 1] -> (B, C, H, H).

        Raises:
            ValueError: for pictures of another size.
        """
        size = (self.config.image_channels, self.config.image_size, self.config.image_size)
        if images.shape[1:] != size:
            raise ValueError(f"this tokenizer reads pictures (B, {', '.join(map(str, size))}), got {tuple(images.shape)}")
        return self.quant_conv(self.encoder(2 * images - 1))

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Pictures (B, channels, S, S) in [0, 1] -> indices (B, n)."""
        return self.quantize(self.latents(images)).indices

    def decode_map(self, f_hat: Tensor) -> Tensor:
        """Accumulated map (B, C, H, H) -> pixels (B, channels, S, S) in about [-1, 1], not clamped."""
        return self.decoder(self.post_quant_conv(f_hat))

    def decode(self, tokens: Tensor) -> Tensor:
        """Embeddings (B, n', C) of the first scales or all -> pictures (B, channels, S, S) in [0, 1].

        Fewer scales give a coarse preview.
        """
        return (self.decode_map(self.quantize.quant_resi(tokens)).clamp(-1, 1) + 1) / 2

    def training_losses(
        self, images: Tensor, generator: torch.Generator | None = None, commitment_weight: float = 0.25
    ) -> TokenizerLosses:
        """Reconstruction through a straight-through estimator, codebook and commitment losses.

        The two latter are averaged over the accumulated maps of all scales, so that every scale alone brings the
        map nearer. In training mode, with a generator, codes that nothing in the batch chose are re-seeded for the
        next batch.

        Args:
            images: (B, channels, S, S) in [0, 1].
            generator: random source of the re-seeding; None for none.
            commitment_weight: weight of the commitment loss.
        """
        f = self.latents(images)
        indices, residuals, maps = self.quantize(f)
        codebook = F.mse_loss(maps, f.detach().expand_as(maps))
        commitment = F.mse_loss(f.expand_as(maps), maps.detach())
        pixels = self.decode_map(f + (maps[-1] - f).detach())
        reconstruction = F.mse_loss(pixels, 2 * images - 1)
        hits = torch.bincount(indices.flatten(), minlength=len(self.codebook))
        share = hits / hits.sum()
        if self.training and generator is not None:
            self.reseed(hits, residuals.flatten(0, 1), generator)
        return TokenizerLosses(
            reconstruction + codebook + commitment_weight * commitment,
            reconstruction.detach(),
            codebook.detach(),
            commitment.detach(),
            torch.special.entr(share).sum().exp(),
            hits,
        )

    @torch.no_grad()
    def reseed(self, hits: Tensor, residuals: Tensor, generator: torch.Generator) -> int:
        """Move dead codes onto vectors that had to be quantised; all processes move them alike.

        Args:
            hits: how often each code was chosen, (V,); 0 is dead.
            residuals: vectors to choose from, (M, C).
            generator: random source, in the same state on every process.

        Returns:
            How many codes moved.
        """
        together = dist.is_available() and dist.is_initialized()
        if together:
            hits = hits.clone()
            dist.all_reduce(hits)
        dead = hits == 0
        count = int(dead.sum())
        if not count:
            return 0
        chosen = torch.randint(len(residuals), (count,), generator=generator, device=generator.device)
        seeds = residuals[chosen.to(residuals.device)].to(self.codebook.dtype)
        if together:
            dist.broadcast(seeds, 0)
        # the graph of this batch holds gathered codes, not the table, so writing to it leaves backward alone
        self.codebook.data[dead] = seeds
        return count

    @torch.no_grad()
    def rescale_codebook(self, rms: float, weights: Tensor | None = None) -> float:
        """Give the codebook's entries a root mean square without changing a picture or an index.

        Scaling codes and latents by a leaves nearest codes alone; phi is linear but for its bias, which takes the
        factor too, and ``post_quant_conv`` divides by it. A transformer's copy of phi has to follow.

        Args:
            rms: the value to reach.
            weights: of each code, e.g. its usage, (V,); None weighs them equally.

        Returns:
            The factor a.

        Raises:
            ValueError: if ``rms`` is not positive or the codebook is zero.
        """
        square = self.codebook.square().mean(-1)
        mean = square.mean() if weights is None else (square * weights).sum() / weights.sum()
        if not rms > 0 or not mean > 0:
            raise ValueError(f"rms: cannot rescale a codebook of root mean square {mean.sqrt().item()} to {rms}")
        factor = rms / mean.sqrt().item()
        scaled = [self.codebook, self.quant_conv.weight, self.quant_conv.bias]
        for tensor in scaled + [phi.bias for phi in self.quantize.quant_resi.qresi_ls]:
            tensor.mul_(factor)
        self.post_quant_conv.weight.div_(factor)
        return factor
