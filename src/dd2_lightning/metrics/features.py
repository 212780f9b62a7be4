"""Feature networks: a classifier of the run's own images, Inception, or a class of the user's."""

from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from dd2_lightning.artifacts import state_hash
from dd2_lightning.data.images import ImageData
from dd2_lightning.data.named import Named, make_named
from dd2_lightning.errors import DD2Error
from dd2_lightning.hub.checkpoint import read_checkpoint
from dd2_lightning.images.files import to_bytes
from dd2_lightning.metrics.classifier import load_classifier
from dd2_lightning.metrics.simple import UNTRAINED


class FeatureNetwork(Protocol):
    """From images to the features, ``width`` numbers d, that they are measured in."""

    width: int

    @property
    def held_out_accuracy(self) -> float | None:
        """Accuracy on real images it was not trained on; None if it does not classify the teacher's classes."""

    def features(self, images: Tensor) -> Tensor:
        """Images (B, channels, H, W) in [0, 1] -> features (B, d), with a gradient if it is to be trained on."""

    def logits(self, features: Tensor) -> Tensor | None:
        """Class logits (B, classes) from features; None if it does not classify."""


class InceptionFeatures(nn.Module):
    """The Inception network of FID, through torch-fidelity: 2,048 features after the last pooling.

    It reads RGB images. Its 1,008 logits, without bias as the inception score takes them, are not those of a teacher's
    classes. The weights are its file ``weights-inception-2015-12-05-6726825d.pth``; nothing is downloaded.
    """

    width = 2048
    held_out_accuracy = None

    def __init__(self, weights: str | Path):
        super().__init__()
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except ImportError as error:
            raise DD2Error("Inception needs torch-fidelity: pip install 'dd2-lightning[eval]'") from error
        read_checkpoint(weights)  # refuses pickled code before torch-fidelity opens the file
        try:
            self.network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], str(weights))
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:300]
            raise DD2Error(f"{weights} does not hold torch-fidelity's Inception weights: {reason}") from error
        self.requires_grad_(False).eval()

    def features(self, images: Tensor) -> Tensor:
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"Inception reads RGB images (B, 3, H, W), got {tuple(images.shape)}")
        if not images.requires_grad:
            return self.network(to_bytes(images))[0]
        from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x as resize

        def with_gradient(first_layer: nn.Module, inputs: tuple[Tensor]) -> Tensor:
            """What the first layer reads of rounded pixels, with the gradient of those that are not."""
            smooth = (resize(255 * images, tuple(inputs[0].shape[2:]), align_corners=False) - 128) / 128
            return inputs[0] + (smooth - smooth.detach())

        with next(self.network.children()).register_forward_pre_hook(with_gradient):
            return self.network(to_bytes(images))[0]

    def logits(self, features: Tensor) -> Tensor:
        return features @ self.network.fc.weight.T


def feature_network(
    named: Named,
    directory: str | Path = ".",
    inception: str | Path | None = None,
    device: torch.device | str = "cpu",
    data: ImageData | None = None,
    seed: int = 0,
) -> FeatureNetwork:
    """Open a feature network, frozen, in evaluation mode.

    It is ``classifier`` (of this seed, trained on ``data`` and kept in the directory), ``inception`` (by its weights
    file), ``pixels``, ``random``, or the class of a :class:`FeatureNetwork`, perhaps with its settings:
    ``my_module.MyFeatures``.
    """
    network: FeatureNetwork
    if named == "classifier":
        if data is None:
            raise ValueError("--features classifier needs --data: the images that it is trained on")
        network = load_classifier(directory, data, seed)
    elif named == "inception":
        if inception is None:
            raise ValueError("--features inception needs --inception: its weights file")
        network = InceptionFeatures(inception)
    elif isinstance(named, str) and named in UNTRAINED:
        network = UNTRAINED[named]()
    else:
        network = own_network(named)
    return network.to(device).requires_grad_(False).eval() if isinstance(network, nn.Module) else network


def own_network(named: Named) -> FeatureNetwork:
    """A user's feature network; a ValueError says what it lacks."""
    if isinstance(named, str) and "." not in named:
        known = "classifier, inception, pixels, random, or your own: module.Class"
        raise ValueError(f"unknown feature network '{named}'; there are: {known}")
    network = make_named(named, "", "feature network")
    missing = [key for key in ("width", "held_out_accuracy", "features", "logits") if not hasattr(network, key)]
    if missing:
        raise ValueError(f"feature network '{named}' has no {', '.join(missing)}; see FeatureNetwork")
    return network


@torch.no_grad()
def check_reads(network: FeatureNetwork, named: Named, shape: tuple[int, ...], device: torch.device | str) -> None:
    """Refuse, with a ValueError, a feature network that does not read images ``(B, *shape)``."""
    try:
        found = tuple(network.features(torch.zeros(2, *shape, device=device)).shape)
    except (ValueError, RuntimeError, IndexError) as error:
        raise ValueError(f"--features {named} does not read images {tuple(shape)}: {error}") from error
    if found != (2, network.width):
        raise ValueError(f"--features {named} makes features {found} of 2 images, it says (2, {network.width})")


def identity(network: FeatureNetwork) -> str:
    """Module and class of a feature network, and a hash of its weights."""
    kind = f"{type(network).__module__}.{type(network).__qualname__}"
    return f"{kind} {state_hash(network)[:16]}" if isinstance(network, nn.Module) else kind


@torch.no_grad()
def features_of(network: FeatureNetwork, pixels: Tensor, device: torch.device | str = "cpu") -> Tensor:
    """Features (B, d) of uint8 images (B, channels, H, W)."""
    return network.features(pixels.to(device).float() / 255)
