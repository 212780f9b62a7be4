r"""Perceptual path length (Karras et al. 2019, arXiv:1812.04948): how much images change along a path of noise.

.. math:: E\,[\,D(G(z(t)), G(z(t+\epsilon)))\,/\,\epsilon^2\,]

with :math:`z(t)` between two Gaussian draws, interpolated spherically. A path keeps its class. The distance D is
squared: LPIPS in the literature, and by default here the squared distance of a classifier's features, so that figures
of the two cannot be compared. torchmetrics' function looks at the start of paths only and wants noise of one axis.
"""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from dd2_lightning.errors import check_at_least_one, check_range
from dd2_lightning.metrics.features import FeatureNetwork
from dd2_lightning.noise import SampleNoise
from dd2_lightning.progress import tracked


class PathLength(NamedTuple):
    """Mean and standard deviation of the lengths that were kept, and all lengths, (samples,) in float64."""

    mean: float
    deviation: float
    lengths: Tensor


def feature_distance(network: FeatureNetwork) -> Callable[[Tensor, Tensor], Tensor]:
    """Squared distance of the features of two batches of images, (B,)."""

    def distance(first: Tensor, second: Tensor) -> Tensor:
        return (network.features(first).double() - network.features(second).double()).square().sum(1)

    return distance


def lerp(first: Tensor, second: Tensor, t: Tensor) -> Tensor:
    """Point of the straight line from ``first`` to ``second`` (B, D) at t (B, 1)."""
    return first + t * (second - first)


def slerp(first: Tensor, second: Tensor, t: Tensor) -> Tensor:
    """Point of the arc from ``first`` to ``second`` (B, D) at t (B, 1); the angle grows evenly.

    Between draws from a Gaussian, which are nearly orthogonal, it stays where such draws are.
    """
    cosine = torch.cosine_similarity(first, second, dim=1)[:, None].clamp(-1, 1)
    angle = cosine.acos()
    straight = angle.sin() < 1e-6
    sine = torch.where(straight, 1.0, angle.sin())
    arc = ((1 - t) * angle).sin() / sine * first + (t * angle).sin() / sine * second
    return torch.where(straight, lerp(first, second, t), arc)


def trimmed(values: Tensor, share: float) -> Tensor:
    """Values without those below the ``share`` quantile and above its counterpart, both included."""
    check_range("the share to leave out on each side: ", "[0, 0.5)", share=share)
    low = torch.quantile(values, share, interpolation="lower")
    high = torch.quantile(values, 1 - share, interpolation="higher")
    return values[(values >= low) & (values <= high)]


@torch.no_grad()
def path_length(
    draw: Callable[[Tensor, Tensor], Tensor],
    shape: tuple[int, ...],
    num_classes: int,
    distance: Callable[[Tensor, Tensor], Tensor],
    samples: int = 10_000,
    epsilon: float = 1e-4,
    interpolation: Literal["slerp", "lerp"] = "slerp",
    discard: float = 0.01,
    seed: int = 0,
    batch_size: int = 100,
    device: torch.device | str = "cpu",
    progress: bool = False,
) -> PathLength:
    """Measure the path length of a generator on ``samples`` paths; path i has class i mod ``num_classes``.

    Args:
        draw: images (B, channels, H, W) of classes (B,) and noise ``(B, *shape)``.
        shape: of the noise of one image, (n, C).
        distance: squared distances (B,) of two batches of images.
        epsilon: how far apart the two images of a path, at a random place of it, are.
        discard: share left out on each side before the mean is taken, as in the paper.
    """
    check_at_least_one("", samples=samples, batch_size=batch_size)
    check_range("", "(0, inf)", epsilon=epsilon)
    between = {"slerp": slerp, "lerp": lerp}[interpolation]
    found, starts = [], range(0, samples, batch_size)
    for start in tracked(starts, "path length", samples, unit="paths", size=batch_size) if progress else starts:
        count = min(batch_size, samples - start)
        noise = SampleNoise(seed, start, count, device)
        first, second = noise.randn("path", 2, math.prod(shape)).double().unbind(1)
        t = noise.rand("path", 1).double() * (1 - epsilon)
        labels = (torch.arange(count, device=device) + start) % num_classes
        pair = [draw(labels, between(first, second, at).float().unflatten(1, shape)) for at in (t, t + epsilon)]
        found.append(distance(*pair).double().cpu() / epsilon**2)
    lengths = torch.cat(found)
    kept = trimmed(lengths, discard)
    return PathLength(kept.mean().item(), kept.std(correction=0).item(), lengths)
