"""The two problems: a teacher, the recipe that is varied, and a distance from the teacher."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import yaml

from benchmarks.ablations.recipes import Recipe, complete
from benchmarks.ablations.variants import Question, choose
from benchmarks.tables import STUDENT, draw_tokens, independent_total_variation, random_table
from benchmarks.training import overridden, read_config
from dd2_lightning.artifacts import Artifact, load_teacher, write_teacher
from dd2_lightning.data import DigitsData
from dd2_lightning.errors import ArtifactError, DD2Error, check_at_least_one
from dd2_lightning.evaluation.baselines import IndependentSampler
from dd2_lightning.evaluation.compare import Evaluator
from dd2_lightning.evaluation.samplers import OneStepSampler, TeacherSampler
from dd2_lightning.metrics.classifier import load_classifier
from dd2_lightning.models.generator import OneStepGenerator
from dd2_lightning.models.student import Student
from dd2_lightning.noise import stream
from dd2_lightning.sampling import Sampling


@dataclass(frozen=True)
class Settings:
    """A problem's YAML file; ``tables.yaml`` explains the keys.

    Raises:
        ValueError: naming the key whose value cannot be.
    """

    problem: Literal["tables", "digits"]
    title: str
    distance: str
    budget: dict[str, int]
    configs: dict[str, str]
    seeds: list[int]
    variants: str | list[str] = "all"
    teacher: str | None = None
    data: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        if self.problem not in PROBLEMS:
            raise ValueError(f"problem: there is no {self.problem!r}; there are: {', '.join(PROBLEMS)}")
        if not self.seeds or not all(isinstance(seed, int) for seed in self.seeds):
            raise ValueError(f"seeds must be numbers like [0, 1, 2], got {self.seeds}")
        check_at_least_one("budget.", **self.budget)
        iterations, every = self.budget["iterations"], self.budget["every"]
        if iterations % every:
            raise ValueError(f"budget.iterations must be a multiple of every, got {iterations} and {every}")


class Problem(ABC):
    """A teacher that is distilled, and the baseline of its distillation.

    Args:
        settings: of its YAML file.
        work: directory of its runs.

    Attributes:
        independent: distance of independent tokens from the teacher, once that is opened.
        floor: distance of as many samples of the teacher itself.
    """

    independent: float
    floor: float

    def __init__(self, settings: Settings, work: Path):
        self.settings, self.name, self.budget, self.work = settings, settings.problem, settings.budget, work
        self.questions: list[Question] = choose(settings.variants)

    def recipe(self) -> Recipe:
        """The baseline, with all defaults."""
        iterations = {"init": self.budget["init_iterations"], "csd": self.budget["iterations"], "align": 0}
        configs = {stage: read_config(self.settings.configs[stage]) for stage in iterations}
        return complete(
            {
                stage: {**overridden(config, {}, self.settings.data), "iterations": iterations[stage]}
                for stage, config in configs.items()
            }
        )

    @abstractmethod
    def teacher(self, seed: int) -> Path:
        """Directory of the teacher of this seed; everything that runs share is made here, once."""

    @abstractmethod
    def open_teacher(self, directory: Path, sampling: Sampling) -> None:
        """Prepare to measure generators that were distilled from it with this guidance and truncation."""

    @abstractmethod
    def measure(self, student: Student, head_time: float) -> dict[str, float | None]:
        """Distance of one-step samples from the teacher, and further figures."""


class Tables(Problem):
    """Random joints of three tokens, one a seed; total variation of snapped one-step sequences."""

    def teacher(self, seed: int) -> Path:
        directory, table = self.work / f"teacher-seed{seed}", random_table(seed, STUDENT)
        if not (directory / "config.json").is_file() or not torch.equal(load_teacher(directory).joint, table.joint):
            write_teacher(directory, table)
        return directory

    def open_teacher(self, directory: Path, sampling: Sampling) -> None:
        self.table, samples = load_teacher(directory), self.budget["samples"]
        self.independent = independent_total_variation(self.table)
        uniforms = torch.rand(samples, self.table.layout.length, generator=stream(0, "table floor"))
        drawn = self.table.sample(torch.zeros(samples, dtype=torch.long), uniforms=uniforms)
        self.floor, _ = self.table.total_variation(drawn)

    def measure(self, student: Student, head_time: float) -> dict[str, float | None]:
        generate = partial(student.generate, head_time=head_time)
        drawn = self.table.snap(draw_tokens(generate, self.table, self.budget["samples"]))
        return dict(zip(("distance", "impossible"), self.table.total_variation(drawn), strict=True))


class Digits(Problem):
    """The digits' VAR, one teacher for all seeds; Fréchet distance of one-step images, and their likelihood."""

    def teacher(self, seed: int) -> Path:
        directory = Path(self.settings.teacher or "")
        if not (directory / "config.json").is_file():
            raise ArtifactError(f"teacher: {directory} is no finished teacher; make teacher trains one")
        Artifact.open(directory, ("teacher",), "teacher")
        load_classifier(self.work, DigitsData())  # trains it, once
        return directory

    def open_teacher(self, directory: Path, sampling: Sampling) -> None:
        self.var, samples = load_teacher(directory), self.budget["samples"]
        sizes = {"reference_samples": 4 * samples, "manifold_samples": 0, "paths": 0}
        self.evaluator = Evaluator(
            self.var, load_classifier(self.work, DigitsData()), sampling, progress=False, **sizes
        )
        self.independent = self.evaluator.score(IndependentSampler().bind(self.var), samples).frechet
        self.floor = self.evaluator.score(TeacherSampler().bind(self.var, self.evaluator.sampling), samples).frechet

    def measure(self, student: Student, head_time: float) -> dict[str, float | None]:
        generator = OneStepGenerator(student, self.var.tokenizer, head_time)
        score = self.evaluator.score(OneStepSampler(model=generator).bind(self.var), self.budget["samples"])
        return {"distance": score.frechet, "nll": score.nll}


PROBLEMS = {"tables": Tables, "digits": Digits}


def open_problem(path: str | Path, work: Path) -> Problem:
    """The problem of a YAML file; its runs lie in a directory of ``work``.

    Raises:
        DD2Error: if there is no such file, or keys are missing or unknown.
        ValueError: naming the file and the key whose value cannot be.
    """
    try:
        settings = Settings(**yaml.safe_load(Path(path).read_text()))
        return PROBLEMS[settings.problem](settings, work / settings.problem)
    except (OSError, yaml.YAMLError, TypeError, KeyError) as error:
        raise DD2Error(f"{path} is no problem of the ablations ({error})") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
