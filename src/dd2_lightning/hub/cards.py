"""Cards of the published weights: repositories, files, licences and sizes."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from dd2_lightning.families.registry import FAMILIES, published_family


@dataclass(frozen=True)
class DD1Card:
    """The published networks for DD1 of a family, in ``repository`` on the hub."""

    repository: str
    licence: str
    weights: dict[str, str]  # ``ema`` and ``raw`` to where a file keeps them, ``/`` between levels
    # path in the repository to ``arch``, ``split``, ``second``, parameter count and sizes of its ``teacher`` that no
    # weights tell
    published: dict[str, dict[str, Any]]
    teacher: dict[str, Any] = field(default_factory=dict)  # such sizes that all of them share

    def files(self) -> dict[str, dict[str, Any]]:
        """The facts of every published file, by name."""
        return {Path(path).name: facts for path, facts in self.published.items()}


@dataclass(frozen=True)
class Card:
    """The contents of a family's ``cards.yaml``."""

    family: str
    name: str  # the family's name in messages; ``family`` is that in the registry
    repository: str  # on the hub, ``OWNER/REPO``
    licence: str
    # role (``transformer``, ``tokenizer``) to beginnings of keys that only such a file has
    signature: dict[str, list[str]]
    wrappers: dict[str, list[str]]  # role to entries that training checkpoints of the release keep the weights in
    config: dict[str, Any]  # constructor arguments that all published sizes share
    tokenizers: dict[str, dict[str, Any]]  # name to ``file``, ``config`` and parameter count
    architectures: dict[str, dict[str, Any]]  # name to ``file`` (or one a grid), ``config`` and parameter count
    dd1: DD1Card  # networks of the baseline DD1

    def files(self) -> dict[str, dict[str, Any]]:
        """The facts of every published file, by name: a ``grid``, a ``sha256``."""
        entries = (*self.tokenizers.values(), *self.architectures.values())
        return {facts["file"]: facts for entry in entries for facts in entry.get("files", [entry])}

    def release_config(self, arch: str, tokenizer: str | None = None) -> dict[str, Any]:
        """Constructor arguments of the release, transformer and tokenizer in one.

        An ``arch`` is the name of a published size, with the first published tokenizer by default, or a JSON file with
        these keys; anything else is a ``ValueError``.
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
    """The card of a family; a ``ValueError`` if it has no published weights."""
    content = yaml.safe_load(published_family(family).card)
    return Card(family=family, **{**content, "dd1": DD1Card(**content["dd1"])})


def identify(keys: Iterable[str]) -> tuple[Card, str] | None:
    """The card and the role of the published files that have such keys; None if there are none."""
    for card in (load_card(family.name) for family in FAMILIES.values() if family.published):
        for role, beginnings in card.signature.items():
            if any(key.startswith(tuple(beginnings)) for key in keys):
                return card, role
    return None


def published(name: str, adapted: bool = True) -> tuple[str, dict[str, Any]]:
    """Family and sizes of a published model: as it is distilled (``adapted``), or as it was published.

    The name is ``FAMILY/ARCH``, with the ``arch`` of ``dd2 convert``, so it may be a JSON file: ``var/my_sizes.json``.
    Of a size that was published for several grids it is the first one on the card. Other names are a ``ValueError``.
    """
    family, _, arch = name.partition("/")
    card, release = load_card(family), published_family(family).release
    files = card.architectures.get(arch, {}).get("files", [{}])
    sizes = release.architecture(card.release_config(arch), files[0].get("grid"), False)
    return family, {**sizes, **(release.adapted if adapted else {})}
