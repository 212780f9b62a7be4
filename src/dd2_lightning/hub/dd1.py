"""Conversion of a published network of the baseline DD1 to the directory of a ``dd1`` stage."""

from pathlib import Path
from typing import Literal

import torch

from dd2_lightning.artifacts import Artifact, difference, teacher_reference, write_artifact
from dd2_lightning.errors import ArtifactError
from dd2_lightning.families.registry import build_meta
from dd2_lightning.files import check_writable, sha256
from dd2_lightning.hub.cards import identify, load_card
from dd2_lightning.hub.checkpoint import locate, read_checkpoint
from dd2_lightning.models.dd1_generator import DD1Generator


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
