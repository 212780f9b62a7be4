"""One iteration's share of work, and the random numbers that belong to it.

Labels, data order and noise are pure functions of (seed, iteration, update, global sample index). A process
draws for the global batch and keeps its own slice, so neither the number of processes nor gradient
accumulation nor a resumed run changes a number.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from dd2_lightning.noise import stream
from dd2_lightning.sampling import Sampling


@dataclass(frozen=True)
class SequenceRequest:
    """Teacher sequences that a batch lacks; a stage samples them with its teacher.

    Attributes:
        purpose: key of their random numbers.
        sampling: guidance and truncation of the teacher.
        pair_steps: for DD1's pairs, evaluations of the flow a token; None for sequences without noise.
    """

    purpose: str
    sampling: Sampling
    pair_steps: int | None = None


@dataclass
class Batch:
    """A slice of the global batch of one iteration.

    Attributes:
        labels: (b,).
        iteration: its number, from 0.
        seed: of the run.
        start: global index of the first sample of the slice.
        size: samples of the global batch.
        tokens: teacher sequences as indices (b, n).
        noise: what the teacher's flow carries to these tokens, (b, n, C), where they come in pairs.
        images: (b, channels, H, W), where the data are images.
        request: the sequences that it lacks; None lacks nothing.
    """

    labels: Tensor
    iteration: int
    seed: int
    start: int
    size: int
    tokens: Tensor | None = None
    noise: Tensor | None = None
    images: Tensor | None = None
    request: SequenceRequest | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device, non_blocking: bool = False) -> "Batch":
        """Move the tensors; Lightning calls this."""
        return self._each(lambda value: value.to(device, non_blocking=non_blocking))

    def micro_batch(self, index: int, count: int) -> "Batch":
        """One of ``count`` equal consecutive slices, for gradient accumulation."""
        size = len(self) // count
        rows = slice(index * size, (index + 1) * size)
        return replace(self._each(lambda value: value[rows]), start=self.start + rows.start)

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        """Another batch with every tensor changed."""
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **{name: change(value) for name, value in tensors.items()})

    def stream(self, *key: int | str) -> torch.Generator:
        """The random generator of this iteration for one purpose, on the labels' device."""
        return stream(self.seed, *key, self.iteration, device=self.labels.device)

    def local_rows(self, globally_drawn: Tensor) -> Tensor:
        """The rows of a (size, ...) tensor that belong to this slice."""
        return globally_drawn[self.start : self.start + len(self)]

    def randn(self, *key: int | str, shape: tuple[int, ...]) -> Tensor:
        """Standard normal (b, *shape)."""
        return self.local_rows(torch.randn((self.size, *shape), generator=self.stream(*key), device=self.labels.device))

    def rand(self, *key: int | str, shape: tuple[int, ...]) -> Tensor:
        """Uniform on [0, 1), (b, *shape)."""
        return self.local_rows(torch.rand((self.size, *shape), generator=self.stream(*key), device=self.labels.device))


class EpochOrder:
    """An endless pass over ``count`` samples, shuffled anew every epoch, as a pure function of (seed, iteration).

    Args:
        count: samples of an epoch; the last batch of an epoch goes over into the next.
        size: samples of the global batch.
        seed: of the order.
    """

    def __init__(self, count: int, size: int, seed: int):
        self.count, self.size, self.seed = count, size, seed
        self._orders: dict[int, Tensor] = {}

    def rows(self, iteration: int, start: int, number: int) -> Tensor:
        """Which samples the ``number`` places of a global batch from ``start`` on hold, (number,)."""
        index = torch.arange(number) + iteration * self.size + start
        epochs = (index // self.count).unique().tolist()
        self._orders = {epoch: self._orders.get(epoch, None) for epoch in epochs}  # no more than are needed
        for epoch, order in self._orders.items():
            if order is None:
                self._orders[epoch] = torch.randperm(self.count, generator=stream(self.seed, "epoch", epoch))
        return torch.stack([self._orders[int(i) // self.count][int(i) % self.count] for i in index])


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


def iteration_loader(dataset: Dataset, trainer: Trainer) -> DataLoader:
    """A loader whose i-th item is the batch of iteration i, starting where the trainer stands.

    Raises:
        ValueError: without ``trainer.max_steps``.
    """
    if trainer.max_steps < 1:
        raise ValueError("set trainer.max_steps: the number of iterations of this stage")
    sampler = IterationSampler(trainer.global_step, trainer.max_steps)
    return IterationLoader(dataset, batch_size=None, sampler=sampler)


def share(size: int, rank: int, world_size: int) -> tuple[int, int]:
    """First sample and number of samples of one process.

    Raises:
        ValueError: if the processes cannot share equally.
    """
    if size % world_size:
        raise ValueError(
            f"data.batch_size {size} (of all processes together) is not divisible by {world_size} processes"
        )
    return rank * (size // world_size), size // world_size
