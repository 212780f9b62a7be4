"""Small sets of images."""

import torch

from dd2_lightning.data.images import ImageData, ImageSet, split_held_out
from dd2_lightning.noise import stream


class RandomImages(ImageData):
    """Noise of one mean a class, ``count`` images in all, a fifth of them held out."""

    def __init__(self, shape=(1, 8, 8), num_classes=10, count=100, batch_size=64, seed=0):
        super().__init__(batch_size, seed)
        self.image_shape, self.num_classes, self.count = tuple(shape), num_classes, count

    def load(self) -> tuple[ImageSet, ImageSet]:
        labels = torch.arange(self.count) % self.num_classes
        noise = torch.rand(self.count, *self.image_shape, generator=stream(0, "images"))
        images = (noise + labels.view(-1, 1, 1, 1)) / self.num_classes
        return split_held_out(images, labels, self.count // 5)
