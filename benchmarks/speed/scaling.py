"""Processor time of an iteration of stage 2 against every size: ``python -m benchmarks.speed.scaling``."""

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks.command import run_command
from benchmarks.scale.report import logarithmic
from dd2_lightning.evaluation.report import to_json
from dd2_lightning.evaluation.timing import interleaved
from dd2_lightning.families.registry import teacher_from_config
from dd2_lightning.files import write_atomically
from dd2_lightning.hub.cards import published
from dd2_lightning.images.figures import blank_figure, write_figure
from dd2_lightning.models.codebook_teacher import require_codebook
from dd2_lightning.provenance import commit, hardware
from dd2_lightning.sampling import Sampling
from dd2_lightning.stages import CSDDistill
from dd2_lightning.timing.training import set_up, step_of


class Sizes(NamedTuple):
    """What one iteration depends on; the defaults are what the others are varied around."""

    tokens: int = 64
    codes: int = 1024
    draws: int = 4
    guidance_updates: int = 1
    batch_size: int = 8
    width: int = 256


SYMBOLS = {"tokens": "n", "codes": "V", "draws": "m", "guidance_updates": "K", "batch_size": "batch", "width": "width"}

VARIED = {
    "tokens": (16, 36, 64, 144, 256),
    "codes": (256, 1024, 4096, 16384),
    "draws": (1, 2, 4, 8, 16),
    "guidance_updates": (1, 2, 5, 10),
    "batch_size": (2, 4, 8, 16, 32),
    "width": (64, 128, 256, 512),
}
"""Values of every size while the others stay at their defaults."""

POWERS = {name: 2 if name == "width" else 1 for name in SYMBOLS}
"""The power of a size that operations grow with, attention apart, which is a small part of them here."""


def iteration(sizes: Sizes) -> Callable[[], None]:
    """K guidance updates and a generator update of a guided LlamaGen of four layers, with random weights."""
    side = round(sizes.tokens**0.5)
    family, architecture = published("llamagen/B", adapted=True)
    architecture |= {"grid": side, "codes": sizes.codes, "width": sizes.width, "depth": 4, "heads": 4, "pixels": False}
    teacher = require_codebook(teacher_from_config(family, architecture)).eval().requires_grad_(False)
    stage = CSDDistill("", "", draws=sizes.draws, teacher_sampling=Sampling(guidance_scale=2.0))
    batch = set_up(stage, teacher, {"width": sizes.width, "depth": 4}, sizes.batch_size)
    steps = {update.name: step_of(stage, update, batch, "32-true", "cpu") for update in stage.updates()}

    def run() -> None:
        for _ in range(sizes.guidance_updates):
            steps["guidance"]()
        steps["generator"]()

    return run


def fitted(values: list[float], seconds: list[float], power: int) -> dict[str, Any]:
    """Least squares of seconds = a + b x^power, every point relative to its own seconds, and the largest deviation."""
    x, y = np.array(values, float) ** power, np.array(seconds)
    terms = np.stack([np.ones_like(x), x], 1)
    a, b = np.linalg.lstsq(terms / y[:, None], np.ones_like(y), rcond=None)[0]
    worst = np.abs((a + b * x) / y - 1).max()
    return {"constant": float(a), "slope": float(b), "power": power, "largest_deviation": float(worst)}


def scaling(output: str, figure: str = "docs/images/scaling.png", rounds: int = 5) -> None:
    """Vary one size at a time, on one thread, fit the seconds of an iteration, write and draw both.

    Args:
        output: JSON file.
        figure: PNG file.
        rounds: how often each is timed, all values of a size in turn; medians count.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    report: dict[str, Any] = {"hardware": hardware("cpu"), "torch": torch.__version__, "commit": commit()}
    report |= {"rounds": rounds, "around": Sizes()._asdict(), "sizes": {}}
    for name, values in VARIED.items():
        functions = {str(v): iteration(Sizes()._replace(**{name: v})) for v in values}
        timed = interleaved(functions, rounds, clock=time.process_time)
        middle = [median(taken) for taken in timed.values()]
        fit = fitted(list(values), middle, POWERS[name])
        report["sizes"][name] = {"values": values, "seconds": timed, "median_seconds": middle, "fit": fit}
        print(f"{name}: {dict(zip(values, middle, strict=True))}, {fit}", flush=True)
        write_atomically(Path(output), to_json(report))
    draw(report, Path(figure))


def draw(report: dict[str, Any], path: Path) -> None:
    """Medians with their ranges, and the fit, a panel a size."""
    page = blank_figure(10, 5.6)
    panels = page.subplots(2, 3)
    for ax, (name, entry) in zip(panels.flat, report["sizes"].items(), strict=True):
        values, fit, symbol = np.array(entry["values"], float), entry["fit"], SYMBOLS[name]
        ends = np.array([(min(taken), max(taken)) for taken in entry["seconds"].values()])
        ax.vlines(values, *ends.T, color="#0072B2", lw=1.2)
        ax.plot(values, entry["median_seconds"], "o", color="#0072B2")
        line = np.geomspace(values[0], values[-1])
        ax.plot(line, fit["constant"] + fit["slope"] * line ** fit["power"], color="0.4", lw=1)
        square = f"{symbol}²" if fit["power"] == 2 else symbol
        ax.set_title(f"{fit['constant']:.2g} + {fit['slope']:.2g} {square}", fontsize=10)
        for which in ("x", "y"):
            logarithmic(ax, which)
        ax.set_xticks(entry["values"], [f"{value:,}" for value in entry["values"]])
        ax.set_xlabel(symbol)
        ax.set_ylim(ends.min() / 1.5, 1.5 * ends.max())
    for ax in panels[:, 0]:
        ax.set_ylabel("seconds of an iteration")
    page.tight_layout()
    write_figure(page, path)


if __name__ == "__main__":
    run_command("benchmarks.speed.scaling", scaling)
