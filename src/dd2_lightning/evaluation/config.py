"""The samplers that a config lists, checked before anything is opened and opened before anything is drawn.

An entry, ``{kind: refined, model: align, steps: 2}``, has the fields of its kind; see configs/evaluate_var.yaml.
"""

import warnings
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentError, ArgumentParser
from torch import nn

from dd2_lightning.artifacts import Artifact, check_hash, load_generator, load_init, load_teacher
from dd2_lightning.data.images import ImageData
from dd2_lightning.data.named import Named, images_of, open_images
from dd2_lightning.errors import ArtifactError
from dd2_lightning.evaluation.baselines import IndependentSampler, RealImages, SkipSampler
from dd2_lightning.evaluation.samplers import (
    ARDiffusionSampler,
    DD1Sampler,
    DistilledSampler,
    OneStepSampler,
    RefinedSampler,
    Sampler,
    TeacherSampler,
    setting_names,
)
from dd2_lightning.metrics.warning import SampleWarning
from dd2_lightning.remote import HubModel
from dd2_lightning.sampling import Sampling

Entry = dict[str, Any]  # a sampler as a config lists it

SAMPLERS: tuple[type[Sampler], ...] = (
    *(TeacherSampler, OneStepSampler, RefinedSampler, ARDiffusionSampler, DD1Sampler),
    *(IndependentSampler, SkipSampler, RealImages),
)
KINDS = {sampler.kind: sampler for sampler in SAMPLERS}

ONE_STEP: list[Entry] = [{"kind": "one_step"}, {"kind": "one_step", "snapped": True}]
STANDARD: dict[str, list[Entry]] = {
    "init": [{"kind": "ar_diffusion"}],
    "csd": ONE_STEP,
    "align": ONE_STEP,
    "frechet": ONE_STEP,
    "dd1": [{"kind": "dd1", "steps": 1}, {"kind": "dd1", "steps": 2}],
}
"""How the models of each stage are sampled when no config says so."""

STAGES = tuple(STANDARD)


class Models:
    """A teacher and the models that were distilled from it, in directories relative to ``runs``, each opened once.

    ``data`` are the images that the teacher was trained on; by default as its ``config.json`` says.
    """

    def __init__(
        self,
        teacher: str | Path,
        runs: str | Path = ".",
        sampling: Sampling | None = None,
        device: torch.device | str = "cpu",
        data: Named | None = None,
    ):
        self.origin = Artifact.open(teacher, ("teacher",), "teacher")
        self.teacher = load_teacher(teacher).to(device)
        self.runs, self.sampling, self.device = Path(runs), sampling or Sampling(), device
        self.data = data
        self._opened: dict[str | Path, nn.Module] = {}

    @cached_property
    def images(self) -> ImageData:
        """The images that the teacher was trained on; a ValueError if their size or number of classes is another."""
        images = open_images(self.data) if self.data else images_of(self.origin.directory, self.origin.config)
        found = images.num_classes, tuple(images.image_shape)
        wanted = self.teacher.num_classes, self.image_shape
        if found != wanted:
            sizes = "{} classes of {}".format
            raise ValueError(f"data: the images are {sizes(*found)}, the teacher makes {sizes(*wanted)}")
        return images

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Channels, height and width of the teacher's images."""
        tokens = self.teacher.embed(torch.zeros(1, self.teacher.layout.length, dtype=torch.long, device=self.device))
        return tuple(self.teacher.decode(tokens).shape[1:])

    def open(self, model: str, stages: tuple[str, ...]) -> nn.Module:
        """Open the network of a directory that comes from one of these stages and was distilled from this teacher."""
        path = self.locate(model)
        artifact = Artifact.open(path, stages, "model")
        if path not in self._opened:
            self._check_origin(artifact)
            load = load_init if artifact.config["stage"] == "init" else load_generator
            self._opened[path] = load(path, teacher=self.teacher).to(self.device)
        return self._opened[path]

    def locate(self, model: str) -> str | Path:
        """The directory of a model in ``runs``, or its name where it is one on the Hub."""
        path = self.runs / model
        return model if not path.exists() and HubModel.named(model) else path

    def sample_as_distilled(self, models: list[str]) -> None:
        """Guide and truncate the teacher as the loss of the first of these models did that says so."""
        settings = (distilled_with(Artifact.open(self.locate(model), STAGES, "model")) for model in models)
        self.sampling = self.teacher.sampling_type(**next(filter(None, settings), {}))

    def _check_origin(self, student: Artifact) -> None:
        check_hash(self.origin, student.config["teacher"]["sha256"], str(student))
        scale = distilled_with(student).get("guidance_scale", self.sampling.guidance_scale)
        if scale != self.sampling.guidance_scale:
            distilled = f"{student} was distilled with guidance_scale {scale}"
            evaluated = f"the teacher is evaluated with {self.sampling.guidance_scale}"
            warnings.warn(f"{distilled}, {evaluated}", SampleWarning, stacklevel=5)


def distilled_with(student: Artifact) -> dict[str, Any]:
    """Guidance and truncation inside the loss of a model; empty if its stage has none."""
    return student.config.get("settings", {}).get("teacher_sampling") or {}


def read_samplers(entries: list[Entry]) -> dict[str, Sampler]:
    """Read the samplers of a config before anything is opened: place in the config, for messages, to sampler.

    An unknown kind or key, a missing key, a value of another type or another number of teachers than one is a
    ValueError, which names entry and key.
    """
    samplers = {}
    for number, entry in enumerate(entries):
        kind = entry.get("kind")
        if kind not in KINDS:
            raise ValueError(f"samplers[{number}].kind must be one of {', '.join(KINDS)}, got {kind!r}")
        where = f"samplers[{number}] ({kind})"
        samplers[where] = read_sampler(where, KINDS[kind], entry)
    teachers = sum(isinstance(sampler, TeacherSampler) for sampler in samplers.values())
    if teachers != 1:
        raise ValueError(f"samplers: one of kind teacher is what the others are compared with, got {teachers}")
    return samplers


def read_sampler(where: str, kind: type[Sampler], entry: Entry) -> Sampler:
    """Read one entry; see :func:`read_samplers`."""
    known, values = setting_names(kind), {key: value for key, value in entry.items() if key != "kind"}
    if unknown := [key for key in values if key not in known]:
        raise ValueError(f"{where}: unknown key '{unknown[0]}'; there are: {', '.join(known)}")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind)
    try:
        return kind(**parser.parse_object(values).as_dict())
    except ArgumentError as error:
        raise ValueError(f"{where}: {' '.join(str(error).split())}") from None


def open_samplers(samplers: dict[str, Sampler], models: Models) -> list[Sampler]:
    """Open the networks of all samplers; optional ones whose stage has not finished are left out with a message.

    A directory that is not in order is an ArtifactError; settings that the teacher does not allow, a sampler that is
    listed twice and a name that is taken are a ValueError. They name the entry.
    """
    opened: dict[str, Sampler] = {}
    for where, sampler in samplers.items():
        if isinstance(sampler, DistilledSampler) and sampler.optional:
            directory = models.runs / str(sampler.model)
            if not (directory / "config.json").is_file():
                print(f"{where} is left out: {directory} is not finished")
                continue
        named = bool(sampler.name)
        try:
            if isinstance(sampler, RealImages):
                sampler.data = models.images
            sampler.bind(models.teacher, models.sampling, models.open)
        except ArtifactError as error:
            raise ArtifactError(f"{where}: {error}") from error
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        for other, earlier in opened.items():
            if earlier.key == sampler.key:
                if earlier.snapped == sampler.snapped:
                    raise ValueError(f"{where}: it is listed already, as {other}")
                if sampler.snapped and not named:
                    sampler.name = f"{earlier.name} snapped"
        for other, earlier in opened.items():
            if earlier.name == sampler.name:
                raise ValueError(f"{where}: the name '{sampler.name}' is that of {other}; give it another")
        opened[where] = sampler
    return list(opened.values())


def standard_samplers(models: list[str], real: bool) -> list[Entry]:
    """Entries of a config for these directories: each as its stage is sampled, between baselines and real images."""
    entries: list[Entry] = [{"kind": "teacher"}]
    for model in models:
        stage = Artifact.open(model, STAGES, "--models").config["stage"]
        entries += [{**entry, "model": model} for entry in STANDARD[stage]]
    return [*entries, {"kind": "independent"}, *([{"kind": "real"}] if real else [])]
