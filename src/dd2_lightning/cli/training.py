"""LightningCLI with the defaults of this project, for the commands that train or read a stage."""

import inspect
import logging
import os
import re
import signal
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger

import dd2_lightning.data as data
import dd2_lightning.stages as stages
from dd2_lightning.callbacks import (
    AtomicCheckpointIO,
    ContinuedLogs,
    ExportArtifact,
    Interrupted,
    IterationCheckpoint,
    IterationProgressBar,
    PerPositionMonitor,
    SampleGrid,
    StopOnSignal,
)
from dd2_lightning.callbacks.logs import wait_for_own_second
from dd2_lightning.cli.arguments import (
    UsageError,
    config_files,
    configs_first,
    did_you_mean,
    one_line,
    raise_usage_error,
    read_config,
)
from dd2_lightning.cli.run_directory import RunDirectory
from dd2_lightning.errors import DD2Error
from dd2_lightning.lightning_internals import (
    end_launched_processes,
    end_with_failed_process,
    find_unused_parameters,
)
from dd2_lightning.overlays import resolve
from dd2_lightning.sampling import Sampling
from dd2_lightning.stages import Stage
from dd2_lightning.stages.execution import Execution
from dd2_lightning.stages.schedule import OptimizerSettings

TRAINER_DEFAULTS = {
    "max_epochs": -1,  # runs are counted in iterations: trainer.max_steps
    "check_val_every_n_epoch": None,
    "num_sanity_val_steps": 0,
    "use_distributed_sampler": False,  # the data modules share the work themselves
    "enable_model_summary": False,
}

PRECISIONS = (None, 32, "32", "32-true", "bf16-mixed")
"""Values of ``trainer.precision`` that the stages are correct in: losses and flows need float32."""

EXPECTED_WARNINGS = (
    "Using ModelCheckpoint with manual optimization",  # after an iteration is what we want
    "Checkpoint directory .* exists and is not empty",  # a resumed run
    "Found .* module.* in eval mode",  # teacher and EMA
    ".*does not have many workers",  # batches are index arithmetic
    ".*was deprecated in v4",  # between Lightning and jsonargparse
    ".*parameter was deprecated",
    ".*isinstance.treespec",
    "You have overridden .on_after_batch_transfer.",  # a stage samples the sequences that its batches lack
    ".*find_unused_parameters=True was specified",  # an update gives gradients to one of the networks
    ".*logger.*is not set.*|.*You called `self.log.*no logger configured",  # validate, test and predict write no logs
)

TRAINER_ARGUMENTS = {"model", "train_dataloaders", "val_dataloaders", "dataloaders", "datamodule"}
"""Parameters of the trainer's methods that are no options."""


def run_stage(cli: type["StageCLI"], arguments: list[str]) -> None:
    """Run a training command, with what a user cannot act on silenced."""
    for message in EXPECTED_WARNINGS:
        warnings.filterwarnings("ignore", message)
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    if not arguments:
        raise UsageError(f"dd2 {cli.command}", f"a config is missing: dd2 {cli.command} --config configs/csd_var.yaml")
    if arguments in (["-h"], ["--help"]):
        print(cli.introduction())
    if "--model.help" in arguments and arguments[-1] == "--model.help":
        print(stage_overview())
        return
    try:
        cli(configs_first(arguments))
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
        raise UsageError(f"dd2 {cli.command}", str(error)) from error


def stage_overview() -> str:
    """All stages with their first line, for ``dd2 fit --model.help``."""
    kinds = {name: getattr(stages, name) for name in stages.__all__ if name != "Stage"}
    width = max(map(len, kinds))
    rows = [f"  {name:{width}}  {inspect.getdoc(kind).splitlines()[0]}" for name, kind in kinds.items()]
    return "\n".join(["stages:", *rows, "", "dd2 fit --model.help CSDDistill lists the settings of a stage."])


def known_settings() -> set[str]:
    """Names of the settings of all stages and data modules."""
    kinds = [getattr(room, name) for room in (stages, data) for name in room.__all__]
    kinds += [OptimizerSettings, Sampling]
    return {name for kind in kinds for name in inspect.signature(kind).parameters if name not in ("args", "kwargs")}


class StageParser(LightningArgumentParser):
    """Parser of a training command, whose errors are one line."""

    program: ClassVar[str] = "dd2 fit"
    arguments: ClassVar[list[str]] = []

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise a :class:`UsageError`; parsers of nested classes report to the one that asked them."""
        if not self.exit_on_error:
            super().error(message, ex)
        program = StageParser.program
        if found := re.search(r"Expected a dot import path string: (\S+)", message):
            room = data if 'key "data"' in message else stages
            names = [name for name in room.__all__ if name not in ("Stage", "Batch")]
            kind = "data module" if room is data else "stage"
            guess = did_you_mean(found[1], names)
            raise UsageError(program, f"unknown {kind} '{found[1]}'; there are {', '.join(names)}{guess}")
        if "the following arguments are required" in message:
            keys = re.sub(r"\bfit\.|\bvalidate\.|\btest\.|\bpredict\.|\bplan\.", "", message.rpartition(":")[2]).strip()
            raise UsageError(program, f"{keys} missing: name a config, like --config configs/csd_var.yaml")
        options = {*self._option_string_actions, *known_settings()}
        raise_usage_error(program, message, options, StageParser.arguments)


class StageCLI(LightningCLI):
    """A training command: every stage is a ``--model``, every data module a ``--data``.

    What a run leaves lies in ``trainer.default_root_dir``.

    Attributes:
        command: name of the trainer's method.
    """

    command: ClassVar[str]
    trainer_type: ClassVar[type[Trainer]] = Trainer

    def __init__(self, arguments: list[str]):
        StageParser.program, StageParser.arguments = f"dd2 {self.command}", arguments
        for path in config_files(arguments):
            read_config(f"dd2 {self.command}", path)
        super().__init__(
            Stage,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            seed_everything_default=0,
            trainer_class=self.trainer_type,
            trainer_defaults=TRAINER_DEFAULTS,
            save_config_callback=SaveConfigCallback if self.command == "fit" else None,
            save_config_kwargs={"overwrite": True},
            parser_class=StageParser,
            parser_kwargs={"prog": "dd2", "allow_abbrev": False, self.command: {"allow_abbrev": False}},
            args=[self.command, *arguments],
        )

    @classmethod
    def introduction(cls) -> str:
        """First lines of the help."""
        return (
            f"dd2 {cls.command} --config FILE [--config FILE ...] [--SETTING VALUE ...]\n\n"
            "A config names a stage (model), its data and the trainer; the command line beats it.\n"
            "  dd2 fit --model.help               all stages\n"
            "  dd2 fit --model.help CSDDistill    settings of a stage: --model.guidance_updates 2\n"
            "  dd2 fit --data.help PrefixData     settings of a data module: --data.batch_size 64\n"
        )

    @classmethod
    def subcommands(cls) -> dict[str, set[str]]:
        return {cls.command: TRAINER_ARGUMENTS}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.link_arguments("seed_everything", "data.init_args.seed", compute_fn=int)
        parser.add_class_arguments(Execution, "execution")
        parser.add_argument(
            "--checkpoint_every", type=int, default=500, help="iterations between checkpoints (the last one is kept)"
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Read the command line; an overlay gives the settings of the stage that is run."""
        try:
            resolved = resolve(args)
        except ValueError as error:
            raise UsageError(f"dd2 {self.command}", str(error)) from error
        self.releases = resolved.releases
        self.config = parser.parse_args(resolved.arguments)

    def _parse_ckpt_path(self) -> None:
        """Resume takes weights and counters from a checkpoint, never settings: those are what was given here."""

    def _set_seed(self) -> None:
        """Refuse seeds that no generator takes, then seed everything."""
        seed = self.config[self.subcommand].seed_everything
        if seed is not True and seed is not False and not 0 <= seed < 2**32:
            raise UsageError(f"dd2 {self.command}", f"--seed_everything must be in 0..{2**32 - 1}, got {seed}")
        with warnings.catch_warnings():
            super()._set_seed()

    def instantiate_classes(self) -> None:
        """Build stage, data and trainer; what their constructors refuse is a usage error."""
        try:
            super().instantiate_classes()
        except (ValueError, TypeError, MisconfigurationException) as error:
            raise UsageError(f"dd2 {self.command}", one_line(str(error))) from error
        self.model.execution = self._get(self.config_init, "execution")

    @property
    def settings(self) -> Any:
        """Parsed settings of the command."""
        return self.config[self.subcommand]

    @property
    def root(self) -> Path:
        """Directory of the run."""
        return Path(self.settings.trainer.default_root_dir or ".")

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Callbacks of every command; those of the config replace them."""
        precision = self.settings.trainer.precision
        if precision not in PRECISIONS:
            raise ValueError(
                f"trainer.precision {precision} does not work: losses and flows are computed in float32; "
                f"there are 32-true and bf16-mixed"
            )
        callbacks = list(self._get(self.config_init, "trainer.callbacks") or [])
        given = {type(callback) for callback in callbacks}
        kwargs["callbacks"] = callbacks + [callback for callback in self.callbacks() if type(callback) not in given]
        kwargs["plugins"] = [*(self._get(self.config_init, "trainer.plugins") or []), AtomicCheckpointIO()]
        try:
            trainer = super().instantiate_trainer(**kwargs)
        except MisconfigurationException as error:
            accelerator = self.settings.trainer.accelerator
            if accelerator in ("auto", "cpu"):
                raise
            raise ValueError(f"trainer.accelerator {accelerator} is not here ({error}); take auto or cpu") from error
        find_unused_parameters(trainer.strategy)  # an update gives gradients to one of the networks
        return trainer

    def callbacks(self) -> list[Any]:
        """Callbacks that the command needs."""
        return [] if self.settings.trainer.enable_progress_bar is False else [IterationProgressBar()]

    def _run_subcommand(self, subcommand: str) -> None:
        with ended_together(self.trainer):
            super()._run_subcommand(subcommand)


@contextmanager
def ended_together(trainer: Trainer) -> Iterator[None]:
    """Where one process of a run fails, end all of them with its message and exit status.

    Processes that Lightning launched often fail alike; the main process speaks for them.
    """
    launched = os.environ.get("LOCAL_RANK", "0") != "0" and "TORCHELASTIC_RUN_ID" not in os.environ
    try:
        with end_with_failed_process(trainer):
            yield
    except Interrupted:
        raise
    except BaseException:
        if launched:
            time.sleep(1)  # the main process ends this one when it fails itself
        end_launched_processes(trainer)
        raise


class FitCLI(StageCLI):
    """``dd2 fit``."""

    command = "fit"

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        parser.add_argument(
            "--overwrite", action="store_true", help="delete the run in trainer.default_root_dir and start again"
        )

    def callbacks(self) -> list[Any]:
        settings = self.settings
        callbacks = [PerPositionMonitor(), SampleGrid(), ContinuedLogs(), StopOnSignal(), *super().callbacks()]
        if not settings.trainer.fast_dev_run:
            callbacks.insert(0, ExportArtifact())
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
            kwargs["logger"] = TensorBoardLogger(self.root, name="", version="tensorboard", default_hp_metric=False)
        return super().instantiate_trainer(**kwargs)

    def _run_subcommand(self, subcommand: str) -> None:
        """Train in a directory that nobody else writes into."""
        if self.settings.trainer.fast_dev_run:
            super()._run_subcommand(subcommand)
            return
        run, settings, is_main = RunDirectory(self.root), self.settings, self.trainer.is_global_zero
        with run.locked() if is_main else nullcontext():
            checkpoint = run.resolve_checkpoint(settings.ckpt_path, settings.overwrite)
            self.config_init[subcommand]["ckpt_path"] = checkpoint
            if is_main:
                run.prepare(settings.overwrite)
                wait_for_own_second(self.root / "tensorboard")
            super()._run_subcommand(subcommand)
        if is_main and (self.root / "config.json").is_file():
            print(f"{self.model.name}: {self.trainer.global_step:,} iterations -> {self.root}")


class CheckpointCLI(StageCLI):
    """A command that reads a run's checkpoint and leaves the run as it is."""

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


class ValidateCLI(CheckpointCLI):
    """``dd2 validate``."""

    command = "validate"


class TestCLI(CheckpointCLI):
    """``dd2 test``."""

    command = "test"


class PredictCLI(CheckpointCLI):
    """``dd2 predict``."""

    command = "predict"

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        parser.add_argument(
            "--output", type=str, default=None, help="image file; predict.png in trainer.default_root_dir by default"
        )

    @classmethod
    def subcommands(cls) -> dict[str, set[str]]:
        return {cls.command: TRAINER_ARGUMENTS | {"return_predictions"}}

    def predict(self, **options: Any) -> None:
        """Draw and write the images."""
        output = Path(self.settings.output or self.root / "predict.png")
        batches = self.trainer.predict(**options)
        images = [batch for batch in batches or [] if batch is not None]
        if not images:
            raise DD2Error("this teacher has no images to draw: its tokenizer is latent only")
        if self.trainer.is_global_zero:
            from dd2_lightning.images.files import save_grid

            save_grid(torch.cat(images), output, columns=10)
            print(f"{sum(map(len, images))} images -> {output}")
