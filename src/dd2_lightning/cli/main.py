"""``dd2``: find the command, run it, and turn what a user can mend into one line and an exit status.

Exit status: 0 done, 1 something outside the command line is wrong (a file, a directory, the machine), 2 usage,
130 and 143 stopped by SIGINT and SIGTERM.
"""

import os
import signal
import sys
import warnings
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from dd2_lightning.cli.arguments import UsageError, did_you_mean
from dd2_lightning.errors import DD2Error


class Command(NamedTuple):
    """A command of ``dd2``; its code is imported when it runs."""

    help: str  # one line
    target: str  # ``file:function`` in this folder; the function's parameters are the options
    trains: bool = False  # whether it is one of LightningCLI's, whose function takes name and arguments as typed

    def load(self) -> Callable[..., Any]:
        module, _, name = self.target.partition(":")
        return getattr(import_module(f"dd2_lightning.cli.{module}"), name)


COMMANDS: dict[str, Command | dict[str, Command]] = {
    "configs": {
        "list": Command("names of the configs that come with dd2", "configs:list_configs"),
        "copy": Command("copy one, or a folder of them, to edit it", "configs:copy_config"),
    },
    "convert": {
        "var": Command("published VAR weights to a teacher", "convert:convert_var"),
        "llamagen": Command("published LlamaGen weights to a teacher", "convert:convert_llamagen"),
        "dd1": Command("published DD1 weights to a generator", "convert:convert_dd1"),
    },
    "plan": Command("parameters, memory, operations and hours of a stage, beforehand", "fit:run_stage", trains=True),
    "cache": Command("sample teacher sequences in advance", "cache:cache"),
    "fit": Command("train a stage, or continue it: dd2 fit --config csd_var.yaml", "fit:run_stage", trains=True),
    "validate": Command("score gaps and likelihood of a run on held-out sequences", "fit:run_stage", trains=True),
    "test": Command("the same on the test data of the data module", "fit:run_stage", trains=True),
    "predict": Command("one-step images of a run's checkpoint", "fit:run_stage", trains=True),
    "sample": Command("draw images with a generator", "sample:sample"),
    "evaluate": Command("compare generators with their teacher and all baselines", "evaluate:evaluate"),
    "quality": Command("FID, KID, precision and recall of a file of images", "quality:quality"),
    "statistics": Command("feature statistics of a file of images, as a reference", "quality:statistics"),
    "summary": Command("medians and ranges over the reports of several seeds", "summary:summary"),
    "export": Command("write a run as a directory that samples without its teacher", "export:export_run"),
    "push": Command("publish a run on the Hugging Face Hub", "push:push"),
    "bench": {
        "sample": Command("time a teacher against one step", "bench:bench_sample"),
        "train": Command("time the updates of the stages", "bench:bench_train"),
        "flow": Command("time the teacher's flow against its formula", "bench:bench_flow"),
    },
}
"""All commands, in the order of the help; a dictionary is a group."""

GROUPS = {
    "configs": "the configs that come with dd2: list, copy",
    "convert": "published checkpoint files to a directory of ours: var, llamagen, dd1",
    "bench": "time this machine: sample, train, flow",
}
HEADINGS = {"configs": "prepare", "fit": "train", "sample": "draw and measure", "export": "share", "bench": "time"}
"""What stands above a command in the help."""

ADVICE = """
dd2 COMMAND --help explains a command. Every directory of a model may be user/name on the Hugging Face Hub instead.
dd2 --version; eval "$(dd2 --print_completion bash)", or zsh, completes commands and options.

a first run, on handwritten digits, each command names the next:
  dd2 fit --config teacher_var.yaml"""


def main(arguments: list[str] | None = None) -> None:
    """Run the command of these arguments, or of this process's, which follow the program's name."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    warnings.showwarning = show_warning
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # read when torch is imported
    try:
        dispatch(arguments)
    except UsageError as error:
        fail(f"{error.program}: error: {error}", 2, f"see {error.program} --help")
    except DD2Error as error:
        fail(f"dd2: error: {error}", 1)
    except MemoryError:
        fail("dd2: error: out of memory; take a smaller --batch_size or data.batch_size", 1)
    except KeyboardInterrupt:
        fail("dd2: stopped", 128 + signal.SIGINT)
    except BrokenPipeError:  # the reader of the output has gone
        sys.stderr.close()
        sys.exit(1)


def show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    """Print a warning as one line, without the place in the code that gave it."""
    print(f"dd2: warning: {' '.join(str(message).split())}", file=sys.stderr)


def fail(message: str, status: int, advice: str = "") -> None:
    """Print one line, perhaps where to read more, and exit."""
    print(" ".join(message.split()), file=sys.stderr)
    if advice:
        print(advice, file=sys.stderr)
    sys.exit(status)


def dispatch(arguments: list[str]) -> None:
    """Find the command that the arguments begin with, and run it with the rest."""
    commands: dict[str, Any] = COMMANDS
    program, description = "dd2", "One-step generators from autoregressive image models (Distilled Decoding 2)."
    while True:
        if not arguments or arguments[0] in ("-h", "--help"):
            print(usage(program, description, commands))
            return
        word = arguments.pop(0)
        if program == "dd2" and word == "--version":
            from dd2_lightning import __version__

            print(f"dd2-lightning {__version__} ({Path(__file__).parents[1]})")
            return
        if program == "dd2" and word in ("--print_completion", "--complete"):
            complete(word, arguments)
            return
        if word not in commands:
            raise UsageError(program, f"unknown command '{word}'{did_you_mean(word, commands)}")
        command = commands[word]
        program = f"{program} {word}"
        if isinstance(command, Command):
            break
        commands, description = command, GROUPS[word].capitalize() + "."
    if command.trains:
        command.load()(word, arguments)
    else:
        from dd2_lightning.cli.functions import run_function

        run_function(program, command.load(), arguments)


def complete(option: str, arguments: list[str]) -> None:
    """Print the completion script of a shell, or what it asks for."""
    from dd2_lightning.cli.completion import SCRIPTS, candidates

    if option == "--complete":
        print("\n".join(candidates(COMMANDS, arguments)))
    elif len(arguments) != 1 or arguments[0] not in SCRIPTS:
        raise UsageError("dd2", f"--print_completion needs a shell: {' or '.join(SCRIPTS)}")
    else:
        print(SCRIPTS[arguments[0]], end="")


def usage(program: str, description: str, commands: dict[str, Any]) -> str:
    """Help of a group of commands."""
    width = max(map(len, commands))
    lines = [f"usage: {program} COMMAND [OPTIONS]", "", description]
    for name, command in commands.items():
        if program != "dd2" and lines[-1] == description:
            lines += ["", "commands"]
        elif program == "dd2" and name in HEADINGS:
            lines += ["", HEADINGS[name]]
        lines.append(f"  {name:{width}}  {GROUPS[name] if isinstance(command, dict) else command.help}")
    return "\n".join([*lines, ADVICE if program == "dd2" else f"\n{program} COMMAND --help explains a command."])
