"""What every VQ tokenizer does with its codebook: look up, count, revive."""

import torch
import torch.distributed as dist
from torch import Tensor

PATIENCE = 256
"""A code that is never chosen is re-seeded after about this many tokens per code have been seen."""


def nearest_code(z: Tensor, codebook: Tensor, log_p: Tensor | None = None) -> Tensor:
    """Index of the nearest codebook vector by Euclidean distance: (..., C), (V, C) -> (...,).

    Distances are never rounded to the type of autocast: codes can be nearer to each other than that resolves. With
    ``log_p`` (..., V), codes whose probability is zero are not chosen.
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
def reseed_dead_codes(codebook: Tensor, counts: Tensor, vectors: Tensor, generator: torch.Generator) -> None:
    """Replace codes that nothing chose by random vectors of the batch, in place.

    There is no memory of earlier batches, so that a resumed run sees what an uninterrupted one sees: a code
    without a token in this batch is replaced with the probability ``tokens / (PATIENCE · V)``. Under
    ``torch.distributed`` all processes count together and choose among the vectors of all, in the order of their
    ranks, so that they do what a single process would.

    Args:
        codebook: (V, C), changed in place.
        counts: how often each code was chosen in this batch, (V,).
        vectors: what the codes should have been near to, (tokens, C); as many in every process.
        generator: random source, in the same state in every process.
    """
    V, local = len(codebook), len(vectors)
    together = dist.is_available() and dist.is_initialized()
    rank, processes = (dist.get_rank(), dist.get_world_size()) if together else (0, 1)
    uniforms = torch.rand(V, generator=generator, device=generator.device).to(codebook.device)
    rows = torch.randint(local * processes, (V,), generator=generator, device=generator.device).to(codebook.device)
    is_local = rows // local == rank
    fresh, counts = torch.where(is_local[:, None], vectors[rows % local], 0).to(codebook.dtype), counts.clone()
    if together:
        dist.all_reduce(counts)
        dist.all_reduce(fresh)
    dead = (counts == 0) & (uniforms < counts.sum() / (PATIENCE * V))
    codebook.copy_(torch.where(dead[:, None], fresh, codebook))
