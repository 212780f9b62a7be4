"""Learning curves as a figure: distance against iterations and against seconds, a row a problem."""

import math
from pathlib import Path
from typing import Any

from benchmarks.ablations.analysis import Result, spread
from benchmarks.ablations.report import Content, runs_of
from benchmarks.ablations.variants import Question
from dd2_lightning.images.figures import blank_figure, write_figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's, told apart with every common colour vision; yellow is too light for lines."""

LINES = ("-", "--", "-.", ":")
LABELS = {"iteration": "iterations", "seconds": "seconds of training"}


def band(runs: list[Result], axis: str) -> dict[str, list[float]]:
    """Median, smallest and largest distance of the EMA over the seeds, at the points that all seeds have.

    Returns:
        ``where`` (the median of the seeds' places), ``median``, ``low``, ``high``.
    """
    found: dict[str, list[float]] = {"where": [], "median": [], "low": [], "high": []}
    places, distances = (zip(*(run["curve"][key] for run in runs), strict=False) for key in (axis, "ema distance"))
    for place, distance in zip(places, distances, strict=True):
        for key, value in zip(found, (spread(place).median, *spread(distance)[:3]), strict=True):
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


def save_curves(question: Question, content: Content, path: Path) -> bool:
    """Draw the curves of one question into a PNG file; False if there is nothing to draw."""
    rows = {
        name: {variant: runs_of(content, name, variant) for variant in problem["questions"][question.name]}
        for name, problem in content["problems"].items()
        if problem["questions"].get(question.name)
    }
    if not rows:
        return False
    figure = blank_figure(11, 0.5 + 3.4 * len(rows))
    figure.set_layout_engine("constrained")
    figure.suptitle(question.title, fontsize=13)
    variants = list(dict.fromkeys(variant for row in rows.values() for variant in row))
    for (name, row), pair in zip(rows.items(), figure.subplots(len(rows), 2, squeeze=False), strict=True):
        for ax, axis in zip(pair, LABELS, strict=True):
            draw(ax, row, axis, variants)
            ax.set_xlabel(LABELS[axis], fontsize=9)
        problem = content["problems"][name]
        pair[0].set_ylabel(f"{problem['title'].lower()}: {problem['distance']}", fontsize=9)
    write_figure(figure, path)
    return True


def draw(ax: Any, row: dict[str, list[Result]], axis: str, variants: list[str]) -> None:
    """One panel: a line and its band for each variant, named at its end."""
    ends = {}
    for name, runs in row.items():
        number = variants.index(name)
        colour, style = COLOURS[number % len(COLOURS)], LINES[number // len(COLOURS) % len(LINES)]
        curve = band(runs, axis)
        ax.plot(curve["where"], curve["median"], style, color=colour, linewidth=1.6)
        ax.fill_between(curve["where"], curve["low"], curve["high"], color=colour, alpha=0.13, linewidth=0)
        ends[name] = curve["where"][-1], curve["median"][-1], colour
    floor = spread([run["floor"] for runs in row.values() for run in runs]).median
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
