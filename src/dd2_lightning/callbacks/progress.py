"""Progress of training: one line on a terminal, a line now and then elsewhere."""

import sys
import time
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from dd2_lightning.callbacks.watched import watched
from dd2_lightning.progress import INTERVAL, clock, rate


class IterationProgressBar(ProgressBar):
    """Iterations of the stage, their rate, the time left and the losses.

    On a terminal it is one line of its width; elsewhere a line every ``interval`` seconds and one at the end.
    """

    def __init__(self, interval: float = INTERVAL):
        super().__init__()
        self.interval = interval
        self._enabled = True
        self._bar: Progress | None = None
        self._task = TaskID(0)

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._first, self._start, self._last = trainer.global_step, time.monotonic(), time.monotonic()
        self._shown = -1
        console = Console(stderr=True)
        name = watched(pl_module).name
        self._room = console.width - len(name) - 1 if console.is_terminal else sys.maxsize
        if self._enabled and console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(bar_width=12), TextColumn("{task.fields[text]}"))
            self._bar = Progress(*columns, console=console, transient=True)
            self._bar.start()
            self._task = self._bar.add_task(name, total=trainer.max_steps, completed=self._first, text="")

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        if not self._enabled:
            return
        if self._bar is not None:
            text = self._text(trainer, pl_module, self._room - 15)
            self._bar.update(self._task, completed=trainer.global_step, text=text)
        elif time.monotonic() - self._last >= self.interval:
            self._print(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._close()
        if self._enabled and trainer.global_step > max(self._first, self._shown):
            self._print(trainer, pl_module)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _print(self, trainer: pl.Trainer, stage: pl.LightningModule) -> None:
        print(watched(stage).name, self._text(trainer, stage, self._room), file=sys.stderr, flush=True)
        self._last, self._shown = time.monotonic(), trainer.global_step

    def _text(self, trainer: pl.Trainer, stage: pl.LightningModule, room: int) -> str:
        """``1,200/2,400, 9.1/s, 2:11 left, loss/generator 0.0123``; as many losses as there is room for, in columns."""
        done, total = trainer.global_step, trainer.max_steps
        seconds, steps = time.monotonic() - self._start, max(done - self._first, 1)
        text = f"{done:,}/{total:,}, {rate(steps, seconds)}/s"
        if done < total:
            text += f", {clock(seconds / steps * (total - done))} left"
        for name, value in self.get_metrics(trainer, stage).items():
            if name == "v_num":
                continue
            more = f"{text}, {name} {value:.3g}" if isinstance(value, float) else f"{text}, {name} {value}"
            if len(more) > room:
                break
            text = more
        return text
