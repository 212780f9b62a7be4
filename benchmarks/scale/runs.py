"""One run of the study: a setting, a method and a seed, for a fixed time; its file is written after every point."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from benchmarks.scale.ruler import Ruler, describe, open_ruler
from benchmarks.scale.study import Setting, Study
from benchmarks.training import build, fit
from dd2_lightning.data.cache import SequenceCache
from dd2_lightning.evaluation.report import to_json
from dd2_lightning.evaluation.samplers import DD1Sampler, OneStepSampler, Sampler
from dd2_lightning.files import sha256, write_atomically
from dd2_lightning.models.generator import OneStepGenerator
from dd2_lightning.provenance import commit, hardware
from dd2_lightning.stages import Stage
from dd2_lightning.stages.sequences import describe_cache, fill

Content = dict[str, Any]

ENDLESS = 10**9
"""Iterations that no run reaches; its time ends it."""

CHUNK = 2000
"""Sequences that are sampled between two looks at the clock."""


class TimeBudget(pl.Callback):
    """Ends a stage after some seconds, and measures it on the way; measuring takes none of them.

    The number of iterations, which learning rates fall to the end of, is always the one that would take all of the
    seconds at the rate so far.

    Args:
        seconds: of training.
        clock: seconds now.
        points: seconds of training at which to measure, growing.
        measure: ``(stage, iteration, seconds)`` -> None.
    """

    def __init__(
        self,
        seconds: float,
        clock: Callable[[], float],
        points: list[float],
        measure: Callable[[Any, int, float], None],
    ):
        self.seconds, self.clock, self.points, self.measure, self.spent = seconds, clock, points, measure, 0.0

    def on_train_start(self, trainer: pl.Trainer, stage: pl.LightningModule) -> None:
        self.started = self.clock()

    def on_train_batch_end(self, trainer: pl.Trainer, stage: pl.LightningModule, *_: Any) -> None:
        now, step = self.clock(), trainer.global_step
        self.spent += now - self.started
        if self.points and self.spent >= self.points[0]:
            self.points = [point for point in self.points if point > self.spent]
            self.measure(stage, step, self.spent)
        over = self.spent >= self.seconds
        last = step if over else max(step + 1, round(step * self.seconds / self.spent))
        trainer.fit_loop.epoch_loop.max_steps = last
        self.started = self.clock()


@dataclass
class Run:
    """A run; its artifacts lie in ``output/SETTING/METHOD-seedSEED``, its figures in a JSON file beside them."""

    study: Study
    name: str
    method: str
    seed: int
    output: Path
    seconds: float
    teacher: str
    device: torch.device

    @property
    def setting(self) -> Setting:
        return self.study.setting(self.name)

    @property
    def directory(self) -> Path:
        return self.output / self.name / f"{self.method}-seed{self.seed}"

    @property
    def path(self) -> Path:
        return Path(f"{self.directory}.json")

    def settings(self) -> Content:
        """All that determines the run."""
        shares = self.study.parts(self.method)
        stages = [part for part in shares if part not in ("sequences", "pairs")]
        return {
            "setting": self.name,
            "method": self.method,
            "seed": self.seed,
            "seconds": self.seconds,
            "shares": shares,
            "batch_size": self.study.batch_size,
            "most": self.study.most,
            "points": [self.study.points, self.study.point_samples, self.study.samples],
            "teacher": sha256(Path(self.teacher) / "teacher.safetensors"),
            "device": self.device.type,
            "configs": {stage: self.setting.config(stage) for stage in stages},
        }

    def read(self) -> Content:
        """The contents of its file; empty if there is none of these settings."""
        content = json.loads(self.path.read_text()) if self.path.is_file() else {}
        return content if content.get("settings") == json.loads(json.dumps(self.settings())) else {}

    @property
    def is_complete(self) -> bool:
        """Whether it has ended."""
        return self.read().get("complete", False)

    def clock(self) -> float:
        """Seconds now: of the processor, or on a GPU by the wall."""
        return time.process_time() if self.device.type == "cpu" else time.perf_counter()

    def perform(self) -> Content:
        """Do the parts that are missing."""
        ruler = open_ruler(self.study, self.setting, self.output / self.name, self.teacher, self.device)
        self.content = self.read() or {"settings": self.settings(), "parts": {}, "curve": []}
        self.content |= {"title": self.setting.title, "teacher": describe(ruler), "complete": False}
        self.content |= {"hardware": hardware(self.device), "commit": commit()}
        until = 0.0
        for part, share in self.study.parts(self.method).items():
            until += share * self.seconds
            if part not in self.content["parts"]:
                self.content["curve"] = [point for point in self.content["curve"] if point["part"] != part]
                before = sum(done["seconds"] for done in self.content["parts"].values())
                perform = self.sample if part in ("sequences", "pairs") else self.train
                self.content["parts"][part] = perform(ruler, part, before, until - before)
                self.write()
        self.content["complete"] = True
        self.write()
        return self.content

    def write(self) -> None:
        write_atomically(self.path, to_json(self.content))

    def sample(self, ruler: Ruler, part: str, before: float, seconds: float) -> Content:
        """Sample the teacher until the time is over."""
        started, num, data = self.clock(), 0, self.setting.config("init" if part == "sequences" else "dd1")["data"]
        steps = data["init_args"].get("steps") if part == "pairs" else None
        while not num or (self.clock() - started < seconds and num < self.study.most):
            num += CHUNK
            known = describe_cache(self.teacher, ruler.teacher, ruler.sampling, num, self.seed, steps)
            cache = SequenceCache(self.directory / part, known, CHUNK)
            fill(cache, ruler.teacher, ruler.sampling, cache.missing(), batch_size=CHUNK, show=False)
        return {"seconds": self.clock() - started, "number": num}

    def train(self, ruler: Ruler, part: str, before: float, seconds: float) -> Content:
        """Train a stage for so many seconds, after those that the run has taken before."""
        model: Content = {"teacher": self.teacher}
        data: Content = {"seed": self.seed, "batch_size": self.study.batch_size}
        made = {"init": "sequences", "dd1": "pairs"}.get(part)
        if made in self.content["parts"]:
            number = self.content["parts"][made]["number"]
            data |= {"sequences": "cached", "cache_dir": str(self.directory / made), "cache_size": number}
        if part in ("csd", "align"):
            model["init_from"] = str(self.directory / ("init" if part == "csd" else "csd"))
        stage, module = build(self.setting.config(part), model, data)
        every = self.seconds / self.study.points
        points = [every * k - before for k in range(1, self.study.points) if every * k > before and part != "init"]
        record = partial(self.record, ruler, part, before, self.study.point_samples)
        budget = TimeBudget(seconds, self.clock, points, record)
        accelerator = "cpu" if self.device.type == "cpu" else "gpu"
        fit(stage, module, ENDLESS, self.directory / part, budget, accelerator=accelerator)
        iterations = stage.trainer.global_step
        if part == list(self.study.parts(self.method))[-1]:
            self.record(ruler, part, before, self.study.samples, stage.to(self.device), iterations, budget.spent)
        return {"seconds": budget.spent, "iterations": iterations}

    def record(
        self, ruler: Ruler, part: str, before: float, samples: int, stage: Stage, iteration: int, seconds: float
    ) -> None:
        """Measure the EMA of a stage as a point of the curve."""
        point = {"part": part, "iteration": iteration, "seconds": before + seconds}
        self.content["curve"].append({**point, **ruler.measure(one_step(stage, ruler), samples)})
        self.write()
        left = self.content["curve"][-1]["left"]
        text = ", ".join(f"{key} {value:.4f}" for key, value in left.items())
        print(
            f"{self.name} {self.method} {self.seed}: {part} {iteration}, {before + seconds:.0f} s: left {text}",
            flush=True,
        )


def one_step(stage: Any, ruler: Ruler) -> Sampler:
    """The sampler of a stage's EMA."""
    if stage.name == "dd1":
        return DD1Sampler(model=stage.generator(stage.ema), steps=1).bind(ruler.teacher, ruler.sampling)
    generator = OneStepGenerator(stage.ema, ruler.teacher.tokenizer, stage.head_time)
    return OneStepSampler(model=generator).bind(ruler.teacher, ruler.sampling)
