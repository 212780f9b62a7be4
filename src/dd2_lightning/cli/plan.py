"""``dd2 plan``: what a stage would take, from the config that ``dd2 fit`` reads."""

from dd2_lightning.cli.fit import run_stage


def plan(arguments: list[str]) -> None:
    """Count parameters, memory and operations of a stage, without running it."""
    run_stage(plan, arguments)
