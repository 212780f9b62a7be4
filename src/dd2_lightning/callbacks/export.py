"""The directory that a finished stage leaves behind."""

import lightning.pytorch as pl


class ExportArtifact(pl.Callback):
    """Write the stage's artifact into ``trainer.default_root_dir`` when its training is complete."""

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write it, unless training was stopped before its last iteration.

        Not in ``on_train_end``, which is left out where the last checkpoint leaves nothing to train: a run that was
        killed between that checkpoint and this has only the artifact to write.
        """
        if trainer.global_step >= trainer.max_steps:
            pl_module.write_artifact(trainer.default_root_dir)
