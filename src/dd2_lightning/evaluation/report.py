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
from dd2_lightning.evaluation.compare import Score
from dd2_lightning.provenance import commit, hardware

Row = dict[str, Any]  # a :class:`Score` as the report has it


class Column(NamedTuple):
    """A column of the table: its title, the key of a row or ``speed_up``, and how its number is shown.

    Of columns that a narrow terminal leaves out, that of the highest ``drop_priority`` goes first; 0 is never left out.
    """

    title: str
    key: str
    show: Callable[[float], str]
    drop_priority: int = 0


COLUMNS = (
    Column("steps", "steps", "{:g}".format),
    Column("Fréchet", "frechet", lambda value: f"{value:.{4 if value < 10 else 2}f}"),
    Column("IS", "inception_score", "{:.2f}".format, 4),
    Column("prec.", "precision", "{:.3f}".format, 3),
    Column("recall", "recall", "{:.3f}".format, 2),
    Column("NLL", "nll", "{:.2f}".format),
    Column("acc.", "accuracy", "{:.1%}".format),
    Column("div.", "diversity", "{:.3f}".format, 1),
    Column("ms/image", "seconds_per_image", lambda seconds: f"{1000 * seconds:.3f}", 5),
    Column("speed-up", "speed_up", "{:.1f}x".format),
    Column("params", "parameters", lambda count: f"{count / 1e6:.{1 if count >= 1e7 else 2}f}M", 6),
    Column("PPL", "path_length", "{:.1f}".format, 7),
)
"""The columns after the sampler's name; one in which no sampler has a number is left out."""


def make_report(
    scores: dict[str, Score],
    seed: int,
    samples: int,
    device: torch.device | str = "cpu",
    timing_batch: int = 100,
    messages: Sequence[str] = (),
) -> dict[str, Any]:
    """The contents of ``results.json``."""
    rows = {name: asdict(score) for name, score in scores.items()}
    return {
        "samplers": rows,
        "ratios": ratios(rows),
        "closed": gap_closed(rows),
        "seed": seed,
        "samples": samples,
        "hardware": f"{hardware(device)}; speed at batch size {timing_batch}",
        "commit": commit(),
        "warnings": list(messages),
    }


RATIOS = {"frechet": "Fréchet", "nll": "NLL"}  # metrics in which one step is placed between the teacher and a baseline


def of_kind(rows: dict[str, Row], kind: str) -> list[Row]:
    """The rows of a kind of sampler, in their order."""
    return [row for row in rows.values() if row["kind"] == kind]


def numbers(rows: dict[str, Row], metric: str, baselines: list[Row]) -> tuple[float, float, float] | None:
    """The numbers of the first one-step model and teacher and of the best baseline.

    None where one is missing or the baseline is no worse than the teacher. The distance of a model that was trained on
    the features it is measured in counts as missing.
    """

    def number(row: Row) -> Any:
        return None if metric == "frechet" and row.get("trained_on") else row[metric]

    kinds = of_kind(rows, "one_step")[:1], of_kind(rows, "teacher")[:1], baselines
    found = [[number(row) for row in several] for several in kinds]
    if any(not several or None in several for several in found):
        return None
    one_step, teacher, other = map(min, found)
    return (one_step, teacher, other) if other > teacher else None


def ratios(rows: dict[str, Row]) -> dict[str, float | None]:
    """How much of the independent tokens' error is left in DD2's one step: 0 is the teacher, 1 is independent.

    ``frechet`` is (F(one-step) - F0) / (F(independent) - F0), with F0 the distance of a second teacher sample to the
    reference; ``nll`` is the same of likelihoods. Each is of the first row of its kind. None where a number is missing
    or independent tokens are no worse than the teacher.
    """
    independent = of_kind(rows, "independent")[:1]
    found = {metric: numbers(rows, metric, independent) for metric in RATIOS}
    return {metric: three and (three[0] - three[1]) / (three[2] - three[1]) for metric, three in found.items()}


def gap_closed(rows: dict[str, Row]) -> dict[str, float | None]:
    """How much of DD1's error DD2's one step does away with: 1 is the teacher, 0 is DD1, below 0 is worse than it.

    ``frechet`` is (F(DD1) - F(one-step)) / (F(DD1) - F0), ``nll`` the same of likelihoods; see :func:`ratios`. DD1 is
    the best of those in one step, for each metric; the others are the first of their kind.
    """
    dd1 = [row for row in of_kind(rows, "dd1") if row["steps"] == 1]
    found = {metric: numbers(rows, metric, dd1) for metric in RATIOS}
    return {metric: three and (three[2] - three[0]) / (three[2] - three[1]) for metric, three in found.items()}


def table(rows: dict[str, Row], width: float = math.inf) -> list[list[str]]:
    """The table as text, head first; columns are left out until a line, with a space between them, fits the width."""
    reference = next(row["seconds_per_image"] for row in rows.values() if row["kind"] == "teacher")
    names, columns = ["sampler", *rows], {}
    for column in COLUMNS:
        cells = [row.get(column.key) for row in rows.values()]
        if column.key == "speed_up":
            seconds = [row["seconds_per_image"] for row in rows.values()]
            cells = [reference / value if value and reference else None for value in seconds]
        if any(cell is not None for cell in cells):
            columns[column] = [column.title, *("–" if cell is None else column.show(cell) for cell in cells)]
    for column in sorted(columns, key=lambda column: -column.drop_priority):
        if sum(max(map(len, cells)) + 1 for cells in (names, *columns.values())) <= width + 1:
            break
        if column.drop_priority:
            del columns[column]
    return [list(line) for line in zip(names, *columns.values(), strict=True)]


def caption(report: dict[str, Any]) -> list[str]:
    """Lines below the table of a report, or of :func:`aggregate`'s medians; warnings are the last."""
    runs = report.get("runs", [report])
    middle, ends, first = report.get("median", report), report.get("range", {}), runs[0]

    def shown(key: str) -> str:
        texts = []
        for metric, name in RATIOS.items():
            value, between = middle[key][metric], ends.get(key, {}).get(metric)
            text = "–" if value is None else f"{value:.3f}"
            texts.append(f"{name} {text}" + (f" ({between[0]:.3f} to {between[1]:.3f})" if between else ""))
        return ", ".join(texts)

    seeds, commit_of_run = ", ".join(str(run["seed"]) for run in runs), first["commit"] or "unknown"
    closed = any(value is not None for value in middle["closed"].values())
    tokenizer = first.get("tokenizer", {"psnr": None, "frechet": 0.0, "images": 0})
    ratio = "" if tokenizer["psnr"] is None else f"PSNR {tokenizer['psnr']:.1f} dB of held-out images, "
    real = any(row["kind"] == "real" for row in first["samplers"].values())
    lines = {
        f"Medians of {len(runs)} runs, and where they lie.": len(runs) > 1,
        f"Left of the independent tokens' error in DD2's one step: {shown('ratios')} "
        "(0 is the teacher, 1 is independent).": True,
        f"Of the error of the best DD1 in one step, DD2's closes {shown('closed')} "
        "(1 is the teacher, 0 is DD1).": closed,
        f"{first['samples']:,} samples, seed {seeds}; distance, precision and recall against an independent teacher "
        "sample; NLL in nats under the guided teacher, of the nearest codes; diversity relative to the teacher.": True,
        "Real data: every image once, so its distance is biased upwards; accuracy on held-out ones.": real,
        f"The tokenizer alone: {ratio}Fréchet {tokenizer['frechet']:.4f} of {tokenizer['images']:,} real images from "
        "their reconstructions.": "tokenizer" in first,
        f"{first['hardware']}, decoding included; params without the tokenizer; commit {commit_of_run[:10]}.": True,
    }
    messages = dict.fromkeys(message for run in runs for message in run.get("warnings", ()))
    return [*(line for line, holds in lines.items() if holds), *(f"Warning: {message}" for message in messages)]


def markdown_table(head: list[str], rows: list[list[str]]) -> list[str]:
    """Lines of a table whose first column is text and whose others are numbers."""
    lines = [f"| {' | '.join(head)} |", f"| --- |{' ---: |' * (len(head) - 1)}"]
    return [*lines, *(f"| {' | '.join(row)} |" for row in rows)]


def markdown(report: dict[str, Any]) -> str:
    """The table as Markdown, of one seed or of the medians of several."""
    head, *rows = table(report.get("median", report)["samplers"])
    lines = [*markdown_table(head, rows), "", *(f"{line}  " for line in caption(report))]
    return "\n".join(lines).rstrip() + "\n"


def print_table(report: dict[str, Any], console: Console | None = None) -> None:
    """Print the table of one seed, or of the medians of several, as much of it as fits the terminal."""
    console = console or Console()
    scores = report.get("median", report)["samplers"]
    head, *rows = table(scores, console.width)
    shown = Table(box=SIMPLE_HEAD, show_edge=False, padding=0)
    for i, title in enumerate(head):
        shown.add_column(title, justify="right" if i else "left", no_wrap=True)
    for row, score in zip(rows, scores.values(), strict=True):
        shown.add_row(*row, style="bold" if score["kind"] == "one_step" else None)
    console.print(shown)
    console.print()
    for line in caption(report):
        warned = line.startswith("Warning")  # stays one line, to be searched for
        console.print(line, style="yellow" if warned else "dim", highlight=False, soft_wrap=warned)


def to_json(value: Any) -> bytes:
    """Readable JSON; NaN and infinity are refused with a ValueError."""
    return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def results_path(output: str | Path) -> Path:
    """Where the JSON goes: ``output`` if it ends in ``.json``, else ``results.json`` in that directory."""
    output = Path(output)
    return output if output.suffix == ".json" else output / "results.json"


def over_runs(function: Callable[[list[float]], Any], values: list[Any]) -> Any:
    """A function of every number of equally built dictionaries; None if any is None, text as it is."""
    if isinstance(values[0], dict):
        return {key: over_runs(function, [value[key] for value in values]) for key in values[0]}
    if None in values:
        return None
    return values[0] if isinstance(values[0], str | bool) else function(values)


def aggregate(reports: list[dict[str, Any]]) -> dict[str, Any]:
    """Combine several seeds: ``{"runs", "median": {"samplers", "ratios", "closed"}, "range": the same}``.

    A ValueError says that there is no report, or that they have different samplers.
    """
    if not reports:
        raise ValueError("there is no report to take the median of")
    names = [set(report["samplers"]) for report in reports]
    if names != names[:1] * len(names):
        raise ValueError("the reports have different samplers: " + "; ".join(", ".join(sorted(n)) for n in names))
    keys = "samplers", "ratios"  # the gap anew: reports from before there was one have none
    found = [{key: run[key] for key in keys} | {"closed": gap_closed(run["samplers"])} for run in reports]
    ends = over_runs(lambda values: [min(values), max(values)], found)
    return {"runs": reports, "median": over_runs(median, found), "range": ends}


def read_report(path: str | Path) -> dict[str, Any]:
    """Read a ``results.json``; an ArtifactError says that it is none of this version."""
    try:
        report = json.loads(Path(path).read_text())
        for name, row in report["samplers"].items():
            row.setdefault("trained_on", False)  # reports from before there was a stage that does
            if missing := [field.name for field in fields(Score) if field.name not in row]:
                raise ValueError(f"{name} has no {missing[0]}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{path} is no report of this version ({error}); run dd2 evaluate again") from error
    return report
