"""The progress bar of everything that does not train: on a terminal only."""

from collections.abc import Iterable

from rich.console import Console
from rich.progress import track


def tracked(steps: Iterable, name: str, total: int) -> Iterable:
    """The same steps, with a bar on stderr that goes when it is full."""
    console = Console(stderr=True)
    return track(steps, f"{name:>16}", total, console=console, transient=True, disable=not console.is_terminal)
