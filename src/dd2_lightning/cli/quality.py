"""``dd2 quality`` and ``dd2 statistics``: files of images against a reference."""

from pathlib import Path
from typing import Any

from dd2_lightning.errors import check_samples


def quality(
    samples: str,
    reference: str,
    output: str,
    features: dict[str, Any] | str = "classifier",
    data: dict[str, Any] | str | None = None,
    inception: str | None = None,
    protocol: str | None = None,
    manifold_samples: int | None = None,
    batch_size: int = 100,
    device: str = "auto",
) -> dict[str, Any]:
    r"""Measure a file of images against a reference: FID, KID, inception score, precision and recall.

    Args:
        samples: ``.npz`` file of images, as ``dd2 sample`` writes it.
        reference: ``.npz`` file of images or of statistics, or ``.safetensors`` of ``dd2 statistics``. Statistics
            alone give FID and the inception score only.
        output: ``….json`` file of the results, or a directory for it.
        features: classifier, which is trained on the images of data, inception, or a class of your own:
            my_module.MyFeatures, perhaps as class_path and init_args.
        data: name of a data module of images, or its class_path and init_args.
        inception: weights file of Inception.
        protocol: how the samples were drawn, openai or dd1; as their file says by default.
        manifold_samples: samples that precision, recall and KID take, if there are so many; those of the protocol by
            default, else 10,000.
        batch_size: images at a time.
        device: where to compute: auto, cpu, cuda, cuda:1, mps.

    Examples:
        dd2 quality --samples samples.npz --reference reference.npz --output quality.json
        dd2 quality --samples samples.npz --reference VIRTUAL_imagenet256_labeled.npz --output quality.json \
          --features inception --inception weights.pth
    """
    from dd2_lightning.cli.finish import finish
    from dd2_lightning.data.named import open_images
    from dd2_lightning.devices import resolve_device
    from dd2_lightning.evaluation.measure import measure_quality, resolve_protocol
    from dd2_lightning.evaluation.report import results_path, to_json
    from dd2_lightning.files import check_writable, write_atomically
    from dd2_lightning.images.files import check_not_directory
    from dd2_lightning.images.npz import ImageFile
    from dd2_lightning.metrics.features import check_reads, feature_network
    from dd2_lightning.metrics.references import check_sizes, open_reference

    check_samples(batch_size=batch_size, manifold_samples=manifold_samples)
    chosen, path = resolve_device(device), results_path(output)
    check_not_directory(path)
    check_writable(path.parent)
    images = ImageFile(samples)
    drawn_by, against = resolve_protocol(images, protocol), open_reference(reference)
    check_sizes(images, against)
    network = feature_network(features, path.parent, inception, chosen, open_images(data) if data else None)
    check_reads(network, features, next(images.batches(1)).shape[1:], chosen)
    results = measure_quality(images, against, network, drawn_by, manifold_samples, batch_size, chosen)
    write_atomically(path, to_json(results))
    for name, value in results.items():
        if name != "warnings":
            print(f"{name:>16}  {'–' if value is None else value}")
    for message in results["warnings"]:
        print(f"{'warning':>16}  {message}")
    finish("quality", f"results -> {path}")
    return results


def statistics(
    images: str,
    output: str,
    features: dict[str, Any] | str = "classifier",
    data: dict[str, Any] | str | None = None,
    inception: str | None = None,
    batch_size: int = 100,
    device: str = "auto",
) -> None:
    """Mean and covariance of the features of a file of images, as a reference for ``dd2 quality``.

    Args:
        images: ``.npz`` file.
        output: ``….safetensors`` file.
        features: classifier, which is trained on the images of data, inception, or a class of your own:
            my_module.MyFeatures, perhaps as class_path and init_args.
        data: name of a data module of images, or its class_path and init_args.
        inception: weights file of Inception.
        batch_size: images at a time.
        device: where to compute: auto, cpu, cuda, cuda:1, mps.
    """
    from dd2_lightning.cli.finish import finish
    from dd2_lightning.data.named import open_images
    from dd2_lightning.devices import resolve_device
    from dd2_lightning.evaluation.measure import fit_features
    from dd2_lightning.files import check_writable
    from dd2_lightning.images.files import check_not_directory
    from dd2_lightning.images.npz import ImageFile
    from dd2_lightning.metrics.features import check_reads, feature_network
    from dd2_lightning.metrics.references import write_statistics
    from dd2_lightning.metrics.warning import collect_warnings

    check_samples(batch_size=batch_size)
    chosen, path = resolve_device(device), Path(output)
    if path.suffix != ".safetensors":
        raise ValueError(f"--output must be a .safetensors file, got {output}")
    check_not_directory(path)
    check_writable(path.parent)
    file = ImageFile(images)
    network = feature_network(features, path.parent, inception, chosen, open_images(data) if data else None)
    check_reads(network, features, next(file.batches(1)).shape[1:], chosen)
    fit = fit_features(file, network, batch_size, chosen)
    with collect_warnings() as messages:
        write_statistics(output, fit.compute(), network)
    for message in messages:
        print(f"warning: {message}")
    finish("statistics", f"statistics of {len(file)} images -> {output}", output=output)
