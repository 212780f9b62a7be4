"""Data modules whose i-th batch is a pure function of (seed, i): a run resumes exactly, whatever its processes."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from dd2_lightning.data.batch import Batch
from dd2_lightning.noise import stream


class EpochOrder:
    """An endless pass over ``count`` samples in global batches of ``size``, shuffled anew every epoch.

    It is a pure function of (seed, iteration). The last batch of an epoch goes over into the next.
    """

    def __init__(self, count: int, size: int, seed: int):
        self.count, self.size, self.seed = count, size, seed
        self._orders: dict[int, Tensor] = {}

    def rows(self, iteration: int, start: int, number: int) -> Tensor:
        """Samples at ``number`` places of a global batch from ``start`` on, (number,)."""
        index = torch.arange(number) + iteration * self.size + start
        epochs = (index // self.count).unique().tolist()
        self._orders = {epoch: self._orders[epoch] if epoch in self._orders else self._order(epoch) for epoch in epochs}
        return torch.stack([self._orders[int(i) // self.count][int(i) % self.count] for i in index])

    def _order(self, epoch: int) -> Tensor:
        return torch.randperm(self.count, generator=stream(self.seed, "epoch", epoch))


class IterationBatches(Dataset):
    """A data set whose item i is one process's slice of the batch, of ``size`` samples in all, of iteration i."""

    def __init__(self, size: int, seed: int, rank: int, world_size: int):
        if size % world_size:
            raise ValueError(
                f"data.batch_size {size} (of all processes together) is not divisible by {world_size} processes"
            )
        self.size, self.seed, self.local = size, seed, size // world_size
        self.start = rank * self.local

    def batch(self, iteration: int, labels: Tensor, **content: Any) -> Batch:
        """The slice, from its labels (local,) and what else it holds."""
        return Batch(labels, iteration, self.seed, self.start, self.size, **content)


class IterationSampler(Sampler[int]):
    """Counts iterations from ``start`` to ``total``; as long as ``total``, for progress bars and resume."""

    def __init__(self, start: int, total: int):
        self.start, self.total = start, total

    def __len__(self) -> int:
        return self.total

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.start, self.total))


class IterationLoader(DataLoader):
    """A loader that resumes exactly: its only state is the iteration, which the trainer keeps."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


class IterationData(LightningDataModule):
    """A data module with one training batch an iteration, and one held-out batch."""

    @abstractmethod
    def batches(self, rank: int, world_size: int) -> Dataset:
        """Training batches of one process."""

    @abstractmethod
    def held_out_batch(self) -> Batch:
        """The batch for validation, test and prediction."""

    def held_out_batches(self) -> Sequence[Batch]:
        """The same samples in batches."""
        return [self.held_out_batch()]

    def train_dataloader(self) -> DataLoader:
        """A loader that starts at the iteration where the trainer stands."""
        trainer = self.trainer
        assert trainer is not None
        if trainer.max_steps < 1:
            raise ValueError("set trainer.max_steps: the number of iterations of this stage")
        sampler = IterationSampler(trainer.global_step, trainer.max_steps)
        return IterationLoader(self.batches(trainer.global_rank, trainer.world_size), batch_size=None, sampler=sampler)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(cast(Dataset, self.held_out_batches()), batch_size=None)

    test_dataloader = predict_dataloader = val_dataloader
