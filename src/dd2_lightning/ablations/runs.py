"""One run: what determines it, doing it, and the file that says that it is done."""

import json
import logging
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from dd2_lightning.ablations.problems import HELD_OUT, Problem, teacher_hash
from dd2_lightning.ablations.recipes import Recipe, build, fingerprint, varied
from dd2_lightning.ablations.variants import BASELINE, Variant
from dd2_lightning.artifacts import write_atomically
from dd2_lightning.callbacks import LearningCurve
from dd2_lightning.cli.fit import EXPECTED_WARNINGS as EXPECTED
from dd2_lightning.distil import fit, validate
from dd2_lightning.errors import DD2Error
from dd2_lightning.evaluation.report import commit, hardware, to_json

VERSION = 1
"""Raise it when what a run does changes, though its settings do not: it is then done again."""


@dataclass(frozen=True)
class Run:
    """What determines a run, and where it goes.

    Attributes:
        problem: whose.
        variant: name; ``init`` begins that of a stage 1.
        seed: of networks, data and noise.
        settings: all of them, plain.
        teacher: its directory.
        init: the stage 1 that it starts from; None is a stage 1 itself.
    """

    problem: Problem
    variant: str
    seed: int
    settings: dict[str, Any]
    teacher: Path
    init: "Run | None" = None

    @property
    def label(self) -> str:
        """For people."""
        return f"{self.problem.name}, {self.variant}, seed {self.seed}"

    @property
    def directory(self) -> Path:
        """Of its artifact; other settings have another one, so nothing is ever mixed or lost."""
        return self.problem.work / f"{self.variant}-seed{self.seed}-{fingerprint(self.settings)}"

    @property
    def path(self) -> Path:
        """The file that it leaves when it is finished."""
        return self.directory.with_name(f"{self.directory.name}.json")

    def result(self) -> dict[str, Any] | None:
        """What it has left; None before it is finished.

        Raises:
            DD2Error: if the file is not what this run writes.
        """
        if not self.path.is_file():
            return None
        try:
            content = json.loads(self.path.read_text())
            if content["hash"] == fingerprint(self.settings) == fingerprint(content["settings"]):
                return content
        except (ValueError, KeyError, TypeError):
            pass
        raise DD2Error(f"{self.path} does not hold the settings that its name says; delete it, and it is done again")

    def perform(self) -> None:
        """Do it, on one thread, and write its file."""
        torch.set_num_threads(1)
        figures = stage_one(self) if self.init is None else distil(self)
        content = {
            "problem": self.problem.name,
            "variant": self.variant,
            "seed": self.seed,
            "hash": fingerprint(self.settings),
            **figures,
            "settings": self.settings,
            "hardware": hardware(),
            "commit": commit(),
        }
        write_atomically(self.path, to_json(content))


def stage_one(run: Run) -> dict[str, Any]:
    """The AR-diffusion model, and its velocity error on teacher sequences."""
    own = {"seed": run.seed, "cache_dir": str(run.directory / "cache")}
    stage, data = build(run.settings["init"], own, teacher=str(run.teacher))
    started = time.process_time()
    fit(stage, data, run.settings["init"]["iterations"], run.directory)
    seconds = time.process_time() - started
    return {"seconds": round(seconds, 3), "velocity_error": validate(stage, data)["val/gts"], "held_out": HELD_OUT}


def distil(run: Run) -> dict[str, Any]:
    """Stage 2, and stage 3 if there is one, as one curve."""
    settings, curve, start = run.settings, [], run.init.directory
    measurer = None

    def measure(stage: Any) -> dict[str, Any]:
        networks = {"ema": stage.ema, "raw": stage.generator}
        return {name: measurer(network, stage.head_time) for name, network in networks.items()}

    with tempfile.TemporaryDirectory(dir=run.problem.work, prefix=".run-") as directory:
        for name in ("csd", "align"):
            if name not in settings:
                continue
            stage, data = build(settings[name], {"seed": run.seed}, teacher=str(run.teacher), init_from=str(start))
            if measurer is None:
                sampling = stage.teacher_sampling
                measurer = run.problem.measurer(run.teacher, sampling, settings["samples"])
            watch = LearningCurve(settings["every"], measure)
            start = Path(directory) / name
            fit(stage, data, settings[name]["iterations"], start, watch)
            before = curve[-1] if curve else {"iteration": 0, "seconds": 0.0}
            for point in watch.curve:
                point["iteration"] += before["iteration"]
                point["seconds"] = round(point["seconds"] + before["seconds"], 3)
                curve.append({"stage": name, **point})
    return {"independent": measurer.independent, "floor": measurer.floor, "curve": curve}


class Plan(NamedTuple):
    """Runs of one problem.

    Attributes:
        inits: of stage 1; several runs share one.
        runs: of the later stages, by variant's name and seed; variants that change nothing share the baseline's.
    """

    inits: list[Run]
    runs: dict[tuple[str, int], Run]


def planned(
    problem: Problem, recipe: Recipe, variants: list[Variant], seeds: list[int], measured: dict[str, int]
) -> Plan:
    """All runs of a problem.

    Args:
        problem: whose.
        recipe: the baseline's, complete.
        variants: what is asked for.
        seeds: of each.
        measured: ``every`` and ``samples``.
    """
    inits: dict[Path, Run] = {}
    runs: dict[tuple[str, int], Run] = {}
    for seed in seeds:
        teacher = problem.teacher(seed)
        known = {"version": VERSION, "teacher": teacher_hash(teacher), "seed": seed}
        base = varied(recipe, Variant(BASELINE), measured["every"])
        for variant in (Variant(BASELINE), *variants):
            own = varied(recipe, variant, measured["every"])
            name = BASELINE if own == base else variant.name
            loss = own["init"]["model"]["init_args"]["loss"]
            init = Run(problem, f"init-{loss}", seed, {**known, "init": own["init"]}, teacher)
            inits[init.directory] = init
            runs[variant.name, seed] = Run(problem, name, seed, {**known, **measured, **own}, teacher, init)
    return Plan(list(inits.values()), runs)


def quietly() -> None:
    """What Lightning says of every run is not said of these."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in EXPECTED:
        warnings.filterwarnings("ignore", message)
