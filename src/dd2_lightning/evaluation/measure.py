"""``dd2 quality`` and ``dd2 statistics``: files of images against a reference."""

import json
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from dd2_lightning.devices import resolve_device
from dd2_lightning.errors import ArtifactError, check_samples
from dd2_lightning.evaluation.report import results_path, to_json
from dd2_lightning.files import check_writable, write_atomically
from dd2_lightning.images.files import check_not_directory
from dd2_lightning.images.npz import ImageFile, read_arrays
from dd2_lightning.metrics.features import feature_network, features_of, identity
from dd2_lightning.metrics.frechet import FeatureGaussian
from dd2_lightning.metrics.protocols import protocol_named
from dd2_lightning.metrics.quality import Quality
from dd2_lightning.metrics.references import check_sizes, open_reference, write_statistics
from dd2_lightning.metrics.warning import SampleWarning, collect_warnings
from dd2_lightning.progress import tracked


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
    device: str = "auto",
) -> dict[str, Any]:
    """Measure a file of images against a reference: FID, KID, inception score, precision and recall.

    Args:
        samples: ``.npz`` file of images, as ``dd2 sample`` writes it.
        reference: ``.npz`` file of images or of statistics, or ``.safetensors`` of ``dd2 statistics``. Statistics
            alone give FID and the inception score only.
        output: ``….json`` file of the results, or a directory for it.
        features: digits, inception, or a class of your own: my_module.MyFeatures.
        inception: weights file of Inception.
        protocol: how the samples were drawn, openai or dd1; as their file says by default.
        manifold_samples: samples that precision, recall and KID take, if there are so many; those of the protocol by
            default, else 10,000.
        batch_size: images at a time.
        device: where to compute: auto, cpu, cuda, cuda:1, mps.

    Returns:
        The results, as they are written: settings, scores and ``"warnings"``.
    """
    check_samples(batch_size=batch_size, manifold_samples=manifold_samples)
    chosen, path = resolve_device(device), results_path(output)
    check_not_directory(path)
    check_writable(path.parent)
    images = ImageFile(samples)
    protocol = resolve_protocol(images, protocol)
    if manifold_samples is None:
        manifold_samples = 10_000 if protocol is None else protocol_named(protocol).manifold_samples
    network = feature_network(features, path.parent, inception, chosen)
    with collect_warnings() as messages:
        against = open_reference(reference, network)
        check_sizes(images, against)
        wanted = protocol and protocol_named(protocol).samples
        if wanted and len(images) < wanted:
            warnings.warn(
                f"{len(images):,} samples, protocol {protocol} takes {wanted:,}: these figures are not comparable",
                SampleWarning,
                stacklevel=1,
            )
        measured = against.measured(network, manifold_samples, batch_size, chosen)
        metrics = Quality(*measured, manifold_samples).to(chosen)
        for pixels in tracked(images.batches(batch_size), "quality: samples", len(images), size=batch_size):
            found = features_of(network, pixels, chosen)
            metrics.update(found, network.logits(found))
        scores = metrics.compute()
    results = {
        "protocol": protocol,
        "features": identity(network),
        "reference": against.path.name,
        "samples": len(images),
        "manifold_samples": None if against.images is None else min(manifold_samples, len(images)),
        **asdict(scores),
        "warnings": messages,
    }
    write_atomically(path, to_json(results))
    shown = {name: value for name, value in results.items() if name != "warnings"}
    print("\n".join(f"{name:>16}  {'–' if value is None else value}" for name, value in shown.items()))
    for message in messages:
        print(f"{'warning':>16}  {message}")
    return results


@torch.no_grad()
def statistics(
    pictures: str,
    output: str,
    features: str = "digits",
    inception: str | None = None,
    batch_size: int = 100,
    device: str = "auto",
) -> None:
    """Mean and covariance of the features of a file of images, as a reference for ``dd2 quality``.

    Args:
        pictures: ``.npz`` file of images.
        output: ``….safetensors`` file.
        features: digits, inception, or a class of your own: my_module.MyFeatures.
        inception: weights file of Inception.
        batch_size: images at a time.
        device: where to compute: auto, cpu, cuda, cuda:1, mps.
    """
    check_samples(batch_size=batch_size)
    chosen = resolve_device(device)
    if Path(output).suffix != ".safetensors":
        raise ValueError(f"--output must be a .safetensors file, got {output}")
    check_not_directory(Path(output))
    check_writable(Path(output).parent)
    file = ImageFile(pictures)
    network = feature_network(features, Path(output).parent, inception, chosen)
    fit = FeatureGaussian(network.width).to(chosen)
    for pixels in tracked(file.batches(batch_size), "statistics", len(file), size=batch_size):
        fit.update(features_of(network, pixels, chosen))
    with collect_warnings() as messages:
        write_statistics(output, fit.compute(), network)
    print(f"statistics of {len(file)} images -> {output}")
    for message in messages:
        print(f"warning: {message}")


def resolve_protocol(images: ImageFile, protocol: str | None) -> str | None:
    """The given protocol, or the one in the samples' file; a ValueError if they differ, None if there is neither."""
    settings = read_arrays(images.path).get("settings")
    try:
        stored = None if settings is None else json.loads(str(settings)).get("protocol")
    except (ValueError, AttributeError) as error:
        raise ArtifactError(f"{images.path}: its settings are not those of dd2 sample ({error})") from error
    if protocol is None:
        return stored
    if settings is not None and stored != protocol_named(protocol).name:
        raise ValueError(f"{images.path} was drawn by {stored or 'no'} protocol, not by --protocol {protocol}")
    return protocol
