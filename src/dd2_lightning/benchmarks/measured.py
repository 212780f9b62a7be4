"""The loop of every benchmark: published sizes one after another, a line for each, one report."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from dd2_lightning.errors import check_at_least_one
from dd2_lightning.evaluation.report import commit, hardware, to_json
from dd2_lightning.files import check_writable, write_atomically
from dd2_lightning.hub.cards import published


def measure(
    output: str,
    models: list[str],
    device: str,
    of_size: Callable[[str, dict[str, Any]], dict[str, Any]],
    line: str,
    counts: dict[str, int],
    **settings: Any,
) -> dict[str, Any]:
    """Measure sizes and write the report.

    Args:
        output: JSON file: ``{"models": {name: …}, …, "hardware", "torch", "commit"}``.
        models: published sizes like var/d16, or var/FILE.json as for ``dd2 convert --arch``.
        device: where it computes.
        of_size: from a family and its sizes to what was measured.
        line: what is printed of it, a format of its keys and ``name``.
        counts: settings that are at least 1.
        settings: the others that the report tells.

    Returns:
        What was written.

    Raises:
        ValueError: for numbers below 1, or a size that there is not.
        ArtifactError: if the file cannot be written.
    """
    check_at_least_one("--", **counts)
    check_writable(Path(output).parent)
    sizes = {name: published(name) for name in models}
    report = {"models": {}, **counts, **settings}
    report |= {"hardware": hardware(device), "torch": torch.__version__, "commit": commit()}
    for name, size in sizes.items():
        report["models"][name] = of_size(*size)
        print(line.format(name=name, **report["models"][name]), flush=True)
    write_atomically(Path(output), to_json(report))
    return report
