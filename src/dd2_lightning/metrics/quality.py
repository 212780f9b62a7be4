r"""Image quality from features: FID, KID, inception score, precision and recall.

The features of a batch are computed once and handed to all metrics. The inception score is torchmetrics'. KID is its
``poly_mmd`` on subsets drawn here, since its metric keeps every feature twice and draws from the global random state.
For FID see :mod:`~dd2_lightning.metrics.frechet`.
"""

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics.image.inception import InceptionScore
from torchmetrics.image.kid import poly_mmd

from dd2_lightning.metrics.frechet import FeatureGaussian, Gaussian, frechet_distance
from dd2_lightning.metrics.manifold import FirstFeatures, Manifold, precision_recall
from dd2_lightning.noise import stream


@dataclass
class QualityScores:
    """Scores of a set of images; None where a number is not defined."""

    frechet: float  # Fréchet distance of the features to the reference's; FID if they are Inception's
    kid: float | None = None  # squared maximum mean discrepancy with a cubic kernel; unbiased, so it may be negative
    inception_score: float | None = None  # of a classifier's logits
    precision: float | None = None  # share of samples in the manifold of the reference
    recall: float | None = None  # share of the reference in the manifold of the samples


class Quality(nn.Module):
    """Measures a set of samples against a reference; :meth:`reset` makes it ready for the next set.

    The reference is a fit of its features and, for KID, precision and recall, the features (N, d) themselves: the first
    ``manifold_samples`` of each side. Recall rises with their number and precision falls.

    Args:
        k: neighbours of precision and recall.
        splits: subsets whose inception scores are averaged.
        seed: of KID's subsets and those of the inception score.
    """

    def __init__(
        self,
        gaussian: Gaussian,
        features: Tensor | None = None,
        manifold_samples: int = 10_000,
        k: int = 3,
        splits: int = 10,
        seed: int = 0,
    ):
        super().__init__()
        self.gaussian, self.k, self.seed, self.manifold_samples = gaussian, k, seed, manifold_samples
        self.fit = FeatureGaussian(len(gaussian.mean))
        self.manifold = None
        if features is not None and manifold_samples:
            self.manifold, self.first = Manifold(features[:manifold_samples], k), FirstFeatures(manifold_samples)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*will save all extracted features")
            self.inception = InceptionScore(nn.Identity(), splits)

    @classmethod
    def of(cls, features: Tensor, **kwargs: Any) -> "Quality":
        """With the reference given by its features (N, d) alone; ``kwargs`` as above."""
        fit = FeatureGaussian(features.shape[1]).to(features.device)
        fit.update(features)
        return cls(fit.compute(), features, **kwargs)

    def update(self, features: Tensor, logits: Tensor | None = None) -> None:
        """Add features (B, d) and, for the inception score, logits (B, classes) of a classifier, always or never."""
        self.fit.update(features)
        if self.manifold is not None:
            self.first.update(features)
        if logits is not None:
            self.inception.update(logits)

    def compute(self) -> QualityScores:
        scores = QualityScores(frechet_distance(self.gaussian, self.fit.compute()))
        if self.manifold is not None:
            samples = self.first.compute()
            scores.kid = kernel_distance(self.manifold.features, samples, seed=self.seed)
            scores.precision, scores.recall = precision_recall(self.manifold, Manifold(samples, self.k))
        if self.inception.features:
            with torch.random.fork_rng(devices=[]):  # it shuffles with the global random state
                torch.default_generator.manual_seed(self.seed)
                scores.inception_score = self.inception.compute()[0].item()
        return scores

    def reset(self) -> None:
        """Forget all samples, not the reference."""
        self.fit.reset()
        self.inception.reset()
        if self.manifold is not None:
            self.first = FirstFeatures(self.manifold_samples)


def kernel_distance(first: Tensor, second: Tensor, subsets: int = 100, subset_size: int = 1000, seed: int = 0) -> float:
    r"""Kernel inception distance (Bińkowski et al. 2018, arXiv:1801.01401) of (N, d) and (M, d), in float64.

    The unbiased squared maximum mean discrepancy with the kernel :math:`(a\cdot b/d+1)^3`, averaged over random
    subsets of both sides; one subset, if it is everything.
    """
    size = min(subset_size, len(first), len(second))
    if size < 2:
        raise ValueError(f"KID needs at least 2 samples of each side, got {len(first)} and {len(second)}")
    if size == len(first) == len(second):
        subsets = 1
    total = 0.0
    for subset in range(subsets):
        rng = stream(seed, "kid", subset)
        a, b = (side[torch.randperm(len(side), generator=rng)[:size]].double() for side in (first, second))
        total += poly_mmd(a, b).item()
    return total / subsets
