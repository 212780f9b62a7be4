"""A figure of a stage against iterations and against seconds of training."""

import time
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl


class LearningCurve(pl.Callback):
    """Measure every so many iterations.

    Args:
        every: iterations between two points.
        measure: from the stage to what is said of it at a point.
        seconds: that training before this stage took.

    Attributes:
        curve: ``{"iteration", "seconds", …}``, one a point. Seconds are the processor's, spent on training alone:
            other work of the machine and the measuring itself are not in them.
    """

    def __init__(self, every: int, measure: Callable[[Any], dict[str, Any]], seconds: float = 0.0):
        self.every, self.measure = every, measure
        self.curve: list[dict[str, Any]] = []
        self.seconds = seconds

    def on_train_start(self, trainer: pl.Trainer, stage: pl.LightningModule) -> None:
        """Start the clock."""
        self.started = time.process_time()

    def on_train_batch_end(self, trainer: pl.Trainer, stage: pl.LightningModule, *_) -> None:
        """Stop the clock, measure, and start it again."""
        if trainer.global_step % self.every == 0:
            self.seconds += time.process_time() - self.started
            point = {"iteration": trainer.global_step, "seconds": round(self.seconds, 3)}
            self.curve.append({**point, **self.measure(stage)})
            self.started = time.process_time()
