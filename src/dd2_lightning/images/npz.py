"""Images in an ``.npz`` file as OpenAI's evaluator reads them, written and read batch by batch.

The array ``arr_0`` holds them, uint8, (N, H, W, channels). Others may lie beside it: ``labels``, the statistics ``mu``
and ``sigma`` of a reference batch, and, in files written here, ``settings``: JSON that says how they were drawn.
"""

import math
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from dd2_lightning.errors import ArtifactError
from dd2_lightning.files import atomic_path

EPOCH = (1980, 1, 1, 0, 0, 0)  # time of every entry, so that the same images make the same file

BOMB_BYTES, BOMB_RATIO = 2**28, 100
"""An entry that unpacks to more bytes than this, and to more than so many times the file, is refused."""

HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}

UNREADABLE = (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, KeyError, RuntimeError)
"""What the standard library and NumPy raise for damaged, encrypted and foreign archives."""


def write_images(path: Path, shape: tuple[int, ...], batches: Iterable[np.ndarray], **others: np.ndarray) -> None:
    """Write images, uint8 (B, H, W, channels) a batch and ``shape`` together, and other arrays, atomically."""
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        with archive.open(zipfile.ZipInfo("arr_0.npy", EPOCH), "w", force_zip64=True) as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": tuple(map(int, shape))}
            np.lib.format.write_array_header_1_0(file, header)
            for pixels in batches:
                file.write(np.ascontiguousarray(pixels, np.uint8).data)
        for name, array in others.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy", EPOCH), "w") as file:
                np.lib.format.write_array(file, np.asarray(array), allow_pickle=False)


class ImageFile:
    """An opened file of images of ``shape`` (N, H, W, channels)."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        with open_npz(self.path) as archive, open_array(archive, "arr_0", self.path) as (_, shape, dtype, fortran):
            if fortran:
                raise ArtifactError(f"{path}: arr_0 is in Fortran's order; save np.ascontiguousarray of it")
            if dtype != np.uint8 or len(shape) != 4 or shape[3] not in (1, 3) or not min(shape) > 0:
                images = "uint8 (N, H, W, channels) with 1 or 3 channels"
                raise ArtifactError(f"{path}: arr_0 is {dtype} {shape}, images are {images}")
        self.shape = shape

    def __len__(self) -> int:
        return self.shape[0]

    def batches(self, size: int, limit: int | None = None) -> Iterator[Tensor]:
        """The images, uint8 (B, channels, H, W), ``size`` at a time; all or the first ``limit``."""
        count, shape = min(len(self), limit or len(self)), self.shape[1:]
        with open_npz(self.path) as archive, open_array(archive, "arr_0", self.path) as (file, *_):
            for start in range(0, count, size):
                rows = min(size, count - start)
                pixels = file.read(rows * math.prod(shape))
                if len(pixels) < rows * math.prod(shape):
                    raise ArtifactError(f"{self.path} is truncated; get or make it again")
                yield torch.frombuffer(bytearray(pixels), dtype=torch.uint8).view(rows, *shape).movedim(3, 1)


@contextmanager
def open_npz(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open an npz file as a zip archive; damage, also what shows while it is read, is an ArtifactError."""
    if not path.is_file():
        raise ArtifactError(f"{path} is a directory, not an npz file" if path.is_dir() else f"{path} does not exist")
    try:
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                if entry.file_size > max(BOMB_BYTES, BOMB_RATIO * path.stat().st_size):
                    raise ValueError(f"{entry.filename} claims {entry.file_size:,} bytes")
            yield archive
    except UNREADABLE as error:
        raise ArtifactError(f"{path} is no npz file, or damaged ({error}); get or make it again") from error


@contextmanager
def open_array(archive: zipfile.ZipFile, name: str, path: Path) -> Iterator[tuple[IO[bytes], tuple, np.dtype, bool]]:
    """The data, shape, dtype and Fortran order of an array, its header checked against the size of its entry."""
    if f"{name}.npy" not in archive.namelist():
        raise ArtifactError(f"{path} has no array {name}; it holds {', '.join(archive.namelist())[:200]}")
    with archive.open(f"{name}.npy") as file:
        shape, fortran, dtype = HEADERS[np.lib.format.read_magic(file)](file)
        if dtype.hasobject:
            raise ValueError(f"{name} holds Python objects")
        size = archive.getinfo(f"{name}.npy").file_size - file.tell()
        if min(shape, default=1) < 0 or math.prod(shape) * dtype.itemsize != size:
            raise ValueError(f"{name} claims to be {dtype} {shape}, and has {size:,} bytes")
        yield file, shape, dtype, fortran


def read_arrays(path: str | Path) -> dict[str, np.ndarray]:
    """All arrays of an npz file but the images."""
    arrays = {}
    with open_npz(Path(path)) as archive:
        for entry in archive.namelist():
            name = entry.removesuffix(".npy")
            if name not in (entry, "arr_0"):
                with open_array(archive, name, Path(path)) as (file, shape, dtype, fortran):
                    values = np.frombuffer(bytearray(file.read()), dtype)
                    arrays[name] = values.reshape(shape, order="F" if fortran else "C")
    return arrays
