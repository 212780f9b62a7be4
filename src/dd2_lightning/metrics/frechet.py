r"""Fréchet distance of Gaussians fitted to features (Heusel et al. 2017, arXiv:1706.08500).

.. math:: \|\mu_1-\mu_2\|^2 + \mathrm{tr}\,\Sigma_1 + \mathrm{tr}\,\Sigma_2 - 2\,\mathrm{tr}(\Sigma_1\Sigma_2)^{1/2}.

:math:`\Sigma_1\Sigma_2` has the eigenvalues of the symmetric :math:`\Sigma_1^{1/2}\Sigma_2\Sigma_1^{1/2}`, so two
symmetric eigenproblems give the trace: real also where matrices are singular, and faster than ``scipy.linalg.sqrtm``.
torchmetrics' FID reads no reference statistics, and rounds the result to the features' precision.
"""

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from scipy.linalg import eigh, eigvalsh
from torch import Tensor
from torchmetrics import Metric

from dd2_lightning.metrics.warning import SampleWarning


@dataclass
class Gaussian:
    """Mean and covariance of a set of features."""

    mean: Tensor  # (d,)
    covariance: Tensor  # (d, d), with the unbiased divisor count - 1
    count: int  # number of samples; 0 if a file does not say it


def frechet_distance(first: Gaussian, second: Gaussian) -> float:
    """Squared Fréchet distance of two Gaussians of the same width, in float64."""
    if first.mean.shape != second.mean.shape:
        raise ValueError(f"features of width {len(first.mean)} and {len(second.mean)} cannot be compared")
    a, b = (gaussian.covariance.cpu().double().numpy() for gaussian in (first, second))
    values, vectors = eigh(a, driver="evd")
    root = vectors * np.sqrt(values.clip(min=0)) @ vectors.T
    overlap = np.sqrt(eigvalsh(root @ b @ root).clip(min=0)).sum()
    shift = (first.mean.cpu().double() - second.mean.cpu().double()).square().sum().item()
    return max(0.0, float(shift + a.trace() + b.trace() - 2 * overlap))


class FeatureGaussian(Metric):
    """Fits a :class:`Gaussian` to features of width d, in float64."""

    full_state_update = False
    count: Tensor
    total: Tensor
    products: Tensor

    def __init__(self, width: int):
        super().__init__()
        self.width = width
        self.add_state("count", torch.zeros((), dtype=torch.long), "sum")
        self.add_state("total", torch.zeros(width, dtype=torch.float64), "sum")
        self.add_state("products", torch.zeros(width, width, dtype=torch.float64), "sum")

    def update(self, features: Tensor) -> None:
        """Add features (B, d)."""
        if features.ndim != 2 or features.shape[1] != self.width:
            raise ValueError(f"features must be (B, {self.width}), got {tuple(features.shape)}")
        features = features.double()
        self.count += len(features)
        self.total += features.sum(0)
        self.products += features.T @ features

    def compute(self) -> Gaussian:
        count = int(self.count)
        if count < 2:
            raise ValueError(f"a covariance needs at least 2 samples, got {count}")
        if count <= self.width:
            few = f"{count} samples for {self.width} features: the covariance is singular and the Fréchet distance"
            warnings.warn(f"{few} far too large; it falls as 1/samples towards its value", SampleWarning, stacklevel=2)
        mean = self.total / count
        return Gaussian(mean, (self.products - count * mean.outer(mean)) / (count - 1), count)
