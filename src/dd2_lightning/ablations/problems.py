"""The two problems: a teacher, the recipe that is varied, and a distance from the teacher."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
import yaml
from torch import Tensor

from dd2_lightning.ablations.recipes import Recipe
from dd2_lightning.artifacts import Artifact, load_teacher, sha256, write_teacher
from dd2_lightning.errors import ArtifactError, DD2Error, check_at_least_one
from dd2_lightning.evaluation.baselines import IndependentContender
from dd2_lightning.evaluation.classifier import load_classifier
from dd2_lightning.evaluation.compare import Judge
from dd2_lightning.evaluation.contenders import OneStepContender, TeacherContender
from dd2_lightning.models.generator import OneStepGenerator
from dd2_lightning.models.student import Student
from dd2_lightning.noise import stream
from dd2_lightning.sampling import Sampling
from dd2_lightning.stages.settings import jsonable
from dd2_lightning.tables import (
    BATCH_SIZE,
    STUDENT,
    draw_tokens,
    independent_total_variation,
    random_table,
    table_recipe,
)

HELD_OUT = 2000
"""Teacher sequences that the velocity error of stage 1 is measured on."""


@dataclass(frozen=True)
class Budget:
    """What a run of one problem takes.

    Attributes:
        init_iterations: of stage 1, which runs that do not change it share.
        iterations: of stages 2 and 3 together.
        every: iterations between two points of a curve; divides ``iterations``.
        samples: drawn for a point, from the EMA and from the raw generator each.

    Raises:
        ValueError: for numbers below 1 and an ``every`` that does not divide.
    """

    init_iterations: int
    iterations: int
    every: int
    samples: int

    def __post_init__(self):
        check_at_least_one("", **vars(self))
        if self.iterations % self.every:
            raise ValueError(f"iterations must be a multiple of every, got {self.iterations} and {self.every}")


class Problem(ABC):
    """A teacher to be distilled.

    Attributes:
        name: on the command line.
        title: of its tables and pictures.
        distance: what is measured.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    distance: ClassVar[str]

    @abstractmethod
    def teacher(self, seed: int) -> Path:
        """Directory of the teacher of this seed; whatever runs share is made here, once."""

    @abstractmethod
    def recipe(self, budget: Budget) -> Recipe:
        """Settings of all stages."""

    @abstractmethod
    def measurer(self, teacher: Path, sampling: Sampling, samples: int) -> "Measurer":
        """What a generator is measured with."""


class Measurer(ABC):
    """Measures generators against their teacher.

    Attributes:
        independent: distance of independent tokens.
        floor: distance of as many samples of the teacher itself.
    """

    independent: float
    floor: float

    @abstractmethod
    def __call__(self, student: Student, head_time: float) -> dict[str, float | None]:
        """``distance``, and what else is known."""


class Tables(Problem):
    """Random joints of three tokens, one a seed.

    Args:
        work: directory of the teachers.
    """

    name, title, distance = "tables", "Exact tables", "total variation"

    def __init__(self, work: Path):
        self.work = work

    def teacher(self, seed: int) -> Path:
        """See :meth:`Problem.teacher`; the same numbers every time."""
        directory = self.work / f"teacher-seed{seed}"
        write_teacher(directory, random_table(seed, STUDENT))
        return directory

    def recipe(self, budget: Budget) -> Recipe:
        """That of ``dd2 tables``; stage 3 goes on with a tenth of the learning rates, as it does for the digits."""
        settings = jsonable(table_recipe(budget.iterations, budget.init_iterations))
        csd = settings["csd"]
        slow = {
            name: {**csd[name], "lr": csd[name]["lr"] / 10, "warmup": 0, "decay_from": 0.2}
            for name in ("guidance_optimizer", "generator_optimizer")
        }
        models = {"init": settings["init"], "csd": csd, "align": {**csd, **slow, "guidance_updates": 2}}
        classes = {"init": "ARDiffusionInit", "csd": "CSDDistill", "align": "PerformanceAlign"}
        count = {"init": budget.init_iterations, "csd": budget.iterations, "align": 0}
        return {
            stage: {
                "model": {"class_path": classes[stage], "init_args": model},
                "data": prefixes("online" if stage == "init" else "none", batch_size=BATCH_SIZE),
                "iterations": count[stage],
            }
            for stage, model in models.items()
        }

    def measurer(self, teacher: Path, sampling: Sampling, samples: int) -> "TableMeasurer":
        """See :meth:`Problem.measurer`; a table has no guidance."""
        return TableMeasurer(teacher, samples)


class TableMeasurer(Measurer):
    """Total variation of snapped one-step sequences from the joint.

    Args:
        teacher: directory of the table.
        samples: sequences drawn.
    """

    def __init__(self, teacher: Path, samples: int):
        self.teacher, self.samples = load_teacher(teacher), samples
        self.independent = independent_total_variation(self.teacher)
        chance = torch.rand(samples, self.teacher.layout.length, generator=stream(0, "table floor"))
        drawn = self.teacher.sample(torch.zeros(samples, dtype=torch.long), chance=chance)
        self.floor = self.of(drawn)["distance"]

    def of(self, indices: Tensor) -> dict[str, float]:
        """Of sequences (samples, n)."""
        distance, impossible = self.teacher.total_variation(indices)
        return {"distance": distance, "impossible": impossible}

    def __call__(self, student: Student, head_time: float) -> dict[str, float | None]:
        """See :meth:`Measurer.__call__`."""
        generate = partial(student.generate, head_time=head_time)
        return self.of(self.teacher.snap(draw_tokens(generate, self.teacher, self.samples)))


class Digits(Problem):
    """The digits' VAR, one teacher for all seeds.

    Args:
        work: directory of the classifier that the distance is measured in.
        directory: the teacher's.
        configs: directory of ``init_var.yaml``, ``csd_var.yaml`` and ``align_var.yaml``.

    Raises:
        ArtifactError: if there is no teacher.
    """

    name, title, distance = "digits", "Digits", "Fréchet distance"

    def __init__(self, work: Path, directory: Path, configs: Path):
        if not (directory / "config.json").is_file():
            raise ArtifactError(f"--teacher: {directory} is no finished teacher; make teacher trains one")
        Artifact.open(directory, ("teacher",), "--teacher")
        self.work, self.directory, self.configs = work, directory, configs
        self.recipes = {stage: self.read(configs / f"{stage}_var.yaml") for stage in ("init", "csd", "align")}

    @staticmethod
    def read(path: Path) -> dict[str, Any]:
        """Model and data of a config.

        Raises:
            DD2Error: naming the file.
        """
        try:
            content = yaml.safe_load(path.read_text())
            return {key: content[key] for key in ("model", "data")}
        except (OSError, yaml.YAMLError, TypeError, KeyError) as error:
            raise DD2Error(f"{path} is no config of a stage ({error}); --configs names their directory") from error

    def teacher(self, seed: int) -> Path:
        """See :meth:`Problem.teacher`."""
        load_classifier(self.work)
        return self.directory

    def recipe(self, budget: Budget) -> Recipe:
        """That of the configs."""
        count = {"init": budget.init_iterations, "csd": budget.iterations, "align": 0}
        recipe = {}
        for stage, config in self.recipes.items():
            data = config["data"]["init_args"]
            content = {**config["data"], "init_args": {**data, "validation_size": HELD_OUT, "cache_dir": "-"}}
            recipe[stage] = {"model": config["model"], "data": content, "iterations": count[stage]}
        return recipe

    def measurer(self, teacher: Path, sampling: Sampling, samples: int) -> "DigitMeasurer":
        """See :meth:`Problem.measurer`."""
        return DigitMeasurer(teacher, self.work, sampling, samples)


class DigitMeasurer(Measurer):
    """Fréchet distance of one-step pictures from a teacher sample, and their likelihood.

    Args:
        teacher: directory.
        work: directory of the classifier.
        sampling: guidance and truncation of the reference.
        samples: pictures drawn.
    """

    def __init__(self, teacher: Path, work: Path, sampling: Sampling, samples: int):
        self.teacher, self.samples = load_teacher(teacher), samples
        network = load_classifier(work)
        self.judge = Judge(
            self.teacher, network, sampling, reference_samples=4 * samples, manifold_samples=0, progress=False, paths=0
        )
        self.independent = self.judge.score(IndependentContender(self.teacher), samples).frechet
        self.floor = self.judge.score(TeacherContender(self.teacher, self.judge.sampling), samples).frechet

    def __call__(self, student: Student, head_time: float) -> dict[str, float | None]:
        """See :meth:`Measurer.__call__`."""
        generator = OneStepGenerator(student, self.teacher.tokenizer, head_time)
        score = self.judge.score(OneStepContender(self.teacher, generator), self.samples)
        return {"distance": score.frechet, "nll": score.nll}


def prefixes(sequences: str, **settings: Any) -> dict[str, Any]:
    """Config of the data module."""
    return {"class_path": "PrefixData", "init_args": {"sequences": sequences, "validation_size": HELD_OUT, **settings}}


def teacher_hash(directory: Path) -> str:
    """Of a teacher's weights."""
    return sha256(directory / "teacher.safetensors")
