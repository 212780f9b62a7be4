"""What curves say: values at equal iterations and at equal seconds, fluctuation, verdicts. Pure functions.

A curve is a list of points ``{"stage", "iteration", "seconds", "ema": {"distance", …}, "raw": {…}}``.
"""

import bisect
import math
from collections.abc import Callable
from statistics import mean, median, stdev
from typing import Any, Literal, NamedTuple

from benchmarks.ablations.variants import Claim

Curve = list[dict[str, Any]]
Result = dict[str, Any]
Verdict = Literal["appears", "does not appear", "undecided", "not run"]

DECISIVE = 3
"""Seeds of either side below which nothing is decided. Of three and three alike ones, one pair in ten is disjoint."""

FLUCTUATION_POINTS = 3
"""Points of the end of a curve below which it has no fluctuation."""


class Spread(NamedTuple):
    """Median and range of a figure over ``count`` seeds."""

    median: float
    low: float
    high: float
    count: int


def spread(values: list[float | None]) -> Spread | None:
    """Median and range; None if a seed has no value, or there is no seed."""
    if not values or None in values:
        return None
    return Spread(median(values), min(values), max(values), len(values))


def value_at(curve: Curve, axis: str, where: float, metric: str = "distance", network: str = "ema") -> float | None:
    """A curve's value at an iteration or a second, interpolated linearly in the logarithm; None outside of it."""
    places, values = [point[axis] for point in curve], [point[network].get(metric) for point in curve]
    if not places or not places[0] <= where <= places[-1]:
        return None
    right = bisect.bisect_left(places, where)
    if places[right] == where:
        return values[right]
    before, after = values[right - 1], values[right]
    if before is None or after is None:
        return None
    weight = (where - places[right - 1]) / (places[right] - places[right - 1])
    if min(before, after) <= 0:
        return before + weight * (after - before)
    return math.exp((1 - weight) * math.log(before) + weight * math.log(after))


def fluctuation(curve: Curve, network: str = "ema", last: float = 0.25) -> float | None:
    """Standard deviation of the distance over the last fraction of a curve's iterations, relative to its mean."""
    if not curve:
        return None
    spacing = curve[1]["iteration"] - curve[0]["iteration"] if len(curve) > 1 else curve[0]["iteration"]
    start, stop = curve[0]["iteration"] - spacing, curve[-1]["iteration"]
    late = [p[network]["distance"] for p in curve if p["iteration"] > stop - (stop - start) * last]
    if len(late) < FLUCTUATION_POINTS or not mean(late):
        return None
    return stdev(late) / mean(late)


def of_stage(result: Result, stage: str) -> Curve:
    """The points of one stage."""
    return [point for point in result["curve"] if point["stage"] == stage]


def error_left(result: Result, distance: float | None) -> float | None:
    """Fraction of the independent tokens' error that is left: 0 is a teacher sample as large, 1 is independent.

    It removes what differs between the seeds' teachers, and the bias of a small sample. None where it is not defined.
    """
    floor, independent = result["floor"], result["independent"]
    return (distance - floor) / (independent - floor) if distance is not None and floor < independent else None


def common_end(results: list[Result]) -> dict[str, float]:
    """The last iteration and the last second that all curves reach."""
    return {axis: min(result["curve"][-1][axis] for result in results) for axis in ("iteration", "seconds")}


FIGURES: dict[str, Callable[[Result, dict[str, float]], float | None]] = {
    "distance": lambda result, end: error_left(result, value_at(result["curve"], "iteration", end["iteration"])),
    "seconds": lambda result, end: error_left(result, value_at(result["curve"], "seconds", end["seconds"])),
    "velocity_error": lambda result, end: result["velocity_error"],
    "fluctuation ema": lambda result, end: fluctuation(result["curve"], "ema"),
    "fluctuation raw": lambda result, end: fluctuation(result["curve"], "raw"),
    "fluctuation before": lambda result, end: fluctuation(of_stage(result, "csd"), "raw"),
    "fluctuation after": lambda result, end: fluctuation(of_stage(result, "align"), "raw", last=0.5),
}
"""From a result, and the common end of the curves that are compared, to a number; smaller is better.

In the first half of stage 3 the generator rests, so only the second half of it fluctuates.
"""


def verdict(better: Spread | None, worse: Spread | None, differs: bool = True) -> Verdict:
    """Whether a claim is borne out: decided where the ranges over the seeds do not overlap.

    Without ``differs`` the claim is that both are equal, which disjoint ranges refute and nothing proves.
    """
    if better is None or worse is None:
        return "not run"
    if min(better.count, worse.count) < DECISIVE or (better.low <= worse.high and worse.low <= better.high):
        return "undecided"
    return "appears" if differs and better.high < worse.low else "does not appear"


class Assessment(NamedTuple):
    """A claim's two figures, None if they were not run, and what follows from them."""

    better: Spread | None
    worse: Spread | None
    verdict: Verdict


def assess(claim: Claim, results: dict[str, list[Result]]) -> Assessment:
    """Compare a claim with the results of one problem: of every variant, one a seed."""
    sides = [results.get(variant, []) for variant, _ in (claim.better, claim.worse)]
    if not all(sides):
        return Assessment(None, None, "not run")
    end = common_end([*sides[0], *sides[1]])
    better, worse = (
        spread([FIGURES[figure](result, end) for result in side])
        for side, (_, figure) in zip(sides, (claim.better, claim.worse), strict=True)
    )
    return Assessment(better, worse, verdict(better, worse, claim.differs))


def summarise(results: dict[str, list[Result]]) -> dict[str, dict[str, Any]]:
    """The figures of one question's table, by variant.

    ``end``, ``at_iterations`` and ``at_seconds`` are the EMA's distance; ``share`` is :func:`error_left` at the end.
    """
    everything = [result for several in results.values() for result in several]
    if not everything:
        return {}
    end = common_end(everything)
    table = {}
    for variant, several in results.items():
        curves = [result["curve"] for result in several]
        last = [curve[-1] for curve in curves]
        table[variant] = {
            "iterations": last[0]["iteration"] if last else None,
            "time": spread([point["seconds"] for point in last]),
            "end": spread([point["ema"]["distance"] for point in last]),
            "share": spread([error_left(r, p["ema"]["distance"]) for p, r in zip(last, several, strict=True)]),
            "at_iterations": spread([value_at(curve, "iteration", end["iteration"]) for curve in curves]),
            "at_seconds": spread([value_at(curve, "seconds", end["seconds"]) for curve in curves]),
            "nll": spread([point["ema"].get("nll") for point in last]),
            "fluctuation_ema": spread([fluctuation(curve, "ema") for curve in curves]),
            "fluctuation_raw": spread([fluctuation(curve, "raw") for curve in curves]),
            "velocity_error": spread([result["velocity_error"] for result in several]),
        }
    return table
