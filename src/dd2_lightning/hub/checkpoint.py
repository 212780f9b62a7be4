"""Reading checkpoint files of other projects, from disk or the hub: tensors only, no code in them is run."""

import argparse
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from dd2_lightning.errors import ArtifactError, first_line
from dd2_lightning.files import sha256
from dd2_lightning.hub.cards import Card, DD1Card

HUB = "hf://"

WRAPPERS = ("model", "module", "state_dict")
"""Entries that published checkpoints keep their weights in, tried in this order (DeepSpeed's is the second)."""


def hub_parts(reference: str, flag: str) -> list[str]:
    """The parts of ``hf://OWNER/REPO/PATH``, none for a local path; malformed references are a ``ValueError``."""
    if not reference.startswith(HUB):
        return []
    parts = reference.removeprefix(HUB).split("/")
    if len(parts) < 3 or not all(re.fullmatch(r"[^\\:\x00-\x1f]+", part) and part.strip(". ") for part in parts):
        raise ValueError(f"{flag}: a hub reference is hf://OWNER/REPO/PATH, got {reference!r}")
    return parts


def locate(reference: str, card: Card | DD1Card, flag: str) -> Path:
    """The local path of a file, fetched first if it is ``hf://OWNER/REPO/PATH``.

    Malformed references are a ``ValueError``; a file that cannot be fetched, or has another checksum than on the card,
    is an ``ArtifactError``. Messages name ``flag``, the option that named the file.
    """
    parts = hub_parts(reference, flag)
    if not parts:
        return Path(reference)
    import huggingface_hub

    repository, name = "/".join(parts[:2]), "/".join(parts[2:])
    try:
        path = Path(huggingface_hub.hf_hub_download(repository, name))
    except Exception as error:  # the client lets exceptions of its HTTP library through, and those change
        raise ArtifactError(
            f"{flag}: {reference} could not be fetched ({first_line(error)}). Check the name and the network, "
            f"or download the file elsewhere and give its path"
        ) from error
    expected = card.files().get(Path(name).name, {}).get("sha256") if repository == card.repository else None
    if expected and sha256(path) != expected:
        raise ArtifactError(
            f"{flag}: {path} is not the published {name}: its SHA-256 differs; delete and fetch it again"
        )
    return path


def read_checkpoint(path: str | Path, wrappers: tuple[str, ...] = (), entry: str | None = None) -> dict[str, Tensor]:
    """The state dict in a checkpoint file, memory-mapped where the format allows.

    It is a safetensors file or one written by ``torch.save``; pickled code is never executed. Weights are looked for in
    ``wrappers`` too, ``/`` between levels, or only in the ``entry``. The ``module.`` that distributed training puts
    before every key is removed. An ``ArtifactError`` refuses what is damaged, compressed, could run, or is no state
    dict.
    """
    path = Path(path)
    if not path.is_file():
        raise ArtifactError(f"{path} {'is a directory, not a file' if path.is_dir() else 'does not exist'}")
    with open(path, "rb") as file:
        head = file.read(9)
    if path.suffix == ".safetensors" or head[8:] == b"{":
        try:
            content: Any = load_file(path)
        except (SafetensorError, OSError) as error:
            raise ArtifactError(f"{path} is truncated or damaged ({error}); get the file again") from error
    else:
        content = _unpickle(path, head)
    return _state_dict(content, path, (entry,) if entry else (*WRAPPERS, *wrappers), entry is not None)


def _unpickle(path: Path, head: bytes) -> Any:
    complete = zipfile.is_zipfile(path)
    if head.startswith(b"PK") and not complete:
        raise ArtifactError(f"{path} is truncated: its index, which comes last, is missing; get the file again")
    try:
        if complete:
            _check_stored(path)
        # training checkpoints keep their command line, a record without code, beside the weights
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=complete)
    except ArtifactError:
        raise
    except Exception as error:  # a damaged stream makes the unpickler stumble in any way it can
        code = re.search(r"GLOBAL ([\w.]+)|[Uu]nsupported (?:class|global)[^\w]+([\w.]+)", str(error))
        if code:
            raise ArtifactError(
                f"{path} holds Python objects beside tensors ({code.group(1) or code.group(2)}) and was not opened: "
                f"they could run any program. Ask its author for a file with weights only"
            ) from error
        raise ArtifactError(
            f"{path} is truncated, damaged or no checkpoint of PyTorch ({first_line(error)}); get the file again"
        ) from error


def _check_stored(path: Path) -> None:
    """Refuse an archive whose content is more than twice its size: torch stores tensors uncompressed."""
    with zipfile.ZipFile(path) as archive:
        content, size = sum(entry.file_size for entry in archive.infolist()), path.stat().st_size
    if content > 2 * size:
        raise ArtifactError(
            f"{path} was not opened: it declares {content:,} bytes of content in a file of {size:,}, and checkpoints "
            f"of PyTorch are not compressed; get the file again"
        )


def _state_dict(content: Any, path: Path, wrappers: tuple[str, ...], only_there: bool) -> dict[str, Tensor]:
    for wrapper in wrappers:
        inner = content
        for key in wrapper.split("/"):
            inner = inner.get(key) if isinstance(inner, dict) else None
        if isinstance(inner, dict):
            content = inner
            break
    else:
        if only_there:
            raise ArtifactError(f"{path} has no entry {wrappers[0]} that holds weights")
    if not isinstance(content, dict) or not content:
        raise ArtifactError(f"{path} holds no state dict, but {type(content).__name__}")
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise ArtifactError(
                f"{path} holds no state dict: entry {key!r} is {type(value).__name__}, not a tensor. "
                f"Weights are looked for in {', '.join(wrappers)}{'' if only_there else ' and at the top'}"
            )
    if all(key.startswith("module.") for key in content):
        content = {key.removeprefix("module."): value for key, value in content.items()}
    return content
