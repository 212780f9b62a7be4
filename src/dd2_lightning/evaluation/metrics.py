r"""What the comparison table measures.

Likelihood needs a teacher; the others need the features of some network and run on whatever they are given.
Each accumulates sums in float64, so a set of any size takes the memory of one batch, and sums of several
processes add up.

The Fréchet distance of two Gaussians is

.. math:: \|\mu_1-\mu_2\|^2 + \mathrm{tr}\,\Sigma_1 + \mathrm{tr}\,\Sigma_2 - 2\,\mathrm{tr}(\Sigma_1\Sigma_2)^{1/2}.
"""

import warnings
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric

from dd2_lightning.models.codebook_teacher import CodebookTeacher, require_codebook
from dd2_lightning.models.teacher import check_labels
from dd2_lightning.sampling import Sampling


@torch.no_grad()
def sequence_nll(teacher: CodebookTeacher, indices: Tensor, labels: Tensor, sampling: Sampling | None = None) -> Tensor:
    """Negative log likelihood of whole sequences under the guided, untruncated teacher at temperature 1.

    The teacher reads the codebook vectors of ``indices``, never an unsnapped token.

    Args:
        teacher: whose likelihood it is.
        indices: snapped sequences, (B, n).
        labels: (B,).
        sampling: how the teacher is guided, in the convention of its family; truncation and temperature are not used.

    Returns:
        Nats a sequence, (B,); infinite for an impossible one.

    Raises:
        TypeError: if ``indices`` are not integers of two axes, or the teacher has no codebook.
        ValueError: for a label that no class has.
    """
    if indices.ndim != 2 or indices.is_floating_point():
        raise TypeError(f"indices must be integers (B, n), got {indices.dtype} {tuple(indices.shape)}; snap the tokens")
    teacher = require_codebook(teacher)
    check_labels(labels, teacher.num_classes)
    indices = indices.long()
    guided = replace(teacher.resolve_sampling(sampling), top_k=0, top_p=1.0, temperature=1.0)
    log_p = teacher.flow(indices, labels, guided).log_p
    return -log_p.gather(-1, indices[..., None])[..., 0].sum(-1)


class Gaussian(NamedTuple):
    """Mean and covariance of a set of features.

    Attributes:
        mean: (d,).
        covariance: (d, d), with the unbiased divisor count - 1.
        count: number of samples; 0 if a file does not say it.
    """

    mean: Tensor
    covariance: Tensor
    count: int


def root_of(matrix: Tensor) -> Tensor:
    """Symmetric square root of a positive semidefinite (d, d)."""
    values, vectors = torch.linalg.eigh(matrix)
    return vectors * values.clamp(min=0).sqrt() @ vectors.T


def frechet_distance(first: Gaussian, second: Gaussian) -> float:
    r"""Squared Fréchet distance of two Gaussians.

    :math:`\Sigma_1\Sigma_2` has the eigenvalues of the symmetric :math:`\Sigma_1^{1/2}\Sigma_2\Sigma_1^{1/2}`, whose
    roots are real and stay so when the matrices are singular.

    Raises:
        ValueError: if the features have different widths.
    """
    if first.mean.shape != second.mean.shape:
        raise ValueError(f"features of width {len(first.mean)} and {len(second.mean)} cannot be compared")
    root = root_of(first.covariance)
    overlap = torch.linalg.eigvalsh(root @ second.covariance @ root).clamp(min=0).sqrt().sum()
    distance = (first.mean - second.mean).square().sum() + first.covariance.trace() + second.covariance.trace()
    return max(0.0, (distance - 2 * overlap).item())


class FeatureGaussian(Metric):
    """Fits a :class:`Gaussian` to features.

    Args:
        width: d.
    """

    full_state_update = False

    def __init__(self, width: int):
        super().__init__()
        self.width = width
        self.add_state("count", torch.zeros((), dtype=torch.long), "sum")
        self.add_state("total", torch.zeros(width, dtype=torch.float64), "sum")
        self.add_state("products", torch.zeros(width, width, dtype=torch.float64), "sum")

    def update(self, features: Tensor) -> None:
        """Add features (B, d).

        Raises:
            ValueError: for another shape.
        """
        if features.ndim != 2 or features.shape[1] != self.width:
            raise ValueError(f"features must be (B, {self.width}), got {tuple(features.shape)}")
        features = features.double()
        self.count += len(features)
        self.total += features.sum(0)
        self.products += features.T @ features

    def gaussian(self) -> Gaussian:
        """The fit so far.

        Raises:
            ValueError: with fewer than two samples.
        """
        count = int(self.count)
        if count < 2:
            raise ValueError(f"a covariance needs at least 2 samples, got {count}")
        if count <= self.width:
            warnings.warn(
                f"{count} samples for {self.width} features: the covariance is singular and the Fréchet distance far "
                f"too large; it falls as 1/samples towards its value",
                stacklevel=2,
            )
        mean = self.total / count
        return Gaussian(mean, (self.products - count * mean.outer(mean)) / (count - 1), count)

    def compute(self) -> Gaussian:
        """See :meth:`gaussian`."""
        return self.gaussian()


class FrechetDistance(FeatureGaussian):
    """Fréchet distance of features to a reference.

    Args:
        reference: what they are compared with.
    """

    higher_is_better = False

    def __init__(self, reference: Gaussian):
        super().__init__(len(reference.mean))
        self.reference = reference

    def compute(self) -> float:
        """The distance so far; see :func:`frechet_distance`."""
        reference = Gaussian(*(part.to(self.total) for part in self.reference[:2]), self.reference.count)
        return frechet_distance(reference, self.gaussian())


class WithinClassVariance(Metric):
    """Trace of the within-class feature covariance, averaged over classes: how different one class's samples are.

    Diversity is this, divided by the teacher's.

    Args:
        num_classes: number of classes.
        width: d.
        minimum: fewer samples of a class than this are refused.
    """

    full_state_update = False
    higher_is_better = True

    def __init__(self, num_classes: int, width: int, minimum: int = 500):
        super().__init__()
        self.num_classes, self.width, self.minimum = num_classes, width, max(2, minimum)
        self.add_state("count", torch.zeros(num_classes, dtype=torch.float64), "sum")
        self.add_state("total", torch.zeros(num_classes, width, dtype=torch.float64), "sum")
        self.add_state("squares", torch.zeros(num_classes, dtype=torch.float64), "sum")

    def update(self, features: Tensor, labels: Tensor) -> None:
        """Add features (B, d) of classes ``labels`` (B,).

        Raises:
            ValueError: for other shapes.
        """
        if features.ndim != 2 or features.shape[1] != self.width or labels.shape != features.shape[:1]:
            raise ValueError(
                f"features must be (B, {self.width}) and labels (B,), "
                f"got {tuple(features.shape)} and {tuple(labels.shape)}"
            )
        features = features.double()
        self.count.index_add_(0, labels, torch.ones_like(features[:, 0]))
        self.total.index_add_(0, labels, features)
        self.squares.index_add_(0, labels, features.square().sum(1))

    @property
    def enough(self) -> bool:
        """Whether every class has the minimum of samples."""
        return self.count.min().item() >= self.minimum

    def compute(self) -> float:
        """The variance so far.

        Raises:
            ValueError: if a class has fewer samples than the minimum.
        """
        if not self.enough:
            scarce = int(self.count.argmin())
            raise ValueError(
                f"class {scarce} has {int(self.count[scarce])} samples, diversity needs at least {self.minimum}"
            )
        mean = self.total / self.count[:, None]
        traces = (self.squares - self.count * mean.square().sum(1)) / (self.count - 1)
        return traces.mean().item()


def agree(first: float, second: float, tolerance: float = 0.05) -> bool:
    """Whether two teacher samples have the same within-class variance; if not, diversity measures nothing."""
    return abs(first / second - 1) <= tolerance
