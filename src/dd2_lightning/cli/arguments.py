"""Reading a command line: config files before options, and parser errors as one line."""

import difflib
import os
import re
import sys
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

import yaml

CONFIG_OPTIONS = ("--config", "-c")

INSTALLED = Path(__file__).parents[1] / "configs"  # where the configs lie that come with the package


class UsageError(Exception):
    """A command line, or a config file that it names, cannot be used."""

    def __init__(self, program: str, message: str):
        super().__init__(message)
        self.program = program


def did_you_mean(word: str, known: Iterable[str], prefix: str = "") -> str:
    """``; did you mean X?``, with a prefix before X, or nothing where nothing is similar."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {prefix}{close[0]}?" if close else ""


def installed_configs() -> list[str]:
    """Names of the configs that come with the package: ``csd_var.yaml``, ``paper/var_d16/csd.yaml``."""
    names = [path.relative_to(INSTALLED) for path in INSTALLED.rglob("*.yaml")]
    return [str(name) for name in sorted(names, key=lambda name: (len(name.parts), name))]


def find_config(name: str) -> str:
    """Path of a config file: the file of this name or, with a message, the one that comes with the package."""
    installed = INSTALLED / name.removeprefix("configs/")
    if Path(name).exists() or not installed.is_file():
        return name
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print(f"dd2: {name} is no file here; reading the one that comes with dd2, {installed}", file=sys.stderr)
    return str(installed)


def configs_first(arguments: list[str]) -> list[str]:
    """Find the config files of a command line, and put them before all other options.

    The parser lets the last word on a setting win, and that is to be the command line's, wherever ``--config`` stands.
    """
    configs, others, words = list[str](), list[str](), list(arguments)
    while words:
        option, equals, value = words.pop(0).partition("=")
        if option in CONFIG_OPTIONS and (equals or words):
            configs += [option, find_config(value if equals else words.pop(0))]
        else:
            others.append(option + equals + value)
    return configs + others


def config_files(arguments: list[str]) -> list[str]:
    """Names of the config files of a command line, in order."""
    return [file for option, file in pairwise(configs_first(arguments)) if option in CONFIG_OPTIONS]


def read_config(program: str, path: str) -> dict[str, Any]:
    """Read a config file; an error names the line that is no YAML."""
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        guess = did_you_mean(path, installed_configs()) or "; dd2 configs list shows those that come with dd2"
        raise UsageError(program, f"--config {path} does not exist{guess}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(program, f"--config {path} cannot be read: {getattr(error, 'strerror', error)}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}, line {mark.line + 1}, column {mark.column + 1}" if mark else path
        raise UsageError(program, f"{where}: {getattr(error, 'problem', None) or error}") from None
    if not isinstance(content, dict):
        raise UsageError(program, f"--config {path} holds no settings, but {type(content).__name__}")
    return content


def checked_arguments(program: str, arguments: list[str]) -> list[str]:
    """A command line with its config files, which must be readable, in front."""
    arguments = configs_first(arguments)
    for path in config_files(arguments):
        read_config(program, path)
    return arguments


def config_with(arguments: list[str], key: str) -> str | None:
    """Name of the config file of a command line that has this key somewhere, for messages."""
    return next((path for path in config_files(arguments) if _holds(read_config("", path), key)), None)


def _holds(content: Any, key: str) -> bool:
    if isinstance(content, dict):
        return key in content or any(_holds(value, key) for value in content.values())
    return isinstance(content, list) and any(_holds(value, key) for value in content)


# what the parser says around the reason
_NOISE = (
    "Does not validate against any of the Union subtypes",
    "Subtypes:",
    "Errors:",
    "Given value type:",
    "Given value:",
    "Expected a <class 'NoneType'>",
    "Expected a path but",
    "Problem with given class_path",
    "tip:",
)
_TYPES = {"int": "an integer", "float": "a number", "str": "a text", "bool": "true or false", "list": "a list"}


def one_line(message: str) -> str:
    """The reason in a parser's message of many lines."""
    lines = [line.strip().removeprefix("- ") for line in message.splitlines()]
    reasons = [line for line in lines if line and not line.startswith(_NOISE)]
    text = " ".join(dict.fromkeys(reasons))
    text = re.sub(r"Parser key \"([^\"]*)\":", r"\1:", text)
    text = re.sub(r"Expected an? <class '(\w+)'>", lambda found: f"expected {_TYPES.get(found[1], found[1])}", text)
    text = re.sub(r"Expected a typing\.Literal\[([^\]]*)\]", r"expected one of \1", text)
    return re.sub(r"\bNestedArg\(key='(\w+)', val='([^']*)'\)", r"\1 = \2", text)


def unknown_option(message: str) -> str | None:
    """The option that a parser's message calls unknown, as it was written."""
    for pattern in (
        r"[Uu]nrecognized arguments: (\S+)",
        r"Option '([^']+)' is not accepted",
        r"does not accept option '([^']+)'",
        r"Key '([^']+)' is not expected",
    ):
        if found := re.search(pattern, message):
            return found[1].partition("=")[0]
    return None


def raise_usage_error(program: str, message: str, options: Iterable[str], arguments: list[str]) -> NoReturn:
    """Turn a parser's message into a :class:`UsageError` of one line, with a known name for an unknown one.

    Names are ``options`` with their dashes, and the settings of groups without: ``--model.draws`` is a ``draws``.
    """
    if (option := unknown_option(message)) is None:
        raise UsageError(program, one_line(message))
    name = option.lstrip("-")
    last = name.rpartition(".")[2]
    # the parser leaves out the group of a setting
    whole = re.compile(rf"--((model|data)\.(init_args\.)?)?{re.escape(name)}")
    words = (argument.partition("=")[0] for argument in arguments)
    typed = next((word for word in words if whole.fullmatch(word)), option)
    dashes, file = ("--", None) if typed.startswith("-") else ("", config_with(arguments, last))
    names = set(options)
    settings = {known for known in names if not known.startswith("-")}
    suggestion = did_you_mean(name, {known.lstrip("-") for known in names - settings}, dashes)
    suggestion = suggestion or did_you_mean(last, settings, typed.removesuffix(last))
    raise UsageError(program, f"unknown setting {typed}{f' in {file}' if file else ''}{suggestion}")
