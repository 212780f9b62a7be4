"""Teacher sequences on disk: sampled once, read by every stage that wants them.

================== ===========================================================================================
``manifest.json``  what determines the sequences: teacher (by hash), sampling, number, seed, size of a shard, and
                   for DD1's pairs the solver
``00000.npy`` …    shards: records of a label and the n indices of a sequence, uint16 or, for codebooks beyond
                   65,536 codes, uint32
``00000.sha256`` … their checksums, as ``sha256sum`` writes them; written last, so a shard that has one is complete
================== ===========================================================================================

Shards are read memory-mapped: a process touches the rows of its own batches only. Of a pair (ε, q) only q is stored:
ε is a function of the seed and the number of the sequence.
"""

import io
import json
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dd2_lightning.errors import ArtifactError
from dd2_lightning.files import directory_lock, open_manifest, remove_temporary, sha256, write_atomically
from dd2_lightning.noise import stream

SHARD_SIZE = 10_000


class SequenceCache:
    """A directory of teacher sequences, which is made if missing; another cache is never overwritten.

    Sequence i is a function of seed and i, so one of more sequences continues a smaller one, and serves for fewer.

    The manifest must say ``description``, see :func:`~dd2_lightning.stages.sequences.describe_cache`. Where there is
    none yet, a shard has ``shard_size`` sequences.
    """

    def __init__(self, directory: str | Path, description: dict[str, Any], shard_size: int = SHARD_SIZE):
        self.directory = Path(directory)
        advice = "delete it or name another directory (data.cache_dir, dd2 cache --output)"
        path, self.num = self.directory / "manifest.json", description["num"]
        fixed = {key: value for key, value in description.items() if key != "num"}
        found = open_manifest(path, fixed, advice, shard_size=shard_size, num=self.num)
        if found["num"] < self.num:
            write_atomically(path, json.dumps({**found, "num": self.num}, indent=2).encode())
        self.seed, self.shard_size = found["seed"], found["shard_size"]
        self.pairs: dict[str, Any] = found.get("pairs") or {}
        self._maps: dict[int, np.memmap] = {}

    def __len__(self) -> int:
        return self.num

    @property
    def shards(self) -> range:
        return range(-(-self.num // self.shard_size))

    def path(self, shard: int) -> Path:
        return self.directory / f"{shard:05d}.npy"

    def missing(self) -> list[int]:
        return [shard for shard in self.shards if not self._is_complete(shard)]

    def _is_complete(self, shard: int) -> bool:
        """Whether a shard has its checksum and all sequences, some of which the cache may have had no need for."""
        if not (self.path(shard).with_suffix(".sha256").is_file() and self.path(shard).is_file()):
            return False
        with suppress(ValueError, EOFError):  # of a damaged file, which its checksum will tell
            return len(np.load(self.path(shard), mmap_mode="r", allow_pickle=False)) >= len(self.rows(shard))
        return True

    def rows(self, shard: int) -> Tensor:
        """Numbers of the sequences of a shard."""
        first = shard * self.shard_size
        return torch.arange(first, min(first + self.shard_size, self.num))

    def lock(self, part: int = 0, parts: int = 1) -> AbstractContextManager[None]:
        """Exclusive right to write shards, or those of one of several parts."""
        return directory_lock(self.directory, ".lock" if parts == 1 else f".lock.{part}-of-{parts}")

    def write(self, shard: int, tokens: Tensor, labels: Tensor, codes: int) -> None:
        """Write tokens (k, n) with labels (k,) as a shard, then its checksum; a shard has one writer at a time."""
        kind = np.uint16 if codes <= 1 << 16 else np.uint32
        records = np.empty(len(tokens), np.dtype([("label", np.uint32), ("tokens", kind, tokens.shape[1:])]))
        records["label"], records["tokens"] = labels.numpy(), tokens.numpy()
        buffer, path = io.BytesIO(), self.path(shard)
        np.save(buffer, records, allow_pickle=False)
        remove_temporary(self.directory, f"{path.stem}.*")  # of a process that was killed while it wrote this one
        path.with_suffix(".sha256").unlink(missing_ok=True)  # of fewer sequences
        write_atomically(path, buffer.getvalue())
        write_atomically(path.with_suffix(".sha256"), f"{sha256(path)}  {path.name}\n".encode())

    def verify(self) -> None:
        """Read every shard once and compare its checksum."""
        for path in map(self.path, self.shards):
            if sha256(path) != path.with_suffix(".sha256").read_text().split()[0]:
                raise ArtifactError(
                    f"{path} is damaged: it does not have the checksum in {path.stem}.sha256; "
                    f"delete both, and only this shard is sampled again"
                )

    def read(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """Sequences of these numbers: indices (b, n) and labels (b,), both int64."""
        shards, offsets = np.divmod(rows, self.shard_size)
        records = np.stack([self._map(int(k))[i] for k, i in zip(shards, offsets, strict=True)])
        return torch.from_numpy(records["tokens"].astype(np.int64)), torch.from_numpy(records["label"].astype(np.int64))

    def noise(self, rows: np.ndarray) -> Tensor | None:
        """Noise of the pairs of these numbers, (b, n, C); None where the sequences are no pairs."""
        if not self.pairs:
            return None
        shape = self.pairs["noise"]
        return torch.stack([torch.randn(shape, generator=stream(self.seed, "pair", int(row))) for row in rows])

    def _map(self, shard: int) -> np.memmap:
        if shard not in self._maps:
            self._maps[shard] = np.load(self.path(shard), mmap_mode="r", allow_pickle=False)
        return self._maps[shard]
