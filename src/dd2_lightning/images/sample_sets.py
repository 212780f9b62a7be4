"""A large set of images in one file, drawn batch by batch; an interrupted run continues where it stopped.

Beside ``samples.npz`` lies ``samples.npz.parts`` until the file is complete: a manifest of all that determines the
images, and one array a batch. A resumed run draws the batches of an uninterrupted one: the file is the same to the bit.
"""

import hashlib
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from dd2_lightning.errors import ArtifactError
from dd2_lightning.files import open_manifest, remove_temporary, write_atomically
from dd2_lightning.images.files import to_bytes
from dd2_lightning.images.npz import write_images
from dd2_lightning.progress import tracked

FORMAT = 1


class SampleSet:
    """An ``.npz`` file and the batches that it is made of.

    Images are determined by ``labels`` (N,), batch size and ``settings``, which are plain values. Batches of another
    run are an ``ArtifactError``.
    """

    def __init__(self, output: str | Path, labels: Tensor, batch_size: int, settings: dict[str, Any]):
        self.output, self.labels, self.batch_size = Path(output), labels, batch_size
        self.directory = self.output.with_name(f"{self.output.name}.parts")
        self.settings = {**settings, "num": len(labels), "labels": hashlib.sha256(labels.numpy().tobytes()).hexdigest()}
        description = {"format": FORMAT, **self.settings, "batch_size": batch_size}
        manifest = self.directory / "manifest.json"
        if not any(self.directory.glob("*.npy")):
            manifest.unlink(missing_ok=True)  # nothing was drawn by it
        advice = f"delete {self.directory} to begin again, or name another --output"
        open_manifest(manifest, json.loads(json.dumps(description)), advice)
        remove_temporary(self.directory)
        remove_temporary(self.output.parent, self.output.name)

    def path(self, start: int) -> Path:
        return self.directory / f"{start // self.batch_size:06d}.npy"

    def complete(self, draw: Callable[[int, Tensor], Tensor]) -> None:
        """Draw what is missing, write the file, remove the batches.

        ``draw`` is (index of the first image, labels (B,)) -> images (B, channels, H, W) in [0, 1].
        """
        starts = range(0, len(self.labels), self.batch_size)
        missing = [start for start in starts if not self.path(start).is_file()]
        count = min(len(self.labels), len(missing) * self.batch_size)
        for start in tracked(missing, f"sample: {self.output.name}", count, size=self.batch_size):
            buffer = io.BytesIO()
            images = to_bytes(draw(start, self.labels[start : start + self.batch_size]))
            np.save(buffer, images.permute(0, 2, 3, 1).cpu().numpy())
            write_atomically(self.path(start), buffer.getvalue())
        shape = (len(self.labels), *self.read(0).shape[1:])
        settings = np.array(json.dumps(self.settings))
        write_images(self.output, shape, map(self.read, starts), labels=self.labels.numpy(), settings=settings)
        shutil.rmtree(self.directory)

    def read(self, start: int) -> np.ndarray:
        """A batch, uint8 (B, H, W, channels)."""
        path, rows = self.path(start), min(self.batch_size, len(self.labels) - start)
        try:
            pixels = np.load(path, allow_pickle=False)
            if pixels.dtype != np.uint8 or pixels.ndim != 4 or len(pixels) != rows:
                raise ValueError(f"{pixels.dtype} {pixels.shape}")
        except (OSError, ValueError, EOFError) as error:
            raise ArtifactError(f"{path} is damaged ({error}); delete it and run the command again") from error
        return pixels
