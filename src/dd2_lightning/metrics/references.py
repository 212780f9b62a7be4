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
    gaussian: Gaussian | None = None  # the statistics
    network: str | None = None  # identity of the feature network that they are of; None if the file does not say it
    images: ImageFile | None = None

    def check_network(self, network: FeatureNetwork) -> None:
        """Refuse statistics of another feature network, with an ArtifactError; warn where the file does not say it."""
        if self.gaussian is None:
            return
        width, wanted, what = len(self.gaussian.mean), identity(network), f"{self.path} holds statistics of"
        if self.network not in (None, wanted):
            raise ArtifactError(f"{what} the feature network {self.network}, samples have those of {wanted}")
        if width != network.width:
            raise ArtifactError(f"{what} {width} features, the feature network has {network.width}")
        if self.network is None and not isinstance(network, InceptionFeatures):
            message = f"{self.path} does not say which network its statistics are of; it is taken for yours"
            warnings.warn(message, SampleWarning, stacklevel=3)

    def measured(
        self, network: FeatureNetwork, limit: int, batch_size: int = 100, device: torch.device | str = "cpu"
    ) -> tuple[Gaussian, Tensor | None]:
        """Statistics, and the features of the first ``limit`` images, (N, d), if there are images."""
        self.check_network(network)
        if self.images is None:
            assert self.gaussian is not None
            return self.gaussian, None
        fit, first = FeatureGaussian(network.width).to(device), FirstFeatures(limit)
        count = min(len(self.images), limit) if self.gaussian else len(self.images)
        batches = self.images.batches(batch_size, count)
        for pixels in tracked(batches, f"reference: {self.path.name}", count, size=batch_size):
            features = features_of(network, pixels, device)
            first.update(features)
            if self.gaussian is None:
                fit.update(features)
        return self.gaussian or fit.compute(), first.compute()


def write_statistics(path: str | Path, gaussian: Gaussian, network: FeatureNetwork) -> None:
    """Write statistics to a safetensors file, atomically."""
    tensors = {"mean": gaussian.mean.cpu().contiguous(), "covariance": gaussian.covariance.cpu().contiguous()}
    description = {"format": FORMAT, "count": str(gaussian.count), "network": identity(network)}
    write_atomically(Path(path), save(tensors, {"statistics": json.dumps(description)}))


def open_reference(path: str | Path) -> Reference:
    """Open a reference; an ``ArtifactError`` if it is missing, damaged or of neither kind."""
    path = Path(path)
    if path.suffix == ".safetensors":
        return _read_statistics(path)
    with open_npz(path) as archive:
        names = {name.removesuffix(".npy") for name in archive.namelist()}
    images = ImageFile(path) if "arr_0" in names else None
    if {"mu", "sigma"} <= names:
        arrays = read_arrays(path)
        mean, covariance = arrays["mu"], arrays["sigma"]
        if mean.dtype.kind != "f" or covariance.dtype.kind != "f":
            raise ArtifactError(f"{path}: mu and sigma must be floats, they are {mean.dtype} and {covariance.dtype}")
        gaussian = _gaussian(path, torch.from_numpy(mean).double(), torch.from_numpy(covariance).double())
        return Reference(path, gaussian, images=images)
    if images is None:
        raise ArtifactError(f"{path} holds neither images (arr_0) nor statistics (mu, sigma)")
    return Reference(path, images=images)


def _read_statistics(path: Path) -> Reference:
    if not path.is_file():
        raise ArtifactError(f"{path} does not exist")
    try:
        with safe_open(path, "pt") as file:
            mean, covariance = file.get_tensor("mean"), file.get_tensor("covariance")
            description = json.loads((file.metadata() or {})["statistics"])
            version, network, count = description["format"], description["network"], int(description["count"])
    except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
        raise ArtifactError(f"{path} is damaged or holds no statistics ({error}); make it again") from error
    if version != FORMAT:
        raise ArtifactError(f"{path} has format {version}, this version reads format {FORMAT}")
    return Reference(path, _gaussian(path, mean, covariance, count), network)


def _gaussian(path: Path, mean: Tensor, covariance: Tensor, count: int = 0) -> Gaussian:
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)) or not len(mean):
        shapes = f"{tuple(mean.shape)} and {tuple(covariance.shape)}"
        raise ArtifactError(f"{path}: statistics must be (d,) and (d, d), they are {shapes}")
    if not (mean.isfinite().all() and covariance.isfinite().all()):
        raise ArtifactError(f"{path}: statistics are not finite; make them again")
    return Gaussian(mean, covariance, count)


def check_sizes(samples: ImageFile, reference: Reference) -> None:
    """Refuse to compare images of different sizes."""
    if reference.images is not None and samples.shape[1:] != reference.images.shape[1:]:
        first, second = ("x".join(map(str, file.shape[1:])) for file in (samples, reference.images))
        raise ArtifactError(f"{samples.path} holds images of {first}, {reference.path} of {second}")
