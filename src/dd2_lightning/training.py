"""``dd2 fit|validate|test|predict``: LightningCLI with the defaults of this project."""

import signal
import sys
import warnings
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities.exceptions import SIGTERMException

import dd2_lightning.data
import dd2_lightning.stages  # noqa: F401  (makes the stages known by their bare names)
from dd2_lightning.artifacts import check_writable, remove_parts
from dd2_lightning.callbacks import (
    AtomicCheckpointIO,
    ContinuedLogs,
    ExportArtifact,
    IterationCheckpoint,
    IterationProgressBar,
    PerPositionMonitor,
    SampleGrid,
)
from dd2_lightning.callbacks.logs import wait_for_own_second
from dd2_lightning.overlays import resolve
from dd2_lightning.planning import PlanTrainer
from dd2_lightning.stages import Stage
from dd2_lightning.stages.execution import Execution

TRAINER_DEFAULTS = {
    "max_epochs": -1,  # runs are counted in iterations: trainer.max_steps
    "check_val_every_n_epoch": None,
    "num_sanity_val_steps": 0,
    "use_distributed_sampler": False,  # the data modules share the work themselves
    "enable_model_summary": False,
}


EXPECTED = (
    "Using ModelCheckpoint with manual optimization",  # after an iteration is what we want
    "Checkpoint directory .* exists and is not empty",  # a resumed run
    "Found .* module.* in eval mode",  # teacher and EMA
    "You have overridden .on_after_batch_transfer.",  # a stage samples the sequences that its batches lack
    ".*does not have many workers",  # batches are index arithmetic
    ".*was deprecated in v4",  # between Lightning and jsonargparse
    ".*parameter was deprecated",
    ".*isinstance.treespec",
)


class TrainingCLI(LightningCLI):
    """Every stage is a ``--model``, every data module a ``--data``; what a run leaves lies in ``default_root_dir``."""

    trainer_type: type[Trainer] = Trainer

    @classmethod
    def run(cls) -> "TrainingCLI":
        """Parse the command line and run."""
        for message in EXPECTED:
            warnings.filterwarnings("ignore", message)
        try:
            return cls._run()
        except SIGTERMException:
            print("dd2: stopped by SIGTERM; --ckpt_path last continues where it stopped", file=sys.stderr)
            sys.exit(128 + signal.SIGTERM)

    @classmethod
    def _run(cls) -> "TrainingCLI":
        return cls(
            Stage,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            seed_everything_default=0,
            trainer_class=cls.trainer_type,
            trainer_defaults=TRAINER_DEFAULTS,
            save_config_kwargs={"overwrite": True},
            parser_kwargs={"prog": "dd2", "description": "Train, validate and run the stages."},
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """One seed for networks, data and noise; checkpoints by iterations."""
        parser.link_arguments("seed_everything", "data.init_args.seed", compute_fn=int)
        parser.add_argument(
            "--checkpoint_every", type=int, default=500, help="iterations between checkpoints (the last one is kept)"
        )
        parser.add_class_arguments(Execution, "execution")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Read the command line; an overlay gives the settings of the stage that is run."""
        try:
            resolved = resolve(sys.argv[1:] if args is None else args)
        except ValueError as error:
            parser.error(str(error))
        self.releases = resolved.releases
        self.config = parser.parse_args(resolved.arguments)

    def _parse_ckpt_path(self) -> None:
        """Resume takes weights and counters from a checkpoint, never settings: those are what was given here."""

    def instantiate_classes(self) -> None:
        """Build stage, data and trainer; what their constructors refuse is a usage error."""
        try:
            super().instantiate_classes()
            self.model.execution = self._get(self.config_init, "execution")
        except (ValueError, TypeError) as error:
            self.parser.error(str(error))

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Logs, checkpoints and artifact go where ``default_root_dir`` says, unless the config says otherwise."""
        config = self.config[self.subcommand]
        if self.subcommand == "fit" and config.trainer.max_steps < 1:
            self.parser.error("set trainer.max_steps: the number of iterations of this stage")
        root = Path(config.trainer.default_root_dir or ".")
        if config.trainer.logger in (None, True):
            wait_for_own_second(root / "tensorboard")
            kwargs["logger"] = TensorBoardLogger(root, name="", version="tensorboard", default_hp_metric=False)
        callbacks = list(self._get(self.config_init, "trainer.callbacks") or [])
        wanted = [ExportArtifact(), PerPositionMonitor(), SampleGrid(), ContinuedLogs()]
        if config.trainer.enable_progress_bar is not False:
            wanted.append(IterationProgressBar())
        if config.trainer.enable_checkpointing is not False and not config.trainer.fast_dev_run:
            wanted.append(IterationCheckpoint(root / "checkpoints", config.checkpoint_every))
        given = {type(callback) for callback in callbacks}
        kwargs["callbacks"] = callbacks + [callback for callback in wanted if type(callback) not in given]
        kwargs["plugins"] = [*(self._get(self.config_init, "trainer.plugins") or []), AtomicCheckpointIO()]
        trainer = super().instantiate_trainer(**kwargs)
        if self.subcommand == "fit" and trainer.is_global_zero:
            check_writable(root)
            remove_parts(root)
        if isinstance(trainer.strategy, DDPStrategy):
            # an update gives gradients to one of the networks
            trainer.strategy._ddp_kwargs["find_unused_parameters"] = True
        return trainer


class PlanCLI(TrainingCLI):
    """``dd2 plan`` reads what ``dd2 fit`` reads."""

    trainer_type = PlanTrainer

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """The one command, and the arguments of its method that are no options."""
        return {"plan": {"model", "datamodule"}}

    def instantiate_trainer(self, **kwargs: Any) -> PlanTrainer:
        """One that plans."""
        settings = self.config[self.subcommand].trainer.as_dict()
        return PlanTrainer.of_settings(settings, self.releases[-1] if self.releases else None)

    def _run_subcommand(self, subcommand: str) -> None:
        """Plan; settings that cannot be are a usage error."""
        try:
            super()._run_subcommand(subcommand)
        except ValueError as error:
            self.parser.error(str(error))
