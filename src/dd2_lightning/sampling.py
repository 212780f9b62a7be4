"""Guidance and truncation: how a teacher's logits become the distribution that is sampled or distilled."""

from dataclasses import dataclass

import torch
from torch import Tensor

from dd2_lightning.flow import CodebookFlow


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


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Set all but the smallest set of likeliest tokens with mass ``p`` to -inf, in (..., V); 1 keeps all.

    The token that carries the sum across p stays: a token goes if the ones before it suffice.
    """
    if p >= 1:
        return logits
    ordered, order = logits.sort(-1, descending=True)
    cut = (ordered.softmax(-1).cumsum(-1) > p).roll(1, -1)
    cut[..., 0] = False
    return logits.masked_fill(cut.gather(-1, order.argsort(-1)), -torch.inf)


def draw(flow: CodebookFlow, uniforms: Tensor) -> Tensor:
    """One token from each categorical of ``flow`` by the inverse of its distribution function.

    Which token a uniform number falls on does not depend on its neighbours in the batch, so a sequence is a
    pure function of its own numbers.

    Args:
        flow: log probabilities (B, n, V).
        uniforms: uniform on [0, 1), (B, n).

    Returns:
        Indices (B, n); never a token of probability zero.
    """
    cdf = flow.log_p.double().softmax(-1).cumsum(-1)
    height = uniforms.double()[..., None] * cdf[..., -1:]
    return torch.searchsorted(cdf, height, right=True)[..., 0]
