"""Feature networks without training: they cannot have seen what is measured."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dd2_lightning.noise import stream


class PixelFeatures(nn.Module):
    """The pixels of a grey thumbnail, 8x8."""

    width = 64
    held_out_accuracy = None

    def features(self, images: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(images.mean(1, keepdim=True), 8).flatten(1)

    def logits(self, features: Tensor) -> None:
        return None


class RandomFeatures(nn.Module):
    """Two convolutions and a linear layer of random weights, always the same, on grey images of any size."""

    width = 64
    held_out_accuracy = None
    first: Tensor
    second: Tensor
    last: Tensor

    def __init__(self):
        super().__init__()
        rng = stream(0, "random features")
        shapes = {"first": (16, 1, 3, 3), "second": (32, 16, 3, 3), "last": (64, 32 * 16)}
        for name, shape in shapes.items():
            fan_in = torch.Size(shape[1:]).numel()
            self.register_buffer(name, torch.randn(shape, generator=rng) * (2 / fan_in) ** 0.5)

    def features(self, images: Tensor) -> Tensor:
        x = 2 * images.mean(1, keepdim=True) - 1
        for weight in (self.first, self.second):
            x = F.conv2d(x, weight, padding=1).relu()
        return F.adaptive_avg_pool2d(x, 4).flatten(1) @ self.last.T

    def logits(self, features: Tensor) -> None:
        return None


UNTRAINED = {"pixels": PixelFeatures, "random": RandomFeatures}
