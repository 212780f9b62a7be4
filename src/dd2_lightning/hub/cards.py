"""Cards: what was published of a family, where, under what licence and in what sizes."""

import json
import re
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from dd2_lightning.artifacts import sha256
from dd2_lightning.errors import ArtifactError

PUBLISHED = ("var", "llamagen")
"""Families with a card, each a package beside this file."""

HUB = "hf://"


@dataclass(frozen=True)
class DD1Card:
    """What was published of a family's networks for DD1.

    Attributes:
        repository: on the hub, ``OWNER/REPO``.
        licence: of the published weights.
        weights: ``ema`` and ``raw`` to where a file keeps them, ``/`` between levels.
        published: path in the repository to ``arch``, ``split``, ``second``, parameter count and sizes of its
            ``teacher`` that no weights tell.
        teacher: such sizes that all of them share.
    """

    repository: str
    licence: str
    weights: dict[str, str]
    published: dict[str, dict[str, Any]]
    teacher: dict[str, Any] = field(default_factory=dict)

    def files(self) -> dict[str, dict[str, Any]]:
        """What is known of every published file, by name."""
        return {Path(path).name: facts for path, facts in self.published.items()}


@dataclass(frozen=True)
class Card:
    """The contents of a family's ``cards.yaml``.

    Attributes:
        family: its name here.
        name: its name in messages.
        repository: on the hub, ``OWNER/REPO``.
        licence: of the published weights.
        signature: role (``transformer``, ``tokenizer``) to beginnings of keys that only such a file has.
        wrappers: role to entries that training checkpoints of the release keep the weights in.
        config: constructor arguments that all published sizes share.
        tokenizers: name to ``file``, ``config`` and parameter count.
        architectures: name to ``file`` (or one a grid), ``config`` and parameter count.
        dd1: networks of the baseline DD1.
    """

    family: str
    name: str
    repository: str
    licence: str
    signature: dict[str, list[str]]
    wrappers: dict[str, list[str]]
    config: dict[str, Any]
    tokenizers: dict[str, dict[str, Any]]
    architectures: dict[str, dict[str, Any]]
    dd1: DD1Card

    def files(self) -> dict[str, dict[str, Any]]:
        """What is known of every published file, by name: a ``grid``, a ``sha256``."""
        known = {}
        for entry in (*self.tokenizers.values(), *self.architectures.values()):
            for facts in entry.get("files", [entry]):
                known[facts["file"]] = facts
        return known

    def release_config(self, arch: str, tokenizer: str | None = None) -> dict[str, Any]:
        """Constructor arguments of the release, transformer and tokenizer in one.

        Args:
            arch: the name of a published size, or a JSON file with these very keys.
            tokenizer: which of the published ones goes with a named size; the first by default.

        Raises:
            ValueError: if ``arch`` is neither, or the file holds no JSON object.
        """
        if arch in self.architectures:
            chosen = self.tokenizers[tokenizer or next(iter(self.tokenizers))]
            return {**self.config, **chosen["config"], **self.architectures[arch]["config"]}
        path = Path(arch)
        if path.suffix != ".json":
            raise ValueError(
                f"--arch: there is no published {self.name} of size '{arch}'; there are "
                f"{', '.join(self.architectures)}, or give a JSON file with the constructor arguments"
            )
        try:
            config = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise ValueError(f"--arch: cannot read {path}: {error}") from error
        if not isinstance(config, dict):
            raise ValueError(f"--arch: {path} must hold one JSON object, got {type(config).__name__}")
        return config


@cache
def load_card(family: str) -> Card:
    """The card of a family.

    Raises:
        ValueError: if nothing of it was published.
    """
    if family not in PUBLISHED:
        raise ValueError(f"no weights of family '{family}' are known; there are: {', '.join(PUBLISHED)}")
    text = resources.files(f"dd2_lightning.hub.{family}").joinpath("cards.yaml").read_text()
    content = yaml.safe_load(text)
    return Card(family=family, **{**content, "dd1": DD1Card(**content["dd1"])})


def identify(keys: set[str]) -> tuple[Card, str] | None:
    """Which family's card and which role a file's keys look like; None if like nothing that is known."""
    for family in PUBLISHED:
        card = load_card(family)
        for role, beginnings in card.signature.items():
            if any(key.startswith(tuple(beginnings)) for key in keys):
                return card, role
    return None


def locate(reference: str, card: Card | DD1Card, flag: str) -> Path:
    """The local path of a file, fetched first if it is ``hf://OWNER/REPO/PATH``.

    Args:
        reference: path or hub reference.
        card: says the checksums, where known.
        flag: the option that named the file, for messages.

    Raises:
        ValueError: for a hub reference that is none.
        ArtifactError: if it cannot be fetched, or is not the file of the card.
    """
    if not reference.startswith(HUB):
        return Path(reference)
    match = re.fullmatch(r"([^/]+/[^/]+)/(.+)", reference.removeprefix(HUB))
    if not match:
        raise ValueError(f"{flag}: a hub reference is hf://OWNER/REPO/PATH, got {reference}")
    import huggingface_hub

    repository, name = match.groups()
    try:
        path = Path(huggingface_hub.hf_hub_download(repository, name))
    except Exception as error:  # the client lets exceptions of its HTTP library through, and those change
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ArtifactError(
            f"{flag}: {reference} could not be fetched ({reason}). Check the name and the network, "
            f"or download the file elsewhere and give its path"
        ) from error
    known = card.files().get(Path(name).name, {}) if repository == card.repository else {}
    expected = known.get("sha256")
    if expected and sha256(path) != expected:
        raise ArtifactError(
            f"{flag}: {path} is not the published {name}: its SHA-256 differs; delete and fetch it again"
        )
    return path
