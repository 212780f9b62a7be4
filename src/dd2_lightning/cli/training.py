"""The commands that train a stage, read its checkpoint or plan it."""

import logging
import signal
import sys
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from dd2_lightning.callbacks import (
    ContinuedLogs,
    ExportArtifact,
    Interrupted,
    IterationCheckpoint,
    PerPositionMonitor,
    RunClock,
    SampleGrid,
    StageLogger,
    StopOnSignal,
)
from dd2_lightning.callbacks.logs import wait_for_own_second
from dd2_lightning.cli.arguments import UsageError, checked_arguments
from dd2_lightning.cli.finish import finish, finish_run
from dd2_lightning.cli.run_directory import RunDirectory
from dd2_lightning.cli.stage_cli import StageCLI
from dd2_lightning.errors import DD2Error

EXPECTED_WARNINGS = (
    "Using ModelCheckpoint with manual optimization",  # after an iteration is what we want
    "Checkpoint directory .* exists and is not empty",  # a resumed run
    "Found .* module.* in eval mode",  # teacher and EMA
    ".*does not have many workers",  # batches are index arithmetic
    ".*was deprecated in v4",  # between Lightning and jsonargparse
    ".*parameter was deprecated",
    ".*isinstance.treespec",
    "Torchinductor does not support code generation for complex",  # LlamaGen's rotations, a few percent of an iteration
    "You have overridden .on_after_batch_transfer.",  # a stage samples the sequences that its batches lack
    "You called `self.log.*no logger configured",  # validate, test and predict write no logs
)


def run(command: str, arguments: list[str]) -> None:
    """Run a training command, with what a user cannot act on silenced."""
    for message in EXPECTED_WARNINGS:
        warnings.filterwarnings("ignore", message)
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    cli = {"fit": FitCLI, "predict": PredictCLI, "plan": PlanCLI}.get(command, CheckpointCLI)
    try:
        cli(command, checked_arguments(f"dd2 {command}", arguments))
    except Interrupted as stopped:
        print(f"dd2: {stopped}; --ckpt_path last continues where it stopped", file=sys.stderr)
        sys.exit(128 + stopped.signum)
    except SystemExit as end:
        if isinstance(end.__context__, KeyboardInterrupt):  # Lightning ends with status 1
            print("dd2: stopped", file=sys.stderr)
            sys.exit(128 + signal.SIGINT)
        raise
    except torch.OutOfMemoryError as error:
        reason = str(error).splitlines()[0]
        raise DD2Error(f"{reason} Raise model.accumulate (dd2 plan says how far) or lower data.batch_size") from error
    except MisconfigurationException as error:
        raise UsageError(f"dd2 {command}", str(error)) from error


class FitCLI(StageCLI):
    """``dd2 fit``."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        parser.add_argument(
            "--overwrite", action="store_true", help="delete the run in trainer.default_root_dir and start again"
        )

    def callbacks(self) -> list[Any]:
        settings = self.settings
        callbacks = [PerPositionMonitor(), SampleGrid(), ContinuedLogs(), StopOnSignal(), *super().callbacks()]
        if not settings.trainer.fast_dev_run:
            callbacks[:0] = [RunClock(), ExportArtifact()]
            if settings.trainer.enable_checkpointing is not False:
                callbacks.append(IterationCheckpoint(self.root / "checkpoints", settings.checkpoint_every))
        return callbacks

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Logs, checkpoints and artifact go where ``default_root_dir`` says, unless the config says otherwise."""
        settings = self.settings
        if settings.trainer.max_steps < 1:
            raise ValueError("set trainer.max_steps: the number of iterations of this stage")
        if settings.checkpoint_every < 1:
            raise ValueError(f"--checkpoint_every must be at least 1, got {settings.checkpoint_every}")
        if settings.overwrite and settings.ckpt_path:
            raise ValueError("--overwrite starts again, --ckpt_path continues: give one of them")
        if settings.trainer.logger in (None, True) and not settings.trainer.fast_dev_run:
            kwargs["logger"] = StageLogger(self.root)
        return super().instantiate_trainer(**kwargs)

    def _run_subcommand(self, subcommand: str) -> None:
        """Train in a directory that nobody else writes into, once the data are there."""
        if self.trainer.is_global_zero:
            self.datamodule.prepare_data()
        if self.settings.trainer.fast_dev_run:
            super()._run_subcommand(subcommand)
            return
        run, settings, is_main = RunDirectory(self.root), self.settings, self.trainer.is_global_zero
        with run.locked() if is_main else nullcontext():
            checkpoint = run.resolve_checkpoint(settings.ckpt_path, settings.overwrite)
            self.config_init[subcommand]["ckpt_path"] = checkpoint
            if is_main:
                run.prepare(settings.overwrite)
                wait_for_own_second(self.root)
            super()._run_subcommand(subcommand)
        if is_main and (self.root / "config.json").is_file():
            finish_run(self.model.name, self.root, dict(self.model.hparams))


class CheckpointCLI(StageCLI):
    """``dd2 validate`` and ``dd2 test``: read a run's checkpoint and leave the run as it is."""

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        kwargs["logger"] = False
        return super().instantiate_trainer(**kwargs)

    def _run_subcommand(self, subcommand: str) -> None:
        """Read the checkpoint of the run in ``default_root_dir``, unless another one is given."""
        given = self.settings.ckpt_path
        path = RunDirectory(self.root).checkpoint if given in (None, "last") else Path(given)
        if not path.is_file():
            raise DD2Error(
                f"{path} does not exist: dd2 {self.command} reads the checkpoint of a run; name its directory in "
                f"--trainer.default_root_dir, or a file in --ckpt_path"
            )
        self.config_init[subcommand]["ckpt_path"] = str(path)
        if self.trainer.is_global_zero:
            print(f"checkpoint: {path}")
        super()._run_subcommand(subcommand)
        if self.trainer.is_global_zero:
            finish(self.command)


class PredictCLI(CheckpointCLI):
    """``dd2 predict``."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        parser.add_argument(
            "--output", type=str, default=None, help="image file; predict.png in trainer.default_root_dir by default"
        )

    def predict(self, **options: Any) -> None:
        output = Path(self.settings.output or self.root / "predict.png")
        batches: list[Any] = self.trainer.predict(**options) or []
        images = [batch for batch in batches if batch is not None]
        if not images:
            raise DD2Error("this teacher has no images to draw: its tokenizer is latent only")
        if self.trainer.is_global_zero:
            from dd2_lightning.images.files import save_grid

            save_grid(torch.cat(images), output, columns=10)
            print(f"{sum(map(len, images))} images -> {output}")


class PlanCLI(StageCLI):
    """``dd2 plan``: LightningCLI with a trainer that plans, knows the trainer's settings and looks for no GPU."""

    def trainer_type(self) -> type[Trainer]:
        from dd2_lightning.planning import PlanTrainer

        return PlanTrainer

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        from dd2_lightning.planning import PlanTrainer

        return PlanTrainer.of_settings(self.settings.trainer.as_dict(), self.release)

    def _run_subcommand(self, subcommand: str) -> None:
        try:
            LightningCLI._run_subcommand(self, subcommand)
        except ValueError as error:
            raise UsageError("dd2 plan", str(error)) from error
        finish("plan")
