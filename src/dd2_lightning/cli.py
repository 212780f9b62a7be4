"""The one door: ``dd2 …``."""

import sys
from pathlib import Path
from typing import Any

from dd2_lightning.errors import DD2Error

TRAINING = {
    "fit": "run a training stage: --config configs/csd_var.yaml",
    "validate": "score gaps and likelihood of a checkpoint on held-out teacher sequences",
    "test": "the same on the test data of the data module",
    "predict": "one-step pictures from a checkpoint",
}


def tools() -> dict[str, Any]:
    """The commands that do not train, by name."""
    from dd2_lightning.commands import sample
    from dd2_lightning.evaluation.evaluate import evaluate
    from dd2_lightning.evaluation.report import write_benchmark
    from dd2_lightning.tables import tables

    return {"sample": sample, "evaluate": evaluate, "summary": write_benchmark, "tables": tables}


def main(args: list[str] | None = None) -> None:
    """Run a command; errors that a user can mend are one line, with exit status 2 for usage and 1 otherwise."""
    if args is not None:
        sys.argv = ["dd2", *args]
    args = sys.argv[1:]
    try:
        if args and args[0] in TRAINING:
            from dd2_lightning.training import TrainingCLI

            TrainingCLI.run()
        else:
            run_tool(args)
    except DD2Error as error:
        print(f"dd2: error: {error}", file=sys.stderr)
        sys.exit(1)


def run_tool(args: list[str]) -> None:
    """``dd2 sample`` and its kind, and the help of everything."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(prog="dd2", description="Distilled Decoding 2: one-step generators from AR image models.")
    parser.add_argument("--version", action="version", version=version())
    subcommands = parser.add_subcommands()
    for name, text in TRAINING.items():  # parsed by Lightning; here for the help
        subcommands.add_subcommand(name, ArgumentParser(), help=text)
    for name, function in tools().items():
        tool = ArgumentParser(description=(function.__doc__ or "").split("\n")[0])
        tool.add_argument("--config", action="config", help="YAML file with these options")
        tool.add_function_arguments(function)
        subcommands.add_subcommand(name, tool, help=(function.__doc__ or "").split("\n")[0])
    config = parser.parse_args(args or ["--help"])
    options = parser.instantiate_classes(config)[config.subcommand].as_dict()
    options.pop("config", None)
    try:
        tools()[config.subcommand](**options)
    except ValueError as error:
        parser.error(str(error))


def version() -> str:
    """Name and version."""
    from dd2_lightning import __version__

    return f"dd2-lightning {__version__} ({Path(__file__).parent})"
