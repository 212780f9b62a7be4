"""References that samples are compared with: images, statistics of their features, or both.

================= ====================================================================================================
``….npz``         OpenAI's reference batches: images ``arr_0``, statistics ``mu`` and ``sigma``, or both. FID is to
                  the statistics, which are of more images; the rest is to the images. Nothing in the file says
                  which network made the statistics: it was Inception.
``….safetensors`` statistics written here: ``mean``, ``covariance``, and the number and feature network they are of.
================= ====================================================================================================
"""

import json
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from dd2_lightning.errors import ArtifactError
from dd2_lightning.files import write_atomically
from dd2_lightning.images.npz import ImageFile, open_npz, read_arrays
from dd2_lightning.metrics.features import FeatureNetwork, InceptionFeatures, features_of, identity
from dd2_lightning.metrics.frechet import FeatureGaussian, Gaussian
from dd2_lightning.metrics.manifold import FirstFeatures
from dd2_lightning.metrics.warning import SampleWarning
from dd2_lightning.progress import tracked

FORMAT = "1"


@dataclass
class Reference:
    """An opened reference file, with statistics, images, or both."""

    path: Path
    gaussian: Gaussian | None
    images: ImageFile | None

    def measured(
        self, network: FeatureNetwork, limit: int, batch_size: int = 100, device: torch.device | str = "cpu"
    ) -> tuple[Gaussian, Tensor | None]:
        """Statistics, and the features of the first ``limit`` images, (N, d), if there are images."""
        if self.images is None:
            return self.gaussian, None
        fit = None if self.gaussian else FeatureGaussian(network.width).to(device)
        first = FirstFeatures(limit)
        count = min(len(self.images), limit) if self.gaussian else len(self.images)
        batches = self.images.batches(batch_size, count)
        for pixels in tracked(batches, f"reference: {self.path.name}", count, size=batch_size):
            features = features_of(network, pixels, device)
            first.update(features)
            if fit is not None:
                fit.update(features)
        return fit.compute() if fit is not None else self.gaussian, first.compute()


def write_statistics(path: str | Path, gaussian: Gaussian, network: FeatureNetwork) -> None:
    """Write statistics to a safetensors file, atomically."""
    tensors = {"mean": gaussian.mean.cpu().contiguous(), "covariance": gaussian.covariance.cpu().contiguous()}
    description = {"format": FORMAT, "count": str(gaussian.count), "network": identity(network)}
    write_atomically(Path(path), save(tensors, {"statistics": json.dumps(description)}))


def open_reference(path: str | Path, network: FeatureNetwork) -> Reference:
    """Open a reference for features of ``network``.

    Raises:
        ArtifactError: if it is missing, damaged, of neither kind, or of another feature network.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        return Reference(path, _read_statistics(path, identity(network)), None)
    with open_npz(path) as archive:
        names = {name.removesuffix(".npy") for name in archive.namelist()}
    statistics = {"mu", "sigma"} <= names
    if not statistics and "arr_0" not in names:
        raise ArtifactError(f"{path} holds neither images (arr_0) nor statistics (mu, sigma)")
    gaussian = _openai_statistics(path, network) if statistics else None
    return Reference(path, gaussian, ImageFile(path) if "arr_0" in names else None)


def _read_statistics(path: Path, wanted: str) -> Gaussian:
    if not path.is_file():
        raise ArtifactError(f"{path} does not exist")
    try:
        with safe_open(path, "pt") as file:
            description = json.loads((file.metadata() or {})["statistics"])
            gaussian = Gaussian(file.get_tensor("mean"), file.get_tensor("covariance"), int(description["count"]))
            version, network = description["format"], description["network"]
    except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
        raise ArtifactError(f"{path} is damaged or holds no statistics ({error}); make it again") from error
    if version != FORMAT:
        raise ArtifactError(f"{path} has format {version}, this version reads format {FORMAT}")
    if network != wanted:
        raise ArtifactError(f"{path} holds statistics of the feature network {network}, samples have those of {wanted}")
    return _check_statistics(gaussian, path)


def _openai_statistics(path: Path, network: FeatureNetwork) -> Gaussian:
    arrays = read_arrays(path)
    mean, covariance = arrays["mu"], arrays["sigma"]
    if mean.dtype.kind != "f" or covariance.dtype.kind != "f":
        raise ArtifactError(f"{path}: mu and sigma must be floats, they are {mean.dtype} and {covariance.dtype}")
    gaussian = _check_statistics(
        Gaussian(torch.from_numpy(mean).double(), torch.from_numpy(covariance).double(), 0), path
    )
    if len(gaussian.mean) != network.width:
        raise ArtifactError(
            f"{path} holds statistics of {len(gaussian.mean)} features, the feature network has {network.width}"
        )
    if not isinstance(network, InceptionFeatures):
        warnings.warn(
            f"{path} does not say which network its statistics are of; it is taken for yours", SampleWarning, 4
        )
    return gaussian


def _check_statistics(gaussian: Gaussian, path: Path) -> Gaussian:
    mean, covariance, _ = gaussian
    d = len(mean) if mean.ndim == 1 else 0
    if not d or covariance.shape != (d, d):
        raise ArtifactError(
            f"{path}: statistics must be (d,) and (d, d), they are {tuple(mean.shape)} and {tuple(covariance.shape)}"
        )
    if not (mean.isfinite().all() and covariance.isfinite().all()):
        raise ArtifactError(f"{path}: statistics are not finite; make them again")
    return gaussian


def check_sizes(samples: ImageFile, reference: Reference) -> None:
    """Refuse to compare images of different sizes."""
    other = reference.images
    if other is not None and samples.shape[1:] != other.shape[1:]:
        sizes = ["x".join(map(str, file.shape[1:])) for file in (samples, other)]
        raise ArtifactError(f"{samples.path} holds images of {sizes[0]}, {other.path} of {sizes[1]}")
