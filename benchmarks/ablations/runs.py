"""One run: the settings that determine it, its training, and the file that it leaves."""

import json
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.ablations.problems import Problem
from benchmarks.ablations.recipes import arguments, fingerprint, varied
from benchmarks.ablations.variants import BASELINE, Variant
from benchmarks.training import LearningCurve, build, fit, validate
from dd2_lightning.errors import DD2Error
from dd2_lightning.evaluation.report import to_json
from dd2_lightning.files import sha256, write_atomically
from dd2_lightning.provenance import commit, hardware
from dd2_lightning.sampling import Sampling

VERSION = 1
"""Raise it when what a run does changes, though its settings do not: it is then done again."""


@dataclass(frozen=True)
class Run:
    """A run of stage 1, or of the later stages.

    Attributes:
        problem: that it belongs to.
        variant: name; that of a stage 1 begins with ``init-``.
        seed: of networks, data and noise.
        settings: everything that determines the run.
        teacher: directory of the teacher.
        init: the stage 1 that it starts from; None for a stage 1.
    """

    problem: Problem
    variant: str
    seed: int
    settings: dict[str, Any]
    teacher: Path
    init: "Run | None" = None

    @property
    def label(self) -> str:
        """Name in messages."""
        return f"{self.problem.name}, {self.variant}, seed {self.seed}"

    @property
    def directory(self) -> Path:
        """Directory of the artifact; its name has the hash of the settings, so that no two are mixed."""
        return self.problem.work / f"{self.variant}-seed{self.seed}-{fingerprint(self.settings)}"

    @property
    def path(self) -> Path:
        """The file that a finished run leaves."""
        return Path(f"{self.directory}.json")

    @property
    def log(self) -> Path:
        """The traceback that a failed run leaves."""
        return Path(f"{self.directory}.log")

    def result(self) -> dict[str, Any] | None:
        """The contents of its file; None before the run is finished.

        Raises:
            DD2Error: if the file belongs to other settings or is damaged.
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

    def perform(self) -> dict[str, Any]:
        """Run it on one thread and write its file.

        Raises:
            DD2Error: if it fails, naming run and cause; the traceback is in its log.
        """
        torch.set_num_threads(1)
        try:
            content = {
                "problem": self.problem.name,
                "variant": self.variant,
                "seed": self.seed,
                "hash": fingerprint(self.settings),
                **self.figures(),
                "settings": self.settings,
                "hardware": hardware(),
                "commit": commit(),
            }
            write_atomically(self.path, to_json(content))
        except Exception as error:
            write_atomically(self.log, traceback.format_exc().encode())
            raise DD2Error(f"{self.label} failed: {self.failure()}") from error
        self.log.unlink(missing_ok=True)
        return content

    def failure(self) -> str | None:
        """Why it failed, the last time that it was run; None if it did not."""
        if not self.log.is_file():
            return None
        return f"{self.log.read_text().strip().splitlines()[-1]} ({self.log})"

    def figures(self) -> dict[str, Any]:
        """Train and measure."""
        return train_init(self) if self.init is None else distil(self)


def train_init(run: Run) -> dict[str, Any]:
    """Train the AR-diffusion model; its velocity error on teacher sequences."""
    config = run.settings["init"]
    cache = str(run.directory / "cache")
    stage, data = build(config, {"teacher": str(run.teacher)}, {"seed": run.seed, "cache_dir": cache})
    started = time.process_time()
    fit(stage, data, config["iterations"], run.directory)
    seconds = time.process_time() - started
    held_out = config["data"]["init_args"]["validation_size"]
    return {"seconds": round(seconds, 3), "velocity_error": validate(stage, data)["val/gts"], "held_out": held_out}


def distil(run: Run) -> dict[str, Any]:
    """Run stage 2, and stage 3 if there is one; one curve of both."""
    if run.init.result() is None:
        raise DD2Error(f"its stage 1 is not finished: {run.init.label}")
    settings, curve, start = run.settings, [], run.init.directory
    problem = run.problem
    problem.open_teacher(run.teacher, Sampling(**arguments(settings, "csd")["teacher_sampling"]))
    head_time = arguments(settings, "csd")["head_time"]  # stage 3 has that of stage 2

    def measure(stage: Any) -> dict[str, Any]:
        networks = {"ema": stage.ema, "raw": stage.generator}
        return {name: problem.measure(network, head_time) for name, network in networks.items()}

    with tempfile.TemporaryDirectory(dir=problem.work, prefix=".run-") as directory:
        for name in (stage for stage in ("csd", "align") if stage in settings):
            places = {"teacher": str(run.teacher), "init_from": str(start)}
            stage, data = build(settings[name], places, {"seed": run.seed})
            start, watch = Path(directory) / name, LearningCurve(settings["every"], measure)
            fit(stage, data, settings[name]["iterations"], start, watch)
            before = curve[-1] if curve else {"iteration": 0, "seconds": 0.0}
            for point in watch.curve:
                point["iteration"] += before["iteration"]
                point["seconds"] = round(point["seconds"] + before["seconds"], 3)
                curve.append({"stage": name, **point})
    return {"independent": problem.independent, "floor": problem.floor, "curve": curve}


class Plan(NamedTuple):
    """Runs of one problem.

    Attributes:
        inits: of stage 1; several runs share one.
        runs: of the later stages, by variant and seed; variants that change nothing share the baseline's.
    """

    inits: list[Run]
    runs: dict[tuple[str, int], Run]

    def of_stage(self, stage: str) -> list[Run]:
        """Every run of stage ``init``, or of ``csd`` and ``align``, once."""
        runs = self.inits if stage == "init" else self.runs.values()
        return list({run.path: run for run in runs}.values())

    def results(self) -> dict[str, list[dict[str, Any]]]:
        """Contents of the finished runs by variant, with the velocity error of their stage 1."""
        results: dict[str, list[dict[str, Any]]] = {}
        for (variant, _), run in self.runs.items():
            content = run.result()
            if content is not None:
                velocity_error = run.init.result()["velocity_error"]
                results.setdefault(variant, []).append({**content, "velocity_error": velocity_error})
        return results


def plan_runs(problem: Problem) -> Plan:
    """All runs of a problem, finished or not."""
    recipe, budget = problem.recipe(), problem.budget
    measured = {"every": budget["every"], "samples": budget["samples"]}
    variants = {variant.name: variant for question in problem.questions for variant in question.variants}
    inits: dict[Path, Run] = {}
    runs: dict[tuple[str, int], Run] = {}
    base = varied(recipe, Variant(BASELINE), budget["every"])
    for seed in problem.settings.seeds:
        teacher = problem.teacher(seed)
        known = {"version": VERSION, "teacher": sha256(teacher / "teacher.safetensors"), "seed": seed}
        for variant in (Variant(BASELINE), *variants.values()):
            settings = varied(recipe, variant, budget["every"])
            loss = arguments(settings, "init")["loss"]
            init = Run(problem, f"init-{loss}", seed, {**known, "init": settings["init"]}, teacher)
            inits[init.directory] = init
            name = BASELINE if settings == base else variant.name
            runs[variant.name, seed] = Run(problem, name, seed, {**known, **measured, **settings}, teacher, init)
    return Plan(list(inits.values()), runs)
