"""Stages run from Python: built from a config, trained without logs, measured against iterations and seconds."""

import logging
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import yaml
from jsonargparse import ArgumentParser

from dd2_lightning.callbacks import ExportArtifact
from dd2_lightning.cli.stage_cli import TRAINER_DEFAULTS
from dd2_lightning.cli.training import EXPECTED_WARNINGS
from dd2_lightning.data import PrefixData
from dd2_lightning.errors import DD2Error
from dd2_lightning.stages import Stage

Config = dict[str, Any]
"""``model`` and ``data`` of a stage, each ``{"class_path", "init_args"}`` as ``dd2 fit`` reads them."""

TRAINER = {
    **TRAINER_DEFAULTS,
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
}


def read_config(path: str | Path) -> Config:
    """Read model and data of a stage's config; raises DD2Error naming the file."""
    try:
        content = yaml.safe_load(Path(path).read_text())
        return {key: content[key] for key in ("model", "data")}
    except (OSError, yaml.YAMLError, TypeError, KeyError) as error:
        raise DD2Error(f"{path} is no config of a stage ({error})") from error


def overridden(config: Config, model: dict[str, Any], data: dict[str, Any]) -> Config:
    """The config with other settings of its model and data."""
    return {
        key: {**config[key], "init_args": {**config[key]["init_args"], **settings}}
        for key, settings in (("model", model), ("data", data))
    }


def config_parser() -> ArgumentParser:
    """Parser of models and data, as that of ``dd2 fit``."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Stage, "model")
    parser.add_subclass_arguments(PrefixData, "data")
    return parser


def build(config: Config, model: dict[str, Any], data: dict[str, Any]) -> tuple[Stage, PrefixData]:
    """Build stage and data module of a config, with the settings given here instead of its own."""
    parser = config_parser()
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        built = parser.instantiate_classes(parser.parse_object(overridden(config, model, data)))
    return built.model, built.data


def fit(
    stage: Stage, data: PrefixData, iterations: int, directory: Path, *callbacks: pl.Callback, accelerator: str = "cpu"
) -> None:
    """Train a stage from the seed of its data and write its artifact into ``directory``."""
    silence_lightning()
    pl.seed_everything(data.seed, verbose=False)
    trainer = pl.Trainer(
        **{**TRAINER, "accelerator": accelerator},
        devices=1,
        max_steps=iterations,
        default_root_dir=directory,
        callbacks=[ExportArtifact(), *callbacks],
        limit_val_batches=0,
    )
    trainer.fit(stage, data)


def validate(stage: Stage, data: PrefixData) -> dict[str, float]:
    """Metrics of a stage on held-out teacher sequences."""
    return pl.Trainer(**TRAINER).validate(stage, data, verbose=False)[0]


def silence_lightning() -> None:
    """Hide Lightning's messages about every run."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in EXPECTED_WARNINGS:
        warnings.filterwarnings("ignore", message)


class LearningCurve(pl.Callback):
    """Measure a stage at regular intervals.

    Args:
        every: iterations between two points.
        measure: from the stage to the figures of a point.
        seconds: processor time that earlier stages took.

    Attributes:
        curve: ``{"iteration", "seconds", …}`` for each point. Seconds are processor time of training alone, without
            the measuring.
    """

    def __init__(self, every: int, measure: Callable[[Any], dict[str, Any]], seconds: float = 0.0):
        self.every, self.measure, self.seconds = every, measure, seconds
        self.curve: list[dict[str, Any]] = []

    def on_train_start(self, trainer: pl.Trainer, stage: pl.LightningModule) -> None:
        """Start the clock."""
        self.started = time.process_time()

    def on_train_batch_end(self, trainer: pl.Trainer, stage: pl.LightningModule, *_) -> None:
        """Stop the clock while measuring."""
        if trainer.global_step % self.every == 0:
            self.seconds += time.process_time() - self.started
            point = {"iteration": trainer.global_step, "seconds": round(self.seconds, 3)}
            self.curve.append({**point, **self.measure(stage)})
            self.started = time.process_time()
