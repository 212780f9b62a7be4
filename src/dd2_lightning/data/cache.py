"""Teacher sequences on disk: sampled once, read by every stage that wants them."""

import io
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import trange

from dd2_lightning.artifacts import sha256, write_atomically
from dd2_lightning.errors import ArtifactError, DD2Error
from dd2_lightning.models.teacher import CodebookTeacher
from dd2_lightning.noise import stream
from dd2_lightning.sampling import Sampling


def describe(teacher_path: str | Path, sampling: Sampling, num: int, seed: int) -> dict[str, Any]:
    """All that determines a cache: what its manifest must say."""
    return {
        "teacher_sha256": sha256(Path(teacher_path) / "teacher.safetensors"),
        "sampling": asdict(sampling),
        "num": num,
        "seed": seed,
    }


def sample_codes(
    teacher: CodebookTeacher,
    labels: Tensor,
    sampling: Sampling,
    generator: torch.Generator | None = None,
    chance: Tensor | None = None,
) -> Tensor:
    """Teacher sequences as indices (B, n), see :meth:`CodebookTeacher.sample`.

    Raises:
        DD2Error: for settings that make soft tokens.
    """
    tokens = teacher.sample(labels, sampling, generator, chance=chance)
    if tokens.is_floating_point():
        raise DD2Error(f"data.sampling: stages learn from sequences of codes, {sampling} makes soft tokens")
    return tokens


def build_cache(
    directory: str | Path,
    teacher: CodebookTeacher,
    sampling: Sampling,
    description: dict[str, Any],
    batch_size: int = 500,
) -> None:
    """Sample ``num`` sequences with labels that go round the classes; the manifest is written last.

    Files: ``tokens.npy`` (num, n) in the smallest unsigned type, ``labels.npy`` (num,), ``manifest.json``.
    """
    directory, num, seed = Path(directory), description["num"], description["seed"]
    device = teacher.codebook.device
    labels = torch.arange(num, device=device) % teacher.num_classes
    tokens = [
        sample_codes(teacher, part, sampling, stream(seed, "cache", i, device=device)).cpu().numpy()
        for i, part in zip(
            trange(0, num, batch_size, desc="teacher sequences", unit="batch"), labels.split(batch_size), strict=True
        )
    ]
    kind = np.min_scalar_type(len(teacher.codebook) - 1)
    for name, array in (("tokens", np.concatenate(tokens).astype(kind)), ("labels", labels.cpu().numpy())):
        buffer = io.BytesIO()
        np.save(buffer, array, allow_pickle=False)
        write_atomically(directory / f"{name}.npy", buffer.getvalue())
    write_atomically(directory / "manifest.json", json.dumps(description, indent=2).encode())


def cache_is_ready(directory: str | Path, description: dict[str, Any]) -> bool:
    """Whether the directory holds exactly this cache.

    Raises:
        ArtifactError: if it holds another one (it is never overwritten).
    """
    path = Path(directory) / "manifest.json"
    if not path.is_file():
        return False
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise ArtifactError(f"{path} is damaged ({error}); delete {directory}") from error
    for key, value in description.items():
        if found.get(key) != value:
            raise ArtifactError(
                f"{directory} was sampled with {key} = {found.get(key)}, this run wants {value}; "
                f"delete it or set data.cache_dir to another directory"
            )
    return True


def open_cache(directory: str | Path) -> tuple[np.ndarray, Tensor]:
    """Memory-mapped indices (num, n) and labels (num,)."""
    directory = Path(directory)
    tokens = np.load(directory / "tokens.npy", mmap_mode="r", allow_pickle=False)
    return tokens, torch.from_numpy(np.load(directory / "labels.npy", allow_pickle=False))
