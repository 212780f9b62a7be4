"""Progress of everything that does not train: a bar on a terminal, a line now and then elsewhere."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

T = TypeVar("T")

INTERVAL = 10.0  # seconds between two lines where there is no terminal


def tracked(
    iterable: Iterable[T], name: str, total: int, unit: str = "images", size: int = 1, interval: float = INTERVAL
) -> Iterator[T]:
    """Iterate and report progress, rate and time left on stderr.

    On a terminal it is a bar that disappears when it is full; elsewhere a line every ``interval`` seconds and one at
    the end: ``evaluate: one-step 4,000/20,000 images, 812/s, 0:20 left``. One item stands for ``size`` units of the
    ``total``; the last may hold fewer.
    """
    console = Console(stderr=True)
    start = time.monotonic()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
    with Progress(
        *columns, TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task(name, total=total, rate="")
        done, last = 0, start
        for item in iterable:
            yield item
            done = min(total, done + size)
            now = time.monotonic()
            bar.update(task, completed=done, rate=f"{rate(done, now - start)} {unit}/s")
            if not console.is_terminal and done < total and now - last >= interval:
                print(line(name, done, total, unit, now - start), file=sys.stderr, flush=True)
                last = now
    if done and not console.is_terminal:
        print(line(name, done, total, unit, time.monotonic() - start), file=sys.stderr, flush=True)


def rate(done: int, seconds: float) -> str:
    """Units a second, with three digits."""
    value = done / max(seconds, 1e-9)
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def line(name: str, done: int, total: int, unit: str, seconds: float) -> str:
    """``one-step 4,000/20,000 images, 812/s, 0:20 left``."""
    text = f"{name} {done:,}/{total:,} {unit}, {rate(done, seconds)}/s"
    return text if done >= total else f"{text}, {clock(seconds * (total - done) / done)} left"


def clock(seconds: float) -> str:
    """``2:11``, or ``3:02:11`` above an hour."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
