"""The feature network of the digits: a classifier that is trained by the command that needs it, in seconds."""

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from dd2_lightning.data.digits import load_digits_images
from dd2_lightning.files import write_atomically
from dd2_lightning.noise import stream

VERSION = 1  # architecture and training; stored classifiers of another version are trained again


class DigitClassifier(nn.Module):
    """Two convolutions from grey 8x8 images to 32 tanh features, one linear layer to 10 classes."""

    width = 32
    held_out: Tensor

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(32 * 16, self.width),
        )
        self.classify = nn.Linear(self.width, 10)
        self.register_buffer("held_out", torch.zeros(()))

    @property
    def held_out_accuracy(self) -> float:
        return self.held_out.item()

    def features(self, images: Tensor) -> Tensor:
        if images.shape[1:] != (1, 8, 8):
            raise ValueError(f"the digit classifier reads images (B, 1, 8, 8), got {tuple(images.shape)}")
        return self.body(2 * images - 1).tanh()

    def logits(self, features: Tensor) -> Tensor:
        return self.classify(features)

    def forward(self, images: Tensor) -> Tensor:
        return self.logits(self.features(images))


def train_classifier(seed: int = 0, epochs: int = 20, batch_size: int = 64, held_out: int = 297) -> DigitClassifier:
    """Train on the real digits, deterministically; ``held_out`` of them measure its accuracy.

    Large values before the tanh are penalised: without that half of the features end up at ±1, where a Gaussian
    describes them badly and the differences within a class are lost.
    """
    images, labels = load_digits_images()
    order = torch.randperm(len(images), generator=stream(seed, "classifier", "split"))
    test, train = order[:held_out], order[held_out:]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = DigitClassifier()
    steps = epochs * (len(train) // batch_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, steps)
    with torch.enable_grad():
        for epoch in range(epochs):
            shuffled = train[torch.randperm(len(train), generator=stream(seed, "classifier", epoch))]
            for rows in shuffled[: steps // epochs * batch_size].split(batch_size):
                raw = model.body(2 * images[rows] - 1)
                loss = F.cross_entropy(model.logits(raw.tanh()), labels[rows]) + 0.05 * raw.square().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
    model.requires_grad_(False).eval()
    model.held_out.fill_((model(images[test]).argmax(1) == labels[test]).float().mean())
    return model


def load_classifier(directory: str | Path, seed: int = 0) -> DigitClassifier:
    """The classifier stored in ``DIRECTORY/classifier.safetensors``, trained if it is not there or damaged."""
    path = Path(directory) / "classifier.safetensors"
    identity = json.dumps({"version": str(VERSION), "seed": str(seed)})
    try:
        with safe_open(path, "pt") as file:
            if (file.metadata() or {}).get("identity") == identity:
                model = DigitClassifier()
                model.load_state_dict({key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118
                return model.requires_grad_(False).eval()
    except (OSError, SafetensorError, RuntimeError):
        pass
    model = train_classifier(seed)
    write_atomically(path, save(model.state_dict(), {"identity": identity}))
    return model
