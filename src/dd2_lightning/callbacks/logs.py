"""TensorBoard logs that a killed and resumed run continues without gaps or repetitions."""

import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from torch.utils.tensorboard import SummaryWriter


def last_iteration(trainer: pl.Trainer) -> int:
    """Number of the iteration that was just finished, from 0: the x-axis of everything that is logged."""
    return max(trainer.global_step - 1, 0)


def writer_of(trainer: pl.Trainer) -> SummaryWriter | None:
    """The TensorBoard writer, in the process that has one."""
    logger = trainer.logger
    return logger.experiment if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero else None


def wait_for_own_second(directory: Path) -> None:
    """Wait until no log in a directory was begun in the present second.

    TensorBoard reads files in the order of their names, which begin with the second in which they were made; those of
    a run that is killed and resumed within one second would be read in any order.
    """
    while any(directory.glob(f"events.out.tfevents.{int(time.time()):010d}.*")):
        time.sleep(0.05)


class ContinuedLogs(pl.Callback):
    """Hide what earlier files show from the first iteration on, and write all logs before a checkpoint."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        writer = writer_of(trainer)
        if writer is not None and writer.file_writer is not None:
            start = Event(session_log=SessionLog(status=SessionLog.START))
            writer.file_writer.add_event(start, trainer.global_step)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if (writer := writer_of(trainer)) is not None:
            writer.flush()
