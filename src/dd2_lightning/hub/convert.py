"""Conversion of published files to the directories of teachers and of DD1's generators, every key accounted for."""

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from dd2_lightning.artifacts import Artifact, difference, teacher_reference, write_artifact, write_teacher
from dd2_lightning.errors import ArtifactError
from dd2_lightning.families.registry import build_meta, published_family
from dd2_lightning.families.release import Release
from dd2_lightning.files import check_writable, sha256
from dd2_lightning.hub.cards import Card, identify, load_card
from dd2_lightning.hub.checkpoint import hub_parts, locate, read_checkpoint
from dd2_lightning.models.dd1_generator import DD1Generator
from dd2_lightning.models.teacher import Teacher

ROLES = {"backbone": "transformer", "classifier": "transformer", "tokenizer": "tokenizer"}
"""Network of a teacher to the file that it comes from; after the network's name keys are those of the release."""


def read_file(reference: str, card: Card, role: str) -> tuple[dict[str, Tensor], Path]:
    """The state dict in a file, and its path; an ``ArtifactError`` refuses files of another family or role."""
    path = locate(reference, card, f"--{role}")
    try:
        tensors = read_checkpoint(path, tuple(card.wrappers.get(role, ())))
    except ArtifactError as error:
        raise ArtifactError(f"--{role}: {error}") from error
    found = identify(tensors.keys())
    if found and (found[0].family, found[1]) != (card.family, role):
        raise ArtifactError(f"--{role}: {path} looks like a {found[0].name} {found[1]}, needed: a {card.name} {role}")
    return tensors, path


def load_release(
    release: Release, teacher: Teacher, files: dict[str, dict[str, Tensor]], sources: dict[str, str]
) -> None:
    """Load the weights of a release into a teacher from :func:`build_meta`, cast to its precision, without copies.

    From role to state dict of the release (``files``). An ``ArtifactError`` names the keys that do not fit, as they are
    in the file, and the file (``sources``, by role).
    """
    wanted, state = teacher.state_dict(), release.state(files["transformer"], files["tokenizer"])
    published = {id(value): key for tensors in files.values() for key, value in tensors.items()}
    from_tokenizer = {id(value) for key, value in state.items() if key.startswith("tokenizer.")}
    derived = {key for key, value in state.items() if not key.startswith("tokenizer.") and id(value) in from_tokenizer}
    for role in ("tokenizer", "transformer"):  # in this order: some of the transformer's buffers are the tokenizer's

        def of_role(tensors: dict[str, Tensor], role: str = role) -> dict[str, Tensor]:
            named = ((*key.split(".", 1), key) for key in tensors if key not in derived)
            return {
                published.get(id(state.get(key)), rest): tensors[key]
                for network, rest, key in named
                if ROLES[network] == role
            }

        problems = difference(of_role(wanted), of_role(state))
        if problems:
            raise ArtifactError(f"--{role}: {sources[role]} does not fit: {problems}")
    weights = {key: state[key].to(value.dtype) for key, value in wanted.items()}
    weights |= {key: weights[key].clone() for key in derived}  # a parameter and its copy must not be one tensor
    teacher.load_state_dict(weights, assign=True)


def convert(
    family: str, transformer: str, tokenizer: str, arch: str, output: str, grid: int | None, latent_only: bool
) -> None:
    """Write a teacher's directory from the two files of a release; arguments are the options of the commands."""
    card, release = load_card(family), published_family(family).release
    sizes = release.architecture(card.release_config(arch), grid, latent_only)
    check_grid(card, arch, transformer, grid)
    try:
        teacher = build_meta(family, sizes)
    except ValueError as error:
        raise ValueError(f"--arch: {error}") from error
    references = {"transformer": transformer, "tokenizer": tokenizer}
    for role, reference in references.items():  # before any file is fetched or read
        hub_parts(reference, f"--{role}")
    check_writable(output)
    files = {role: read_file(reference, card, role) for role, reference in references.items()}
    tensors = {role: content for role, (content, _) in files.items()}
    codes = {key: value for key, value in tensors["tokenizer"].items() if key.startswith("quantize.")}
    if latent_only:
        tensors["tokenizer"] = codes
    elif len(codes) == len(tensors["tokenizer"]):
        raise ArtifactError(
            f"--tokenizer: {files['tokenizer'][1]} holds the quantiser only. With --latent-only it makes a teacher "
            f"that can be distilled, but not decode images"
        )
    sources = {role: f"{path} (as {card.name} {arch})" for role, (_, path) in files.items()}
    load_release(release, teacher, tensors, sources)
    origin = {role: {"file": path.name, "sha256": sha256(path)} for role, (_, path) in files.items()}
    write_teacher(output, teacher, source={"release": card.name, "arch": Path(arch).name, **origin})


def check_grid(card: Card, arch: str, transformer: str, grid: int | None) -> None:
    """Refuse a grid that a model was not published for: its weights do not tell, and the images would be wrong."""
    published = {facts["file"]: facts["grid"] for facts in card.architectures.get(arch, {}).get("files", [])}
    if published and grid not in published.values():
        raise ValueError(
            f"--grid: {card.name} {arch} was published for a grid of {' or '.join(map(str, published.values()))}, "
            f"got {grid}; for another model give its sizes as a JSON file in arch"
        )
    expected = card.files().get(Path(transformer).name, {}).get("grid", grid)
    if grid != expected:
        raise ValueError(f"--grid: {Path(transformer).name} was published for a grid of {expected}, got {grid}")


def convert_dd1(
    checkpoint: str, teacher: str, output: str, weights: Literal["ema", "raw"], split: int | None, second: int | None
) -> None:
    """Write a generator's directory from a file of DD1; arguments are the options of the command."""
    origin = Artifact.open(teacher, ("teacher",), "--teacher")
    family, architecture = origin.config["family"], origin.config["architecture"]
    card = load_card(family)
    facts = card.dd1.files().get(Path(checkpoint).name, {})
    for key, value in {**card.dd1.teacher, **facts.get("teacher", {})}.items():  # sizes that the weights do not tell
        if architecture.get(key) != value:
            raise ArtifactError(
                f"--teacher: {teacher} has {key} {architecture.get(key)}; DD1 of {card.name} was published for {value}"
            )
    split = facts.get("split") if split is None else split
    second = facts.get("second") if second is None else second
    if split is None or second is None:
        raise ValueError(
            f"--split and --second: what {Path(checkpoint).name} was trained for is not known; known are "
            f"{', '.join(card.dd1.files())}"
        )
    with torch.device("meta"):
        shapes = build_meta(family, architecture)
        student = shapes.dd1_student()
    DD1Generator(student, shapes.tokenizer, split, second)  # refuses what the layout does not have
    check_writable(output)
    path = locate(checkpoint, card.dd1, "--checkpoint")
    try:
        found = read_checkpoint(path, entry=card.dd1.weights[weights])
    except ArtifactError as error:
        raise ArtifactError(f"--checkpoint: {error}. A published DD1 network of {card.name} is needed") from error
    looks = identify(found.keys())
    if looks and looks[0] is not card:
        raise ArtifactError(f"--checkpoint: {path} looks like a {looks[0].name}, {teacher} holds a {card.name} teacher")
    wanted = student.state_dict()
    learned = {key: value for key, value in wanted.items() if not student.is_constant(key)}
    problems = difference(learned, {key: value for key, value in found.items() if not student.is_constant(key)})
    if problems:
        raise ArtifactError(f"--checkpoint: {path} does not fit a DD1 network of the teacher {teacher}: {problems}")
    state = {key: torch.zeros(value.shape, dtype=value.dtype, device="cpu") for key, value in wanted.items()}
    state |= {key: found[key].to(value.dtype) for key, value in learned.items()}
    config = {"family": family, "split": split, "second": second, "teacher": teacher_reference(origin, output)}
    source = {"release": f"DD1 of {card.name}", "file": path.name, "sha256": sha256(path), "weights": weights}
    write_artifact(output, "dd1", {**config, "source": source}, {"generator": state})
