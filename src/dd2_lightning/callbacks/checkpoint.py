"""Checkpoints: written atomically, and always of a finished iteration."""

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
from dd2_lightning.lightning_internals import set_progress


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes next to the target, then renames: a killed run or a full disk leaves the last checkpoint intact."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        write_atomically(Path(path), buffer.getvalue())

    def load_checkpoint(
        self, path: str | Path, map_location: Callable | None = lambda storage, _: storage, weights_only: Any = True
    ) -> dict[str, Any]:
        """Read one checkpoint; nothing but tensors and plain values is unpickled."""
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
    training ends, and after SIGINT and SIGTERM; ``every`` is the number of iterations between checkpoints.
    """

    def __init__(self, directory: str | Path, every: int):
        super().__init__(directory, filename=self.CHECKPOINT_NAME_LAST, every_n_train_steps=every, save_top_k=0)
        self.every = every
        self.saved_at = -1

    @property
    def path(self) -> Path:
        assert self.dirpath is not None
        return Path(self.dirpath) / f"{self.CHECKPOINT_NAME_LAST}{self.FILE_EXTENSION}"

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if trainer.is_global_zero and stage == "fit":
            remove_temporary(self.path.parent)  # of a killed run

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.saved_at = trainer.global_step  # the run starts from a checkpoint, or from nothing that is worth one

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, index: int) -> None:
        if trainer.global_step % self.every == 0:
            self.save(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.save(trainer)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        if isinstance(exception, Interrupted):
            self.save(trainer)

    # moments at which Lightning would save

    def on_train_batch_end(self, *_: Any) -> None:
        pass

    def on_validation_end(self, *_: Any) -> None:
        pass

    def on_train_end(self, *_: Any) -> None:
        pass

    def save(self, trainer: pl.Trainer) -> None:
        """Write the checkpoint, unless there is one of this iteration."""
        if trainer.global_step != self.saved_at:
            trainer.save_checkpoint(self.path)
            self.saved_at = trainer.global_step

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        iterations = checkpoint["global_step"]
        set_progress(checkpoint, iterations, is_last=iterations >= trainer.max_steps)
