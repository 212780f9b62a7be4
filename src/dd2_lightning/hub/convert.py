"""Conversion of the two published files of a model to a teacher's directory, every key accounted for."""

from pathlib import Path

from torch import Tensor

from dd2_lightning.artifacts import difference, write_teacher
from dd2_lightning.errors import ArtifactError
from dd2_lightning.families.registry import build_meta, published_family
from dd2_lightning.families.release import Release
from dd2_lightning.files import check_writable, sha256
from dd2_lightning.hub.cards import Card, identify, load_card
from dd2_lightning.hub.checkpoint import hub_parts, locate, read_checkpoint
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
