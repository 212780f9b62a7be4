"""Convolutional networks between images (B, channels, H, W) and latent maps (B, z, h, w).

The layers are VQGAN's as VAR (arXiv 2404.02905) and LlamaGen (arXiv 2406.06525) use them, under VAR's names.
"""

import torch.nn.functional as F
from torch import Tensor, nn

GROUP = 4  # channels a group of the normalisation where 32 groups, as published, do not go: ``ch`` is a multiple of it


def group_norm(channels: int) -> nn.GroupNorm:
    """GroupNorm with 32 groups, or groups of 4 channels where 32 does not divide ``channels``; eps 1e-6."""
    if channels % GROUP:
        raise ValueError(f"ch: the group norms need a multiple of {GROUP} channels, got {channels}")
    return nn.GroupNorm(channels // GROUP if channels % 32 else 32, channels, eps=1e-6)


def conv3x3(in_channels: int, out_channels: int) -> nn.Conv2d:
    """A 3x3 convolution that keeps the size of the map."""
    return nn.Conv2d(in_channels, out_channels, 3, padding=1)


class ConvBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), with x projected by a 1x1 convolution where the width changes."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.norm1 = group_norm(in_channels)
        self.conv1 = conv3x3(in_channels, out_channels)
        self.norm2 = group_norm(out_channels)
        self.conv2 = conv3x3(out_channels, out_channels)
        self.nin_shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x)))
        y = self.conv2(F.silu(self.norm2(y)))
        return y + (x if self.nin_shortcut is None else self.nin_shortcut(x))


class ConvAttention(nn.Module):
    """Single-head self-attention over the cells of a map, with a residual.

    Its 1x1 convolution ``qkv`` is ``fused`` (VAR), or three: ``q``, ``k`` and ``v`` (LlamaGen).
    """

    def __init__(self, channels: int, fused: bool = True):
        super().__init__()
        self.norm = group_norm(channels)
        self.fused = fused
        if fused:
            self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        else:
            self.q, self.k, self.v = (nn.Conv2d(channels, channels, 1) for _ in range(3))
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        maps = self.qkv(y).chunk(3, 1) if self.fused else (self.q(y), self.k(y), self.v(y))
        q, k, v = (m.flatten(2).transpose(1, 2)[:, None] for m in maps)
        y = F.scaled_dot_product_attention(q, k, v)[:, 0]
        return x + self.proj_out(y.transpose(1, 2).reshape(x.shape))


class Downsample(nn.Module):
    """Halve the side: a 3x3 convolution of stride 2, padded on the right and at the bottom only."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Double the side: nearest neighbour, then a 3x3 convolution.

    A pixel of the result reads two rows and two columns of x, so weights that meet the same pixel of x are added up
    first: one transposed convolution of 4x4 weights and stride 2, with 4/9 of the multiplications.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.conv = conv3x3(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        flipped = self.conv.weight.flip(2, 3).transpose(0, 1)
        weight = F.avg_pool2d(flipped, 2, stride=1, padding=1, divisor_override=1)  # sums of neighbours
        return F.conv_transpose2d(x, weight, self.conv.bias, stride=2, padding=1)


class Level(nn.Module):
    """The blocks of one resolution, each followed by ``attention``, then ``down``- or ``up``-sampling."""

    def __init__(
        self, before: int, width: int, blocks: int, attention: bool, fused: bool, down: bool = False, up: bool = False
    ):
        super().__init__()
        self.block = nn.ModuleList(ConvBlock(width if i else before, width) for i in range(blocks))
        self.attn = nn.ModuleList(ConvAttention(width, fused) for _ in range(blocks if attention else 0))
        self.downsample = Downsample(width) if down else None
        self.upsample = Upsample(width) if up else None

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.block):
            x = block(x)
            if self.attn:
                x = self.attn[i](x)
        x = x if self.downsample is None else self.downsample(x)
        return x if self.upsample is None else self.upsample(x)


class Middle(nn.Module):
    """Block, attention, block at the lowest resolution."""

    def __init__(self, channels: int, fused: bool = True):
        super().__init__()
        self.block_1 = ConvBlock(channels, channels)
        self.attn_1 = ConvAttention(channels, fused)
        self.block_2 = ConvBlock(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Encoder(nn.Module):
    """Images to latent maps, at a side 2^(levels-1) times smaller.

    A level has ``blocks`` blocks of width ``ch`` times its entry of ``ch_mult``, the finest first.
    """

    def __init__(
        self, image_channels: int, ch: int, ch_mult: tuple[int, ...], blocks: int, z_channels: int, fused: bool = True
    ):
        super().__init__()
        widths = [ch * mult for mult in ch_mult]
        last = len(widths) - 1
        self.conv_in = conv3x3(image_channels, ch)
        self.down = nn.ModuleList(
            Level(before, width, blocks, level == last, fused, down=level < last)
            for level, (before, width) in enumerate(zip([ch, *widths[:-1]], widths, strict=True))
        )
        self.mid = Middle(widths[-1], fused)
        self.norm_out = group_norm(widths[-1])
        self.conv_out = conv3x3(widths[-1], z_channels)

    def forward(self, images: Tensor) -> Tensor:
        x = self.conv_in(images)
        for level in self.down:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    """Latent maps to images, not clamped: the mirror of :class:`Encoder`, with one more block a level."""

    def __init__(
        self, image_channels: int, ch: int, ch_mult: tuple[int, ...], blocks: int, z_channels: int, fused: bool = True
    ):
        super().__init__()
        widths = [ch * mult for mult in ch_mult]
        last = len(widths) - 1
        self.conv_in = conv3x3(z_channels, widths[-1])
        self.mid = Middle(widths[-1], fused)
        self.up = nn.ModuleList(
            Level(before, width, blocks + 1, level == last, fused, up=level > 0)
            for level, (before, width) in enumerate(zip([*widths[1:], widths[-1]], widths, strict=True))
        )
        self.norm_out = group_norm(widths[0])
        self.conv_out = conv3x3(widths[0], image_channels)

    def forward(self, latents: Tensor) -> Tensor:
        x = self.mid(self.conv_in(latents))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))
