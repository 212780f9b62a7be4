"""Labelled images: the base of the data modules that teachers learn from."""

from abc import abstractmethod
from collections.abc import Callable
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from dd2_lightning.data.batch import Batch
from dd2_lightning.data.iterations import EpochOrder, IterationBatches, IterationData
from dd2_lightning.errors import check_range
from dd2_lightning.noise import stream


class ImageSet(NamedTuple):
    """Images (N, channels, H, W), float in [0, 1] or uint8, which may be mapped from a file, and their labels (N,)."""

    images: Tensor
    labels: Tensor

    @property
    def size(self) -> int:
        """Number of images."""
        return len(self.labels)

    def select(self, rows: Tensor | slice) -> "ImageSet":
        """Some of the images; a slice does not copy them."""
        return ImageSet(self.images[rows], self.labels[rows])

    def pixels(self, rows: Tensor | slice = slice(None)) -> Tensor:
        """Some of the images as floats in [0, 1]: (b, channels, H, W)."""
        chosen = self.images[rows]
        return chosen if chosen.is_floating_point() else chosen.float() / 255


def split_held_out(images: Tensor, labels: Tensor, held_out: int) -> tuple[ImageSet, ImageSet]:
    """Training and held-out images: ``held_out`` random ones, the same whatever the seed of the run."""
    order, both = torch.randperm(len(images), generator=stream(0, "held out")), ImageSet(images, labels)
    return both.select(order[held_out:]), both.select(order[:held_out])


class ImageBatches(IterationBatches):
    """An endless, epoch-shuffled pass over an image set; ``augment`` changes the pixels of a batch."""

    def __init__(
        self,
        images: ImageSet,
        size: int,
        seed: int,
        rank: int,
        world_size: int,
        augment: Callable[[Tensor, Batch], Tensor] | None = None,
    ):
        super().__init__(size, seed, rank, world_size)
        self.images, self.augment = images, augment
        self.order = EpochOrder(images.size, size, seed)

    def __getitem__(self, iteration: int) -> Batch:
        rows = self.order.rows(iteration, self.start, self.local)
        batch, pixels = self.batch(iteration, self.images.labels[rows]), self.images.pixels(rows)
        batch.images = pixels if self.augment is None else self.augment(pixels, batch)
        return batch


class ImageData(IterationData):
    """Labelled images, some of them held out for validation. A subclass loads them.

    Args:
        batch_size: images an iteration, of all processes together.
        seed: of the data order; follows ``seed_everything``.
    """

    num_classes: int  # known before :meth:`setup`, like ``image_shape``
    image_shape: tuple[int, int, int]  # channels, height and width of an image of a batch
    train: ImageSet  # images to learn from, after :meth:`setup`
    held_out: ImageSet  # images for validation, after :meth:`setup`

    def __init__(self, batch_size: int = 64, seed: int = 0):
        super().__init__()
        check_range("data.", "[1, inf)", batch_size=batch_size)
        check_range("data.", "[0, inf)", seed=seed)
        self.save_hyperparameters()
        self.batch_size, self.seed = batch_size, seed

    @abstractmethod
    def load(self) -> tuple[ImageSet, ImageSet]:
        """Training and held-out images."""

    def setup(self, stage: str = "fit") -> None:
        if not hasattr(self, "train"):
            self.train, self.held_out = self.load()

    def batches(self, rank: int, world_size: int) -> ImageBatches:
        return self.batches_of(self.batch_size, self.seed, rank, world_size)

    def batches_of(self, size: int, seed: int, rank: int, world_size: int) -> ImageBatches:
        """Training batches of any size, for a data module that has these images beside its own data."""
        return ImageBatches(self.train, size, seed, rank, world_size)

    def held_out_batch(self) -> Batch:
        return Batch(self.held_out.labels, 0, self.seed, 0, self.held_out.size, images=self.held_out.pixels())

    def everything(self) -> ImageSet:
        """All images, held-out ones included, in an order of their own that no split changes."""
        self.setup()
        return ImageSet(*map(torch.cat, zip(self.train, self.held_out, strict=True)))


class PackagedData(ImageData):
    """Images that a Python package brings along, all in memory, some random ones held out.

    Args:
        batch_size: images an iteration, of all processes together.
        seed: of the data order; follows ``seed_everything``.
        held_out: images kept for validation.
    """

    total: ClassVar[int]  # number of images

    def __init__(self, batch_size: int, seed: int, held_out: int):
        check_range("data.", f"[1, {self.total - 1}]", held_out=held_out)
        super().__init__(batch_size, seed)
        self.held_out_size = held_out

    @abstractmethod
    def everything(self) -> ImageSet: ...

    def load(self) -> tuple[ImageSet, ImageSet]:
        return split_held_out(*self.everything(), self.held_out_size)
