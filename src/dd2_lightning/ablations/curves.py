"""Curves as a picture: distance against iterations and against seconds, a row a problem."""

import math
from pathlib import Path
from typing import Any

from dd2_lightning.ablations.analysis import Result, spread
from dd2_lightning.ablations.report import Outcome
from dd2_lightning.ablations.variants import Question
from dd2_lightning.evaluation.figures import blank_figure, write_figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's, told apart with every common colour vision; yellow is too light for lines."""

LINES = ("-", "--", "-.", ":")


def band(results: list[Result], axis: str) -> dict[str, list[float]]:
    """Median, smallest and largest distance of the EMA over the seeds, at the points that all seeds have.

    Returns:
        ``where`` (of the seeds' median, too: their seconds differ), ``median``, ``low``, ``high``.
    """
    curves = [result["curve"] for result in results]
    found: dict[str, list[float]] = {"where": [], "median": [], "low": [], "high": []}
    for points in zip(*curves, strict=False):
        place = spread([point[axis] for point in points])
        distance = spread([point["ema"]["distance"] for point in points])
        for key, value in zip(found, (place.median, *distance[:3]), strict=True):
            found[key].append(value)
    return found


def spaced(heights: list[float], gap: float) -> list[float]:
    """Heights moved apart, in their order, so that no two are closer than ``gap``; their mean stays."""
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    moved: list[float] = []
    for i in order:
        moved.append(max(heights[i], moved[-1] + gap) if moved else heights[i])
    shift = (sum(moved) - sum(heights)) / len(heights)
    result = list(heights)
    for i, height in zip(order, moved, strict=True):
        result[i] = height - shift
    return result


def save_curves(question: Question, outcomes: list[Outcome], path: Path) -> bool:
    """Draw one question.

    Args:
        question: whose variants.
        outcomes: of every problem; those without results of it are left out.
        path: PNG file.

    Returns:
        Whether there was anything to draw.

    Raises:
        DD2Error: if matplotlib is not installed.
        ArtifactError: if the file cannot be written.
    """
    rows = [outcome for outcome in outcomes if question in outcome.questions and outcome.of(question)]
    if not rows:
        return False
    figure = blank_figure(11, 0.5 + 3.4 * len(rows))
    figure.set_layout_engine("constrained")
    axes = figure.subplots(len(rows), 2, squeeze=False)
    figure.suptitle(question.title, fontsize=13)
    names = list(dict.fromkeys(name for outcome in rows for name in outcome.of(question)))
    for outcome, pair in zip(rows, axes, strict=True):
        for ax, axis in zip(pair, ("iteration", "seconds"), strict=True):
            draw(ax, outcome.of(question), axis, names)
            ax.set_xlabel({"iteration": "iterations", "seconds": "seconds of training"}[axis], fontsize=9)
        pair[0].set_ylabel(f"{outcome.problem.title.lower()}: {outcome.problem.distance}", fontsize=9)
    write_figure(figure, path)
    return True


def draw(ax: Any, chosen: dict[str, list[Result]], axis: str, names: list[str]) -> None:
    """One panel: a line and its band for each variant, named at its end."""
    ends = {}
    for name, results in chosen.items():
        number = names.index(name)
        colour, style = COLOURS[number % len(COLOURS)], LINES[number // len(COLOURS) % len(LINES)]
        curve = band(results, axis)
        ax.plot(curve["where"], curve["median"], style, color=colour, linewidth=1.6)
        ax.fill_between(curve["where"], curve["low"], curve["high"], color=colour, alpha=0.13, linewidth=0)
        ends[name] = curve["where"][-1], curve["median"][-1], colour
    floor = spread([result["floor"] for results in chosen.values() for result in results]).median
    ax.axhline(floor, color="0.5", linewidth=0.8, linestyle=(0, (1, 3)))
    ax.set_yscale("log")
    ax.annotate("teacher", (0, floor), xytext=(2, 2), textcoords="offset points", fontsize=7, color="0.4")
    ax.autoscale_view()
    low, high = (math.log10(limit) for limit in ax.get_ylim())
    heights = spaced([math.log10(max(end[1], 1e-12)) for end in ends.values()], gap=0.055 * (high - low))
    right = max(end[0] for end in ends.values())
    for (name, (x, y, colour)), height in zip(ends.items(), heights, strict=True):
        ax.annotate(
            name,
            (x, y),
            xytext=(right * 1.03, 10**height),
            color=colour,
            fontsize=8,
            va="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.5, "shrinkA": 0, "shrinkB": 0},
        )
    ax.set_xlim(0, right * 1.3)
    ax.tick_params(which="both", labelsize=8)
    ax.grid(True, which="major", color="0.9", linewidth=0.6)
    ax.set_axisbelow(True)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
