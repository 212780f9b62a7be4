"""Independent re-computations that tests compare the package with, and small models."""

import math

import torch
from torch import Tensor


def log_density(x: Tensor, t: Tensor, codebook: Tensor, log_p: Tensor) -> Tensor:
    """Log p_t(x) up to a constant, (...,): the mixture itself, with explicit distances, in float64.

    x (B, n, m, C), t (B, n, m), codebook (V, C), log_p (B, n, V).
    """
    x, t, codebook, log_p = (part.double() for part in (x, t, codebook, log_p))
    squared = (x[..., None, :] - (1 - t)[..., None, None] * codebook).square().sum(-1)
    return torch.logsumexp(log_p[:, :, None] - squared / (2 * t[..., None] ** 2), -1)


def reference_score(x: Tensor, t: Tensor, codebook: Tensor, log_p: Tensor, differentiable: bool = False) -> Tensor:
    """The score by automatic differentiation of :func:`log_density`; ``x`` in float64."""
    with torch.enable_grad():
        x = x if x.requires_grad else x.double().requires_grad_()
        total = log_density(x, t, codebook, log_p).sum()
        return torch.autograd.grad(total, x, create_graph=differentiable)[0]


def reference_flow(x: Tensor, t: Tensor, codebook: Tensor, log_p: Tensor, differentiable: bool = False):
    """Velocity and clean token from the score (Tweedie), for t < 1: float64 (B, n, m, C) each."""
    s = reference_score(x, t, codebook, log_p, differentiable)
    time = t.double()[..., None]
    return -(time * s + x) / (1 - time), (x + time**2 * s) / (1 - time)


def relative_error(value: Tensor, reference: Tensor, floor: float = 0.0) -> float:
    """Worst relative error of the vectors along the last axis; shorter vectors than ``floor`` count as ``floor``."""
    size = reference.norm(dim=-1).clamp(min=max(floor, 1e-300))
    return ((value.double() - reference).norm(dim=-1) / size).max().item()


def circle(codes: int, radius: float = 1.0) -> Tensor:
    """Codebook vectors on a circle, (codes, 2)."""
    angle = 2 * math.pi * torch.arange(codes) / codes
    return radius * torch.stack([angle.cos(), angle.sin()], -1)
