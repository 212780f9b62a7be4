"""The directory that a finished stage leaves behind."""

from pathlib import Path

import lightning.pytorch as pl

from dd2_lightning.artifacts import write_atomically


class ExportArtifact(pl.Callback):
    """Write the stage's artifact into ``trainer.default_root_dir`` when its training is complete."""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Find out now, not hours later, whether the directory can be written.

        Raises:
            ArtifactError: naming it, if not.
        """
        if stage == "fit" and trainer.is_global_zero:
            probe = Path(trainer.default_root_dir) / ".writable"
            write_atomically(probe, b"")
            probe.unlink()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write it, unless training was stopped before its last iteration."""
        if trainer.is_global_zero and trainer.global_step >= trainer.max_steps:
            pl_module.write_artifact(trainer.default_root_dir)
