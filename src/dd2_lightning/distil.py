"""Stages run from Python, on one processor: no logs, no checkpoints, a directory at the end."""

from pathlib import Path

import lightning.pytorch as pl

from dd2_lightning.callbacks import ExportArtifact
from dd2_lightning.cli.fit import TRAINER_DEFAULTS
from dd2_lightning.data import PrefixData
from dd2_lightning.stages import Stage

PLAIN = {
    **TRAINER_DEFAULTS,
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
}


def fit(stage: Stage, data: PrefixData, iterations: int, root: Path, *callbacks: pl.Callback) -> None:
    """Train a stage and leave its artifact.

    Args:
        stage: its networks are made here, from the seed of the data.
        data: what it reads.
        iterations: how many.
        root: directory of the artifact.
        callbacks: what else happens on the way.
    """
    pl.seed_everything(data.seed, verbose=False)
    trainer = pl.Trainer(
        **PLAIN,
        max_steps=iterations,
        default_root_dir=root,
        callbacks=[ExportArtifact(), *callbacks],
        limit_val_batches=0,
    )
    trainer.fit(stage, data)


def validate(stage: Stage, data: PrefixData) -> dict[str, float]:
    """What a stage says of itself on held-out teacher sequences."""
    return pl.Trainer(**PLAIN).validate(stage, data, verbose=False)[0]
