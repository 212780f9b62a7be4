"""A large set of pictures in one file, drawn batch by batch; an interrupted run continues where it stopped.

Beside ``samples.npz`` lies ``samples.npz.parts`` until the file is complete: a manifest of all that determines the
pictures, and one array a batch. Batches of a resumed run are those of an uninterrupted one, so that the file is the
same to the bit.
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

from dd2_lightning.artifacts import remove_parts, settle_manifest, write_atomically
from dd2_lightning.errors import ArtifactError
from dd2_lightning.evaluation.picture_files import to_bytes, write_pictures_file
from dd2_lightning.evaluation.progress import tracked

FORMAT = 1


class SampleSet:
    """The parts of one file.

    Args:
        output: the ``.npz`` file.
        labels: classes of all pictures, (N,).
        batch_size: pictures a part.
        settings: all else that determines the pictures, plain values.

    Raises:
        ArtifactError: if there are parts of another run, or nothing can be written.
    """

    def __init__(self, output: str | Path, labels: Tensor, batch_size: int, settings: dict[str, Any]):
        self.output, self.labels, self.batch_size = Path(output), labels, batch_size
        self.directory = self.output.with_name(f"{self.output.name}.parts")
        self.settings = {**settings, "num": len(labels), "labels": hashlib.sha256(labels.numpy()).hexdigest()}
        description = {"format": FORMAT, **self.settings, "batch_size": batch_size}
        manifest = self.directory / "manifest.json"
        if not any(self.directory.glob("*.npy")):
            manifest.unlink(missing_ok=True)  # nothing was drawn by it
        settle_manifest(
            manifest,
            json.loads(json.dumps(description)),
            f"delete {self.directory} to begin again, or name another --output",
        )
        remove_parts(self.directory)
        remove_parts(self.output.parent, self.output.name)

    @property
    def parts(self) -> range:
        """Numbers of all parts."""
        return range(-(-len(self.labels) // self.batch_size))

    def rows(self, part: int) -> slice:
        """The pictures of a part."""
        return slice(part * self.batch_size, min((part + 1) * self.batch_size, len(self.labels)))

    def path(self, part: int) -> Path:
        """File of a part."""
        return self.directory / f"{part:06d}.npy"

    def complete(self, draw: Callable[[int, Tensor], Tensor]) -> None:
        """Draw what is missing, write the file, remove the parts.

        Args:
            draw: (index of the first picture, labels (B,)) -> pictures (B, channels, H, W) in [0, 1].

        Raises:
            ArtifactError: if something cannot be written, or a part is damaged.
        """
        missing = [part for part in self.parts if not self.path(part).is_file()]
        for part in tracked(missing, "pictures", len(missing)):
            rows = self.rows(part)
            buffer = io.BytesIO()
            np.save(buffer, to_bytes(draw(rows.start, self.labels[rows])).permute(0, 2, 3, 1).cpu().numpy())
            write_atomically(self.path(part), buffer.getvalue())
        shape = (len(self.labels), *self.read(0).shape[1:])
        pixels = map(self.read, self.parts)
        settings = np.array(json.dumps(self.settings))
        write_pictures_file(self.output, shape, pixels, labels=self.labels.numpy(), settings=settings)
        shutil.rmtree(self.directory)

    def read(self, part: int) -> np.ndarray:
        """A part's pictures, uint8 (B, H, W, channels).

        Raises:
            ArtifactError: if it is damaged.
        """
        path, rows = self.path(part), self.rows(part)
        try:
            pixels = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise ArtifactError(f"{path} is damaged ({error}); delete it and run the command again") from error
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or len(pixels) != rows.stop - rows.start:
            raise ArtifactError(
                f"{path} is damaged: {pixels.dtype} {pixels.shape}; delete it and run the command again"
            )
        return pixels
