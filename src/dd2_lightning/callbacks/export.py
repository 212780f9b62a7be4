"""The directory that a finished stage leaves behind."""

import lightning.pytorch as pl


class ExportArtifact(pl.Callback):
    """Write the stage's artifact into ``trainer.default_root_dir`` when its training is complete."""

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write it, unless training was stopped before its last iteration."""
        if trainer.is_global_zero and trainer.global_step >= trainer.max_steps:
            pl_module.write_artifact(trainer.default_root_dir)
