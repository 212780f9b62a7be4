"""Feature networks that a stage trains on: their settings, how they are opened, and fits to their features."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, distributed, nn
from torch.distributed.nn.functional import all_gather

from dd2_lightning.data.images import ImageData
from dd2_lightning.errors import DD2Error, NonFiniteLossError, check_range
from dd2_lightning.metrics.features import FeatureNetwork, feature_network
from dd2_lightning.metrics.frechet import FeatureGaussian, Gaussian


@dataclass(frozen=True)
class FeatureSettings:
    """A feature network, and what the features of generated images are brought near to.

    Attributes:
        network: classifier, inception, pixels, random, or a ``torch.nn.Module`` of your own: my_module.MyFeatures.
        reference: teacher (a sample of it), real (the images of ``data.real``), or a file: images or statistics, as
            ``dd2 quality`` reads them.
        weights: weights file of Inception.
        seed: of the classifier, which is trained when it is needed; 0 is the one that ``dd2 evaluate`` measures with.
        weight: of its distance in the loss.
    """

    network: str
    reference: str = "teacher"
    weights: str | None = None
    seed: int = 0
    weight: float = 1.0


def check_features(features: list[FeatureSettings]) -> None:
    """Refuse, with a ``ValueError``, settings out of range, no network, and one that is listed twice."""
    if not features or len({(entry.network, entry.weights, entry.seed) for entry in features}) < len(features):
        raise ValueError("model.features: list at least one feature network, and none twice")
    for entry in features:
        check_range("model.features.", "(0, inf)", weight=entry.weight)
        check_range("model.features.", "[0, inf)", seed=entry.seed)
        if entry.network == "inception" and not entry.weights:
            raise ValueError("model.features: inception needs its weights file: {network: inception, weights: FILE}")


def open_networks(
    features: list[FeatureSettings], directory: str | Path, images: Callable[[], ImageData]
) -> list[FeatureNetwork]:
    """Open feature networks, frozen; those that are trained here, on ``images``, are kept in ``DIRECTORY/features``."""
    networks = list[FeatureNetwork]()
    for entry in features:
        kept, data = Path(directory) / f"features/{entry.seed}", images() if entry.network == "classifier" else None
        try:
            network = feature_network(entry.network, kept, entry.weights, data=data, seed=entry.seed)
        except ValueError as error:
            raise DD2Error(f"model.features: {error}") from error
        if not isinstance(network, nn.Module):
            raise DD2Error(f"model.features: {entry.network} is no torch.nn.Module, so it cannot be trained on")
        networks.append(network)
    return networks


def features_for_training(network: FeatureNetwork, images: Tensor) -> Tensor:
    """Features (B, d) in float32, with a gradient where images (B, channels, H, W) have one."""
    with torch.autocast(images.device.type, enabled=False):
        features = network.features(images.float())
    if images.requires_grad and not features.requires_grad:
        raise DD2Error(f"model.features: {type(network).__name__} has no gradient in its images")
    return features


def gathered(features: Tensor) -> Tensor:
    """Features (b, d) of all processes, with the gradients of all: those of a loss that each of them computes."""
    if not distributed.is_initialized():
        return features
    return torch.cat(all_gather(features))


@torch.no_grad()
def fit_features(
    networks: list[FeatureNetwork], batches: Iterable[Tensor], reduce: Callable[[Tensor], Tensor], name: str
) -> list[Gaussian]:
    """Fits to the features of images, by network, from this process's batches (B, channels, H, W).

    ``reduce`` sums over processes; ``name`` says in messages what the images are of.
    """
    fits: list[FeatureGaussian] | None = None
    for images in batches:
        fits = fits or [FeatureGaussian(network.width).to(images.device) for network in networks]
        for fit, network in zip(fits, networks, strict=True):
            fit.update(features_for_training(network, images))
    gaussians = []
    for fit, network in zip(fits or [], networks, strict=True):
        fit.count, fit.total, fit.products = map(reduce, (fit.count, fit.total, fit.products))
        check_fit(int(fit.count), network, name)
        if not fit.products.isfinite().all():
            raise NonFiniteLossError(f"features of {type(network).__name__} are not finite at images of the {name}")
        gaussians.append(fit.compute())
    return gaussians


def check_fit(count: int, network: FeatureNetwork, name: str) -> None:
    """Refuse, with a ``DD2Error``, fewer images than features; 0 is a number that nobody knows."""
    if 0 < count <= network.width:
        kind = type(network).__name__
        raise DD2Error(
            f"model.features: {count} images of the {name} for {network.width} features of {kind}: their covariance is "
            f"singular; take more images (model.moment_samples) or a network of fewer features"
        )
