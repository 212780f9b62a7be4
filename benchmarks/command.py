"""Functions as commands: ``python -m benchmarks.NAME``."""

import sys
from collections.abc import Callable
from typing import Any

from jsonargparse import CLI

from dd2_lightning.errors import DD2Error


def run_command(module: str, functions: Callable | dict[str, Any], arguments: list[str] | None = None) -> None:
    """Run a function, or one of several subcommands, with its arguments as options.

    Errors that a user can mend are one line on stderr, with exit status 2 for usage and 1 otherwise.
    """
    try:
        CLI(functions, args=arguments, prog=f"python -m {module}")
    except (DD2Error, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, ValueError) else 1)
