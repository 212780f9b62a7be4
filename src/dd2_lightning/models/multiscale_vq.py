"""VAR's multi-scale residual VQ tokenizer (arXiv 2404.02905, sec. 3), under the names of the public release."""

import torch
from torch import Tensor, nn

from dd2_lightning.models.codebook import nearest_code
from dd2_lightning.models.convnets import Decoder, Encoder, conv3x3
from dd2_lightning.models.pyramid import ScalePyramid
from dd2_lightning.models.tokenizer import PixelNetworks, Quantised, VQTokenizer


class MultiScaleQuantiser(nn.Module):
    """Residual quantisation over the scales of a pyramid, with one codebook used as stored.

    Args:
        sides: side of each scale.
        codes: V.
        token_dim: C.
        num_phi: residual convolutions.
    """

    def __init__(self, sides: tuple[int, ...], codes: int, token_dim: int, num_phi: int):
        super().__init__()
        self.embedding = nn.Embedding(codes, token_dim)
        self.quant_resi = ScalePyramid(sides, token_dim, num_phi)

    def forward(self, f: Tensor) -> Quantised:
        """Quantise a latent map (B, C, H, H) scale by scale, each scale what the coarser ones left over.

        The maps are the accumulated ones after each scale, differentiable in codebook and phi.
        """
        pyramid, target = self.quant_resi, f.detach()
        f_hat, indices, residuals, maps = None, [], [], []
        for k in range(len(pyramid.sides)):
            rest = target if f_hat is None else target - f_hat.detach()
            residuals.append(pyramid.area_down(rest, k))
            indices.append(nearest_code(residuals[-1], self.embedding.weight.detach()))
            f_hat = pyramid.accumulate(f_hat, self.embedding(indices[-1]), k)
            maps.append(f_hat)
        return Quantised(torch.cat(indices, 1), torch.cat(residuals, 1), torch.stack(maps))


class MultiScaleVQ(VQTokenizer):
    """Pictures to a pyramid of token maps and back.

    Its state dict has the keys of the release, except the usage statistics ``quantize.ema_vocab_hit_SV``, which
    :func:`dd2_lightning.models.var.from_release` drops. The released sizes are V = 4096, C = 32, ``ch`` 160,
    ``ch_mult`` (1, 1, 2, 2, 4), 2 blocks and 4 phi.

    Args:
        sides: side of the token map of each scale, strictly increasing.
        codes: V.
        token_dim: C.
        ch: base width of the pixel networks, a multiple of 32.
        ch_mult: width of each resolution over ``ch``, the finest first. Pictures have side
            ``sides[-1] * 2 ** (len(ch_mult) - 1)``.
        num_res_blocks: residual blocks a resolution (the decoder has one more).
        image_channels: colours of the pictures.
        num_phi: residual convolutions shared by the scales.
        pixels: False leaves out everything but the quantiser.

    Raises:
        ValueError: for a ``ch`` that is no multiple of 32, or sides that do not increase.
    """

    def __init__(
        self,
        sides: tuple[int, ...],
        codes: int,
        token_dim: int,
        ch: int,
        ch_mult: tuple[int, ...],
        num_res_blocks: int,
        image_channels: int = 3,
        num_phi: int = 4,
        pixels: bool = True,
    ):
        size = sides[-1] * 2 ** (len(ch_mult) - 1)
        networks = PixelNetworks(
            Encoder(image_channels, ch, ch_mult, num_res_blocks, token_dim),
            Decoder(image_channels, ch, ch_mult, num_res_blocks, token_dim),
            conv3x3(token_dim, token_dim),
            conv3x3(token_dim, token_dim),
        )
        quantiser = MultiScaleQuantiser(sides, codes, token_dim, num_phi)
        shape = (image_channels, size, size)
        super().__init__(networks if pixels else None, quantiser, quantiser.quant_resi.layout, shape)

    @property
    def pyramid(self) -> ScalePyramid:
        """The scales and their phi convolutions."""
        return self.quantize.quant_resi

    @property
    def codebook(self) -> Tensor:
        """(V, C), as stored."""
        return self.quantize.embedding.weight

    def latent_map(self, tokens: Tensor) -> Tensor:
        """Embeddings (B, n', C) of the first scales or all -> accumulated map (B, C, H, H).

        Fewer scales give a coarse preview.
        """
        return self.pyramid(tokens)

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
        for tensor in scaled + [phi.bias for phi in self.pyramid.qresi_ls]:
            tensor.mul_(factor)
        self.post_quant_conv.weight.div_(factor)
        return factor
