"""Errors a user can mend. The command line prints them without a traceback."""

from collections.abc import Sequence


class DD2Error(Exception):
    """Something outside the program is not as it must be; the message says what, where and what to do."""


class ArtifactError(DD2Error):
    """A directory that a stage or a user reads is missing, damaged or of another kind."""


class NonFiniteLossError(DD2Error):
    """A loss became NaN or infinite. Raised before the weights are touched."""


class PixelsMissingError(DD2Error, TypeError):
    """A tokenizer without pixel networks was asked for images."""


class InputTypeError(DD2Error, TypeError):
    """A model was given something that it does not read."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type where it has none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def check_at_least_one(prefix: str, **counts: int | None) -> None:
    """Refuse counts below 1; see :func:`check_range`."""
    check_range(prefix, "[1, inf)", **counts)


MOST_SAMPLES = 10_000_000  # of one command; labels and indices of all samples are in memory


def check_samples(seed: int = 0, **counts: int | None) -> None:
    """Refuse, with a ``ValueError``, seeds below 0, and numbers of samples below 1 or above :data:`MOST_SAMPLES`."""
    check_range("--", "[0, inf)", seed=seed)
    check_at_least_one("--", **counts)
    for name, value in counts.items():
        if value is not None and value > MOST_SAMPLES:
            raise ValueError(f"--{name} must be at most {MOST_SAMPLES:,}, got {value:,}")


def check_range(prefix: str, interval: str, **values: float | Sequence[float] | None) -> None:
    """Refuse numbers outside an interval, and NaN, with a ``ValueError`` that names the first.

    A user reads the names behind a ``prefix``: ``--``, ``model.``. The ``interval`` is written as in mathematics,
    ``(0, inf)``. A value is a number, several, or None where none is given.
    """
    low, high = map(float, interval[1:-1].split(","))
    wanted = RANGE_WORDS.get(interval, f"in {interval}")
    for name, value in values.items():
        for number in value if isinstance(value, Sequence) else [value]:
            if number is None:
                continue
            above = number >= low if interval[0] == "[" else number > low
            below = number <= high if interval[-1] == "]" else number < high
            if not (above and below):
                raise ValueError(f"{prefix}{name} must be {wanted}, got {number}")


RANGE_WORDS = {
    "[-1, inf)": "-1 or more",
    "[0, inf)": "0 or more",
    "[1, inf)": "at least 1",
    "(0, inf)": "positive",
    "(-inf, inf)": "a finite number",
}
"""Intervals as people say them."""
