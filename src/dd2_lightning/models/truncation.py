"""Truncation of logits, and drawing tokens from what is left."""

from collections.abc import Callable

import torch
from torch import Tensor

from dd2_lightning.flow import CodebookFlow, chunks

LOGITS = 1 << 24  # logits that are truncated, normalised or drawn from at a time


def keep_likeliest(
    logits: Tensor, k: int = 0, p: float = 1.0, enough: Callable[[Tensor, float], Tensor] = torch.gt
) -> Tensor:
    """Top-k, then top-p: set all but the k likeliest of (..., V), and of these the fewest of mass p, to -inf.

    Equal tokens stay or go together; a k of 0 and a p of 1 keep all. A token goes if the mass of the likelier ones is
    ``enough``, ``torch.gt`` or ``torch.ge`` p; the first always stays. No more than k are sorted.
    """
    V = logits.shape[-1]
    k = k if 0 < k < V else V
    if k == V and p >= 1:
        return logits
    ordered = logits.topk(k, -1).values if k < V else logits.sort(-1, descending=True).values
    last = ordered[..., -1:]
    if p < 1:
        likelier = ordered.softmax(-1).cumsum(-1)[..., :-1]
        last = ordered.gather(-1, (~enough(likelier, p)).sum(-1, keepdim=True))
    return logits.masked_fill(logits < last, -torch.inf)


def draw(flow: CodebookFlow, uniforms: Tensor) -> Tensor:
    """One token from each categorical (B, n, V) of ``flow`` by the inverse of its distribution function: (B, n).

    A uniform number on [0, 1) falls on the same token whatever else is in the batch, so a sequence is a pure function
    of its ``uniforms`` (B, n). No token of probability zero is drawn.
    """

    def drawn(log_p: Tensor, uniforms: Tensor) -> Tensor:
        cdf = log_p.double().softmax(-1).cumsum_(-1)
        return torch.searchsorted(cdf, uniforms.double()[..., None] * cdf[..., -1:], right=True)[..., 0]

    rows = chunks(len(uniforms), max(1, LOGITS // flow.log_p[:1].numel()))
    return torch.cat([drawn(flow.log_p[some], uniforms[some]) for some in rows])
