"""Image sets for small teachers."""

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dd2_lightning.data.batch import Batch, EpochOrder, iteration_loader, share
from dd2_lightning.data.digits import load_digits_images
from dd2_lightning.errors import check_range
from dd2_lightning.noise import stream


class ImageBatches(Dataset):
    """Batch i of an endless, epoch-shuffled pass over an image set, as a pure function of (seed, i)."""

    def __init__(self, images: Tensor, labels: Tensor, batch_size: int, seed: int, rank: int, world_size: int):
        self.images, self.labels, self.size, self.seed = images, labels, batch_size, seed
        self.start, self.local = share(batch_size, rank, world_size)
        self.order = EpochOrder(len(images), batch_size, seed)

    def __getitem__(self, iteration: int) -> Batch:
        rows = self.order.rows(iteration, self.start, self.local)
        return Batch(self.labels[rows], iteration, self.seed, self.start, self.size, images=self.images[rows])


class DigitsData(LightningDataModule):
    """The 1,797 handwritten digits of scikit-learn, 8x8 pixels, as (1, 8, 8) in [0, 1].

    Args:
        batch_size: images an iteration, of all processes together.
        seed: of the data order; follows ``seed_everything``.
        held_out: images kept for validation.

    Raises:
        ValueError: for a setting out of range, naming it and its range.
    """

    def __init__(self, batch_size: int = 64, seed: int = 0, held_out: int = 197):
        super().__init__()
        check_range("data.", "[1, inf)", batch_size=batch_size)
        check_range("data.", "[1, 1796]", held_out=held_out)
        check_range("data.", "[0, inf)", seed=seed)
        self.save_hyperparameters()

    def setup(self, stage: str) -> None:
        images, labels = load_digits_images()
        order = torch.randperm(len(images), generator=stream(0, "held out"))  # the same whatever the seed
        held_out = self.hparams.held_out
        self.train = images[order[held_out:]], labels[order[held_out:]]
        self.held_out = images[order[:held_out]], labels[order[:held_out]]

    def train_dataloader(self) -> DataLoader:
        trainer = self.trainer
        batches = ImageBatches(
            *self.train, self.hparams.batch_size, self.hparams.seed, trainer.global_rank, trainer.world_size
        )
        return iteration_loader(batches, trainer)

    def val_dataloader(self) -> DataLoader:
        """All held-out images as one batch."""
        images, labels = self.held_out
        batch = Batch(labels, 0, self.hparams.seed, 0, len(labels), images=images)
        return DataLoader([batch], batch_size=None)

    test_dataloader = predict_dataloader = val_dataloader
