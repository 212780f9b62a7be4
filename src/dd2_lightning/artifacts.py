"""The directory that a stage writes: safetensors and one ``config.json``.

========== ============================================================================ ==================
stage      files                                                                        read by
========== ============================================================================ ==================
teacher    ``teacher.safetensors``                                                      every later stage
init       ``student.safetensors``                                                      csd
csd, align ``generator.safetensors`` (EMA), ``generator_raw.safetensors``, ``guidance.…`` align, users
dd1        ``generator.safetensors`` (EMA), ``generator_raw.safetensors``               users
========== ============================================================================ ==================

``config.json`` holds settings and provenance and is written last, so a directory that has one is complete. A student's
directory names its teacher by relative path and hash.
"""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dd2_lightning.errors import ArtifactError
from dd2_lightning.families.registry import family_of, teacher_from_config
from dd2_lightning.files import atomic_path, sha256, write_atomically
from dd2_lightning.models.codebook_teacher import CodebookTeacher
from dd2_lightning.models.dd1 import DD1Student
from dd2_lightning.models.dd1_generator import DD1Generator
from dd2_lightning.models.generator import Generator, OneStepGenerator
from dd2_lightning.models.student import Student, build_student
from dd2_lightning.models.teacher import Teacher

FORMAT = 1

REQUIRED = {
    "teacher": ("family", "architecture"),
    "init": ("family", "teacher", "head"),
    "csd": ("family", "teacher", "head", "head_time"),
    "align": ("family", "teacher", "head", "head_time"),
    "dd1": ("family", "teacher", "split", "second"),
}
"""Keys of ``config.json`` without which a directory cannot be read, by stage."""


def state_hash(module: nn.Module) -> str:
    """Hash of a network's parameters and buffers: names, types, shapes and values, on any device."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


@dataclass
class Artifact:
    """A stage's directory, and the contents of its ``config.json``."""

    directory: Path
    config: dict[str, Any]

    @classmethod
    def open(cls, directory: str | Path, stages: tuple[str, ...], purpose: str) -> "Artifact":
        """Read ``config.json``, which must be of one of the ``stages``; for errors, ``purpose`` is what names it."""
        directory = Path(directory)
        path = directory / "config.json"
        if not path.is_file():
            if directory.is_dir():
                state = "is not finished or no stage's directory: it has no config.json"
            else:
                state = "is a file" if directory.exists() else "does not exist"
            raise ArtifactError(
                f"{purpose}: {directory} {state}. It must be the directory of a finished {' or '.join(stages)} stage"
                f" (dd2 fit --config configs/{stages[0]}_….yaml makes one)."
            )
        try:
            config = json.loads(path.read_text())
            stage, version = config["stage"], config["format"]
        except KeyError as error:
            raise ArtifactError(f"{purpose}: {path} has no key {error}; run its stage again") from error
        except (ValueError, TypeError, OSError) as error:
            raise ArtifactError(f"{purpose}: {path} is damaged ({error}); run its stage again") from error
        if version != FORMAT:
            raise ArtifactError(f"{purpose}: {path} has format {version}, this version reads format {FORMAT}")
        if stage not in stages:
            raise ArtifactError(f"{purpose}: {directory} comes from stage '{stage}', needed: {' or '.join(stages)}")
        missing = [key for key in REQUIRED[stage] if key not in config]
        if missing:
            raise ArtifactError(f"{purpose}: {path} has no key '{missing[0]}'; run its stage again")
        return cls(directory, config)

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The tensors of ``NAME.safetensors``; an ``ArtifactError`` if it is missing or truncated."""
        path = self.directory / f"{name}.safetensors"
        if not path.is_file():
            raise ArtifactError(f"{path} is missing; run stage '{self.config['stage']}' again")
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise ArtifactError(f"{path} is truncated or damaged ({error}); run its stage again") from error

    def load_into(self, module: nn.Module, name: str) -> None:
        """Fill a module from ``NAME.safetensors``; an ``ArtifactError`` lists keys and shapes that do not fit."""
        tensors = self.tensors(name)
        problems = difference(module.state_dict(), tensors)
        if problems:
            raise ArtifactError(f"{self.directory / name}.safetensors does not fit the model: {problems}")
        module.load_state_dict(tensors)

    def teacher_path(self) -> Path:
        """Directory of the teacher that this student was distilled from; see :func:`check_hash`."""
        reference = self.config["teacher"]
        directory = Path(os.path.normpath(self.directory / reference["path"]))
        teacher = Artifact.open(directory, ("teacher",), f"teacher of {self.directory}")
        check_hash(teacher, reference["sha256"], str(self.directory))
        return directory


def check_hash(teacher: Artifact, expected: str, reader: str) -> None:
    """Refuse a teacher that changed since ``reader`` was made from it, with an ``ArtifactError``."""
    path = teacher.directory / "teacher.safetensors"
    if not path.is_file() or sha256(path) != expected:
        raise ArtifactError(f"{path} is not the teacher that {reader} was made from; run the stages after it again")


def check_family(student: Artifact, teacher: Teacher) -> None:
    """Refuse a student whose teacher was of another family, with an ``ArtifactError``."""
    if student.config["family"] != family_of(teacher):
        raise ArtifactError(
            f"{student.directory} holds a student of family '{student.config['family']}', "
            f"the teacher is of family '{family_of(teacher)}'"
        )


def difference(wanted: dict[str, Tensor], found: dict[str, Tensor]) -> str:
    """Describe in one line how the keys and shapes of a state dict differ from a model's; empty if they do not."""
    report = []
    shapes = {key: (tuple(found[key].shape), tuple(value.shape)) for key, value in wanted.items() if key in found}
    mismatched = [key for key, (theirs, ours) in shapes.items() if theirs != ours]
    if mismatched:
        theirs, ours = shapes[mismatched[0]]
        report.append(f"{len(mismatched)} mismatched, first {mismatched[0]}: it is {theirs}, the model has {ours}")
    missing = [key for key in wanted if key not in found]
    unexpected = [key for key in found if key not in wanted]
    for what, keys in (("missing", missing), ("unexpected", unexpected)):
        if keys:
            report.append(f"{len(keys)} {what}: {', '.join(keys[:4])}{', …' if len(keys) > 4 else ''}")
    return "; ".join(report)


def write_artifact(
    directory: str | Path, stage: str, config: dict[str, Any], states: dict[str, dict[str, Tensor]]
) -> None:
    """Write a stage's directory: ``states``, file name without ending to state dict, then ``config.json``.

    An ``ArtifactError`` says what cannot be written; there is no ``config.json`` then.
    """
    directory = Path(directory)
    text = json.dumps({"format": FORMAT, "stage": stage, **config}, indent=2, ensure_ascii=False)
    (directory / "config.json").unlink(missing_ok=True)
    for name, state in states.items():
        tensors = {key: value.detach().cpu().contiguous() for key, value in state.items()}
        with atomic_path(directory / f"{name}.safetensors") as temporary:  # the largest need not fit twice
            save_file(tensors, temporary)
    write_atomically(directory / "config.json", text.encode())


def teacher_reference(teacher: Artifact, directory: str | Path) -> dict[str, str]:
    """The reference to a teacher in a student's directory: relative path and hash."""
    hashed = sha256(teacher.directory / "teacher.safetensors")
    return {"path": os.path.relpath(teacher.directory, directory), "sha256": hashed}


def write_teacher(directory: str | Path, teacher: Teacher, **provenance: Any) -> None:
    """Write a teacher's directory."""
    config = {"family": family_of(teacher), "architecture": teacher.config, **provenance}
    write_artifact(directory, "teacher", config, {"teacher": teacher.state_dict()})


def load_teacher(directory: str | Path) -> CodebookTeacher:
    """Open a teacher: frozen, in evaluation mode, on the CPU.

    An ``ArtifactError`` refuses a directory that is not a finished teacher's, or of an unknown family. A teacher
    without a codebook is opened too; code that needs the codebook calls ``require_codebook``.
    """
    artifact = Artifact.open(directory, ("teacher",), "teacher")
    try:
        teacher = teacher_from_config(artifact.config["family"], artifact.config["architecture"])
    except (ValueError, TypeError) as error:
        raise ArtifactError(f"{artifact.directory / 'config.json'}: {error}") from error
    artifact.load_into(teacher, "teacher")
    return cast(CodebookTeacher, teacher.requires_grad_(False).eval())


def load_student(artifact: Artifact, teacher: Teacher, name: str = "student") -> Student | DD1Student:
    """Build the student of an artifact, of DD2 or of DD1, and fill it from one of its files."""
    check_family(artifact, teacher)
    is_dd1 = artifact.config["stage"] == "dd1"
    student: Student | DD1Student
    student = teacher.dd1_student() if is_dd1 else build_student(teacher, **artifact.config["head"])
    artifact.load_into(student, name)
    return student


def load_init(directory: str | Path, teacher: CodebookTeacher | None = None) -> Student:
    """Open the AR-diffusion model of stage 1."""
    artifact = Artifact.open(directory, ("init",), "AR-diffusion model")
    student = load_student(artifact, teacher or load_teacher(artifact.teacher_path()))
    assert isinstance(student, Student)
    return student.requires_grad_(False).eval()


def load_generator(directory: str | Path, weights: str = "ema", teacher: CodebookTeacher | None = None) -> Generator:
    """Open the generator of a finished csd, align or dd1 stage: frozen, in evaluation mode, on the CPU.

    Its weights are ``ema``, those that are evaluated and published, or ``raw``. It decodes with the tokenizer of its
    teacher, which may be open already. An ``ArtifactError`` says what is not in order.
    """
    artifact = Artifact.open(directory, ("csd", "align", "dd1"), "generator")
    teacher = teacher or load_teacher(artifact.teacher_path())
    student = load_student(artifact, teacher, {"ema": "generator", "raw": "generator_raw"}[weights])
    generator: Generator
    if isinstance(student, DD1Student):
        generator = DD1Generator(student, teacher.tokenizer, artifact.config["split"], artifact.config["second"])
    else:
        generator = OneStepGenerator(student, teacher.tokenizer, artifact.config["head_time"])
    return generator.requires_grad_(False).eval()
