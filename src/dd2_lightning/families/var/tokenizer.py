"""VAR's multi-scale residual VQ tokenizer (arXiv 2404.02905, sec. 3), under the names of the public release."""

import torch
from torch import Tensor, nn

from dd2_lightning.families.var.config import VARConfig
from dd2_lightning.families.var.pyramid import ScalePyramid
from dd2_lightning.models.codebook import nearest_code
from dd2_lightning.models.convnets import Decoder, Encoder, conv3x3
from dd2_lightning.models.tokenizer import Quantised, VQTokenizer


class MultiScaleQuantiser(nn.Module):
    """Residual quantisation over the scales of a pyramid, with one codebook used as stored."""

    def __init__(self, config: VARConfig):
        super().__init__()
        self.embedding = nn.Embedding(config.codes, config.token_dim)
        self.quant_resi = ScalePyramid(config.sides, config.token_dim, config.num_phi)

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
    """Images to a pyramid of token maps and back.

    Its state dict has the keys of the release, without the usage statistics ``quantize.ema_vocab_hit_SV``. Images have
    side ``sides[-1] * 2 ** (len(ch_mult) - 1)``.
    """

    def __init__(self, config: VARConfig):
        C, sizes = config.token_dim, (config.image_channels, config.ch, config.ch_mult, config.num_res_blocks)
        networks = (Encoder(*sizes, C), Decoder(*sizes, C), conv3x3(C, C), conv3x3(C, C))
        quantiser = MultiScaleQuantiser(config)
        side = config.sides[-1] * 2 ** (len(config.ch_mult) - 1)
        shape = (config.image_channels, side, side)
        super().__init__(networks if config.pixels else None, quantiser, config.layout, shape)

    @property
    def pyramid(self) -> ScalePyramid:
        """The scales and their phi convolutions."""
        return self.quantize.quant_resi

    @property
    def codebook(self) -> Tensor:
        return self.quantize.embedding.weight

    def latent_map(self, tokens: Tensor) -> Tensor:
        """The accumulated map (B, C, H, H) of embeddings (B, n', C); fewer scales than all give a coarse preview."""
        return self.pyramid(tokens)

    @torch.no_grad()
    def rescale_codebook(self, rms: float) -> None:
        """Give the codebook's entries this root mean square without changing an image or an index.

        Scaling codes and latents by a leaves nearest codes alone; phi is linear but for its bias, which takes the
        factor too, and ``post_quant_conv`` divides by it. A transformer's copy of phi has to follow.

        Raises:
            ValueError: if ``rms`` is not positive or the codebook is zero.
        """
        mean = self.codebook.square().mean()
        if not rms > 0 or not mean > 0:
            raise ValueError(f"rms: cannot rescale a codebook of root mean square {mean.sqrt().item()} to {rms}")
        factor = rms / mean.sqrt().item()
        scaled = [self.codebook, self.quant_conv.weight, self.quant_conv.bias]
        for tensor in scaled + [phi.bias for phi in self.pyramid.qresi_ls]:
            tensor.mul_(factor)
        self.post_quant_conv.weight.div_(factor)
