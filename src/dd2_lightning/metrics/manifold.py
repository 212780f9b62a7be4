r"""Improved precision and recall (Kynkäänniemi et al. 2019, arXiv:1904.06991).

The manifold of a set of features is the union of balls, one around each, that reach to its k-th nearest neighbour in
the set. Precision is the share of generated features in the manifold of the reference, recall the share of reference
features in the manifold of the generated ones.

Distances are exact to float64's rounding, so that no pair is on the wrong side of a radius; the usual expansion
:math:`\|a\|^2+\|b\|^2-2ab` in half or single precision is not.
"""

from collections.abc import Iterator
from functools import cached_property

import torch
from torch import Tensor

CHUNK = 2**23  # distances held at a time: 64 MB

DUPLICATE = 1e-12
"""Pairs whose squared distance is a smaller part of their squared lengths are one point; rounding is below it."""


class FirstFeatures:
    """Keeps the first ``limit`` features of a set, (min(limit, samples), d)."""

    def __init__(self, limit: int = 10_000):
        if limit < 1:
            raise ValueError(f"at least 1 sample must be kept, got {limit}")
        self.missing, self.batches = limit, list[Tensor]()

    def update(self, features: Tensor) -> None:
        """Add features (B, d)."""
        if self.missing:
            self.batches.append(features[: self.missing].clone())
            self.missing -= len(self.batches[-1])

    def compute(self) -> Tensor:
        if not self.batches:
            raise ValueError("there are no features yet")
        self.batches = [torch.cat(self.batches)]  # what is kept is not held twice
        return self.batches[0]


class Manifold:
    """The manifold of features (N, d), of which there must be at least k + 1."""

    def __init__(self, features: Tensor, k: int = 3):
        if k < 1 or len(features) <= k:
            raise ValueError(
                f"the {k}-th nearest neighbour needs at least {k + 1} samples and k >= 1, got {len(features)}"
            )
        self.features, self.k = features, k

    @cached_property
    def squared_radii(self) -> Tensor:
        """Squared distance of each feature to its k-th nearest neighbour, itself not counted: (N,)."""
        distances = squared_distances(self.features, self.features)
        return torch.cat([squared.topk(self.k + 1, largest=False).values[:, -1] for _, squared in distances])


def precision_recall(reference: Manifold, samples: Manifold) -> tuple[float, float]:
    """Precision and recall of samples; both numbers depend on how many there are."""
    precise = torch.zeros(len(samples.features), dtype=torch.bool, device=samples.features.device)
    recalled = 0
    for rows, squared in squared_distances(reference.features, samples.features):
        precise |= (squared <= reference.squared_radii[rows, None]).any(0)
        recalled += int((squared <= samples.squared_radii).any(1).sum())
    return precise.double().mean().item(), recalled / len(reference.features)


def squared_distances(first: Tensor, second: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Squared distances of (N, d) to (M, d), some rows at a time: the rows, and (rows, M) in float64."""
    centre = second.mean(0, dtype=torch.float64)
    columns = second.to(torch.float64, copy=True).sub_(centre)
    lengths = columns.square().sum(1)
    for start in range(0, len(first), rows := max(1, CHUNK // len(second))):
        chunk = slice(start, min(start + rows, len(first)))
        block = first[chunk].double() - centre
        scale = block.square().sum(1)[:, None] + lengths
        squared = torch.addmm(scale, block, columns.T, alpha=-2)
        yield chunk, squared.masked_fill_(squared <= DUPLICATE * scale, 0.0)
