"""Pictures in an ``.npz`` file as OpenAI's evaluator reads them, written and read without holding all of them.

The array ``arr_0`` holds them, uint8, (N, H, W, channels). Others may lie beside it: ``labels``, the statistics ``mu``
and ``sigma`` of a reference batch, and, in files of ours, ``settings``: JSON that says how they were drawn.
"""

import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dd2_lightning.artifacts import whole_or_not_at_all
from dd2_lightning.errors import ArtifactError

EPOCH = (1980, 1, 1, 0, 0, 0)
"""Time of every entry, so that the same pictures make the same file."""


def to_bytes(images: Tensor) -> Tensor:
    """Pictures in [0, 1] in 256 steps, uint8 of the same shape; values outside are clipped."""
    return (images * 255).round().clamp(0, 255).byte()


def write_pictures_file(path: Path, shape: tuple[int, ...], parts: Iterable[np.ndarray], **others: np.ndarray) -> None:
    """Write a file, whole or not at all.

    Args:
        path: its name.
        shape: of all pictures together, (N, H, W, channels).
        parts: the pictures, in order, uint8 (B, H, W, channels).
        others: arrays to put beside them.

    Raises:
        ArtifactError: if it cannot be written.
    """
    with whole_or_not_at_all(path) as part, zipfile.ZipFile(part, "w", zipfile.ZIP_STORED) as archive:
        with archive.open(zipfile.ZipInfo("arr_0.npy", EPOCH), "w", force_zip64=True) as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": tuple(map(int, shape))}
            np.lib.format.write_array_header_1_0(file, header)
            for pixels in parts:
                file.write(np.ascontiguousarray(pixels, np.uint8).data)
        for name, array in others.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy", EPOCH), "w") as file:
                np.lib.format.write_array(file, np.asarray(array), allow_pickle=False)


class PictureFile:
    """A file of pictures, opened.

    Args:
        path: the file.

    Attributes:
        shape: (N, H, W, channels).

    Raises:
        ArtifactError: if it is missing, damaged, or ``arr_0`` is not what it has to be.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        with self._entry("arr_0") as (_, shape, kind):
            if kind != np.uint8 or len(shape) != 4 or shape[3] not in (1, 3) or not shape[0]:
                raise ArtifactError(
                    f"{path}: arr_0 is {kind} {shape}, pictures are uint8 (N, H, W, channels) with 1 or 3 channels"
                )
        self.shape = shape

    def __len__(self) -> int:
        return self.shape[0]

    @contextmanager
    def _entry(self, name: str) -> Iterator:
        with opened_npz(self.path) as archive:
            if f"{name}.npy" not in archive.namelist():
                raise ArtifactError(f"{self.path} has no array {name}; it holds {', '.join(archive.namelist())}")
            with archive.open(f"{name}.npy") as file:
                read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
                shape, fortran, kind = read[np.lib.format.read_magic(file)](file)
                if fortran:
                    raise ArtifactError(f"{self.path}: {name} is in Fortran's order; save np.ascontiguousarray of it")
                yield file, shape, kind

    def batches(self, size: int, limit: int | None = None) -> Iterator[Tensor]:
        """The pictures, uint8 (B, channels, H, W), so many at a time; all or the first ``limit``.

        Raises:
            ArtifactError: if the file ends early.
        """
        count, (H, W, channels) = min(len(self), limit or len(self)), self.shape[1:]
        with self._entry("arr_0") as (file, _, _):
            for start in range(0, count, size):
                rows = min(size, count - start)
                pixels = file.read(rows * H * W * channels)
                if len(pixels) < rows * H * W * channels:
                    raise ArtifactError(f"{self.path} is truncated; get or make it again")
                yield torch.frombuffer(bytearray(pixels), dtype=torch.uint8).view(rows, H, W, channels).movedim(3, 1)


@contextmanager
def opened_npz(path: Path) -> Iterator[zipfile.ZipFile]:
    """An npz file as the archive it is.

    Raises:
        ArtifactError: if it is missing or damaged, also where that shows while it is read.
    """
    if not path.is_file():
        raise ArtifactError(f"{path} does not exist")
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, KeyError) as error:
        raise ArtifactError(f"{path} is no npz file, or damaged ({error}); get or make it again") from error


def read_arrays(path: str | Path) -> dict[str, np.ndarray]:
    """All arrays of an npz file but the pictures.

    Raises:
        ArtifactError: if it is missing, damaged, or holds Python objects.
    """
    arrays = {}
    with opened_npz(Path(path)) as archive:
        for name in archive.namelist():
            if name != "arr_0.npy":
                with archive.open(name) as file:
                    arrays[name.removesuffix(".npy")] = np.lib.format.read_array(file, allow_pickle=False)
    return arrays
