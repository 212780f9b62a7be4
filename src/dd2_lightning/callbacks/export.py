"""The directory that a finished stage leaves behind."""

import lightning.pytorch as pl

from dd2_lightning.callbacks.watched import watched


class ExportArtifact(pl.Callback):
    """Write the stage's artifact into ``trainer.default_root_dir`` when its training is complete.

    Not in ``on_train_end``, which is left out where the last checkpoint leaves nothing to train: a run that was killed
    between that checkpoint and its end has only the artifact to write.
    """

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_step >= trainer.max_steps:
            watched(pl_module).write_artifact(trainer.default_root_dir)
