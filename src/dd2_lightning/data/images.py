"""Image sets for small teachers."""

import torch
from torch import Tensor

from dd2_lightning.data.batch import Batch
from dd2_lightning.data.digits import load_digits_images
from dd2_lightning.data.iterations import EpochOrder, IterationBatches, IterationData
from dd2_lightning.errors import check_range
from dd2_lightning.noise import stream


class ImageBatches(IterationBatches):
    """An endless, epoch-shuffled pass over an image set."""

    def __init__(self, images: Tensor, labels: Tensor, batch_size: int, seed: int, rank: int, world_size: int):
        super().__init__(batch_size, seed, rank, world_size)
        self.images, self.labels = images, labels
        self.order = EpochOrder(len(images), batch_size, seed)

    def __getitem__(self, iteration: int) -> Batch:
        rows = self.order.rows(iteration, self.start, self.local)
        return self.batch(iteration, self.labels[rows], images=self.images[rows])


class DigitsData(IterationData):
    """The 1,797 handwritten digits of scikit-learn, 8x8 pixels, as (1, 8, 8) in [0, 1].

    Args:
        batch_size: images an iteration, of all processes together.
        seed: of the data order; follows ``seed_everything``.
        held_out: images kept for validation.
    """

    def __init__(self, batch_size: int = 64, seed: int = 0, held_out: int = 197):
        super().__init__()
        check_range("data.", "[1, inf)", batch_size=batch_size)
        check_range("data.", "[1, 1796]", held_out=held_out)
        check_range("data.", "[0, inf)", seed=seed)
        self.save_hyperparameters()
        self.batch_size, self.seed, self.held_out_size = batch_size, seed, held_out

    def setup(self, stage: str) -> None:
        images, labels = load_digits_images()
        order = torch.randperm(len(images), generator=stream(0, "held out"))  # the same whatever the seed
        held_out, train = order[: self.held_out_size], order[self.held_out_size :]
        self.train, self.held_out = (images[train], labels[train]), (images[held_out], labels[held_out])

    def batches(self, rank: int, world_size: int) -> ImageBatches:
        return ImageBatches(*self.train, self.batch_size, self.seed, rank, world_size)

    def held_out_batch(self) -> Batch:
        images, labels = self.held_out
        return Batch(labels, 0, self.seed, 0, len(labels), images=images)
