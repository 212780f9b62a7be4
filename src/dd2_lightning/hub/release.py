"""From the two files of a release to a teacher's directory, every key accounted for."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dd2_lightning.artifacts import check_writable, difference, sha256, write_teacher
from dd2_lightning.errors import ArtifactError
from dd2_lightning.hub.cards import Card, identify, load_card, locate
from dd2_lightning.hub.checkpoint import read_checkpoint
from dd2_lightning.models.families import teacher_from_config
from dd2_lightning.models.teacher import CodebookTeacher

ROLES = {"backbone": "transformer", "classifier": "transformer", "tokenizer": "tokenizer"}
"""Which file each part of a teacher comes from; behind the part's name its keys are those of the release."""


@dataclass(frozen=True)
class Release:
    """How a family reads its release.

    Attributes:
        family: its name.
        architecture: ``(config, grid, latent_only)`` to the sizes of a teacher; ``config`` holds the constructor
            arguments of the release.
        state: ``(transformer, tokenizer)``, two state dicts of the release, to that of a teacher. It drops what the
            release stores but does not learn.
        adapted: the sizes that change before a published model can be distilled.
    """

    family: str
    architecture: Callable[[dict[str, Any], int | None, bool], dict[str, Any]]
    state: Callable[[dict[str, Tensor], dict[str, Tensor]], dict[str, Tensor]]
    adapted: dict[str, Any] = field(default_factory=dict)


def translate(config: dict[str, Any], renamed: dict[str, str], fixed: dict[str, Any]) -> dict[str, Any]:
    """Constructor arguments of a release under our names.

    Args:
        config: the arguments.
        renamed: their name to ours.
        fixed: arguments that may be absent, and otherwise must have this value.

    Raises:
        ValueError: naming a key that is unknown, or a value that this implementation does not have.
    """
    unknown = sorted(config.keys() - renamed.keys() - fixed.keys())
    if unknown:
        raise ValueError(f"--arch: unknown key '{unknown[0]}'; there are: {', '.join((*renamed, *fixed))}")
    for key, value in fixed.items():
        if config.get(key, value) != value:
            raise ValueError(f"--arch: '{key}' must be {value!r}, got {config[key]!r}; nothing else is implemented")
    return {renamed[key]: value for key, value in config.items() if key in renamed}


def outline(family: str, architecture: dict[str, Any]) -> CodebookTeacher:
    """A teacher of these sizes without weights: its parameters are on the meta device.

    Raises:
        ValueError: for sizes that the family refuses.
    """
    with torch.device("meta"):
        return teacher_from_config(family, architecture)


def read_file(reference: str, card: Card, role: str) -> tuple[dict[str, Tensor], Path]:
    """The state dict in a file, and where the file lies.

    Raises:
        ArtifactError: if it cannot be read, or looks like a file of another family or role.
    """
    path = locate(reference, card, f"--{role}")
    try:
        tensors = read_checkpoint(path, tuple(card.wrappers.get(role, ())))
    except ArtifactError as error:
        raise ArtifactError(f"--{role}: {error}") from error
    found = identify(tensors.keys())
    if found and (found[0].family, found[1]) != (card.family, role):
        raise ArtifactError(f"--{role}: {path} looks like a {found[0].name} {found[1]}, needed: a {card.name} {role}")
    return tensors, path


def fitted(
    release: Release, teacher: CodebookTeacher, files: dict[str, dict[str, Tensor]], sources: dict[str, str]
) -> CodebookTeacher:
    """Give an outlined teacher its weights, in the precision it has; nothing is copied that need not be.

    Args:
        release: how the family reads them.
        teacher: from :func:`outline`.
        files: role to state dict of the release.
        sources: role to what to call its file in messages.

    Raises:
        ArtifactError: naming file and keys, these as the file does, where it has them.
    """
    own, state = teacher.state_dict(), release.state(files["transformer"], files["tokenizer"])
    published = {id(value): key for tensors in files.values() for key, value in tensors.items()}
    from_tokenizer = {id(value) for key, value in state.items() if key.startswith("tokenizer.")}
    derived = {key for key, value in state.items() if not key.startswith("tokenizer.") and id(value) in from_tokenizer}
    for role in ("tokenizer", "transformer"):  # in this order: some of the transformer's buffers are the tokenizer's

        def part(tensors: dict[str, Tensor], role: str = role) -> dict[str, Tensor]:
            named = ((*key.split(".", 1), key) for key in tensors if key not in derived)
            return {
                published.get(id(state.get(key)), rest): tensors[key]
                for first, rest, key in named
                if ROLES[first] == role
            }

        problems = difference(part(own), part(state))
        if problems:
            raise ArtifactError(f"--{role}: {sources[role]} does not fit: {problems}")
    weights = {key: state[key].to(value.dtype) for key, value in own.items()}
    weights |= {key: weights[key].clone() for key in derived}  # a parameter and its copy must not be one tensor
    teacher.load_state_dict(weights, assign=True)
    return teacher


def convert(
    release: Release,
    transformer: str,
    tokenizer: str,
    arch: str,
    output: str,
    grid: int | None = None,
    latent_only: bool = False,
) -> None:
    """Write a teacher's directory from the two files of a release.

    Args:
        release: how the family reads them.
        transformer: path or ``hf://OWNER/REPO/PATH``.
        tokenizer: the same.
        arch: published size or JSON file.
        output: directory to write.
        grid: tokens a side, where the files do not tell.
        latent_only: read nothing of the tokenizer but its quantiser.

    Raises:
        ValueError: for an ``arch`` or ``grid`` that cannot be.
        ArtifactError: if a file cannot be read or does not fit, or the directory cannot be written.
    """
    card = load_card(release.family)
    sizes = release.architecture(card.release_config(arch), grid, latent_only)
    check_grid(card, arch, transformer, grid)
    try:
        teacher = outline(release.family, sizes)
    except ValueError as error:
        raise ValueError(f"--arch: {error}") from error
    check_writable(output)
    references = {"transformer": transformer, "tokenizer": tokenizer}
    files = {role: read_file(reference, card, role) for role, reference in references.items()}
    tensors = {role: content for role, (content, _) in files.items()}
    codes = {key: value for key, value in tensors["tokenizer"].items() if key.startswith("quantize.")}
    if latent_only:
        tensors["tokenizer"] = codes
    elif len(codes) == len(tensors["tokenizer"]):
        raise ArtifactError(
            f"--tokenizer: {files['tokenizer'][1]} holds the quantiser only. With --latent-only it makes a teacher "
            f"that can be distilled, but not decode pictures"
        )
    sources = {role: f"{path} (as {card.name} {arch})" for role, (_, path) in files.items()}
    fitted(release, teacher, tensors, sources)
    origin = {role: {"file": path.name, "sha256": sha256(path)} for role, (_, path) in files.items()}
    write_teacher(output, teacher, source={"release": card.name, "arch": Path(arch).name, **origin})
    print(f"{card.name} {arch} -> {output}")


def check_grid(card: Card, arch: str, transformer: str, grid: int | None) -> None:
    """Refuse a grid that a model was not published for; its weights do not tell, and the pictures would be wrong.

    Raises:
        ValueError: naming both.
    """
    published = {facts["file"]: facts["grid"] for facts in card.architectures.get(arch, {}).get("files", [])}
    if published and grid not in published.values():
        raise ValueError(
            f"--grid: {card.name} {arch} was published for a grid of {' or '.join(map(str, published.values()))}, "
            f"got {grid}; for another model give its sizes as a JSON file in arch"
        )
    expected = card.files().get(Path(transformer).name, {}).get("grid", grid)
    if grid != expected:
        raise ValueError(f"--grid: {Path(transformer).name} was published for a grid of {expected}, got {grid}")
