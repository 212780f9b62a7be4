"""A function as a command: its parameters are the options, its docstring the help."""

import inspect
import textwrap
from argparse import Action
from collections.abc import Callable
from typing import Any, NoReturn

from docstring_parser import parse
from jsonargparse import ArgumentParser, DefaultHelpFormatter

from dd2_lightning.cli.arguments import UsageError, checked_arguments, raise_usage_error


class FunctionHelp(DefaultHelpFormatter):
    """Help of a command: what an option means, whether it is required, and a default that says something."""

    def __init__(self, prog: str, **options: Any):
        super().__init__(prog, **{**options, "max_help_position": 30})

    def _get_help_string(self, action: Action) -> str:
        text = without_markup(action.help).removesuffix(".")
        if action.required and action.option_strings:
            return f"{text} (required)"
        says_something = isinstance(action.default, int | float | str) and not isinstance(action.default, bool)
        return f"{text} (default: {action.default})" if says_something and "==" not in str(action.default) else text

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = text.split("\n\n")
        return "\n\n".join(part if "\n  " in part else textwrap.fill(part, width) for part in paragraphs)


class FunctionParser(ArgumentParser):
    """Parser of one command, whose errors are one line."""

    arguments: list[str]

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise_usage_error(self.prog, message, self._option_string_actions, self.arguments)


def run_function(program: str, function: Callable[..., Any], arguments: list[str]) -> None:
    """Run a function with the options of a command line, which follow the ``program``, like ``dd2 sample``.

    Parameters that are ``bool`` become flags, ``--latent-only``; positional-only ones, words without a name.
    """
    parser = function_parser(program, function)
    parser.arguments = checked_arguments(program, arguments)
    options = parser.instantiate_classes(parser.parse_args(parser.arguments)).as_dict()
    options.pop("config", None)
    words = [options.pop(name) for name in words_of(function)]
    try:
        function(*words, **options)
    except ValueError as error:
        raise UsageError(program, str(error)) from error


def function_parser(program: str, function: Callable[..., Any]) -> FunctionParser:
    """Make the parser of a command; parameters that are ``bool`` become flags: ``--latent-only``."""
    documentation = parse(function.__doc__ or "")
    helps = {entry.arg_name: entry.description for entry in documentation.params}
    parser = FunctionParser(
        prog=program,
        description=without_markup(documentation.description),
        epilog="".join(
            f"examples:\n{textwrap.indent(without_markup(e.description), '  ')}" for e in documentation.examples
        ),
        formatter_class=FunctionHelp,
        allow_abbrev=False,
    )
    parameters = inspect.signature(function).parameters.values()
    flags = [parameter.name for parameter in parameters if parameter.annotation is bool]
    words = words_of(function)
    for word in words:
        parser.add_argument(word, metavar=word.upper(), help=helps.get(word))
    parser.add_function_arguments(function, as_group=False, skip={*flags, *words})
    for flag in flags:
        parser.add_argument(f"--{flag.replace('_', '-')}", action="store_true", help=helps.get(flag))
    parser.add_argument("--config", action="config", help="YAML file with these options")
    required = [f"--{p.name} {p.name.upper()}" for p in parameters if p.default is p.empty and p.name not in words]
    parser.usage = " ".join((program, *map(str.upper, words), *required, "[OPTIONS]"))
    for action in parser._actions:
        action.help = {"print_config": "print these options as a config file", "help": "show this help"}.get(
            action.dest, action.help
        )
    return parser


def without_markup(text: str | None) -> str:
    """Text of a docstring as a terminal shows it."""
    return (text or "").replace("``", "")


def words_of(function: Callable[..., Any]) -> list[str]:
    """The parameters that are words of the command line, without a name: ``dd2 export RUN``."""
    parameters = inspect.signature(function).parameters.items()
    return [name for name, parameter in parameters if parameter.kind is parameter.POSITIONAL_ONLY]
