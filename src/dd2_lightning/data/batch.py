"""One iteration's samples, and the random numbers that belong to them.

Labels, data order and noise are pure functions of (seed, iteration, update, global sample index). A process
draws for the global batch and keeps its own slice, so neither the number of processes nor gradient
accumulation nor a resumed run changes a number.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from dd2_lightning.errors import DD2Error
from dd2_lightning.noise import stream
from dd2_lightning.sampling import Sampling

SETTINGS = {
    "tokens": "teacher sequences: set data.sequences to cached or online",
    "noise": "pairs of noise and sequence: set data.class_path to PairData",
    "images": "images: set data.class_path to DigitsData",
    "image_labels": "real images beside its labels: set data.real, as in {class_path: DigitsData}",
}
"""What the tensors of a batch are, and the setting that provides them."""


@dataclass(frozen=True)
class SequenceRequest:
    """Teacher sequences that a batch lacks; a stage samples them with its teacher."""

    purpose: str  # key of their random numbers
    sampling: Sampling  # guidance and truncation of the teacher
    pair_steps: int | None = None  # for DD1's pairs, evaluations of the flow a token; None is for sequences alone


@dataclass
class Batch:
    """A slice of the global batch of one iteration."""

    labels: Tensor  # (b,)
    iteration: int  # its number, from 0
    seed: int  # of the run
    start: int  # global index of the first sample of the slice
    size: int  # samples of the global batch
    tokens: Tensor | None = None  # teacher sequences as indices (b, n)
    noise: Tensor | None = None  # what the teacher's flow carries to these tokens, (b, n, C), where they come in pairs
    images: Tensor | None = None  # real images, (b, channels, H, W), where the data have them
    image_labels: Tensor | None = None  # labels of the images, (b,), where they are not ``labels``
    request: SequenceRequest | None = None  # the sequences that it lacks

    def __len__(self) -> int:
        return len(self.labels)

    def required(self, name: Literal["tokens", "noise", "images", "image_labels"]) -> Tensor:
        """A tensor that the stage cannot do without; where it is missing, an error names the setting for it."""
        value: Tensor | None = getattr(self, name)
        if value is None:
            raise DD2Error(f"this stage reads {SETTINGS[name]}")
        return value

    def to(self, device: torch.device, non_blocking: bool = False) -> "Batch":
        """Move the tensors; Lightning calls this."""
        return self._each(lambda value: value.to(device, non_blocking=non_blocking))

    def micro_batch(self, index: int, count: int) -> "Batch":
        """One of ``count`` equal consecutive slices, for gradient accumulation."""
        size = len(self) // count
        return self.select(slice(index * size, (index + 1) * size))

    def parts(self, size: int) -> list["Batch"]:
        """All of it, ``size`` samples at a time; the last may be fewer."""
        return [self.select(slice(start, start + size)) for start in range(0, len(self), size)]

    def select(self, rows: slice) -> "Batch":
        """Some consecutive samples of it."""
        return replace(self._each(lambda value: value[rows]), start=self.start + rows.start)

    def thinned(self, size: int) -> "Batch":
        """Equally spaced samples of it, ``size`` of all processes together; an error if it cannot give its share."""
        step, rest = divmod(self.size, size)
        if rest or not step or len(self) % step:
            raise DD2Error(
                f"data.batch_size {self.size} ({len(self)} a process) must be a multiple of the {size} samples of an "
                f"update (model.tokenizer_batch_size)"
            )
        return replace(self._each(lambda value: value[::step]), start=self.start // step, size=size)

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        changed: Any = {name: change(value) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **changed)

    def stream(self, *key: int | str) -> torch.Generator:
        """The random generator of this iteration for one purpose, on the labels' device."""
        return stream(self.seed, *key, self.iteration, device=self.labels.device)

    def local_rows(self, globally_drawn: Tensor) -> Tensor:
        """The rows of a (size, ...) tensor that belong to this slice."""
        return globally_drawn[self.start : self.start + len(self)]

    def randn(self, *key: int | str, shape: tuple[int, ...]) -> Tensor:
        """Standard normal ``(b, *shape)``."""
        return self.local_rows(torch.randn((self.size, *shape), generator=self.stream(*key), device=self.labels.device))

    def rand(self, *key: int | str, shape: tuple[int, ...]) -> Tensor:
        """Uniform on [0, 1), ``(b, *shape)``."""
        return self.local_rows(torch.rand((self.size, *shape), generator=self.stream(*key), device=self.labels.device))
