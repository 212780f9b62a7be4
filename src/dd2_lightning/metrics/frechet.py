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
from torch import Tensor, nn
from torchmetrics import Metric

from dd2_lightning.errors import NonFiniteLossError
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
        super().__init__(sync_on_compute=False)
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


def square_root(covariance: Tensor) -> Tensor:
    """Symmetric square root of a covariance (d, d), in float64."""
    values, vectors = torch.linalg.eigh(covariance.double())
    return vectors * values.clamp(min=0).sqrt() @ vectors.T


def differentiable_distance(mean: Tensor, covariance: Tensor, reference_mean: Tensor, root: Tensor) -> Tensor:
    """Squared Fréchet distance (), differentiable in ``mean`` (d,) and ``covariance`` (d, d), all in float64.

    The ``root`` is the square root of the reference's covariance, (d, d).
    """
    values = torch.linalg.eigvalsh(root @ covariance @ root)
    # eigenvalues that are rounding, where a covariance is singular: their roots have no derivative
    kept = values > values[-1] * len(values) * torch.finfo(values.dtype).eps
    overlap = (kept * torch.where(kept, values, 1).sqrt()).sum()
    return (mean - reference_mean).square().sum() + covariance.trace() + root.square().sum() - 2 * overlap


class RunningFrechet(nn.Module):
    r"""Fréchet distance of a generator's features to a reference, from running moments (arXiv:2604.28190).

    .. math:: \mu = \beta \mu' + (1-\beta)\, \overline{f}, \qquad
              \Sigma = \beta M' + (1-\beta)\, \overline{f f^\top} - \mu \mu^\top

    The gradient is that of the last batch of features f; the running moments μ', M' are constants. They, the reference
    and the number of samples behind them are buffers in float64, so that a run that resumes has all of them.

    The ``name`` of the feature network is for messages.
    """

    count: Tensor
    mean: Tensor
    products: Tensor
    reference_mean: Tensor
    reference_root: Tensor

    def __init__(self, width: int, decay: float, name: str = ""):
        super().__init__()
        self.decay, self.name = decay, name
        self.batches: list[tuple[Tensor, Tensor]] = []
        self.register_buffer("count", torch.zeros((), dtype=torch.long))
        for name, shape in {"mean": (width,), "products": (width, width)}.items():
            self.register_buffer(name, torch.zeros(shape, dtype=torch.float64))
        for name, shape in {"reference_mean": (width,), "reference_root": (width, width)}.items():
            self.register_buffer(name, torch.zeros(shape, dtype=torch.float64))

    @torch.no_grad()
    def start(self, generated: Gaussian, reference: Gaussian) -> None:
        """Fill the moments from a fit to the generator's features, and set the reference."""
        self.count.fill_(generated.count)
        self.mean.copy_(generated.mean)
        covariance = generated.covariance * (generated.count - 1) / generated.count
        self.products.copy_(covariance + generated.mean.outer(generated.mean))
        self.reference_mean.copy_(reference.mean)
        self.reference_root.copy_(square_root(reference.covariance))

    def forward(self, features: Tensor) -> Tensor:
        """Distance () after a batch of features (B, d), which :meth:`update` takes in."""
        f = features.double()
        batch = f.mean(0), f.T @ f / len(f)
        mean, products = (
            self.decay * running + (1 - self.decay) * new
            for running, new in zip((self.mean, self.products), batch, strict=True)
        )
        self.batches.append((batch[0].detach(), batch[1].detach()))
        try:
            covariance = products - mean.outer(mean)
            return differentiable_distance(mean, covariance, self.reference_mean, self.reference_root)
        except torch.linalg.LinAlgError:
            self.check_finite()
            raise

    def check_finite(self) -> None:
        """Refuse, with a ``NonFiniteLossError``, features and moments that are not finite."""
        if not all(moment.isfinite().all() for moment in (self.products, *(products for _, products in self.batches))):
            raise NonFiniteLossError(
                f"features of the generator's images, or their moments, are not finite: {self.name}"
            )

    @torch.no_grad()
    def update(self) -> None:
        """Take the batches since the last call into the running moments, as one batch."""
        for running, batches in zip((self.mean, self.products), zip(*self.batches, strict=True), strict=True):
            running.lerp_(torch.stack(batches).mean(0), 1 - self.decay)
        self.batches.clear()
