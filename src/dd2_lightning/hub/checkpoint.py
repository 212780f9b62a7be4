"""Reading checkpoint files of other projects: tensors only, whatever they are wrapped in."""

import argparse
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from dd2_lightning.errors import ArtifactError

WRAPPERS = ("model", "module", "state_dict")
"""Entries that published checkpoints keep their weights in, tried in this order (DeepSpeed's is the second)."""


def read_checkpoint(path: str | Path, wrappers: tuple[str, ...] = (), entry: str | None = None) -> dict[str, Tensor]:
    """The tensors of a checkpoint file, memory-mapped where the format allows.

    Args:
        path: a safetensors file or one written by ``torch.save``. Pickled code in it is never executed.
        wrappers: further entries to look for the weights in, ``/`` between levels.
        entry: the only place to look, for files that hold weights in several.

    Returns:
        State dict, without the ``module.`` that distributed training puts before every key.

    Raises:
        ArtifactError: if the file is missing, truncated, holds anything that could run, or no state dict.
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
    whole = zipfile.is_zipfile(path)
    if head.startswith(b"PK") and not whole:
        raise ArtifactError(f"{path} is truncated: its index, which comes last, is missing; get the file again")
    try:
        # training checkpoints keep their command line, a plain record, beside the weights
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=whole)
    except Exception as error:  # a damaged stream makes the unpickler stumble in any way it can
        code = re.search(r"GLOBAL ([\w.]+)|[Uu]nsupported (?:class|global)[^\w]+([\w.]+)", str(error))
        if code:
            raise ArtifactError(
                f"{path} holds Python objects beside tensors ({code.group(1) or code.group(2)}) and was not opened: "
                f"they could run any program. Ask its author for a file with weights only"
            ) from error
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ArtifactError(
            f"{path} is truncated, damaged or no checkpoint of PyTorch ({reason}); get the file again"
        ) from error


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
