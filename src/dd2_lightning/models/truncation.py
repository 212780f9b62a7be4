"""Truncation of logits, and drawing tokens from what is left."""

import torch
from torch import Tensor

from dd2_lightning.flow import CodebookFlow


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
    """One token from each categorical (B, n, V) of ``flow`` by the inverse of its distribution function: (B, n).

    A uniform number on [0, 1) falls on the same token whatever else is in the batch, so a sequence is a pure function
    of its ``uniforms`` (B, n). No token of probability zero is drawn.
    """
    cdf = flow.log_p.double().softmax(-1).cumsum(-1)
    height = uniforms.double()[..., None] * cdf[..., -1:]
    return torch.searchsorted(cdf, height, right=True)[..., 0]
