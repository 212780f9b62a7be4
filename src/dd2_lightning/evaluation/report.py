"""The report of an evaluation: ``results.json``, ``table.md``, and the same table in the terminal."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from dd2_lightning.errors import ArtifactError
from dd2_lightning.evaluation.compare import Score, ratios
from dd2_lightning.files import write_atomically
from dd2_lightning.provenance import commit, hardware


class Column(NamedTuple):
    """A column of the table.

    Attributes:
        title: its head.
        cell: a row of the report, and that of the teacher, to the number that is shown; None where there is none.
        show: the number as text.
        drop_priority: of columns that a narrow terminal leaves out, the highest goes first; 0 is never left out.
    """

    title: str
    cell: Callable[[dict[str, Any], dict[str, Any]], float | None]
    show: Callable[[float], str]
    drop_priority: int = 0


def number(title: str, key: str, show: Callable[[float], str], drop_priority: int = 0) -> Column:
    """A column of one number of the report."""
    return Column(title, lambda row, teacher: row[key], show, drop_priority)


def speed_up(row: dict[str, Any], teacher: dict[str, Any]) -> float | None:
    """How many times faster than the teacher."""
    seconds, reference = row["seconds_per_image"], teacher["seconds_per_image"]
    return reference / seconds if seconds and reference else None


def millions(parameters: float) -> str:
    """``329.5M``."""
    return f"{parameters / 1e6:.{1 if parameters >= 1e7 else 2}f}M"


COLUMNS = (
    number("steps", "steps", "{:g}".format),
    number("Fréchet", "frechet", lambda value: f"{value:.{4 if value < 10 else 2}f}"),
    number("IS", "inception_score", "{:.2f}".format, 4),
    number("prec.", "precision", "{:.3f}".format, 3),
    number("recall", "recall", "{:.3f}".format, 2),
    number("NLL", "nll", "{:.2f}".format),
    number("acc.", "accuracy", "{:.1%}".format),
    number("div.", "diversity", "{:.3f}".format, 1),
    number("ms/image", "seconds_per_image", lambda seconds: f"{1000 * seconds:.3f}", 5),
    Column("speed-up", speed_up, "{:.1f}x".format),
    number("params", "parameters", millions, 6),
    number("PPL", "path_length", "{:.1f}".format, 7),
)
"""After the sampler's name; a column in which no sampler has a number is left out."""


def make_report(
    scores: dict[str, Score],
    seed: int,
    samples: int,
    device: torch.device | str = "cpu",
    timing_batch: int = 100,
    messages: Sequence[str] = (),
) -> dict[str, Any]:
    """The contents of ``results.json``.

    Returns:
        ``{"contenders": {name: Score}, "ratios": {"frechet", "nll"}, "closed": the same, "seed", "samples",
        "hardware", "commit", "warnings"}``; the key of the samplers is that of earlier versions.
    """
    rows = {name: asdict(score) for name, score in scores.items()}
    return {
        "contenders": rows,
        "ratios": ratios(scores),
        "closed": gap_closed(rows),
        "seed": seed,
        "samples": samples,
        "hardware": f"{hardware(device)}; speed at batch size {timing_batch}",
        "commit": commit(),
        "warnings": list(messages),
    }


def gap_closed(contenders: dict[str, dict[str, Any]]) -> dict[str, float | None]:
    """How much of DD1's error DD2's one step does away with: 1 is the teacher, 0 is DD1, below 0 is worse than it.

    ``frechet`` is (F(DD1) - F(one-step)) / (F(DD1) - F0), with F0 the distance of a second teacher sample to the
    reference; ``nll`` is the same of likelihoods. DD1 is the best of those in one step, for each metric. None where a
    number is missing or DD1 is no worse than the teacher.
    """
    drawn = [
        row for row in contenders.values() if not row["snapped"] and (row["steps"] == 1 or row["kind"] == "teacher")
    ]
    result = {}
    for metric in RATIOS:
        values = [[row[metric] for row in drawn if row["kind"] == kind] for kind in ("one_step", "teacher", "dd1")]
        result[metric] = None
        if all(several and None not in several for several in values):
            one_step, teacher, dd1 = map(min, values)
            result[metric] = (dd1 - one_step) / (dd1 - teacher) if dd1 > teacher else None
    return result


def table(scores: dict[str, dict[str, Any]], width: float = math.inf) -> list[list[str]]:
    """The table as text, head first; columns are left out until a line, with a space between them, fits the width."""
    teacher = next(row for row in scores.values() if row["kind"] == "teacher")
    names = ["sampler", *scores]
    columns = {}
    for column in COLUMNS:
        cells = [column.cell(row, teacher) for row in scores.values()]
        if any(cell is not None for cell in cells):
            columns[column] = [column.title, *("–" if cell is None else column.show(cell) for cell in cells)]
    for column in sorted(columns, key=lambda column: -column.drop_priority):
        if sum(max(map(len, cells)) + 1 for cells in (names, *columns.values())) <= width + 1:
            break
        if column.drop_priority:
            del columns[column]
    return [list(row) for row in zip(names, *columns.values(), strict=True)]


RATIOS = {"frechet": "Fréchet", "nll": "NLL"}


def show_ratio(value: float | None, ends: list[float] | None = None) -> str:
    """``0.200 (0.100 to 0.300)``."""
    if value is None:
        return "–"
    return f"{value:.3f}" + ("" if ends is None else f" ({ends[0]:.3f} to {ends[1]:.3f})")


def caption(report: dict[str, Any]) -> list[str]:
    """Lines below the table of a report, or of :func:`aggregate`'s medians; warnings are the last."""
    runs = report.get("runs", [report])
    middle, ends, first = report.get("median", report), report.get("range", {}), runs[0]

    def shown(what: str) -> str:
        both = ((name, middle[what][key], ends.get(what, {}).get(key)) for key, name in RATIOS.items())
        return ", ".join(f"{name} {show_ratio(value, between)}" for name, value, between in both)

    seeds = ", ".join(str(run["seed"]) for run in runs)
    lines = [
        f"Left of the independent tokens' error in DD2's one step: {shown('ratios')} (0 is the teacher, 1 is "
        "independent).",
        f"{first['samples']:,} samples, seed {seeds}; distance, precision and recall against an independent teacher "
        f"sample; NLL in nats under the guided teacher, of the nearest codes; diversity relative to the teacher.",
        f"{first['hardware']}, decoding included; params without the tokenizer; commit "
        f"{(first['commit'] or 'unknown')[:10]}.",
    ]
    if any(value is not None for value in middle["closed"].values()):
        closed = (
            f"Of the error of the best DD1 in one step, DD2's closes {shown('closed')} (1 is the teacher, 0 is DD1)."
        )
        lines.insert(1, closed)
    if len(runs) > 1:
        lines.insert(0, f"Medians of {len(runs)} runs, and where they lie.")
    if any(row["kind"] == "real" for row in first["contenders"].values()):
        real = "Real data: every image once, so its distance is biased upwards; accuracy on held-out ones."
        lines.insert(-1, real)
    messages = dict.fromkeys(message for run in runs for message in run.get("warnings", ()))
    return [*lines, *(f"Warning: {message}" for message in messages)]


def markdown_table(head: list[str], rows: list[list[str]]) -> list[str]:
    """Lines of a table whose first column is text and whose others are numbers."""
    lines = [f"| {' | '.join(head)} |", f"| --- |{' ---: |' * (len(head) - 1)}"]
    return [*lines, *(f"| {' | '.join(row)} |" for row in rows)]


def markdown(report: dict[str, Any]) -> str:
    """The table as Markdown, of one seed or of the medians of several."""
    head, *rows = table(report.get("median", report)["contenders"])
    lines = [*markdown_table(head, rows), "", *(f"{line}  " for line in caption(report))]
    return "\n".join(lines).rstrip() + "\n"


def print_table(report: dict[str, Any], console: Console | None = None) -> None:
    """The table in the terminal, of one seed or of the medians of several, as much of it as fits."""
    console = console or Console()
    scores = report.get("median", report)["contenders"]
    head, *rows = table(scores, console.width)
    shown = Table(box=SIMPLE_HEAD, show_edge=False, padding=0)
    for i, title in enumerate(head):
        shown.add_column(title, justify="right" if i else "left", no_wrap=True)
    for row, score in zip(rows, scores.values(), strict=True):
        shown.add_row(*row, style="bold" if score["kind"] == "one_step" else None)
    console.print(shown)
    console.print()
    for line in caption(report):
        console.print(line, style="yellow" if line.startswith("Warning") else "dim", highlight=False)


def to_json(value: Any) -> bytes:
    """Readable JSON; NaN and infinity are refused with a ValueError."""
    return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def results_path(output: str | Path) -> Path:
    """Where the JSON goes: ``output`` if it ends in ``.json``, else ``results.json`` in that directory."""
    output = Path(output)
    return output if output.suffix == ".json" else output / "results.json"


def write_report(report: dict[str, Any], path: Path) -> None:
    """Write ``table.md`` beside ``path``, then the JSON file ``path``, each atomically."""
    write_atomically(path.with_name("table.md"), markdown(report).encode())
    write_atomically(path, to_json(report))


def over_runs(function: Callable[[list[float]], Any], values: list[Any]) -> Any:
    """A function of every number of equally built dictionaries; None if any is None, text as it is."""
    if isinstance(values[0], dict):
        return {key: over_runs(function, [value[key] for value in values]) for key in values[0]}
    if None in values:
        return None
    return values[0] if isinstance(values[0], str | bool) else function(values)


def aggregate(reports: list[dict[str, Any]]) -> dict[str, Any]:
    """Combine several seeds: ``{"runs", "median": {"contenders", "ratios", "closed"}, "range": the same}``.

    Raises:
        ValueError: if there is no report, or they have different samplers.
    """
    if not reports:
        raise ValueError("there is no report to take the median of")
    names = [set(report["contenders"]) for report in reports]
    if any(other != names[0] for other in names):
        raise ValueError("the reports have different samplers: " + "; ".join(", ".join(sorted(n)) for n in names))
    # the gap anew: reports from before there was one have none
    numbers = [
        {"contenders": report["contenders"], "ratios": report["ratios"], "closed": gap_closed(report["contenders"])}
        for report in reports
    ]
    return {
        "runs": reports,
        "median": over_runs(median, numbers),
        "range": over_runs(lambda values: [min(values), max(values)], numbers),
    }


def read_report(path: str | Path) -> dict[str, Any]:
    """Read a ``results.json``.

    Raises:
        ArtifactError: if it is not a report, or one of another version.
    """
    try:
        report = json.loads(Path(path).read_text())
        for name, row in report["contenders"].items():
            if missing := [field.name for field in fields(Score) if field.name not in row]:
                raise ValueError(f"{name} has no {missing[0]}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{path} is no report of this version ({error}); run dd2 evaluate again") from error
    return report
