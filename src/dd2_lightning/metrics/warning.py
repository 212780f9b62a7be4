"""Warnings about measurements, which commands show and write into their reports."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager


class SampleWarning(UserWarning):
    """A figure is computed from fewer samples than it needs, or from other ones than it seems."""


@contextmanager
def collect_warnings() -> Iterator[list[str]]:
    """Collect the messages of :class:`SampleWarning`, each once, and show all other warnings as usual."""
    messages: list[str] = []
    with warnings.catch_warnings():
        show = warnings.showwarning

        def collect(message, category, *place) -> None:
            if not issubclass(category, SampleWarning):
                show(message, category, *place)
            elif str(message) not in messages:
                messages.append(str(message))

        warnings.simplefilter("always", SampleWarning)
        warnings.showwarning = collect
        yield messages
