"""The directory that a stage writes: safetensors and one ``config.json``.

========== ============================================================================== =====================
stage      files                                                                          read by
========== ============================================================================== =====================
teacher    ``teacher.safetensors``                                                        every later stage
init       ``student.safetensors``                                                        csd
csd, align ``generator.safetensors`` (EMA), ``generator_raw.safetensors``, ``guidance.…`` align, frechet, users
frechet    ``generator.safetensors`` (EMA), ``generator_raw.safetensors``                 users
dd1        ``generator.safetensors`` (EMA), ``generator_raw.safetensors``                 users
========== ============================================================================== =====================

``config.json`` holds settings and provenance and is written last, so a directory that has one is complete. A student's
directory names its teacher by hash, and by relative path or, where it came from the Hub, by name and commit.

An *exported* directory (:mod:`dd2_lightning.hub.export`) needs no teacher: it has ``tokenizer.safetensors`` and the
teacher's sizes, and ``config.json`` lists its files with their checksums, which are verified. Wherever a directory is
taken, so is the name of a model on the Hub, ``user/name`` or ``user/name@revision``, whose files are fetched when they
are read.
"""

import hashlib
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from dd2_lightning.errors import ArtifactError, first_line
from dd2_lightning.families.registry import FAMILIES, family_of, teacher_from_config
from dd2_lightning.files import atomic_path, sha256, write_atomically
from dd2_lightning.models.codebook_teacher import CodebookTeacher
from dd2_lightning.models.dd1 import DD1Student
from dd2_lightning.models.dd1_generator import DD1Generator
from dd2_lightning.models.generator import Generator, OneStepGenerator
from dd2_lightning.models.student import Student, build_student
from dd2_lightning.models.teacher import Teacher
from dd2_lightning.models.tokenizer import Tokenizer
from dd2_lightning.remote import HubModel, at_revision

FORMAT = 1

REQUIRED = {
    "teacher": ("family", "architecture"),
    "init": ("family", "teacher", "head"),
    "csd": ("family", "teacher", "head", "head_time"),
    "align": ("family", "teacher", "head", "head_time"),
    "frechet": ("family", "teacher", "head", "head_time", "features"),
    "dd1": ("family", "teacher", "split", "second"),
}
"""Keys of ``config.json`` without which a directory cannot be read, by stage."""

KINDS: dict[str, Any] = {
    **dict.fromkeys(("architecture", "teacher", "head", "files"), dict),
    **{"family": str, "head_time": (int, float), "split": int, "second": int},
}
"""Types of their values, where it matters."""


def read_config(path: Path) -> dict[str, Any]:
    """Read a ``config.json``, with what version 0.1 called octaves under its present name."""
    return json.loads(path.read_text().replace('"octaves"', '"frequencies"'))


def state_hash(module: nn.Module) -> str:
    """Hash of a network's parameters and buffers: names, types, shapes and values, on any device."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


@dataclass
class Artifact:
    """A stage's directory, and the contents of its ``config.json``.

    One of the Hub (``hub``, at the commit that was opened) is a directory of its cache, in which files appear when they
    are asked for.
    """

    directory: Path
    config: dict[str, Any]
    hub: HubModel | None = None

    @classmethod
    def open(cls, directory: str | Path, stages: tuple[str, ...], purpose: str) -> "Artifact":
        """Read ``config.json``, which must be of one of the ``stages``; for errors, ``purpose`` is what names it."""
        directory, hub = Path(directory), HubModel.named(directory)
        path = directory / "config.json" if hub is None else hub.fetch("config.json", purpose)
        if not path.is_file():
            if directory.is_dir():
                state = "is not finished or no stage's directory: it has no config.json"
            else:
                state = "is a file" if directory.exists() else "does not exist"
            raise ArtifactError(
                f"{purpose}: {directory} {state}. It must be the directory of a finished {' or '.join(stages)} stage"
                f" (dd2 fit --config configs/{stages[0]}_….yaml makes one) or a model on the Hub (user/name)."
            )
        name = str(hub or directory)
        advice = "it is no model of dd2-lightning" if hub else "run its stage again"
        try:
            config = read_config(path)
            stage, version = config["stage"], config["format"]
        except KeyError as error:
            raise ArtifactError(f"{purpose}: {name}/config.json has no key {error}; {advice}") from error
        except (ValueError, TypeError, OSError) as error:
            raise ArtifactError(f"{purpose}: {name}/config.json is damaged ({error}); {advice}") from error
        if version != FORMAT:
            raise ArtifactError(f"{purpose}: {name} has format {version}, this version reads format {FORMAT}")
        if stage not in stages:
            raise ArtifactError(f"{purpose}: {name} comes from stage '{stage}', needed: {' or '.join(stages)}")
        needed = {**dict.fromkeys(REQUIRED[stage], config), **({"files": config} if hub else {})}
        if "files" in config and "teacher" in needed:
            needed["architecture"] = config["teacher"]
        for key, holder in needed.items():
            if key not in holder or not isinstance(holder[key], KINDS.get(key, object)):
                raise ArtifactError(f"{purpose}: {name}/config.json has no key '{key}' or a wrong one; {advice}")
        if hub is None:
            return cls(directory, config)
        check_downloaded_family(config["family"], f"{purpose}: {name}")
        return cls(path.parent, config, hub.at(path.parent.name))

    def __str__(self) -> str:
        return str(self.hub or self.directory)

    def file(self, name: str) -> Path:
        """Path of ``NAME.safetensors``, fetched from the Hub if need be.

        An ``ArtifactError`` if it is missing, or if ``config.json`` knows another checksum of it.
        """
        path = self.directory / f"{name}.safetensors"
        if self.hub is not None:
            path = self.hub.fetch(path.name, path.name)
        if not path.is_file():
            advice = "it was exported without it" if self.exported else f"run stage '{self.config['stage']}' again"
            raise ArtifactError(f"{path} is missing; {advice}")
        if self.exported and sha256(path) != self.config["files"].get(path.name):
            raise ArtifactError(f"{path} is damaged: its SHA-256 is not that in config.json; get the file again")
        return path

    @property
    def exported(self) -> bool:
        """Whether the directory lists its files and, if it is a student's, can be opened without its teacher."""
        return "files" in self.config

    def tensors(self, name: str, prefix: str = "") -> dict[str, Tensor]:
        """The tensors of ``NAME.safetensors``; an ``ArtifactError`` if it is missing or truncated.

        With a ``prefix`` those whose keys begin with it, which is taken off.
        """
        path = self.file(name)
        try:
            with safe_open(path, "pt") as file:
                keys = [key for key in file.keys() if key.startswith(prefix)]  # noqa: SIM118  (it is no dictionary)
                return {key.removeprefix(prefix): file.get_tensor(key) for key in keys}
        except (SafetensorError, OSError) as error:
            raise ArtifactError(f"{path} is truncated or damaged ({error}); run its stage again") from error

    def load_into(self, module: nn.Module, name: str) -> None:
        """Fill a module from ``NAME.safetensors``; an ``ArtifactError`` lists keys and shapes that do not fit."""
        tensors, wanted = self.tensors(name), module.state_dict()
        problems = difference(wanted, tensors)
        if problems:
            raise ArtifactError(f"{self.directory / name}.safetensors does not fit the model: {problems}")
        assign = any(value.is_meta for value in wanted.values())
        if assign:  # in memory as aligned as a network's own, on which the last bit of a product depends
            tensors = {key: tensors.pop(key).clone() for key in wanted}
        module.load_state_dict(tensors, assign=assign)

    def teacher_path(self) -> str | Path:
        """Directory, or name on the Hub, of the teacher that this student was distilled from; see :func:`check_hash`.

        An ``ArtifactError`` if the student was exported without it.
        """
        found = self.referenced("teacher")
        if found is None:
            raise ArtifactError(f"{self} was exported without its teacher: name the teacher's directory, too")
        teacher = Artifact.open(found, ("teacher",), f"teacher of {self}")
        check_hash(teacher, self.config["teacher"]["sha256"], str(self))
        return found

    def referenced(self, key: str) -> str | Path | None:
        """Directory or name on the Hub that a :func:`teacher_reference` means; None if it means neither."""
        reference = self.config.get(key) or {}
        if "path" in reference:
            return Path(os.path.normpath(self.directory / reference["path"]))
        return reference.get("hub")


def check_downloaded_family(family: str, name: str) -> None:
    """Refuse to import a module that a downloaded file names, unless its user has imported it already."""
    module = family.rpartition(".")[0]
    if family not in FAMILIES and module not in sys.modules:
        raise ArtifactError(
            f"{name} is of family '{family}', a class of its author's. If you have and trust it, import {module} "
            f"first, or download the files (hf download) and name their directory"
        )


def check_hash(teacher: Artifact, expected: str, reader: str) -> None:
    """Refuse a teacher that changed since ``reader`` was made from it, with an ``ArtifactError``."""
    path = teacher.directory / "teacher.safetensors"
    if (teacher.hub is None and not path.is_file()) or sha256(teacher.file("teacher")) != expected:
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
    """The reference to a teacher in a student's directory: relative path, or name on the Hub, and hash."""
    where = {"hub": str(teacher.hub)} if teacher.hub else {"path": os.path.relpath(teacher.directory, directory)}
    return {**where, "sha256": sha256(teacher.file("teacher"))}


def write_teacher(directory: str | Path, teacher: Teacher, **provenance: Any) -> None:
    """Write a teacher's directory."""
    config = {"family": family_of(teacher), "architecture": teacher.config, **provenance}
    write_artifact(directory, "teacher", config, {"teacher": teacher.state_dict()})


def load_teacher(directory: str | Path, revision: str | None = None) -> CodebookTeacher:
    """Open a teacher: frozen, in evaluation mode, on the CPU.

    The directory is that of a finished teacher or adapt stage, or ``user/name`` of a model on the Hub, at a
    ``revision``: branch, tag or commit; an ``ArtifactError`` says what is not in order. A teacher without a codebook is
    opened too; code that needs the codebook calls ``require_codebook``.
    """
    artifact = Artifact.open(at_revision(directory, revision), ("teacher",), "teacher")
    with sizes_of(artifact):
        teacher = teacher_from_config(artifact.config["family"], artifact.config["architecture"])
    artifact.load_into(teacher, "teacher")
    return cast(CodebookTeacher, teacher.requires_grad_(False).eval())


@contextmanager
def sizes_of(artifact: Artifact) -> Iterator[None]:
    """Context in which networks are built: an ``ArtifactError`` says that an artifact's sizes make none."""
    try:
        yield
    except (ValueError, TypeError, RuntimeError) as error:
        raise ArtifactError(f"{artifact}/config.json: {first_line(error)}") from error


def new_student(artifact: Artifact, teacher: Teacher) -> Student | DD1Student:
    """The student of an artifact, of DD2 or of DD1, with fresh weights."""
    check_family(artifact, teacher)
    if artifact.config["stage"] == "dd1":
        return teacher.dd1_student()
    return build_student(teacher, **artifact.config["head"])


def load_networks(artifact: Artifact, teacher: Teacher | None, name: str) -> tuple[Student | DD1Student, Tokenizer]:
    """A student, filled from one of its files, and its teacher's tokenizer, which it has itself if it was exported."""
    if teacher is None and not artifact.exported:
        teacher = load_teacher(artifact.teacher_path())
    if teacher is not None:
        student = new_student(artifact, teacher)
        artifact.load_into(student, name)
        return student, teacher.tokenizer
    for device in ("meta", "cpu"):  # the second for networks with constants that no file holds
        with torch.device(device), sizes_of(artifact):
            shapes = teacher_from_config(artifact.config["family"], artifact.config["teacher"]["architecture"])
            student, tokenizer = new_student(artifact, shapes), shapes.tokenizer
        artifact.load_into(student, name)
        artifact.load_into(tokenizer, "tokenizer")
        tensors = chain.from_iterable((*part.parameters(), *part.buffers()) for part in (student, tokenizer))
        if not any(tensor.is_meta for tensor in tensors):
            break
    return student, tokenizer


def load_init(directory: str | Path, teacher: CodebookTeacher | None = None, revision: str | None = None) -> Student:
    """Open the AR-diffusion model of stage 1; arguments are those of :func:`load_generator`."""
    artifact = Artifact.open(at_revision(directory, revision), ("init",), "AR-diffusion model")
    student, _ = load_networks(artifact, teacher, "student")
    assert isinstance(student, Student)
    return student.requires_grad_(False).eval()


def load_generator(
    directory: str | Path, weights: str = "ema", teacher: CodebookTeacher | None = None, revision: str | None = None
) -> Generator:
    """Open a one-step generator, or one of DD1: frozen, in evaluation mode, on the CPU.

    The directory is that of a finished csd, align, frechet or dd1 stage, one that was exported, or ``user/name`` of a
    model on the Hub, at a ``revision``: branch, tag or commit. Weights are ``ema``, those that are evaluated and
    published, or ``raw``. It decodes with the tokenizer of its teacher, which may be open already. An ``ArtifactError``
    says what is not in order.
    """
    artifact = Artifact.open(at_revision(directory, revision), ("csd", "align", "frechet", "dd1"), "generator")
    student, tokenizer = load_networks(artifact, teacher, {"ema": "generator", "raw": "generator_raw"}[weights])
    generator: Generator
    if isinstance(student, DD1Student):
        generator = DD1Generator(student, tokenizer, artifact.config["split"], artifact.config["second"])
    else:
        generator = OneStepGenerator(student, tokenizer, artifact.config["head_time"])
    generator.directory = artifact.directory
    generator.trained_on = tuple(artifact.config.get("features", ()))
    return generator.requires_grad_(False).eval()
