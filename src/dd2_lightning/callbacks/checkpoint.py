"""Checkpoints that are there whole or not at all."""

import io
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from dd2_lightning.artifacts import write_atomically


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes next to the target, then renames: a killed run or a full disk leaves the last checkpoint intact."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write one checkpoint.

        Raises:
            ArtifactError: naming the path, if it cannot be written.
        """
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        write_atomically(Path(path), buffer.getvalue())
