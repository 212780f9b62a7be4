"""LlamaGen's VQ tokenizer (arXiv 2406.06525, sec. 2.2): one map of tokens, all codes on a sphere."""

import math

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from dd2_lightning.families.llamagen.config import LlamaGenConfig
from dd2_lightning.models.codebook import nearest_code
from dd2_lightning.models.convnets import Decoder, Encoder
from dd2_lightning.models.tokenizer import Quantised, VQTokenizer


class SphereQuantiser(nn.Module):
    """Nearest code by direction. Stored codes have any length; they are normalised whenever they are read."""

    def __init__(self, codes: int, token_dim: int):
        super().__init__()
        self.embedding = nn.Embedding(codes, token_dim)

    @property
    def unit_codes(self) -> Tensor:
        """Codes of length one, (V, C)."""
        return F.normalize(self.embedding.weight, dim=-1)

    def forward(self, f: Tensor) -> Quantised:
        """Quantise a map (B, C, H, H) of unit vectors."""
        vectors = rearrange(f.detach(), "b c h w -> b (h w) c")
        indices = nearest_code(vectors, self.unit_codes.detach())
        # only the chosen rows are normalised, so that the table itself stays out of the graph and can be re-seeded
        chosen = F.normalize(self.embedding(indices), dim=-1)
        return Quantised(indices, vectors, as_map(chosen)[None])


def as_map(vectors: Tensor) -> Tensor:
    """Row-major vectors (B, n, C) -> a square map (B, C, √n, √n)."""
    return rearrange(vectors, "b (h w) c -> b c h w", h=math.isqrt(vectors.shape[1]))


class SphereVQ(VQTokenizer):
    """Images of side ``grid * 2 ** (len(encoder_ch_mult) - 1)`` to a square map of tokens and back.

    Networks have VAR's names; :mod:`dd2_lightning.families.llamagen.release` renames. Images do not depend on
    ``code_norm``, the length of a token: 1 is the release's; noise of a flow has length √C.
    """

    quantize: SphereQuantiser

    def __init__(self, config: LlamaGenConfig):
        C, z, colours = config.token_dim, config.z_channels, config.image_channels
        networks = (
            Encoder(colours, config.ch, config.encoder_ch_mult, config.num_res_blocks, z, fused=False),
            Decoder(colours, config.ch, config.decoder_ch_mult, config.num_res_blocks, z, fused=False),
            nn.Conv2d(z, C, 1),
            nn.Conv2d(C, z, 1),
        )
        side = config.grid * 2 ** (len(config.encoder_ch_mult) - 1)
        quantiser = SphereQuantiser(config.codes, C)
        super().__init__(networks if config.pixels else None, quantiser, config.layout, (colours, side, side))
        self.code_norm = config.code_norm

    @property
    def codebook(self) -> Tensor:
        return self.code_norm * self.quantize.unit_codes

    def look_up(self, indices: Tensor) -> Tensor:
        return self.code_norm * F.normalize(self.quantize.embedding(indices), dim=-1)  # of 16,384 codes these alone

    def latents(self, images: Tensor) -> Tensor:
        return F.normalize(super().latents(images), dim=1)

    def latent_map(self, tokens: Tensor) -> Tensor:
        return as_map(tokens / self.code_norm)
