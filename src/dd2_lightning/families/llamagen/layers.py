r"""Transformer layers of Llama as LlamaGen (arXiv 2406.06525) uses them, with the names of its public release.

Positions enter by rotation. A cell (r, c) of the token grid has d/2 angles, for heads of d channels,

.. math:: r f_0, …, r f_{d/4-1},\; c f_0, …, c f_{d/4-1}, \qquad f_m = \mathrm{base}^{-2m/(d/2)},

and angle m rotates the adjacent channels 2m and 2m+1 of queries and keys.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dd2_lightning.families.llamagen.config import LlamaGenConfig
from dd2_lightning.models.layers import LayerCache, Linear


def rope_table(grid: int, head_dim: int, base: float = 10_000.0) -> Tensor:
    """Cosines and sines of the class position and of a row-major grid of G x G tokens, (1 + G², d/2, 2) on the CPU.

    The class position has zeros for both, which is not the identity: its query and key vanish, so it is seen
    through its value alone, with an attention logit of 0.
    """
    cpu = torch.device("cpu")  # a model that is built on "meta" has its constants all the same
    frequency = base ** (-2 * torch.arange(head_dim // 4, device=cpu) / (head_dim // 2))
    angle = torch.arange(grid, device=cpu)[:, None] * frequency
    angles = torch.cat([angle.repeat_interleave(grid, 0), angle.repeat(grid, 1)], -1)
    return F.pad(torch.stack([angles.cos(), angles.sin()], -1), (0, 0, 0, 0, 1, 0))


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Rotate adjacent channels of x (B, heads, L, d) by a table (L, d/2, 2): a complex product, in float32."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * torch.view_as_complex(table)).flatten(-2).to(x.dtype)


class RMSNorm(nn.Module):
    """w x / √(mean(x²) + eps); normalised in float32, cast back, then times w."""

    def __init__(self, dim: int, eps: float = 1e-5):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        return self.weight * (wide * (wide.square().mean(-1, keepdim=True) + self.eps).rsqrt()).to(x.dtype)


class GroupedAttention(nn.Module):
    """Causal self-attention in which consecutive query heads share the ``kv_heads`` heads of keys and values.

    Without a mask several tokens are the first of a sequence, or one its latest.
    """

    def __init__(self, dim: int, heads: int, kv_heads: int):
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, dim // heads
        self.wqkv = Linear(dim, (heads + 2 * kv_heads) * self.head_dim, bias=False)
        self.wo = Linear(dim, dim, bias=False)

    def forward(self, x: Tensor, rope: Tensor, mask: Tensor | None = None, cache: LayerCache | None = None) -> Tensor:
        qkv = self.wqkv(x).unflatten(-1, (-1, self.head_dim))
        qk, v = qkv.transpose(1, 2).split([self.heads + self.kv_heads, self.kv_heads], 1)
        q, k = rotate(qk, rope).split([self.heads, self.kv_heads], 1)
        if cache is not None:
            k, v = cache.extend(k, v)
        causal, grouped = mask is None and x.shape[1] > 1, self.kv_heads != self.heads
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=grouped)
        return self.wo(out.transpose(1, 2).flatten(2))


class SwiGLU(nn.Module):
    """w2( silu(w1 x) · w3 x )."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.w1 = Linear(dim, hidden, bias=False)
        self.w3 = Linear(dim, hidden, bias=False)
        self.w2 = Linear(hidden, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


def swiglu_width(dim: int, multiplier: float | None = None, multiple_of: int = 256) -> int:
    """Hidden width of a SwiGLU: ⌊8 dim / 3⌋, times the multiplier (⌊⌋ again), rounded up to the multiple."""
    hidden = 8 * dim // 3
    if multiplier is not None:
        hidden = int(multiplier * hidden)
    return -(-hidden // multiple_of) * multiple_of


class LlamaBlock(nn.Module):
    """Attention and SwiGLU, each after an RMSNorm and with a residual; no biases."""

    def __init__(self, config: LlamaGenConfig):
        super().__init__()
        dim, heads = config.width, config.heads
        self.attention = GroupedAttention(dim, heads, config.kv_heads or heads)
        self.feed_forward = SwiGLU(dim, swiglu_width(dim, config.ffn_dim_multiplier, config.multiple_of))
        self.attention_norm = RMSNorm(dim, config.norm_eps)
        self.ffn_norm = RMSNorm(dim, config.norm_eps)

    def forward(self, x: Tensor, rope: Tensor, mask: Tensor | None = None, cache: LayerCache | None = None) -> Tensor:
        """Update ``x`` (B, L, dim), rotated by ``rope`` (L, d/2, 2), under a boolean ``mask`` (L, keys)."""
        x = x + self.attention(self.attention_norm(x), rope, mask, cache)
        return x + self.feed_forward(self.ffn_norm(x))
