"""The line-up: who is compared, as a config lists it.

::

    teacher: runs/var/teacher
    runs: runs/var                                # what the models below are relative to
    contenders:
      - {kind: teacher}
      - {kind: one_step, model: align}
      - {kind: one_step, model: align, snapped: true}
      - {kind: refined, model: align, steps: 2, name: DD2 + teacher}
      - {kind: ar_diffusion, model: init, euler_steps: 10}
      - {kind: dd1, model: dd1, steps: 2, optional: true}
      - {kind: independent}
      - {kind: skip, skipped: 1}
      - {kind: real}

A kind is a dataclass of this file and a line of :data:`KINDS`; its fields are the keys of an entry.
"""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar

from jsonargparse import ArgumentError, ArgumentParser
from torch import nn

from dd2_lightning.artifacts import Artifact, check_hash, load_generator, load_init, load_teacher
from dd2_lightning.data.digits import load_digits_images
from dd2_lightning.errors import ArtifactError
from dd2_lightning.evaluation.baselines import IndependentContender, RealData, SkipContender
from dd2_lightning.evaluation.contenders import (
    ARDiffusionContender,
    Contender,
    DD1Contender,
    OneStepContender,
    RefinedContender,
    SnappedContender,
    TeacherContender,
)
from dd2_lightning.sampling import Sampling


class Models:
    """A teacher and what was distilled from it, every directory opened once.

    Args:
        teacher: its directory.
        runs: what the directories of the others are relative to.
        sampling: guidance and truncation of the teacher.
        device: where they compute.

    Raises:
        ArtifactError: if the teacher's directory is not in order.
    """

    def __init__(
        self, teacher: str | Path, runs: str | Path = ".", sampling: Sampling | None = None, device: str = "cpu"
    ):
        self.origin = Artifact.open(teacher, ("teacher",), "teacher")
        self.teacher = load_teacher(teacher).to(device)
        self.runs, self.sampling, self.device = Path(runs), sampling or Sampling(), device
        self._opened: dict[Path, nn.Module] = {}

    def open(self, model: str, stages: tuple[str, ...], load: Callable[..., nn.Module]) -> Any:
        """What ``load(directory, teacher=…)`` makes of a directory of one of these stages.

        Raises:
            ArtifactError: if the directory is not in order, or its student is another teacher's.
        """
        path = self.runs / model
        artifact = Artifact.open(path, stages, "model")
        if path not in self._opened:
            self._check_origin(artifact)
            self._opened[path] = load(path, teacher=self.teacher).to(self.device)
        return self._opened[path]

    def sample_as_distilled(self, models: list[str]) -> None:
        """Guide and truncate the teacher as the loss of the first of these models did that says so."""
        told = (distilled_with(Artifact.open(self.runs / model, STAGES, "model")) for model in models)
        self.sampling = self.teacher.sampling_type(**next(filter(None, told), {}))

    def _check_origin(self, student: Artifact) -> None:
        check_hash(self.origin, student.config["teacher"]["sha256"], str(student.directory))
        scale = distilled_with(student).get("guidance_scale", self.sampling.guidance_scale)
        if scale != self.sampling.guidance_scale:
            warnings.warn(
                f"{student.directory} was distilled with guidance_scale {scale}, "
                f"the teacher is evaluated with {self.sampling.guidance_scale}",
                stacklevel=5,
            )


def distilled_with(student: Artifact) -> dict[str, Any]:
    """Guidance and truncation inside the loss of a model; empty if its stage has none."""
    return student.config.get("settings", {}).get("teacher_sampling") or {}


@dataclass(frozen=True, kw_only=True)
class Entry(ABC):
    """A contender as a config names it.

    Attributes:
        name: its row in the table; by default it says what it is.
    """

    name: str | None = None
    snapped: ClassVar[bool] = False

    @property
    def core(self) -> "Entry":
        """The entry without what does not change the tokens that are drawn."""
        return replace(self, name=None)

    def missing(self, models: Models) -> bool:
        """Whether it is left out."""
        return False

    @abstractmethod
    def contender(self, models: Models) -> Contender:
        """The contender itself, unsnapped, under its default name.

        Raises:
            ValueError: for settings that the teacher does not allow.
        """


class Teacher(Entry):
    """The teacher at its full number of steps."""

    def contender(self, models: Models) -> Contender:
        """See :meth:`Entry.contender`."""
        return TeacherContender(models.teacher, models.sampling)


class Independent(Entry):
    """One step of independent tokens."""

    def contender(self, models: Models) -> Contender:
        """See :meth:`Entry.contender`."""
        return IndependentContender(models.teacher)


@dataclass(frozen=True, kw_only=True)
class Skip(Entry):
    """The teacher stops early, the rest is independent tokens.

    Attributes:
        skipped: positions that are not the teacher's.
    """

    skipped: int

    def contender(self, models: Models) -> Contender:
        """See :meth:`Entry.contender`."""
        return SkipContender(models.teacher, self.skipped, models.sampling)


class Real(Entry):
    """Real pictures."""

    def contender(self, models: Models) -> Contender:
        """See :meth:`Entry.contender`."""
        images, labels = load_digits_images()
        return RealData(models.teacher, images.to(models.device), labels.to(models.device))


@dataclass(frozen=True, kw_only=True)
class Distilled(Entry):
    """A model that was distilled from the teacher; its tokens are continuous.

    Attributes:
        model: directory of its finished stage.
        snapped: whether tokens become their nearest codes before they are decoded.
        optional: while the stage has not finished, leave it out and say so.
    """

    model: str
    snapped: bool = False
    optional: bool = False

    @property
    def core(self) -> Entry:
        """See :meth:`Entry.core`."""
        return replace(self, name=None, snapped=False, optional=False)

    def missing(self, models: Models) -> bool:
        """Whether it may be left out, and has to."""
        return self.optional and not (models.runs / self.model / "config.json").is_file()


class OneStep(Distilled):
    """DD2 in one step."""

    def contender(self, models: Models) -> Contender:
        """See :meth:`Entry.contender`."""
        return OneStepContender(models.teacher, models.open(self.model, ("csd", "align"), load_generator))


@dataclass(frozen=True, kw_only=True)
class Refined(Distilled):
    """DD2, its last positions drawn again by the teacher.

    Attributes:
        steps: in all: the one step and one a position that is drawn again.
    """

    steps: int

    def contender(self, models: Models) -> Contender:
        """See :meth:`Entry.contender`."""
        generator = models.open(self.model, ("csd", "align"), load_generator)
        return RefinedContender(models.teacher, generator, self.steps, models.sampling)


@dataclass(frozen=True, kw_only=True)
class DD1(Distilled):
    """Distilled Decoding 1; either ``steps`` or ``start``.

    Attributes:
        steps: 1 or 2.
        start: with the teacher in the middle: the first position, from 0, that it draws before the second call.
        split: how many positions come out as codes; by default as it was trained.
    """

    steps: int | None = None
    start: int | None = None
    split: int | None = None

    def contender(self, models: Models) -> Contender:
        """See :meth:`Entry.contender`."""
        generator = models.open(self.model, ("dd1",), load_generator)
        return DD1Contender(models.teacher, generator, self.steps, self.start, self.split, models.sampling)


@dataclass(frozen=True, kw_only=True)
class ARDiffusion(Distilled):
    """The AR-diffusion model of stage 1.

    Attributes:
        euler_steps: for each position.
    """

    euler_steps: int = 10

    def contender(self, models: Models) -> Contender:
        """See :meth:`Entry.contender`."""
        return ARDiffusionContender(models.teacher, models.open(self.model, ("init",), load_init), self.euler_steps)


KINDS: dict[str, type[Entry]] = {
    "teacher": Teacher,
    "one_step": OneStep,
    "refined": Refined,
    "ar_diffusion": ARDiffusion,
    "dd1": DD1,
    "independent": Independent,
    "skip": Skip,
    "real": Real,
}


def place(number: int, kind: str) -> str:
    """How messages name an entry."""
    return f"contenders[{number}] ({kind})"


def read_entries(contenders: list[dict[str, Any]]) -> dict[str, Entry]:
    """Check what a config lists, before anything is opened.

    Args:
        contenders: a dictionary an entry: ``kind`` and the fields of its dataclass.

    Returns:
        Where an entry stands, for messages, to the entry.

    Raises:
        ValueError: for an unknown kind or key, a missing key or a value of another type, naming entry and key; and
            unless there is exactly one teacher.
    """
    entries = {}
    for number, given in enumerate(contenders):
        kind = given.get("kind")
        if kind not in KINDS:
            raise ValueError(f"contenders[{number}].kind must be one of {', '.join(KINDS)}, got {kind!r}")
        entries[place(number, kind)] = read_entry(place(number, kind), KINDS[kind], given)
    teachers = sum(isinstance(entry, Teacher) for entry in entries.values())
    if teachers != 1:
        raise ValueError(f"contenders: one of kind teacher is what the others are compared with, got {teachers}")
    return entries


def read_entry(where: str, kind: type[Entry], given: dict[str, Any]) -> Entry:
    """One entry; see :func:`read_entries`."""
    keys = [field.name for field in fields(kind)]
    values = {key: value for key, value in given.items() if key != "kind"}
    for key in values:
        if key not in keys:
            raise ValueError(f"{where}: unknown key '{key}'; there are: {', '.join(keys)}")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind)
    try:
        return kind(**parser.parse_object(values).as_dict())
    except ArgumentError as error:
        raise ValueError(f"{where}: {' '.join(str(error).split())}") from None


def line_up(entries: dict[str, Entry], models: Models) -> list[Contender]:
    """Open everything that is compared.

    Entries that differ in ``snapped`` only share the contender that samples.

    Args:
        entries: see :func:`read_entries`.
        models: teacher and directories.

    Returns:
        The contenders, in order; entries that are left out are printed.

    Raises:
        ArtifactError: for a directory that is not in order, naming the entry.
        ValueError: for settings that the teacher does not allow, and for a name that is taken, naming the entry.
    """
    sources: dict[Entry, Contender] = {}
    taken: dict[str, str] = {}
    contenders = []
    for where, entry in entries.items():
        if entry.missing(models):
            print(f"{where} is left out: {models.runs / entry.model} is not finished")
            continue
        try:
            if entry.core not in sources:
                sources[entry.core] = entry.contender(models)
        except ArtifactError as error:
            raise ArtifactError(f"{where}: {error}") from error
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        contender = SnappedContender(sources[entry.core]) if entry.snapped else sources[entry.core]
        if contender in contenders:
            raise ValueError(f"{where}: it is listed already, as {taken[contender.name]}")
        contender.name = entry.name or contender.name
        if contender.name in taken:
            raise ValueError(
                f"{where}: the name '{contender.name}' is that of {taken[contender.name]}; give it another"
            )
        taken[contender.name] = where
        contenders.append(contender)
    return contenders


ONE_STEP = [{"kind": "one_step"}, {"kind": "one_step", "snapped": True}]
STANDARD = {
    "init": [{"kind": "ar_diffusion"}],
    "csd": ONE_STEP,
    "align": ONE_STEP,
    "dd1": [{"kind": "dd1", "steps": 1}, {"kind": "dd1", "steps": 2}],
}
"""How the models that stages leave are sampled when no config says so."""

STAGES = tuple(STANDARD)


def standard_line_up(models: list[str]) -> list[dict[str, Any]]:
    """What a config would list for these models: each as its stage is sampled, between the baselines.

    Args:
        models: directories of finished stages.

    Raises:
        ArtifactError: if one is no such directory.
    """
    contenders = [{"kind": "teacher"}]
    for model in models:
        stage = Artifact.open(model, STAGES, "--models").config["stage"]
        contenders += [{**entry, "model": model} for entry in STANDARD[stage]]
    return [*contenders, {"kind": "independent"}, {"kind": "real"}]
