r"""Improved precision and recall (Kynkäänniemi et al. 2019, arXiv:1904.06991).

The manifold of a set of features is the union of balls, one around each, that reach to its k-th nearest neighbour in
the set. Precision is the share of generated features in the manifold of the reference, recall the share of reference
features in the manifold of the generated ones.

torchmetrics has no such metric. Distances are exact to float64's rounding, so that no pair is on the wrong side of a
radius; the usual expansion :math:`\|a\|^2+\|b\|^2-2ab` in half or single precision is not.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric

CHUNK = 2**23
"""Distances held at a time: 64 MB."""

DUPLICATE = 1e-12
"""Pairs whose squared distance is a smaller part of their squared lengths are one point; rounding is below it."""


class FirstFeatures(Metric):
    """Keeps the first ``limit`` features of a set."""

    full_state_update = False

    def __init__(self, limit: int = 10_000):
        super().__init__()
        if limit < 1:
            raise ValueError(f"at least 1 sample must be kept, got {limit}")
        self.limit, self.count = limit, 0
        self.add_state("parts", [], "cat")

    def update(self, features: Tensor) -> None:
        """Add features (B, d)."""
        if features.ndim != 2:
            raise ValueError(f"features must be (B, d), got {tuple(features.shape)}")
        taken = features[: self.limit - self.count].clone()
        if len(taken):
            self.parts.append(taken)
            self.count += len(taken)

    def kept(self) -> Tensor:
        """The features so far, (min(limit, samples), d)."""
        if not self.count:
            raise ValueError("there are no features yet")
        if isinstance(self.parts, list) and len(self.parts) > 1:
            self.parts = [torch.cat(self.parts)]  # what is kept is not held twice
        return self.parts[0] if isinstance(self.parts, list) else self.parts

    def compute(self) -> Tensor:
        return self.kept()

    def reset(self) -> None:
        super().reset()
        self.count = 0


class Fractions(NamedTuple):
    """Share of samples in the manifold of the reference, and of the reference in the manifold of the samples."""

    precision: float
    recall: float


class PrecisionRecall(FirstFeatures):
    """Precision and recall of the first features against a reference.

    Args:
        reference: (N, d).
        k: neighbours that a ball reaches to; neither set may have fewer than k + 1 features.
        limit: generated samples that count; both numbers depend on it.
    """

    def __init__(self, reference: Tensor, k: int = 3, limit: int = 10_000):
        super().__init__(limit)
        check_neighbours(reference, k)
        self.reference, self.k = reference, k
        self._radii: Tensor | None = None

    def compute(self) -> Fractions:
        """Precision and recall of the samples so far."""
        features = self.kept()
        check_neighbours(features, self.k)
        reference = self.reference.to(features.device)
        if self._radii is None:
            self._radii = squared_radii(reference, self.k)
        return Fractions(*shares_inside(reference, self._radii, features, squared_radii(features, self.k)))


def check_neighbours(features: Tensor, k: int) -> None:
    """Refuse sets without a k-th neighbour."""
    if k < 1 or len(features) <= k:
        raise ValueError(f"the {k}-th nearest neighbour needs at least {k + 1} samples and k >= 1, got {len(features)}")


def squared_distances(first: Tensor, second: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Squared distances of (N, d) to (M, d), some rows at a time: the rows, and (rows, M) in float64."""
    centre = second.mean(0, dtype=torch.float64)
    columns = second.to(torch.float64, copy=True).sub_(centre)
    lengths = columns.square().sum(1)
    for start in range(0, len(first), rows := max(1, CHUNK // len(second))):
        part = slice(start, min(start + rows, len(first)))
        block = first[part].double() - centre
        scale = block.square().sum(1)[:, None] + lengths
        squared = torch.addmm(scale, block, columns.T, alpha=-2)
        yield part, squared.masked_fill_(squared <= DUPLICATE * scale, 0.0)


def squared_radii(features: Tensor, k: int) -> Tensor:
    """Squared distance of each feature (N, d) to its k-th nearest neighbour, itself not counted: (N,)."""
    radii = [squared.topk(k + 1, largest=False).values[:, -1] for _, squared in squared_distances(features, features)]
    return torch.cat(radii)


def shares_inside(first: Tensor, first_radii: Tensor, second: Tensor, second_radii: Tensor) -> tuple[float, float]:
    """The share of ``second`` in the manifold of ``first``, and the share of ``first`` in that of ``second``."""
    inside_first = torch.zeros(len(second), dtype=torch.bool, device=second.device)
    inside_second = 0
    for rows, squared in squared_distances(first, second):
        inside_first |= (squared <= first_radii[rows, None]).any(0)
        inside_second += int((squared <= second_radii).any(1).sum())
    return inside_first.double().mean().item(), inside_second / len(first)
