"""Files of images against a reference: scores, and the statistics of a reference."""

import json
import warnings
from dataclasses import asdict
from typing import Any

import torch

from dd2_lightning.errors import ArtifactError
from dd2_lightning.images.npz import ImageFile, read_arrays
from dd2_lightning.metrics.features import FeatureNetwork, features_of, identity
from dd2_lightning.metrics.frechet import FeatureGaussian
from dd2_lightning.metrics.protocols import Protocol, protocol_named
from dd2_lightning.metrics.quality import Quality
from dd2_lightning.metrics.references import Reference
from dd2_lightning.metrics.warning import SampleWarning, collect_warnings
from dd2_lightning.progress import tracked


@torch.no_grad()
def measure_quality(
    images: ImageFile,
    reference: Reference,
    network: FeatureNetwork,
    protocol: Protocol | None,
    manifold_samples: int | None,
    batch_size: int,
    device: torch.device,
) -> dict[str, Any]:
    """Measure images against a reference, images of the same size or statistics: settings, scores and ``"warnings"``.

    ``manifold_samples``, which precision, recall and KID take, are by default those of the protocol, else 10,000.
    """
    limit = manifold_samples or (protocol.manifold_samples if protocol else 10_000)
    with collect_warnings() as messages:
        if protocol and protocol.samples and len(images) < protocol.samples:
            message = f"{len(images):,} samples, protocol {protocol.name} takes {protocol.samples:,}"
            warnings.warn(f"{message}: these figures are not comparable", SampleWarning, stacklevel=1)
        if identity(network) in (sample_settings(images) or {}).get("trained_on", ()):
            message = f"{images.path} was drawn by a model that was trained on these features: they measure nothing"
            warnings.warn(message, SampleWarning, stacklevel=1)
        quality = Quality(*reference.measured(network, limit, batch_size, device), limit).to(device)
        for pixels in tracked(images.batches(batch_size), "quality: samples", len(images), size=batch_size):
            features = features_of(network, pixels, device)
            quality.update(features, network.logits(features))
        scores = quality.compute()
    return {
        "protocol": protocol and protocol.name,
        "features": identity(network),
        "reference": reference.path.name,
        "samples": len(images),
        "manifold_samples": None if reference.images is None else min(limit, len(images)),
        **asdict(scores),
        "warnings": messages,
    }


@torch.no_grad()
def fit_features(images: ImageFile, network: FeatureNetwork, batch_size: int, device: torch.device) -> FeatureGaussian:
    """Mean and covariance of the features of images."""
    fit = FeatureGaussian(network.width).to(device)
    for pixels in tracked(images.batches(batch_size), "statistics", len(images), size=batch_size):
        fit.update(features_of(network, pixels, device))
    return fit


def sample_settings(images: ImageFile) -> dict[str, Any] | None:
    """How ``dd2 sample`` drew a file, None if it did not; an ArtifactError for settings of something else."""
    settings = read_arrays(images.path).get("settings")
    try:
        return None if settings is None else dict(json.loads(str(settings)))
    except (ValueError, TypeError) as error:
        raise ArtifactError(f"{images.path}: its settings are not those of dd2 sample ({error})") from error


def resolve_protocol(images: ImageFile, name: str | None) -> Protocol | None:
    """The protocol of this name, or the one in the samples' file; a ValueError if they differ."""
    protocol = None if name is None else protocol_named(name)
    settings = sample_settings(images)
    stored = settings.get("protocol") if settings else None
    if protocol is None:
        return None if stored is None else protocol_named(stored)
    if settings is not None and stored != name:
        raise ValueError(f"{images.path} was drawn by {stored or 'no'} protocol, not by --protocol {name}")
    return protocol
