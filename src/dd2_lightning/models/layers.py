"""Transformer layers: caches and masks of every family; blocks named as in the VAR release (arXiv 2404.02905)."""

import math
from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dd2_lightning.layout import Layout


@dataclass
class LayerCache:
    """Keys and values that one attention layer has seen, (B, heads, length, d) each, in memory for all ``capacity``."""

    capacity: int
    length: int = 0
    modulation: Tensor | None = None  # of a block under a condition, which is the same along a walk

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Add the keys and values of new tokens; returns those of all tokens so far, views of the memory."""
        if not self.length:
            self.k, self.v = (x.new_empty(*x.shape[:2], self.capacity, x.shape[3]) for x in (k, v))
        start, self.length = self.length, self.length + k.shape[2]
        self.k[:, :, start : self.length], self.v[:, :, start : self.length] = k, v
        return self.k[:, :, : self.length], self.v[:, :, : self.length]


class Cache:
    """The state of a backbone along a walk over sequences of ``length`` tokens."""

    def __init__(self, length: int):
        self.positions = 0  # how many positions' features have been computed
        # one key-value cache per block, by its number
        self.layers: defaultdict[int, LayerCache] = defaultdict(lambda: LayerCache(length))
        self.state: Tensor | None = None  # what else a family accumulates


def visibility(layout: Layout, new: slice, device: torch.device | None = None) -> Tensor | None:
    """Which tokens the tokens ``new`` may look at, those of their position and of earlier ones.

    Boolean (len(new), new.stop), or None where everything is visible.
    """
    position = layout.position_of_token(device)[: new.stop]
    mask = position[new, None] >= position[None, :]
    return None if layout.positions_in(new.stop) - layout.positions_in(new.start) == 1 else mask


FEW_ROWS = 8  # a processor's linear map of more rows is faster as it is written


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The linear map x Wᵀ + b; of a few rows on a CPU as W xᵀ, for which its library need not repack the weights."""
    rows = x.shape[:-1].numel()
    if x.device.type != "cpu" or not 1 < rows <= FEW_ROWS or torch.is_grad_enabled():
        return F.linear(x, weight, bias)
    columns = x.reshape(rows, -1).contiguous().T
    y = weight @ columns if bias is None else torch.addmm(bias[:, None], weight, columns)
    return y.T.contiguous().view(*x.shape[:-1], -1)


class Linear(nn.Linear):
    """A linear map by :func:`linear`."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


Visible = Tensor | tuple[int, ...] | None
"""Which keys queries see: by a boolean mask (queries, keys), by the offsets of positions, or all."""


def attend(q: Tensor, k: Tensor, v: Tensor, visible: Visible, scale: float | None = None) -> Tensor:
    """Scaled dot-product attention of (B, heads, L, d).

    With the ``offsets`` of positions, the last one the number of keys, the queries of a position see the keys up to its
    end. Nothing is computed that a mask would hide.
    """
    if not isinstance(visible, tuple):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=visible, scale=scale)
    parts = q.split([stop - start for start, stop in pairwise(visible)], 2)
    seen = zip(parts, visible[1:], strict=True)
    return torch.cat([F.scaled_dot_product_attention(x, k[:, :, :n], v[:, :, :n], scale=scale) for x, n in seen], 2)


class SelfAttention(nn.Module):
    """Multi-head self-attention with unit queries and keys and a learned temperature per head.

    Without ``l2_norm`` nothing is normalised, and the softmax scale is VAR's 0.25/√d.
    """

    MAX_LOG_TEMPERATURE = math.log(100)

    def __init__(self, dim: int, heads: int, l2_norm: bool = True):
        super().__init__()
        self.heads = heads
        self.mat_qkv = Linear(dim, 3 * dim, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(dim))
        self.v_bias = nn.Parameter(torch.zeros(dim))
        self.zero_k_bias: Tensor
        self.register_buffer("zero_k_bias", torch.zeros(dim))
        self.scale_mul_1H11 = nn.Parameter(torch.full((1, heads, 1, 1), math.log(4))) if l2_norm else None
        self.proj = Linear(dim, dim)

    def forward(self, x: Tensor, visible: Visible = None, cache: LayerCache | None = None) -> Tensor:
        B, L, dim = x.shape
        bias = torch.cat([self.q_bias, self.zero_k_bias, self.v_bias])
        qkv = linear(x, self.mat_qkv.weight, bias).view(B, L, 3, self.heads, dim // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        if self.scale_mul_1H11 is None:
            scale = 0.25 / math.sqrt(q.shape[-1])
        else:
            # temperatures reach 100, so unit vectors are made in float32 whatever the precision
            temperature = self.scale_mul_1H11.float().clamp(max=self.MAX_LOG_TEMPERATURE).exp()
            q = (F.normalize(q.float(), dim=-1) * temperature).to(v.dtype)
            k = F.normalize(k.float(), dim=-1).to(v.dtype)
            scale = 1.0
        if cache is not None:
            k, v = cache.extend(k, v)
        out = attend(q, k, v, visible, scale)
        return self.proj(out.transpose(1, 2).reshape(B, L, dim))


class FeedForward(nn.Module):
    """Linear, tanh-GELU, Linear."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fc1 = Linear(dim, hidden)
        self.fc2 = Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


def init_linear(module: nn.Module) -> None:
    """Initialise all linear maps in a module: truncated normal of standard deviation 0.02, zero bias."""
    for linear in module.modules():
        if isinstance(linear, nn.Linear):
            nn.init.trunc_normal_(linear.weight, std=0.02)
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)


def init_residual(linears: list[nn.Linear]) -> None:
    """Divide the last weights of the residual branches by the square root of their number."""
    for linear in linears:
        linear.weight.data.div_(math.sqrt(len(linears)))


def exact_linear(module: nn.Linear, x: Tensor) -> Tensor:
    """A linear map in float32 or wider, whatever the precision of its input and of autocast."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    bias = None if module.bias is None else module.bias.to(dtype)
    with torch.autocast(x.device.type, enabled=False):
        return linear(x.to(dtype), module.weight.to(dtype), bias)


def fourier_features(x: Tensor, frequencies: int) -> Tensor:
    """Append sin and cos of 2^k x for k < ``frequencies``: (..., C) -> (..., C (1 + 2 frequencies)).

    A narrow network can then change from one code to the next within a small step of noise.
    """
    angles = [2.0**k * x for k in range(frequencies)]
    return torch.cat([x, *(angle.sin() for angle in angles), *(angle.cos() for angle in angles)], -1)


def layer_norm(x: Tensor) -> Tensor:
    """LayerNorm without weights, eps 1e-6."""
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)


def adaptive(out_dim: int, cond_dim: int) -> nn.Sequential:
    """The map from a condition to modulation vectors: SiLU, Linear."""
    return nn.Sequential(nn.SiLU(), Linear(cond_dim, out_dim))


class AdaptiveNorm(nn.Module):
    """Layer norm of (B, n, width) with scale and shift (in this order) from a condition (B, width)."""

    def __init__(self, width: int):
        super().__init__()
        self.ada_lin = adaptive(2 * width, width)

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        scale, shift = self.ada_lin(cond)[:, None].chunk(2, -1)
        return layer_norm(x) * (1 + scale) + shift


class AdaLNBlock(nn.Module):
    """Attention and feed-forward, each gated, scaled and shifted by a condition.

    The six vectors are gate, gate, scale, scale, shift, shift (attention, feed-forward). Where they are ``shared``,
    they are computed once for all blocks, and this block only adds an offset (VAR-d36).
    """

    def __init__(self, dim: int, heads: int, mlp_ratio: float = 4, l2_norm: bool = True, shared: bool = False):
        super().__init__()
        self.attn = SelfAttention(dim, heads, l2_norm)
        self.ffn = FeedForward(dim, round(dim * mlp_ratio))
        if shared:
            self.ada_gss = nn.Parameter(torch.randn(1, 1, 6, dim) / dim**0.5)
        else:
            self.ada_lin = adaptive(6 * dim, dim)
        self.shared = shared

    def forward(
        self,
        x: Tensor,
        cond: Tensor,
        visible: Visible = None,
        cache: LayerCache | None = None,
        between: Tensor | None = None,
    ) -> Tensor:
        """Update x (B, L, dim) with a condition (B, dim) or, if shared, the common modulation (B, 1, 6, dim).

        A boolean mask is broadcast to (B, heads, L, keys); ``between`` (B, L, dim) is added after attention.
        """
        six = None if cache is None else cache.modulation
        if six is None:
            six = cond + self.ada_gss if self.shared else self.ada_lin(cond).view(x.shape[0], 1, 6, -1)
        if cache is not None:
            cache.modulation = six
        gate1, gate2, scale1, scale2, shift1, shift2 = six.unbind(2)
        x = x + gate1 * self.attn(layer_norm(x) * (1 + scale1) + shift1, visible, cache)
        if between is not None:
            x = x + between
        return x + gate2 * self.ffn(layer_norm(x) * (1 + scale2) + shift2)
