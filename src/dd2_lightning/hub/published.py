"""The published sizes by name: ``var/d16`` and its kind."""

from typing import Any

from dd2_lightning.hub.cards import load_card
from dd2_lightning.hub.var import RELEASE as VAR

RELEASES = {release.family: release for release in (VAR,)}


def published(name: str) -> tuple[str, dict[str, Any]]:
    """Family and sizes of a published model.

    Args:
        name: ``FAMILY/ARCH``; the ``arch`` of ``dd2 convert``, so it may be a JSON file: ``var/my_sizes.json``.

    Raises:
        ValueError: if there is none of that name.
    """
    family, _, arch = name.partition("/")
    card = load_card(family)
    return family, RELEASES[family].architecture(card.release_config(arch), None, False)
