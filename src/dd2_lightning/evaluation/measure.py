"""``dd2 quality`` and ``dd2 statistics``: files of pictures against a reference."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from dd2_lightning.artifacts import check_writable, write_atomically
from dd2_lightning.errors import check_at_least_one
from dd2_lightning.evaluation.classifier import FeatureNetwork
from dd2_lightning.evaluation.features import feature_network, features_of, identity
from dd2_lightning.evaluation.metrics import FeatureGaussian
from dd2_lightning.evaluation.picture_files import PictureFile, read_arrays
from dd2_lightning.evaluation.progress import tracked
from dd2_lightning.evaluation.protocols import protocol_named
from dd2_lightning.evaluation.quality import Quality, QualityScores
from dd2_lightning.evaluation.references import Reference, check_sizes, open_reference, write_statistics
from dd2_lightning.evaluation.report import results_path, to_json


@torch.no_grad()
def quality(
    samples: str,
    reference: str,
    output: str,
    features: str = "digits",
    inception: str | None = None,
    protocol: str | None = None,
    manifold_samples: int | None = None,
    batch_size: int = 100,
    device: str = "cpu",
) -> dict[str, Any]:
    """Measure a file of pictures against a reference: FID, KID, inception score, precision and recall.

    Args:
        samples: ``.npz`` file of pictures, as ``dd2 sample`` writes it.
        reference: ``.npz`` file of pictures or of statistics, or ``.safetensors`` of ``dd2 statistics``. Statistics
            alone give FID and the inception score only.
        output: ``….json`` file of the results, or a directory for it.
        features: digits, inception, or one's own network: my_module.MyFeatures.
        inception: weights file of Inception.
        protocol: how the samples were drawn, openai or dd1; as their file says by default.
        manifold_samples: samples that precision, recall and KID take; those of the protocol by default, else 10,000.
        batch_size: pictures at a time.
        device: where to compute.

    Returns:
        The results: ``{"protocol", "features", "reference", "samples", "manifold_samples", "frechet", "kid",
        "inception_score", "precision", "recall"}``.

    Raises:
        ArtifactError: if a file cannot be read or written, or does not fit the others.
        DD2Error: if an extra is missing.
        ValueError: for options that cannot be.
    """
    check_at_least_one("--", batch_size=batch_size, manifold_samples=manifold_samples)
    path = results_path(output)
    check_writable(path.parent)
    pictures = PictureFile(samples)
    protocol = settle_protocol(pictures, protocol)
    if manifold_samples is None:
        manifold_samples = 10_000 if protocol is None else protocol_named(protocol).manifold_samples
    network = feature_network(features, path.parent, inception, device)
    against = open_reference(reference, network)
    check_sizes(pictures, against)
    scores = score(pictures, against, network, manifold_samples, batch_size, device)
    results = {
        "protocol": protocol,
        "features": identity(network),
        "reference": against.path.name,
        "samples": len(pictures),
        "manifold_samples": manifold_samples,
        **asdict(scores),
    }
    write_atomically(path, to_json(results))
    print("\n".join(f"{name:>16}  {'–' if value is None else value}" for name, value in results.items()))
    return results


def score(
    pictures: PictureFile,
    reference: Reference,
    network: FeatureNetwork,
    manifold_samples: int = 10_000,
    batch_size: int = 100,
    device: torch.device | str = "cpu",
) -> QualityScores:
    """Measure a file of pictures; see :class:`Quality`."""
    measured = Quality(*reference.measured(network, manifold_samples, batch_size, device), manifold_samples).to(device)
    for pixels in tracked(pictures.batches(batch_size), "samples", -(-len(pictures) // batch_size)):
        found = features_of(network, pixels, device)
        measured.update(found, network.logits(found))
    return measured.compute()


@torch.no_grad()
def statistics(
    pictures: str,
    output: str,
    features: str = "digits",
    inception: str | None = None,
    batch_size: int = 100,
    device: str = "cpu",
) -> None:
    """Mean and covariance of the features of a file of pictures, as a reference for ``dd2 quality``.

    Args:
        pictures: ``.npz`` file.
        output: ``….safetensors`` file.
        features: digits, inception, or one's own network: my_module.MyFeatures.
        inception: weights file of Inception.
        batch_size: pictures at a time.
        device: where to compute.

    Raises:
        ArtifactError: if a file cannot be read or written.
        DD2Error: if an extra is missing.
        ValueError: for options that cannot be.
    """
    check_at_least_one("--", batch_size=batch_size)
    if Path(output).suffix != ".safetensors":
        raise ValueError(f"--output must be a .safetensors file, got {output}")
    check_writable(Path(output).parent)
    file = PictureFile(pictures)
    network = feature_network(features, Path(output).parent, inception, device)
    fit = FeatureGaussian(network.width).to(device)
    for pixels in tracked(file.batches(batch_size), "pictures", -(-len(file) // batch_size)):
        fit.update(features_of(network, pixels, device))
    write_statistics(output, fit.compute(), network)
    print(f"statistics of {len(file)} pictures -> {output}")


def settle_protocol(pictures: PictureFile, protocol: str | None) -> str | None:
    """The protocol that samples were drawn by: what is given, or what their file says; None if neither does.

    Raises:
        ValueError: if both do and differ, or there is no such protocol.
    """
    settings = read_arrays(pictures.path).get("settings")
    said = None if settings is None else json.loads(str(settings)).get("protocol")
    if protocol is None:
        return said
    if settings is not None and said != protocol_named(protocol).name:
        raise ValueError(f"{pictures.path} was drawn by {said or 'no'} protocol, not by --protocol {protocol}")
    return protocol
