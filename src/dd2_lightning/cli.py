"""The one door: ``dd2 …``."""

import inspect
import sys
from pathlib import Path
from typing import Any

from dd2_lightning.errors import DD2Error
from dd2_lightning.overlays import split_options

TRAINING = {
    "fit": "run a training stage: --config configs/csd_var.yaml",
    "validate": "score gaps and likelihood of a checkpoint on held-out teacher sequences",
    "test": "the same on the test data of the data module",
    "predict": "one-step pictures from a checkpoint",
    "plan": "what a stage would take: parameters, memory, operations, hours; the options of fit",
}


def tools() -> dict[str, Any]:
    """The commands that do not train, by name; a dictionary is a command with commands of its own."""
    from dd2_lightning.ablations.command import ablations
    from dd2_lightning.benchmarks import bench_flow, bench_sample, bench_train
    from dd2_lightning.caching import cache
    from dd2_lightning.commands import sample
    from dd2_lightning.evaluation.evaluate import evaluate
    from dd2_lightning.evaluation.measure import quality, statistics
    from dd2_lightning.evaluation.report import write_benchmark
    from dd2_lightning.hub.convert import convert_llamagen, convert_var
    from dd2_lightning.hub.dd1 import convert_dd1
    from dd2_lightning.tables import tables

    return {
        "cache": cache,
        "sample": sample,
        "evaluate": evaluate,
        "quality": quality,
        "statistics": statistics,
        "convert": Group(
            "Published checkpoint files into a teacher's directory, or that of a DD1 model.",
            {"var": convert_var, "llamagen": convert_llamagen, "dd1": convert_dd1},
        ),
        "bench": Group("Speed, measured.", {"sample": bench_sample, "train": bench_train, "flow": bench_flow}),
        "summary": write_benchmark,
        "tables": tables,
        "ablations": ablations,
    }


class Group(dict):
    """A command with commands of its own.

    Args:
        description: one line.
        commands: by name.
    """

    def __init__(self, description: str, commands: dict[str, Any]):
        super().__init__(commands)
        self.__doc__ = description


def main(args: list[str] | None = None) -> None:
    """Run a command; errors that a user can mend are one line, with exit status 2 for usage and 1 otherwise."""
    args = configs_first(sys.argv[1:] if args is None else args)
    sys.argv = ["dd2", *args]
    try:
        if args and args[0] in TRAINING:
            from dd2_lightning.training import PlanCLI, TrainingCLI

            (PlanCLI if args[0] == "plan" else TrainingCLI).run()
        else:
            run_tool(args)
    except DD2Error as error:
        print(f"dd2: error: {error}", file=sys.stderr)
        sys.exit(1)


def configs_first(arguments: list[str]) -> list[str]:
    """The same command line with its config files before all other options.

    The parser takes the last word on a setting, and that is to be the command line's, wherever ``--config`` stands.
    """
    words, commands, configs, others = split_options(arguments), [], [], []
    if words and words[0].startswith("-"):  # options of the whole command; the subcommand has its own
        return words
    while words and not words[0].startswith("-"):
        commands.append(words.pop(0))
    while words:
        is_config = words[0] in ("--config", "-c") and len(words) > 1
        (configs if is_config else others).extend(words.pop(0) for _ in range(1 + is_config))
    return commands + configs + others


def run_tool(args: list[str]) -> None:
    """``dd2 sample`` and its kind, and the help of everything."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(prog="dd2", description="Distilled Decoding 2: one-step generators from AR image models.")
    parser.add_argument("--version", action="version", version=version())
    subcommands = parser.add_subcommands()
    for name, text in TRAINING.items():  # parsed by Lightning; here for the help
        subcommands.add_subcommand(name, ArgumentParser(), help=text)
    add_tools(subcommands, tools())
    config = parser.parse_args(args or ["--help"])
    tool = tools()
    try:
        config = parser.instantiate_classes(config)
        while isinstance(tool, dict):
            tool, config = tool[config.subcommand], config[config.subcommand]
        options = config.as_dict()
        options.pop("config", None)
        tool(**options)
    except ValueError as error:
        parser.error(str(error))


def add_tools(subcommands: Any, commands: dict[str, Any]) -> None:
    """Add functions as subcommands, their arguments as options; a boolean is a flag of its own: ``--latent-only``."""
    from jsonargparse import ArgumentParser

    for name, tool in commands.items():
        description = (tool.__doc__ or "").split("\n")[0]
        own = ArgumentParser(description=description)
        subcommands.add_subcommand(name, own, help=description)
        if isinstance(tool, dict):
            add_tools(own.add_subcommands(), tool)
            continue
        flags = [key for key, value in inspect.signature(tool).parameters.items() if value.annotation is bool]
        own.add_argument("--config", action="config", help="YAML file with these options")
        own.add_function_arguments(tool, skip=set(flags))
        for flag in flags:
            own.add_argument(f"--{flag.replace('_', '-')}", action="store_true", help=parameter_help(tool, flag))


def parameter_help(function: Any, name: str) -> str:
    """What a docstring says of an argument."""
    from docstring_parser import parse

    return next(entry.description or "" for entry in parse(function.__doc__).params if entry.arg_name == name)


def version() -> str:
    """Name and version."""
    from dd2_lightning import __version__

    return f"dd2-lightning {__version__} ({Path(__file__).parent})"
