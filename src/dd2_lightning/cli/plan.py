"""``dd2 plan``: what a stage would take, from the config that ``dd2 fit`` reads."""

from typing import Any

from lightning.pytorch.cli import LightningCLI

from dd2_lightning.cli.arguments import UsageError
from dd2_lightning.cli.training import StageCLI, run_stage
from dd2_lightning.planning import PlanTrainer


def plan(arguments: list[str]) -> None:
    """Count parameters, memory and operations of a stage, without running it."""
    run_stage(PlanCLI, arguments)


class PlanCLI(StageCLI):
    """LightningCLI with a trainer that plans."""

    command = "plan"
    trainer_type = PlanTrainer

    @classmethod
    def subcommands(cls) -> dict[str, set[str]]:
        return {"plan": {"model", "datamodule"}}

    def instantiate_trainer(self, **kwargs: Any) -> PlanTrainer:
        """One that knows the trainer's settings and looks for no GPU."""
        return PlanTrainer.of_settings(self.settings.trainer.as_dict(), self.releases[-1] if self.releases else None)

    def _run_subcommand(self, subcommand: str) -> None:
        try:
            LightningCLI._run_subcommand(self, subcommand)
        except ValueError as error:
            raise UsageError("dd2 plan", str(error)) from error
