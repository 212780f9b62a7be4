"""Operations on a VQ codebook: nearest code, usage, re-seeding of unused codes."""

import torch
import torch.distributed as dist
from torch import Tensor

PATIENCE = 256  # a code that is never chosen is re-seeded after about this many tokens per code have been seen


def nearest_code(z: Tensor, codebook: Tensor, log_p: Tensor | None = None) -> Tensor:
    """Index of the nearest codebook vector by Euclidean distance: (..., C), (V, C) -> (...,).

    Autocast is off, since codes can be nearer to each other than it resolves. With ``log_p`` (..., V), codes of
    probability zero are not chosen.
    """
    with torch.autocast(z.device.type, enabled=False):
        closeness = z.to(codebook.dtype) @ codebook.T - codebook.square().sum(-1) / 2
    if log_p is not None:
        closeness = closeness.masked_fill(log_p.isneginf(), -torch.inf)
    return closeness.argmax(-1)


def perplexity(counts: Tensor) -> Tensor:
    """Exponential of the entropy of code usage, between 1 and V: counts (V,) -> ()."""
    share = counts / counts.sum()
    return (-torch.xlogy(share, share).sum()).exp()


@torch.no_grad()
def spacing(codebook: Tensor) -> Tensor:
    """Distance of every code (V, C) from its nearest neighbour, (V,)."""
    return torch.cat([torch.cdist(part, codebook).topk(2, largest=False).values[:, 1] for part in codebook.split(1024)])


@torch.no_grad()
def reseed_dead_codes(codebook: Tensor, counts: Tensor, vectors: Tensor, rng: torch.Generator) -> None:
    """Replace codes that no token chose by random vectors of the batch, in place.

    There is no memory of earlier batches, so that a resumed run sees what an uninterrupted one sees: a code
    without a token in this batch is replaced with the probability ``tokens / (PATIENCE · V)``. Under
    ``torch.distributed`` the processes do together what a single one would, vectors in the order of their ranks.

    The codebook is (V, C), ``counts`` (V,) says how often a code was chosen in this batch, and ``vectors`` (tokens, C)
    are those that were quantised, as many in every process. The ``rng`` must be in the same state in every process.
    """
    V, local = len(codebook), len(vectors)
    together = dist.is_available() and dist.is_initialized()
    rank, processes = (dist.get_rank(), dist.get_world_size()) if together else (0, 1)
    uniforms = torch.rand(V, generator=rng, device=rng.device).to(codebook.device)
    rows = torch.randint(local * processes, (V,), generator=rng, device=rng.device).to(codebook.device)
    is_local = rows // local == rank
    fresh, counts = torch.where(is_local[:, None], vectors[rows % local], 0).to(codebook.dtype), counts.clone()
    if together:
        dist.all_reduce(counts)
        dist.all_reduce(fresh)
    dead = (counts == 0) & (uniforms < counts.sum() / (PATIENCE * V))
    codebook.copy_(torch.where(dead[:, None], fresh, codebook))
