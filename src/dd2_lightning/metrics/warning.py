"""Warnings about measurements, which commands show and write into their reports."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class SampleWarning(UserWarning):
    """A figure is computed from fewer samples than it needs, or from other ones than it seems."""


@contextmanager
def collect_warnings() -> Iterator[list[str]]:
    """Collect the messages of :class:`SampleWarning`, each once and as one line; show all other warnings as usual."""
    messages: list[str] = []
    with warnings.catch_warnings():
        show = warnings.showwarning

        def collect(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
            text = " ".join(str(message).split())
            if not issubclass(category, SampleWarning):
                show(message, category, *place, **more)
            elif text not in messages:
                messages.append(text)

        warnings.simplefilter("always", SampleWarning)
        warnings.showwarning = collect
        yield messages
