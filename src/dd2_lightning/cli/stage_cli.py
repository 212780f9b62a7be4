"""LightningCLI with the defaults of this project, and its parser, whose errors are one line."""

import inspect
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, NoReturn

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback

import dd2_lightning.data as data
import dd2_lightning.stages as stages
from dd2_lightning.callbacks import AtomicCheckpointIO, Interrupted, IterationProgressBar
from dd2_lightning.cli.arguments import UsageError, did_you_mean, one_line, raise_usage_error
from dd2_lightning.data.images import ImageData
from dd2_lightning.lightning_internals import end_launched_processes, end_with_failed_process, find_unused_parameters
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

TRAINER_ARGUMENTS = {"model", "datamodule", "train_dataloaders", "val_dataloaders", "dataloaders", "return_predictions"}
"""Parameters of the trainer's methods that are no options."""


def known_settings() -> set[str]:
    """Names of the settings of all stages and data modules."""
    kinds = [getattr(room, name) for room in (stages, data) for name in room.__all__]
    kinds += [OptimizerSettings, Sampling]
    return {name for kind in kinds for name in inspect.signature(kind).parameters if name not in ("args", "kwargs")}


def image_sizes(module: LightningDataModule) -> dict[str, Any] | None:
    """What a stage that learns from images has to know of them."""
    if not isinstance(module, ImageData):
        return None
    return {"num_classes": module.num_classes, "image_shape": module.image_shape}


class StageParser(LightningArgumentParser):
    """Parser of a training command, whose errors are one line."""

    program: ClassVar[str] = "dd2 fit"
    arguments: ClassVar[list[str]] = []

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:  # the parser of a nested class reports to the one that asked it
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

    What a run leaves lies in ``trainer.default_root_dir``. The ``command`` is the name of the trainer's method.
    """

    release: str | None  # published size that stands in for a missing teacher; ``dd2 plan`` alone reads it

    def __init__(self, command: str, arguments: list[str]):
        self.command = command
        StageParser.program, StageParser.arguments = f"dd2 {command}", arguments
        super().__init__(
            Stage,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            seed_everything_default=0,
            trainer_class=self.trainer_type(),
            trainer_defaults=TRAINER_DEFAULTS,
            save_config_callback=SaveConfigCallback if command == "fit" else None,
            save_config_kwargs={"overwrite": True},
            parser_class=StageParser,
            parser_kwargs={"prog": "dd2", "allow_abbrev": False, command: {"allow_abbrev": False}},
            args=[command, *arguments],
        )

    def trainer_type(self) -> type[Trainer]:
        return Trainer

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]  # static in Lightning, called on instances
        return {self.command: TRAINER_ARGUMENTS}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.link_arguments("seed_everything", "data.init_args.seed", compute_fn=int)
        parser.link_arguments("data", "model.init_args.images", compute_fn=image_sizes, apply_on="instantiate")
        parser.add_class_arguments(Execution, "execution")
        parser.add_argument(
            "--checkpoint_every", type=int, default=500, help="iterations between checkpoints (the last one is kept)"
        )
        parser.add_argument(
            "--release", type=str, default=None, help="published size that dd2 plan takes, like var/d16"
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        self.config = parser.parse_args(args)
        self.release = self.config[self.command].pop("release", None)

    def _parse_ckpt_path(self) -> None:
        """Resume takes weights and counters from a checkpoint, never settings: those are what was given here."""

    def _set_seed(self) -> None:
        """Refuse seeds that no generator takes, then seed everything."""
        seed = self.settings.seed_everything
        if seed is not True and seed is not False and not 0 <= seed < 2**32:
            raise UsageError(f"dd2 {self.command}", f"--seed_everything must be in 0..{2**32 - 1}, got {seed}")
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
        return self.config[self.subcommand]

    @property
    def root(self) -> Path:
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
