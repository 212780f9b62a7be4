"""A function as a command: its parameters are the options, its docstring the help."""

import inspect
from collections.abc import Callable
from typing import Any, NoReturn

from docstring_parser import parse
from jsonargparse import ArgumentParser

from dd2_lightning.cli.arguments import UsageError, checked_arguments, raise_usage_error


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
    parser = FunctionParser(prog=program, description=documentation.short_description, allow_abbrev=False)
    flags = [name for name, value in inspect.signature(function).parameters.items() if value.annotation is bool]
    helps = {entry.arg_name: entry.description for entry in documentation.params}
    for word in words_of(function):
        parser.add_argument(word, metavar=word.upper(), help=helps.get(word))
    parser.add_argument("--config", action="config", help="YAML file with these options")
    parser.add_function_arguments(function, skip={*flags, *words_of(function)})
    for flag in flags:
        parser.add_argument(f"--{flag.replace('_', '-')}", action="store_true", help=helps.get(flag))
    return parser


def words_of(function: Callable[..., Any]) -> list[str]:
    """The parameters that are words of the command line, without a name: ``dd2 export RUN``."""
    parameters = inspect.signature(function).parameters.items()
    return [name for name, parameter in parameters if parameter.kind is parameter.POSITIONAL_ONLY]
