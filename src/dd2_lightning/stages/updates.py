"""The optimizer steps of an iteration as data: ``fit`` performs, ``plan`` counts and ``bench train`` times them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dd2_lightning.data.batch import Batch
from dd2_lightning.stages.schedule import OptimizerSettings, ema_rate, update_ema


@dataclass
class Losses:
    """What a micro-batch gives: the loss to differentiate, and quantities to watch."""

    loss: Tensor  # per token, (b, n); its mean is differentiated
    watch: dict[str, Tensor] = field(default_factory=dict)  # values per token (b, n), or single numbers ()
    weight: Tensor | None = None  # of every token in the means of ``watch``, (b, n); None weighs all alike
    progress: tuple[str, ...] = ()  # the watched quantities whose mean is also logged and shown on the progress bar

    def detach(self) -> "Losses":
        """The same numbers without their graph."""
        watch = {name: value.detach() for name, value in self.watch.items()}
        return Losses(self.loss.detach(), watch, self.weight, self.progress)


def watched_means(losses: list[Losses]) -> dict[str, Tensor]:
    """Watched quantities averaged over the samples of equal micro-batches: name -> (n,), or () for single numbers."""

    def mean(name: str) -> Tensor:
        values = [entry.watch[name] for entry in losses]
        weights = [entry.weight for entry in losses if entry.weight is not None]
        if not weights:
            return torch.stack([value.mean(0) for value in values]).mean(0)
        total = reduce(torch.add, [(weight * value).sum(0) for weight, value in zip(weights, values, strict=True)])
        return total / reduce(torch.add, [weight.sum(0) for weight in weights]).clamp(min=1)

    return {name: mean(name) for name in losses[0].watch}


class EMA(NamedTuple):
    """An exponential moving average of a network's parameters."""

    average: nn.Module  # the network that holds it
    network: nn.Module  # the network it follows
    limit: float  # largest rate; the rate after i updates is min(limit, (i+1)/(i+10)). 0 copies the network.

    def update(self, count: int) -> float:
        """Take in the network after ``count`` earlier updates, and return the rate of that."""
        rate = ema_rate(count, self.limit)
        update_ema(self.average, self.network, rate)
        return rate


@dataclass(frozen=True)
class Update:
    """One kind of optimizer step: which network learns from which loss, and in which iterations."""

    name: str  # of what is updated
    network: nn.Module  # its parameters get gradients
    loss: Callable[[Batch, int], Losses]  # ``(micro-batch, k) -> Losses`` of the k-th repetition within an iteration
    optimizer: OptimizerSettings  # Adam, its schedule and the gradient clipping
    repeat: int = 1  # steps an iteration
    start: int = 0  # first iteration that has it
    stop: int | None = None  # first iteration that does not have it any more; None is the end of the run
    ema: EMA | None = None  # updated after the last repetition, counted from ``start``
    # what the learning rate counts: None the steps of this update, from ``start`` to ``stop``; a number N counts N in
    # every iteration of the run, of which this update's ``repeat`` are the last
    clock: int | None = None
    logged_as: str | None = None  # name of the loss in logs and errors; None is ``name``
    accumulate: bool = True  # whether a batch may be split into micro-batches
    batch_size: int | None = None  # samples of a batch that it reads, of all processes together; None is all
    begin: Callable[[], None] | None = None  # called once, in iteration ``start``, before the first step

    @property
    def label(self) -> str:
        return self.logged_as or self.name

    def is_due(self, iteration: int) -> bool:
        return self.start <= iteration and (self.stop is None or iteration < self.stop)

    def count(self, iterations: int) -> int:
        """Number of optimizer steps in a run."""
        stop = iterations if self.stop is None else min(self.stop, iterations)
        return max(0, stop - self.start) * self.repeat

    def learning_rate(self, iteration: int, k: int, iterations: int) -> float:
        """Learning rate of the k-th repetition in one iteration of a run."""
        if self.clock is None:
            start, stop, steps = self.start, iterations if self.stop is None else self.stop, self.repeat
        else:
            start, stop, steps = 0, iterations, self.clock
        return self.optimizer.rate((iteration - start + 1) * steps - self.repeat + k, (stop - start) * steps)
