r"""VAR's pyramid of scales: token maps of growing side that add up to one latent map.

With token maps h_k of side p_k and H = p_{K-1} (VAR, arXiv 2404.02905, alg. 1 and 2):

.. math::

    \hat f_k = \hat f_{k-1} + \phi_{j(k)}(\mathrm{up}(h_k)), \qquad
    u_{k+1} = \mathrm{down}(\hat f_k,\ p_{k+1}), \qquad
    \phi_j(h) = \tfrac12 h + \tfrac12 (\mathrm{conv}_j(h) + b_j).

Everything is affine in h: it works on any embeddings, on the codebook or off it, and is differentiable in them.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dd2_lightning.layout import Layout


def phi_index(num_scales: int, num_phi: int) -> tuple[int, ...]:
    """Which of ``num_phi`` convolutions each scale goes through: the one whose tick is nearest to k/(K-1).

    Scales 2 and 7 of K = 10 lie exactly between two ticks, where the released models depend on float64 rounding: the
    arithmetic must stay as it is.
    """
    share = 3 if num_phi == 4 else 2
    first = 1 / share / num_phi
    step = (1 - first - first) / max(num_phi - 1, 1)
    ticks = [first + i * step for i in range(num_phi)]
    ticks[-1] = 1 - first
    places = [k / max(num_scales - 1, 1) for k in range(num_scales)]
    return tuple(min(range(num_phi), key=lambda i: abs(ticks[i] - place)) for place in places)


class Phi(nn.Module):
    """A 3x3 convolution over the token channels; frozen, its weights are buffers and no optimizer sees them."""

    def __init__(self, channels: int, frozen: bool):
        super().__init__()
        self.weight: Tensor
        self.bias: Tensor
        conv = nn.Conv2d(channels, channels, 3, padding=1)
        for name, value in conv.named_parameters():
            setattr(self, name, nn.Buffer(value.detach()) if frozen else value)

    def forward(self, h: Tensor) -> Tensor:
        return torch.lerp(h, F.conv2d(h, self.weight.to(h.dtype), self.bias.to(h.dtype), padding=1), 0.5)


def unit_maps(side: int) -> Tensor:
    """One map for each cell, which is 1 there and 0 elsewhere: (side², 1, side, side), float64 on the CPU."""
    return torch.eye(side * side, dtype=torch.float64, device="cpu").view(-1, 1, side, side)


class ScalePyramid(nn.Module):
    """Token maps to the accumulated latent map, and from there to the input of the next scale.

    Interpolations are matrices over the cells of a map, so that their backward pass is deterministic on every device.
    Arithmetic is float32 or wider even under autocast. Where the pyramid is ``frozen``, its convolutions are buffers.
    """

    def __init__(self, sides: tuple[int, ...], token_dim: int, num_phi: int = 4, frozen: bool = False):
        super().__init__()
        if not sides or sides[0] < 1 or any(a >= b for a, b in pairwise(sides)):
            raise ValueError(f"sides: must be positive and strictly increasing, got {sides}")
        self.sides, self.token_dim = tuple(sides), token_dim
        self.layout = Layout(tuple(side * side for side in sides))
        self.phi_of_scale = phi_index(len(sides), num_phi)
        self.qresi_ls = nn.ModuleList(Phi(token_dim, frozen) for _ in range(num_phi))
        H = sides[-1]
        for k, side in enumerate(sides[:-1]):
            up = F.interpolate(unit_maps(side), size=(H, H), mode="bicubic").flatten(1).T
            self.register_buffer(f"up{k}", up.float().contiguous(), persistent=False)
            down = F.adaptive_avg_pool2d(unit_maps(H), side).flatten(1).T
            self.register_buffer(f"down{k}", down.float().contiguous(), persistent=False)

    def upsample(self, tokens: Tensor, k: int) -> Tensor:
        """Tokens of scale k (B, p_k², C) -> map (B, C, H, H): bicubic, a = -0.75, no antialiasing."""
        cells = tokens.transpose(1, 2)
        if k < len(self.sides) - 1:
            cells = F.linear(cells, self.get_buffer(f"up{k}").to(tokens.dtype))
        return cells.reshape(*cells.shape[:2], self.sides[-1], self.sides[-1])

    def area_down(self, f: Tensor, k: int) -> Tensor:
        """Map (B, C, H, H) -> averages over the (possibly overlapping) cells of scale k, (B, p_k², C).

        Of the map after scale k - 1 this is u_k, what a transformer reads at scale k.
        """
        with torch.autocast(f.device.type, enabled=False):
            cells = f.flatten(2)
            if k < len(self.sides) - 1:
                cells = F.linear(cells, self.get_buffer(f"down{k}").to(f.dtype))
            return cells.transpose(1, 2)

    def accumulate(self, f_hat: Tensor | None, tokens: Tensor, k: int) -> Tensor:
        """Add embeddings (B, p_k², C) of scale k to the map (B, C, H, H), None being zero; float32 or wider."""
        tokens = tokens.to(torch.promote_types(tokens.dtype, torch.float32))
        with torch.autocast(tokens.device.type, enabled=False):
            h = self.qresi_ls[self.phi_of_scale[k]](self.upsample(tokens, k))
        return h if f_hat is None else f_hat + h

    def forward(self, tokens: Tensor) -> Tensor:
        """The map (B, C, H, H) that embeddings (B, n, C) of all scales, or the first, add up to."""
        f_hat = self.accumulate(None, tokens[:, self.layout.span(0)], 0)
        for k in range(1, self.layout.positions_in(tokens.shape[1])):
            f_hat = self.accumulate(f_hat, tokens[:, self.layout.span(k)], k)
        return f_hat
