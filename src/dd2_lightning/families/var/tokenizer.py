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
        """Quantise a latent map (B, C, H, H) scale by scale, each scale the residual of the coarser ones."""
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
    """Images of side ``sides[-1] * 2 ** (len(ch_mult) - 1)`` to a pyramid of token maps and back.

    State-dict keys are the release's, without the usage statistics ``quantize.ema_vocab_hit_SV``.
    """

    quantize: MultiScaleQuantiser

    def __init__(self, config: VARConfig):
        C, sizes = config.token_dim, (config.image_channels, config.ch, config.ch_mult, config.num_res_blocks)
        networks = (Encoder(*sizes, C), Decoder(*sizes, C), conv3x3(C, C), conv3x3(C, C))
        quantiser = MultiScaleQuantiser(config)
        side = config.sides[-1] * 2 ** (len(config.ch_mult) - 1)
        shape = (config.image_channels, side, side)
        super().__init__(networks if config.pixels else None, quantiser, config.layout, shape)

    @property
    def pyramid(self) -> ScalePyramid:
        return self.quantize.quant_resi

    @property
    def codebook(self) -> Tensor:
        return self.quantize.embedding.weight

    def latent_map(self, tokens: Tensor) -> Tensor:
        return self.pyramid(tokens)

    @torch.no_grad()
    def rescale_codebook(self, rms: float) -> None:
        """Scale codes and latents by one factor, which changes no index.

        Phi is linear but for its bias, which takes the factor too, and ``post_quant_conv`` divides by it. A
        transformer's copy of phi has to follow.
        """
        mean = self.codebook.square().mean()
        if not rms > 0 or not mean > 0:
            raise ValueError(f"rms: cannot rescale a codebook of root mean square {mean.sqrt().item()} to {rms}")
        factor = rms / mean.sqrt().item()
        scaled = [self.codebook, *self.quant_conv.parameters()]
        for tensor in scaled + [phi.get_parameter("bias") for phi in self.pyramid.qresi_ls]:
            tensor.mul_(factor)
        self.post_quant_conv.get_parameter("weight").div_(factor)
