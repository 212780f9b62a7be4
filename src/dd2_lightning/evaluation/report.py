"""What an evaluation leaves behind: ``results.json``, ``table.md``, and the same table in the terminal."""

import json
import platform
import subprocess
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

import dd2_lightning
from dd2_lightning.artifacts import write_atomically
from dd2_lightning.errors import ArtifactError
from dd2_lightning.evaluation.compare import Score, ratios

COLUMNS = ("contender", "steps", "Fréchet", "NLL", "accuracy", "diversity", "ms/image", "speed-up")


def make_report(
    scores: dict[str, Score], seed: int, samples: int, device: torch.device | str = "cpu", timing_batch: int = 100
) -> dict[str, Any]:
    """The contents of ``results.json``.

    Returns:
        ``{"contenders": {name: {"frechet", "nll", "accuracy", "diversity", "steps", "seconds_per_image"}},
        "ratios": {"frechet", "nll"}, "seed", "samples", "hardware", "commit"}``.
    """
    return {
        "contenders": {name: asdict(score) for name, score in scores.items()},
        "ratios": ratios(scores),
        "seed": seed,
        "samples": samples,
        "hardware": f"{hardware(device)}; speed at batch size {timing_batch}",
        "commit": commit(),
    }


def hardware(device: torch.device | str = "cpu") -> str:
    """Name of the GPU, or of the processor with the number of threads in use."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass  # not Linux, or a processor without a name
    return f"{name}, {torch.get_num_threads()} threads"


def commit() -> str | None:
    """Commit of the checkout that this package is imported from; None if it is an installed copy."""
    directory = Path(dd2_lightning.__file__).parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(directory), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        # a copy inside a virtual environment may lie in somebody else's repository
        git("ls-files", "--error-unmatch", "__init__.py")
        return git("rev-parse", "HEAD")
    except (OSError, subprocess.SubprocessError):
        return None


def _shown(value: float | None, pattern: str) -> str:
    return "–" if value is None else format(value, pattern)


def _ratio(value: float | None) -> str:
    return _shown(value, ".3f")


def rows(report: dict[str, Any]) -> list[tuple[str, ...]]:
    """The table's cells, one tuple a contender, in the order of :data:`COLUMNS`."""
    teacher = report["contenders"]["teacher"]["seconds_per_image"]
    table = []
    for name, row in report["contenders"].items():
        seconds = row["seconds_per_image"]
        table.append(
            (
                name,
                _shown(row["steps"], "g"),
                _shown(row["frechet"], ".4f"),
                _shown(row["nll"], ".2f"),
                _shown(row["accuracy"] and 100 * row["accuracy"], ".1f") + ("" if row["accuracy"] is None else "%"),
                _shown(row["diversity"], ".3f"),
                _shown(seconds and 1000 * seconds, ".3f"),
                _shown(teacher / seconds if seconds and teacher else None, ".1f")
                + ("x" if seconds and teacher else ""),
            )
        )
    return table


def caption(report: dict[str, Any]) -> list[str]:
    """What has to be known to read the table, one line each."""
    left = report["ratios"]
    lines = [
        f"Left of the independent tokens' error: Fréchet {_ratio(left['frechet'])}, NLL {_ratio(left['nll'])} "
        f"(0 is the teacher, 1 is independent).",
        f"{report['samples']:,} samples, seed {report['seed']}; distance to an independent teacher sample; "
        f"NLL in nats under the guided teacher, of the nearest codes; diversity relative to the teacher.",
        f"{report['hardware']}, decoding included; commit {(report['commit'] or 'unknown')[:10]}.",
    ]
    if "real" in report["contenders"]:
        lines.insert(2, "Real data: every picture once, so its distance is biased upwards; accuracy on held-out ones.")
    return lines


def markdown(report: dict[str, Any]) -> str:
    """The table as Markdown."""
    lines = [f"| {' | '.join(COLUMNS)} |", f"| --- |{' ---: |' * (len(COLUMNS) - 1)}"]
    lines += [f"| {' | '.join(row)} |" for row in rows(report)]
    return "\n".join(lines) + "\n\n" + "\n".join(f"{line}  " for line in caption(report)).rstrip() + "\n"


def print_table(report: dict[str, Any], console: Console | None = None) -> None:
    """The table in the terminal."""
    console = console or Console()
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)  # fits 80 columns
    for i, column in enumerate(COLUMNS):
        table.add_column(column, justify="right" if i else "left", no_wrap=True)
    for row in rows(report):
        table.add_row(*row, style="bold" if row[0] == "one-step" else None)
    console.print(table)
    console.print()
    for line in caption(report):
        console.print(line, style="dim", highlight=False)


def to_json(value: Any) -> bytes:
    """Readable JSON without NaN or infinity.

    Raises:
        ValueError: if there is one.
    """
    return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def results_path(output: str | Path) -> Path:
    """Where the JSON goes: ``output`` itself if it is named ``….json``, else ``results.json`` in that directory.

    Everything else goes beside it.
    """
    output = Path(output)
    return output if output.suffix == ".json" else output / "results.json"


def write_report(report: dict[str, Any], path: Path) -> None:
    """Write ``table.md`` beside ``path``, then the JSON file ``path``, each whole or not at all.

    Raises:
        ArtifactError: if one cannot be written.
    """
    write_atomically(path.with_name("table.md"), markdown(report).encode())
    write_atomically(path, to_json(report))


def medians(values: list[Any]) -> Any:
    """Median of every number of equally built dictionaries; None if any of them is None."""
    if isinstance(values[0], dict):
        return {key: medians([value[key] for value in values]) for key in values[0]}
    return None if None in values else median(values)


def aggregate(reports: list[dict[str, Any]]) -> dict[str, Any]:
    """Several seeds in one: ``{"runs": [reports], "median": {"contenders", "ratios"}}``.

    Raises:
        ValueError: if there is no report, or they have different contenders.
    """
    if not reports:
        raise ValueError("there is no report to take the median of")
    names = [set(report["contenders"]) for report in reports]
    if any(other != names[0] for other in names):
        raise ValueError("the reports have different contenders: " + "; ".join(", ".join(sorted(n)) for n in names))
    return {"runs": reports, "median": {key: medians([r[key] for r in reports]) for key in ("contenders", "ratios")}}


def write_benchmark(results: list[str | Path], output: str | Path) -> dict[str, Any]:
    """Read several ``results.json`` and write their aggregate.

    Args:
        results: the files.
        output: the JSON file to write.

    Returns:
        What was written; see :func:`aggregate`.

    Raises:
        ArtifactError: if a file cannot be read or written.
    """
    reports = []
    for path in results:
        try:
            reports.append(json.loads(Path(path).read_text()))
        except (OSError, ValueError) as error:
            raise ArtifactError(f"{path} is no report ({error}); run dd2 evaluate again") from error
    summary = aggregate(reports)
    write_atomically(Path(output), to_json(summary))
    return summary
