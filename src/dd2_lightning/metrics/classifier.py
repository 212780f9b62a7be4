"""A small classifier of a run's own images: the feature network where there is no better one.

It is trained by the command that needs it, in seconds to minutes on a CPU, always with the same seed, so that reports
of different runs on the same images share one feature space.
"""

import hashlib
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from dd2_lightning.data.images import ImageData, ImageSet
from dd2_lightning.errors import ArtifactError, DD2Error
from dd2_lightning.files import write_atomically
from dd2_lightning.noise import stream

VERSION = 1  # architecture and training; stored classifiers of another version are trained again

BATCH, STEPS, EPOCHS, HELD_OUT = 64, 460, 12, 0.165
"""Images a step, steps and epochs, whichever is more, and the share of images that measures the accuracy."""


class ImageClassifier(nn.Module):
    """Convolutions from images ``(B, *shape)`` to ``width`` tanh features, one linear layer to classes.

    Maps are halved until a side is 4 or less, the first time, above 16 pixels, by the first convolution. An 8x8 image
    has 32 features, 28x28 and 32x32 have 64.
    """

    held_out: Tensor

    def __init__(self, shape: tuple[int, ...], num_classes: int):
        super().__init__()
        self.shape, (channels, *sides), width = shape, shape, 16
        stride = 2 if min(sides) > 16 else 1
        layers: list[nn.Module] = [nn.Conv2d(channels, width, 3, stride, padding=1), nn.ReLU()]
        sides = [-(-side // stride) for side in sides]
        while min(sides) > 4 or width == 16:
            layers += [nn.Conv2d(width, min(2 * width, 128), 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
            sides, width = [side // 2 for side in sides], min(2 * width, 128)
        self.width = width
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(width * sides[0] * sides[1], width))
        self.classify = nn.Linear(width, num_classes)
        self.register_buffer("held_out", torch.zeros(()))

    @property
    def held_out_accuracy(self) -> float:
        return self.held_out.item()

    def features(self, images: Tensor) -> Tensor:
        if images.shape[1:] != self.shape:
            raise ValueError(f"the classifier reads images (B, *{self.shape}), got {tuple(images.shape)}")
        return self.body(2 * images - 1).tanh()

    def logits(self, features: Tensor) -> Tensor:
        return self.classify(features)

    def forward(self, images: Tensor) -> Tensor:
        return self.logits(self.features(images))


def train_classifier(images: ImageSet, num_classes: int, seed: int = 0) -> ImageClassifier:
    """Train on images, deterministically; a share of them is held out and measures its accuracy.

    Large values before the tanh are penalised: without that half of the features end up at ±1, where a Gaussian
    describes them badly and the differences within a class are lost.
    """
    order = torch.randperm(images.size, generator=stream(seed, "classifier", "split"))
    test, train = order.split([count := max(1, round(HELD_OUT * images.size)), images.size - count])
    batch = min(BATCH, len(train))
    steps = len(train) // batch
    epochs = max(EPOCHS, STEPS // steps)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ImageClassifier(tuple(images.images.shape[1:]), num_classes)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, epochs * steps)
    with torch.enable_grad():
        for epoch in range(epochs):
            shuffled = train[torch.randperm(len(train), generator=stream(seed, "classifier", epoch))]
            for rows in shuffled[: steps * batch].split(batch):
                raw = model.body(2 * images.pixels(rows) - 1)
                loss = F.cross_entropy(model.logits(raw.tanh()), images.labels[rows]) + 0.05 * raw.square().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
    model.requires_grad_(False).eval()
    hits = [(model(images.pixels(rows)).argmax(1) == images.labels[rows]).float().sum() for rows in test.split(500)]
    model.held_out.fill_(sum(hits) / len(test))
    return model


def load_classifier(directory: str | Path, data: ImageData, seed: int = 0) -> ImageClassifier:
    """The classifier of ``DIRECTORY/classifier.safetensors``, trained if it is not there, damaged or of other images.

    Raises:
        DD2Error: if the images have one class only.
    """
    images, path = data.everything(), Path(directory) / "classifier.safetensors"
    if data.num_classes < 2:
        raise DD2Error("a classifier needs images of several classes: take --features inception or your own")
    sizes = {"shape": list(images.images.shape[1:]), "classes": data.num_classes}
    known = {"version": VERSION, "seed": seed, "images": images_hash(images), **sizes}
    with suppress(ArtifactError):
        return read_classifier(path, known)
    model = train_classifier(images, data.num_classes, seed)
    write_atomically(path, save(model.state_dict(), {"identity": json.dumps(known)}))
    return model


def read_classifier(path: Path, known: dict[str, Any] | None = None) -> ImageClassifier:
    """The classifier of a file; an ArtifactError if that is missing, damaged or has another identity than is known."""
    try:
        with safe_open(path, "pt") as file:
            identity = json.loads((file.metadata() or {})["identity"])
            if known not in (None, identity):
                raise ArtifactError(f"{path} is a classifier of other images")
            model = ImageClassifier(tuple(identity["shape"]), identity["classes"])
            model.load_state_dict({key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118
    except (OSError, SafetensorError, RuntimeError, KeyError, ValueError, TypeError) as error:
        raise ArtifactError(f"{path} holds no classifier ({error})") from error
    return model.requires_grad_(False).eval()


def images_hash(images: ImageSet) -> str:
    """Hash of images and labels."""
    digest = hashlib.sha256(f"{images.images.dtype} {tuple(images.images.shape)}".encode())
    for tensor in (*images.images.split(1000), images.labels):
        digest.update(tensor.contiguous().numpy())
    return digest.hexdigest()
