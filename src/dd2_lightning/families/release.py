"""How the published files of a family translate to its teacher."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Release:
    """How a family reads its release."""

    # ``(config, grid, latent_only)`` to the sizes of a teacher; ``config`` holds the constructor arguments of the
    # release. A ``ValueError`` names a key that is unknown, missing or not implemented.
    architecture: Callable[[dict[str, Any], int | None, bool], dict[str, Any]]
    # ``(transformer, tokenizer)``, two state dicts of the release, to that of a teacher. It drops what the release
    # stores but does not learn.
    state: Callable[[dict[str, Tensor], dict[str, Tensor]], dict[str, Tensor]]
    # the sizes that change before a published model can be distilled
    adapted: dict[str, Any] = field(default_factory=dict)


def translate(config: dict[str, Any], renamed: dict[str, str], fixed: dict[str, Any]) -> dict[str, Any]:
    """Rename constructor arguments of a release, ``renamed`` to ours; others must have their ``fixed`` value."""
    unknown = sorted(config.keys() - renamed.keys() - fixed.keys())
    if unknown:
        raise ValueError(f"--arch: unknown key '{unknown[0]}'; there are: {', '.join((*renamed, *fixed))}")
    for key, value in fixed.items():
        if config.get(key, value) != value:
            raise ValueError(f"--arch: '{key}' must be {value!r}, got {config[key]!r}; nothing else is implemented")
    return {renamed[key]: value for key, value in config.items() if key in renamed}
