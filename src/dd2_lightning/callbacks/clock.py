"""What a run costs: seconds of the processor and of the wall, over all of its resumes."""

import json
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from dd2_lightning.callbacks.logs import last_iteration
from dd2_lightning.files import write_atomically


class RunClock(pl.Callback):
    """Log ``time/processor_seconds`` and ``time/wall_seconds``, and leave them in ``time.json`` at the end.

    Teacher sequences that the run samples, validations and checkpoints are in them, work that a killed run had to do
    again is not. Of several processes it is the first one's time.
    """

    def __init__(self) -> None:
        self.before = {"processor_seconds": 0.0, "wall_seconds": 0.0}
        self.started: dict[str, float] | None = None

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds so far."""
        started = self.started or now()
        return {name: self.before[name] + value - started[name] for name, value in now().items()}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self.started = now()

    def state_dict(self) -> dict[str, Any]:
        return self.seconds

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.before = state_dict

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            for logger in trainer.loggers:
                times = {f"time/{name}": value for name, value in self.seconds.items()}
                logger.log_metrics(times, last_iteration(trainer))

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_step >= trainer.max_steps and trainer.is_global_zero:
            content = {"iterations": trainer.global_step, **self.seconds}
            write_atomically(Path(trainer.default_root_dir) / "time.json", json.dumps(content, indent=2).encode())


def now() -> dict[str, float]:
    """The present on both clocks."""
    return {"processor_seconds": time.process_time(), "wall_seconds": time.perf_counter()}
