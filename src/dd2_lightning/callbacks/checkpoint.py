"""Checkpoints that are there whole or not at all, and always of a finished iteration."""

import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint

from dd2_lightning.callbacks.interrupt import Interrupted
from dd2_lightning.errors import ArtifactError
from dd2_lightning.files import remove_temporary, write_atomically


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes next to the target, then renames: a killed run or a full disk leaves the last checkpoint intact."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write one checkpoint.

        Raises:
            ArtifactError: naming the path, if it cannot be written.
        """
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        write_atomically(Path(path), buffer.getvalue())

    def load_checkpoint(
        self, path: str | Path, map_location: Callable | None = lambda storage, _: storage, weights_only: Any = True
    ) -> dict[str, Any]:
        """Read one checkpoint; nothing but tensors and plain values is unpickled.

        Raises:
            ArtifactError: naming the path, if it is missing, truncated or damaged.
        """
        if not Path(path).is_file():
            raise ArtifactError(f"--ckpt_path: {path} does not exist")
        try:
            return super().load_checkpoint(path, map_location, weights_only=True)
        except (RuntimeError, EOFError, OSError, KeyError, pickle.UnpicklingError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ArtifactError(
                f"--ckpt_path: {path} is truncated or damaged ({reason}); "
                f"resume from a copy of it, or delete it to start the stage again"
            ) from error


class IterationCheckpoint(ModelCheckpoint):
    """Keep ``last.ckpt``: the state after a whole number of iterations, their logs and validation included.

    Lightning would save in ``on_train_batch_end``, before the iteration's losses are logged and before its validation;
    a run killed right then could not be resumed to the same logs. It is saved when the next iteration begins, when
    training ends, and after SIGINT and SIGTERM.

    Args:
        directory: where ``last.ckpt`` lies.
        every: iterations between checkpoints.
    """

    def __init__(self, directory: str | Path, every: int):
        super().__init__(directory, filename=self.CHECKPOINT_NAME_LAST, every_n_train_steps=every, save_top_k=0)

    @property
    def path(self) -> Path:
        """Of the checkpoint."""
        return Path(self.dirpath) / f"{self.CHECKPOINT_NAME_LAST}{self.FILE_EXTENSION}"

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Remove what a killed run left half written."""
        super().setup(trainer, pl_module, stage)
        if trainer.is_global_zero and stage == "fit":
            remove_temporary(self.dirpath)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """What a run starts from is saved already."""
        self._last_global_step_saved = trainer.global_step

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, index: int) -> None:
        """Save if the iterations before this one are a multiple of ``every``."""
        if trainer.global_step % self._every_n_train_steps == 0:
            self.save(trainer)

    def on_train_batch_end(self, *_: Any) -> None:
        """Too early."""

    def on_validation_end(self, *_: Any) -> None:
        """Too early."""

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the last iteration, whatever its number."""
        self.save(trainer)

    def on_train_end(self, *_: Any) -> None:
        """It is saved."""

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Save what a signal interrupts between two iterations."""
        if isinstance(exception, Interrupted):
            self.save(trainer)

    def save(self, trainer: pl.Trainer) -> None:
        """Write the checkpoint, unless it has been."""
        if not self._should_skip_saving_checkpoint(trainer):
            self._save_checkpoint(trainer, str(self.path))

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Set Lightning's counters of batches to what they are when it saves itself, whenever this one was saved."""
        iterations, loops = checkpoint["global_step"], checkpoint["loops"]["fit_loop"]
        loops["epoch_loop.state_dict"]["_batches_that_stepped"] = iterations - 1
        for counter in ("total", "current"):
            started = dict.fromkeys(("ready", "started", "processed"), iterations)
            loops["epoch_loop.batch_progress"][counter].update(started, completed=iterations - 1)
            loops["epoch_progress"][counter].update(ready=1, started=1, processed=0, completed=0)
        # when the next iteration begins, this is already that of its batch
        loops["epoch_loop.batch_progress"]["is_last_batch"] = iterations >= trainer.max_steps
        # a restart counts a validation that fell on the checkpoint as another one
        loops["epoch_loop.val_loop.batch_progress"]["total"].update(ready=0, started=0, processed=0, completed=0)
