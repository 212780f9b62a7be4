"""What curves say: values at equal iterations and at equal seconds, fluctuation, verdicts. Pure functions.

A curve is a list of points ``{"stage", "iteration", "seconds", "ema": {"distance", …}, "raw": {…}}``.
"""

import bisect
import math
from collections.abc import Callable
from statistics import mean, median, stdev
from typing import Any, Literal, NamedTuple

from dd2_lightning.ablations.variants import Finding

Curve = list[dict[str, Any]]
Result = dict[str, Any]
Verdict = Literal["appears", "does not appear", "undecided", "not run"]

DECISIVE = 3
"""Seeds of either side below which nothing is decided. Of three and three alike ones, one pair in ten is disjoint."""

FLUCTUATION_POINTS = 3
"""Points of a curve's last part below which it has no fluctuation."""


class Spread(NamedTuple):
    """Of one figure over the seeds.

    Attributes:
        median: of them.
        low: the smallest.
        high: the largest.
        count: how many there are.
    """

    median: float
    low: float
    high: float
    count: int


def spread(values: list[float | None]) -> Spread | None:
    """Median and range; None if a seed has no value, or there is no seed."""
    if not values or None in values:
        return None
    return Spread(median(values), min(values), max(values), len(values))


def at(curve: Curve, axis: str, where: float, metric: str = "distance", network: str = "ema") -> float | None:
    """A curve's value at a point of its axis, between two points on the straight line of logarithms.

    Args:
        curve: with increasing ``axis``.
        axis: ``iteration`` or ``seconds``.
        where: on it.
        metric: ``distance`` or ``nll``.
        network: ``ema`` or ``raw``.

    Returns:
        The value; None outside of the curve, or where it is not known.
    """
    places, values = [point[axis] for point in curve], [point[network].get(metric) for point in curve]
    if not places or not places[0] <= where <= places[-1]:
        return None
    right = bisect.bisect_left(places, where)
    if places[right] == where:
        return values[right]
    before, after = values[right - 1], values[right]
    if before is None or after is None:
        return None
    share = (where - places[right - 1]) / (places[right] - places[right - 1])
    if min(before, after) <= 0:
        return before + share * (after - before)
    return math.exp((1 - share) * math.log(before) + share * math.log(after))


def fluctuation(curve: Curve, network: str = "ema", last: float = 0.25) -> float | None:
    """Standard deviation of the distance over the last part of a curve's iterations, relative to its mean."""
    if not curve:
        return None
    spacing = curve[1]["iteration"] - curve[0]["iteration"] if len(curve) > 1 else curve[0]["iteration"]
    start, stop = curve[0]["iteration"] - spacing, curve[-1]["iteration"]
    late = [p[network]["distance"] for p in curve if p["iteration"] > stop - (stop - start) * last]
    if len(late) < FLUCTUATION_POINTS or not mean(late):
        return None
    return stdev(late) / mean(late)


def part(curve: Curve, stage: str) -> Curve:
    """The points of one stage."""
    return [point for point in curve if point["stage"] == stage]


def share(result: Result, distance: float | None) -> float | None:
    """What a distance leaves of the independent tokens' error: 0 is a sample of the teacher as large, 1 is independent.

    What differs between the seeds' teachers, and the bias of a small sample, go out. None where it is not defined.
    """
    floor, independent = result["floor"], result["independent"]
    return (distance - floor) / (independent - floor) if distance is not None and floor < independent else None


def common(results: list[Result], axis: str) -> float:
    """The last point of an axis that all curves reach."""
    return min(result["curve"][-1][axis] for result in results)


FIGURES: dict[str, Callable[[Result, dict[str, float]], float | None]] = {
    "distance": lambda result, end: share(result, at(result["curve"], "iteration", end["iteration"])),
    "seconds": lambda result, end: share(result, at(result["curve"], "seconds", end["seconds"])),
    "velocity_error": lambda result, end: result["velocity_error"],
    "fluctuation ema": lambda result, end: fluctuation(result["curve"], "ema"),
    "fluctuation raw": lambda result, end: fluctuation(result["curve"], "raw"),
    "fluctuation before": lambda result, end: fluctuation(part(result["curve"], "csd"), "raw"),
    "fluctuation after": lambda result, end: fluctuation(part(result["curve"], "align"), "raw", last=0.5),
}
"""From a result, and where the curves that are compared end, to a number; smaller is better.

In the first half of stage 3 the generator rests, so only the second half of it fluctuates.
"""


def verdict(better: Spread | None, worse: Spread | None, differs: bool = True) -> Verdict:
    """Whether a claim is borne out: decided where the ranges over the seeds do not overlap.

    Args:
        better: of what is claimed to be smaller.
        worse: of what is claimed to be larger.
        differs: False for the claim that they are equal, which disjoint ranges refute and nothing proves.
    """
    if better is None or worse is None:
        return "not run"
    if min(better.count, worse.count) < DECISIVE or (better.low <= worse.high and worse.low <= better.high):
        return "undecided"
    return "appears" if differs and better.high < worse.low else "does not appear"


class Judged(NamedTuple):
    """A finding with its figures.

    Attributes:
        finding: the claim.
        better: spread of what is claimed to be smaller; None if it was not run.
        worse: spread of what is claimed to be larger.
        verdict: what follows.
    """

    finding: Finding
    better: Spread | None
    worse: Spread | None
    verdict: Verdict


def judged(finding: Finding, results: dict[str, list[Result]]) -> Judged:
    """A finding against the results of one problem.

    Args:
        finding: the claim.
        results: of every variant, one a seed.
    """
    sides = [results.get(variant, []) for variant, _ in (finding.better, finding.worse)]
    if not all(sides):
        return Judged(finding, None, None, "not run")
    end = {axis: common([*sides[0], *sides[1]], axis) for axis in ("iteration", "seconds")}
    better, worse = (
        spread([FIGURES[figure](result, end) for result in side])
        for side, (_, figure) in zip(sides, (finding.better, finding.worse), strict=True)
    )
    return Judged(finding, better, worse, verdict(better, worse, finding.differs))


def summarised(results: dict[str, list[Result]]) -> dict[str, dict[str, Any]]:
    """The figures of one question's table.

    Args:
        results: of every variant, one a seed.

    Returns:
        Variant to its figures: ``iterations`` and :class:`Spread` of ``time`` (s), ``end``, ``at_iterations`` and
        ``at_seconds`` (EMA's distance), ``nll``, ``fluctuation_ema``, ``fluctuation_raw``, ``velocity_error``, and
        what ``end`` leaves of the independent tokens' error as ``share``; None where there is none.
    """
    everything = [result for several in results.values() for result in several]
    if not everything:
        return {}
    end = {axis: common(everything, axis) for axis in ("iteration", "seconds")}
    table = {}
    for variant, several in results.items():
        curves = [result["curve"] for result in several]
        last = [curve[-1] for curve in curves]
        table[variant] = {
            "iterations": last[0]["iteration"] if last else None,
            "time": spread([point["seconds"] for point in last]),
            "end": spread([point["ema"]["distance"] for point in last]),
            "share": spread([share(r, p["ema"]["distance"]) for p, r in zip(last, several, strict=True)]),
            "at_iterations": spread([at(curve, "iteration", end["iteration"]) for curve in curves]),
            "at_seconds": spread([at(curve, "seconds", end["seconds"]) for curve in curves]),
            "nll": spread([point["ema"].get("nll") for point in last]),
            "fluctuation_ema": spread([fluctuation(curve, "ema") for curve in curves]),
            "fluctuation_raw": spread([fluctuation(curve, "raw") for curve in curves]),
            "velocity_error": spread([result["velocity_error"] for result in several]),
        }
    return table
