"""Guidance and truncation settings, and what can be chosen along a walk.

A *walk* goes through a model position by position (see :mod:`dd2_lightning.models.walk`). Sampling the
teacher, sampling the AR-diffusion model and refining a one-step draft differ only in how the next tokens are
chosen from the flow of the current position.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dd2_lightning.flow import CodebookFlow, integrate

if TYPE_CHECKING:
    from dd2_lightning.models.teacher import CodebookTeacher
    from dd2_lightning.models.walk import Walk


@dataclass(frozen=True)
class Sampling:
    """How a teacher's logits become the distribution that is sampled or distilled.

    Attributes:
        guidance_scale: classifier-free guidance in the convention of the teacher's family; None is off.
        top_k: keep the k most likely tokens (ties stay); 0 keeps all.
        top_p: keep the smallest set of tokens with this mass, in the family's convention; 1 keeps all.
        temperature: logits are divided by it before truncation.

    Raises:
        ValueError: for values that no distribution can have.
    """

    guidance_scale: float | None = None
    top_k: int = 0
    top_p: float = 1.0
    temperature: float = 1.0

    def __post_init__(self):
        if self.top_k < 0:
            raise ValueError(f"top_k must be 0 (off) or more, got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], got {self.top_p}")
        if not self.temperature > 0:
            raise ValueError(f"temperature must be positive, got {self.temperature}")


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Set everything strictly below the k-th largest of (..., V) to -inf; 0 keeps all."""
    if k <= 0 or k >= logits.shape[-1]:
        return logits
    kth = logits.topk(k, -1).values[..., -1:]
    return logits.masked_fill(logits < kth, -torch.inf)


def draw(flow: CodebookFlow, chance: Tensor) -> Tensor:
    """One token from each categorical of ``flow`` by the inverse of its distribution function.

    Which token a uniform number falls on does not depend on its neighbours in the batch, so a sequence is a
    pure function of its own numbers.

    Args:
        flow: log probabilities (B, n, V).
        chance: uniform on [0, 1), (B, n).

    Returns:
        Indices (B, n); never a token of probability zero.
    """
    cdf = flow.log_p.double().softmax(-1).cumsum(-1)
    height = chance.double()[..., None] * cdf[..., -1:]
    return torch.searchsorted(cdf, height, right=True)[..., 0]


def euler_times(steps: int, device: torch.device | None = None) -> Tensor:
    """``steps`` equal steps from noise (t = 1) to data (t = 0): (steps + 1,)."""
    return torch.linspace(1, 0, steps + 1, device=device)


def integrate_walk(walk: "Walk", noise: Tensor, steps: int) -> Tensor:
    """Integrate the flow of every position in order, each conditioned on the tokens made so far.

    With an AR-diffusion model this is its sampler; with a teacher it is DD1's deterministic map from noise
    to data.

    Args:
        walk: a fresh walk.
        noise: (B, n, C).
        steps: Euler steps a token; the paper uses 10.

    Returns:
        Tokens, (B, n, C).
    """
    times = euler_times(steps, noise.device)
    for flow in walk:
        walk.append(integrate(flow, noise[:, walk.span], times))
    return walk.tokens


def refine(
    teacher: "CodebookTeacher",
    tokens: Tensor,
    labels: Tensor,
    steps: int,
    sampling: Sampling | None = None,
    generator: torch.Generator | None = None,
    chance: Tensor | None = None,
) -> Tensor:
    """Teacher-refined sampling (alg. 4): re-sample the last ``steps - 1`` positions of a one-step draft.

    Args:
        teacher: the model that re-samples.
        tokens: one-step sequence, (B, n, C).
        labels: (B,).
        steps: total steps k: 1 returns the draft, N + 1 is the teacher itself.
        sampling: guidance and truncation of the teacher.
        generator: random source.
        chance: the uniform numbers themselves, (B, n), instead of a generator.

    Returns:
        Tokens, (B, n, C).

    Raises:
        ValueError: if ``steps`` is not in 1..N+1.
    """
    N = teacher.layout.num_positions
    if not 1 <= steps <= N + 1:
        raise ValueError(f"steps must be in 1..{N + 1} for a teacher of {N} positions, got {steps}")
    if steps == 1:
        return tokens
    kept = teacher.layout.offsets[N + 1 - steps]
    indices = teacher.sample(labels, sampling, generator, tokens[:, :kept], chance)
    return torch.cat([tokens[:, :kept], teacher.embed(indices[:, kept:])], 1)
