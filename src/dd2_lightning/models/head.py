"""The velocity head: a small MLP in place of the teacher's classification head (fig. 7 of the paper)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dd2_lightning.models.layers import adaptive, fourier_features, layer_norm


class TimeEmbedding(nn.Module):
    """Sinusoids of 1000 t, in float32, through a two-layer MLP: times in [0, 1] (...,) -> (..., width)."""

    def __init__(self, width: int, frequencies: int = 256):
        super().__init__()
        half = frequencies // 2
        self.omega: Tensor
        self.register_buffer("omega", torch.exp(-math.log(1e4) * torch.arange(half) / half), persistent=False)
        self.mlp = nn.Sequential(nn.Linear(2 * half, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        angle = 1000 * t.float()[..., None] * self.omega
        return self.mlp(torch.cat([angle.cos(), angle.sin()], -1).to(next(self.mlp.parameters()).dtype))


class ResidualBlock(nn.Module):
    """x + gate · MLP(LN(x)·(1+scale) + shift), modulated by time and feature."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.ada_lin = adaptive(3 * width, width)

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        shift, scale, gate = self.ada_lin(cond).chunk(3, -1)
        return x + gate * self.mlp(self.norm(x) * (1 + scale) + shift)


class VelocityHead(nn.Module):
    """MAR-style head ``(x_t, t, features) -> v``: ``depth`` residual MLP blocks under adaptive layer norm.

    It starts as the zero velocity. Width 1024 and 4 blocks give the parameter counts of the paper, which has no
    :func:`fourier_features` of x_t (``frequencies``).
    """

    def __init__(self, token_dim: int, feature_dim: int, width: int = 1024, depth: int = 4, frequencies: int = 0):
        super().__init__()
        self.frequencies = frequencies
        self.input = nn.Linear(token_dim * (1 + 2 * frequencies), width)
        self.time = TimeEmbedding(width)
        self.cond = nn.Linear(feature_dim, width)
        self.blocks = nn.ModuleList(ResidualBlock(width) for _ in range(depth))
        self.ada_lin = adaptive(2 * width, width)
        self.output = nn.Linear(width, token_dim)
        for name, parameter in self.named_parameters():
            if "ada_lin." in name or name.startswith("output."):
                nn.init.zeros_(parameter)

    def forward(self, x_t: Tensor, t: Tensor, features: Tensor) -> Tensor:
        """Velocity at x_t (B, n, m, C); t (B, n, m) has axes of length 1 where it is shared; features are (B, n, d)."""
        return self.output(self._hidden(x_t, t, features))

    def hidden(self, x_t: Tensor, t: Tensor, features: Tensor) -> Tensor:
        """What the last layer reads, (B, n, m, width); sharded weights are gathered for this call alone."""
        return self._hidden(x_t, t, features)

    def _hidden(self, x_t: Tensor, t: Tensor, features: Tensor) -> Tensor:
        cond = self.cond(F.layer_norm(features, features.shape[-1:]))[:, :, None] + self.time(t)
        x = self.input(fourier_features(x_t, self.frequencies))
        for block in self.blocks:
            x = block(x, cond)
        shift, scale = self.ada_lin(cond).chunk(2, -1)
        return layer_norm(x) * (1 + scale) + shift
