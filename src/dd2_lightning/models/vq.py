"""LlamaGen's VQ tokenizer (arXiv 2406.06525, sec. 2.2): one map of tokens, all codes on a sphere."""

import math

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from dd2_lightning.layout import Layout
from dd2_lightning.models.codebook import nearest_code
from dd2_lightning.models.convnets import Decoder, Encoder
from dd2_lightning.models.tokenizer import PixelNetworks, Quantised, VQTokenizer


class SphereQuantiser(nn.Module):
    """Nearest code by direction. Stored codes have any length; they are normalised whenever they are read.

    Args:
        codes: V.
        token_dim: C.
    """

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
    """Pictures to a square map of tokens and back.

    The released sizes are V = 16384, C = 8, ``ch`` 128, ``z_channels`` 256, 2 blocks and multipliers
    (1, 1, 2, 2, 4) for VQ-16 or (1, 2, 2, 4) for VQ-8. Networks have VAR's names; see
    :func:`dd2_lightning.models.llamagen.from_release`.

    Args:
        grid: tokens a side.
        codes: V.
        token_dim: C.
        ch: base width of the pixel networks, a multiple of 32.
        encoder_ch_mult: width of each resolution of the encoder over ``ch``, the finest first. Pictures have side
            ``grid * 2 ** (len(encoder_ch_mult) - 1)``.
        decoder_ch_mult: the same of the decoder.
        num_res_blocks: residual blocks a resolution (the decoder has one more).
        z_channels: channels between the pixel networks and the convolutions around the codebook.
        image_channels: colours of the pictures.
        code_norm: length of a token. 1 is the release's; noise of a flow has length √C. Pictures do not depend on it.
        pixels: False leaves out everything but the quantiser.

    Raises:
        ValueError: for a ``ch`` that is no multiple of 32.
    """

    def __init__(
        self,
        grid: int,
        codes: int,
        token_dim: int,
        ch: int,
        encoder_ch_mult: tuple[int, ...],
        decoder_ch_mult: tuple[int, ...],
        num_res_blocks: int,
        z_channels: int,
        image_channels: int = 3,
        code_norm: float = 1.0,
        pixels: bool = True,
    ):
        size = grid * 2 ** (len(encoder_ch_mult) - 1)
        networks = PixelNetworks(
            Encoder(image_channels, ch, encoder_ch_mult, num_res_blocks, z_channels, fused=False),
            Decoder(image_channels, ch, decoder_ch_mult, num_res_blocks, z_channels, fused=False),
            nn.Conv2d(z_channels, token_dim, 1),
            nn.Conv2d(token_dim, z_channels, 1),
        )
        shape = (image_channels, size, size)
        super().__init__(networks if pixels else None, SphereQuantiser(codes, token_dim), Layout((1,) * grid**2), shape)
        self.code_norm = code_norm

    @property
    def codebook(self) -> Tensor:
        """(V, C), all of length ``code_norm``."""
        return self.code_norm * self.quantize.unit_codes

    def latents(self, images: Tensor) -> Tensor:
        """Pictures (B, channels, S, S) in [0, 1] -> unit vectors (B, C, grid, grid).

        Raises:
            ValueError: for pictures of another size.
        """
        return F.normalize(super().latents(images), dim=1)

    def latent_map(self, tokens: Tensor) -> Tensor:
        """Tokens (B, n, C) of length about ``code_norm`` -> a map of vectors of length about 1."""
        return as_map(tokens / self.code_norm)
