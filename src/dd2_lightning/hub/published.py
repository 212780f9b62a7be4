"""The published sizes by name: ``var/d16`` and its kind."""

from typing import Any

from dd2_lightning.hub.cards import load_card
from dd2_lightning.hub.llamagen import RELEASE as LLAMAGEN
from dd2_lightning.hub.var import RELEASE as VAR

RELEASES = {release.family: release for release in (VAR, LLAMAGEN)}


def published(name: str, adapted: bool = True) -> tuple[str, dict[str, Any]]:
    """Family and sizes of a published model.

    Args:
        name: ``FAMILY/ARCH``; the ``arch`` of ``dd2 convert``, so it may be a JSON file: ``var/my_sizes.json``. Where
            a size was published for several grids it is the first one on the card.
        adapted: as it is distilled, that is reading continuous tokens; else as it was published.

    Raises:
        ValueError: if there is none of that name.
    """
    family, _, arch = name.partition("/")
    card = load_card(family)
    release = RELEASES[family]
    files = card.architectures.get(arch, {}).get("files", [{}])
    sizes = release.architecture(card.release_config(arch), files[0].get("grid"), False)
    return family, {**sizes, **(release.adapted if adapted else {})}
