"""What a stage leaves behind: a directory of safetensors and one ``config.json``.

========== ============================================================================ ==================
stage      files                                                                        read by
========== ============================================================================ ==================
teacher    ``teacher.safetensors``                                                      every later stage
init       ``student.safetensors``                                                      csd
csd, align ``generator.safetensors`` (EMA), ``generator_raw.safetensors``, ``guidance.…`` align, users
dd1        ``generator.safetensors`` (EMA), ``generator_raw.safetensors``               users
========== ============================================================================ ==================

``config.json`` holds plain settings and provenance and is written last, so a directory that has one is
complete. A student's directory names its teacher by relative path and hash.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dd2_lightning.errors import ArtifactError
from dd2_lightning.families.registry import family_of, teacher_from_config
from dd2_lightning.models.codebook_teacher import CodebookTeacher
from dd2_lightning.models.dd1 import DD1Student
from dd2_lightning.models.dd1_generator import DD1Generator
from dd2_lightning.models.generator import Generator, OneStepGenerator
from dd2_lightning.models.student import Student, build_student

FORMAT = 1


@contextmanager
def whole_or_not_at_all(path: Path) -> Iterator[Path]:
    """A file to write to, which takes the place of ``path`` when it is complete.

    Raises:
        ArtifactError: naming the path, if the directory is read-only or the disk is full.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        with open(part, "r+b") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    except (OSError, SafetensorError) as error:
        with suppress(OSError):  # where the directory itself cannot be reached, the first error says so
            part.unlink(missing_ok=True)
        raise ArtifactError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}") from error


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that it is there whole or not at all.

    Raises:
        ArtifactError: naming the path, if it cannot be written.
    """
    with whole_or_not_at_all(path) as part:
        part.write_bytes(data)


def remove_parts(directory: str | Path, of: str = "*") -> None:
    """Remove what killed processes left of :func:`whole_or_not_at_all`, of one file or of all; none must be writing."""
    for part in Path(directory).glob(f".{of}.*.part"):
        part.unlink(missing_ok=True)


def check_writable(directory: str | Path) -> None:
    """Find out now, not hours later, whether a directory can be written.

    Raises:
        ArtifactError: naming it, if not.
    """
    probe = Path(directory) / ".writable"
    write_atomically(probe, b"")
    probe.unlink()


def settle_manifest(path: Path, description: dict[str, Any], advice: str, **free: Any) -> dict[str, Any]:
    """What files that are made piece by piece belong to: written by whoever comes first, agreed to by all others.

    Args:
        path: the JSON file.
        description: all that determines the files.
        advice: what to do if the manifest says otherwise.
        free: settings of whoever comes first; others take them over.

    Returns:
        What the manifest says.

    Raises:
        ArtifactError: naming the setting that differs, or if the file cannot be read or written.
    """
    if not path.is_file():
        write_atomically(path, json.dumps({**description, **free}, indent=2).encode())
    try:
        found = dict(json.loads(path.read_text()))
        missing = [key for key in free if key not in found]
    except (OSError, ValueError, TypeError) as error:
        raise ArtifactError(f"{path} is damaged ({error}); delete {path.parent}") from error
    if missing:
        raise ArtifactError(f"{path} is damaged ({missing[0]} is missing); delete {path.parent}")
    for key in [*description, *(key for key in found if key not in description and key not in free)]:
        theirs, ours = found.get(key), description.get(key)
        if theirs != ours:
            raise ArtifactError(f"{path.parent} was sampled with {key} = {theirs}, this run wants {ours}; {advice}")
    return found


def sha256(path: Path) -> str:
    """Hash of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def state_hash(module: nn.Module) -> str:
    """Hash of a network's parameters and buffers: names, types, shapes and values, wherever they lie."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


@dataclass
class Artifact:
    """A stage's directory, opened.

    Attributes:
        directory: where it lies.
        config: the contents of its ``config.json``.
    """

    directory: Path
    config: dict[str, Any]

    @classmethod
    def open(cls, directory: str | Path, stages: tuple[str, ...], purpose: str) -> "Artifact":
        """Read ``config.json`` and check what stage it comes from.

        Args:
            directory: the directory of a finished stage.
            stages: the stages that will do.
            purpose: the setting that names the directory, for messages: ``init_from``, ``--model``.

        Raises:
            ArtifactError: if it is missing, unreadable, or from another stage.
        """
        directory = Path(directory)
        path = directory / "config.json"
        if not path.is_file():
            state = (
                "is not finished or no stage's directory: it has no config.json"
                if directory.is_dir()
                else "does not exist"
            )
            raise ArtifactError(
                f"{purpose}: {directory} {state}. It must be the directory of a finished {' or '.join(stages)} stage"
                f" (dd2 fit --config configs/{stages[0]}_….yaml makes one)."
            )
        try:
            config = json.loads(path.read_text())
            stage, version = config["stage"], config["format"]
        except (ValueError, KeyError, TypeError, UnicodeDecodeError) as error:
            raise ArtifactError(f"{purpose}: {path} is damaged ({error}); run its stage again") from error
        if version != FORMAT:
            raise ArtifactError(f"{purpose}: {path} has format {version}, this version reads format {FORMAT}")
        if stage not in stages:
            raise ArtifactError(f"{purpose}: {directory} comes from stage '{stage}', needed: {' or '.join(stages)}")
        return cls(directory, config)

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The tensors of ``NAME.safetensors``.

        Raises:
            ArtifactError: if the file is missing or truncated.
        """
        path = self.directory / f"{name}.safetensors"
        if not path.is_file():
            raise ArtifactError(f"{path} is missing; run stage '{self.config['stage']}' again")
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise ArtifactError(f"{path} is truncated or damaged ({error}); run its stage again") from error

    def load_into(self, module: nn.Module, name: str) -> None:
        """Fill a module from ``NAME.safetensors``, every key accounted for."""
        load_strictly(module, self.tensors(name), str(self.directory / f"{name}.safetensors"))

    def teacher_path(self) -> Path:
        """Directory of the teacher that this student was distilled from.

        Raises:
            ArtifactError: if its weights are no longer the ones that were distilled.
        """
        reference = self.config["teacher"]
        directory = Path(os.path.normpath(self.directory / reference["path"]))
        teacher = Artifact.open(directory, ("teacher",), f"teacher of {self.directory}")
        check_hash(teacher, reference["sha256"], str(self.directory))
        return directory


def check_hash(teacher: Artifact, expected: str, reader: str) -> None:
    """Refuse a teacher that changed since ``reader`` was made from it."""
    path = teacher.directory / "teacher.safetensors"
    if not path.is_file() or sha256(path) != expected:
        raise ArtifactError(f"{path} is not the teacher that {reader} was made from; run the stages after it again")


def check_family(student: Artifact, teacher: CodebookTeacher) -> None:
    """Refuse a student whose teacher was of another family.

    Raises:
        ArtifactError: naming both families.
    """
    if student.config["family"] != family_of(teacher):
        raise ArtifactError(
            f"{student.directory} holds a student of family '{student.config['family']}', "
            f"the teacher is of family '{family_of(teacher)}'"
        )


def difference(own: dict[str, Tensor], found: dict[str, Tensor]) -> str:
    """What a state dict lacks, has too much and has in another shape; empty if it fits.

    Args:
        own: keys and shapes of the model.
        found: keys and shapes of what is to be loaded.

    Returns:
        One line that names the first mismatched key with both shapes, and the first few of the others.
    """
    report = []
    shapes = {key: (tuple(found[key].shape), tuple(value.shape)) for key, value in own.items() if key in found}
    mismatched = [key for key, (theirs, ours) in shapes.items() if theirs != ours]
    if mismatched:
        theirs, ours = shapes[mismatched[0]]
        report.append(f"{len(mismatched)} mismatched, first {mismatched[0]}: it is {theirs}, the model has {ours}")
    missing = [key for key in own if key not in found]
    unexpected = [key for key in found if key not in own]
    for what, keys in (("missing", missing), ("unexpected", unexpected)):
        if keys:
            report.append(f"{len(keys)} {what}: {', '.join(keys[:4])}{', …' if len(keys) > 4 else ''}")
    return "; ".join(report)


def load_strictly(module: nn.Module, tensors: dict[str, Tensor], source: str) -> None:
    """Load a state dict and report every key that does not fit.

    Raises:
        ArtifactError: listing missing, unexpected and mismatched keys.
    """
    problems = difference(module.state_dict(), tensors)
    if problems:
        raise ArtifactError(f"{source} does not fit the model: {problems}")
    module.load_state_dict(tensors)


def write_artifact(
    directory: str | Path, stage: str, config: dict[str, Any], states: dict[str, dict[str, Tensor]]
) -> None:
    """Write a stage's directory: all tensors first, ``config.json`` last.

    Args:
        directory: made if missing.
        stage: its name, checked by whoever reads the directory.
        config: plain settings and provenance.
        states: file name (without ending) to the state dict that it holds.

    Raises:
        ArtifactError: if something cannot be written; no ``config.json`` is left then.
    """
    directory = Path(directory)
    text = json.dumps({"format": FORMAT, "stage": stage, **config}, indent=2, ensure_ascii=False)
    if (directory / "config.json").exists():
        (directory / "config.json").unlink()
    for name, state in states.items():
        tensors = {key: value.detach().cpu().contiguous() for key, value in state.items()}
        with whole_or_not_at_all(directory / f"{name}.safetensors") as part:  # the largest need not fit twice
            save_file(tensors, part)
    write_atomically(directory / "config.json", text.encode())


def teacher_reference(teacher: Artifact, directory: str | Path) -> dict[str, str]:
    """How a student's directory names its teacher: relative path and hash."""
    return {
        "path": os.path.relpath(teacher.directory, directory),
        "sha256": sha256(teacher.directory / "teacher.safetensors"),
    }


def write_teacher(directory: str | Path, teacher: CodebookTeacher, **provenance: Any) -> None:
    """Write a teacher's directory."""
    config = {"family": family_of(teacher), "architecture": teacher.config, **provenance}
    write_artifact(directory, "teacher", config, {"teacher": teacher.state_dict()})


def load_teacher(directory: str | Path) -> CodebookTeacher:
    """Open a teacher: frozen, in evaluation mode, on the CPU.

    Raises:
        ArtifactError: if the directory is not a finished teacher's, or its family is not known here.
    """
    artifact = Artifact.open(directory, ("teacher",), "teacher")
    try:
        teacher = teacher_from_config(artifact.config["family"], artifact.config["architecture"])
    except ValueError as error:
        raise ArtifactError(f"{artifact.directory / 'config.json'}: {error}") from error
    artifact.load_into(teacher, "teacher")
    return teacher.requires_grad_(False).eval()


def load_student(artifact: Artifact, teacher: CodebookTeacher, name: str = "student") -> Student | DD1Student:
    """Build the student that an artifact holds, of DD2 or of DD1, and fill it from one of its files.

    Raises:
        ArtifactError: if it was distilled from a teacher of another family, or its tensors do not fit.
    """
    check_family(artifact, teacher)
    is_dd1 = artifact.config["stage"] == "dd1"
    student = teacher.dd1_student() if is_dd1 else build_student(teacher, **artifact.config["head"])
    artifact.load_into(student, name)
    return student


def load_init(directory: str | Path, teacher: CodebookTeacher | None = None) -> Student:
    """Open the AR-diffusion model of stage 1."""
    artifact = Artifact.open(directory, ("init",), "AR-diffusion model")
    teacher = teacher or load_teacher(artifact.teacher_path())
    return load_student(artifact, teacher).requires_grad_(False).eval()


def load_generator(directory: str | Path, weights: str = "ema", teacher: CodebookTeacher | None = None) -> Generator:
    """Open a one-step generator, or one of DD1: frozen, in evaluation mode, on the CPU.

    Args:
        directory: of a finished csd, align or dd1 stage.
        weights: ``ema`` (what is evaluated and shipped) or ``raw``.
        teacher: its teacher, if it is open already; the generator decodes with its tokenizer.

    Raises:
        ArtifactError: if the directory or its teacher's is not in order.
    """
    artifact = Artifact.open(directory, ("csd", "align", "dd1"), "generator")
    teacher = teacher or load_teacher(artifact.teacher_path())
    student = load_student(artifact, teacher, {"ema": "generator", "raw": "generator_raw"}[weights])
    if isinstance(student, DD1Student):
        generator = DD1Generator(student, teacher.tokenizer, artifact.config["split"], artifact.config["second"])
    else:
        generator = OneStepGenerator(student, teacher.tokenizer, artifact.config["head_time"])
    return generator.requires_grad_(False).eval()
