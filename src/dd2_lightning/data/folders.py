"""Images of one's own: a folder of files, decoded once into a file of pixels that is mapped into memory.

=================== ===============================================================================================
``manifest.json``   the files of the folder by name, with their sizes in bytes, and the settings that pixels depend on
``pixels.uint8``    images (channels, side, side), one after another, in a random order that is always the same
``progress.json``   how many files are done, and what is wrong with those that could not be read
=================== ===============================================================================================
"""

import hashlib
import json
import os
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dd2_lightning.data.decoding import CODECS, BrokenImageError, check_codecs, decode
from dd2_lightning.data.images import ImageSet
from dd2_lightning.errors import ArtifactError, DD2Error
from dd2_lightning.files import directory_lock, write_atomically
from dd2_lightning.noise import stream
from dd2_lightning.progress import tracked

BLOCK = 256  # files that are decoded between two notes of progress
NAMED = 5  # files that a message names


def default_cache_dir() -> Path:
    """Directory of decoded images where none is named: in the user's own cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dd2-lightning" / "images"


def visible(directory: Path) -> Iterator[Path]:
    """What a directory holds, sorted, without hidden files."""
    return (path for path in sorted(directory.iterdir()) if not path.name.startswith("."))


class ImageFolder:
    """The images of a folder with a folder for each class, or of one that holds images only: a single class.

    Class folders may have folders of their own; files that are no PNG, JPEG or WebP are not read. The ``cache_dir``
    holds one directory for every folder and its settings. Another folder may decide on the names of the ``classes``.
    """

    def __init__(
        self,
        folder: str | Path,
        cache_dir: str | Path | None,
        side: int,
        channels: int = 3,
        enlarge: bool = False,
        classes: list[str] | None = None,
    ):
        self.folder, self.side, self.channels, self.enlarge = Path(folder), side, channels, enlarge
        if not self.folder.is_dir():
            reason = "is a file" if self.folder.exists() else "does not exist"
            raise DD2Error(f"data.folder {folder} {reason}: name a folder of images")
        found = [path.name for path in visible(self.folder) if path.is_dir()]
        self.classes = found if classes is None else classes
        if unknown := sorted({*found} - {*self.classes}):
            raise DD2Error(f"{folder} has a class '{unknown[0]}' that the training images lack")
        place = self.folder.resolve()
        key = hashlib.sha256(json.dumps([str(place), self.settings]).encode()).hexdigest()[:12]
        self.cache = Path(cache_dir or default_cache_dir()) / f"{place.name}-{key}"

    @property
    def settings(self) -> dict[str, Any]:
        """What pixels depend on, besides the files."""
        return {"side": self.side, "channels": self.channels, "enlarge": self.enlarge}

    @cached_property
    def files(self) -> dict[str, int]:
        """All image files, named from the folder on, with their sizes in bytes; ``others`` are those of other kinds."""
        found: dict[str, int] = {}
        self.others: list[str] = []
        for directory, folders, names in os.walk(self.folder, followlinks=True):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            paths = [Path(directory, name) for name in sorted(names) if not name.startswith(".")]
            found |= {str(p.relative_to(self.folder)): p.stat().st_size for p in paths if p.suffix.lower() in CODECS}
            self.others += [str(p.relative_to(self.folder)) for p in paths if p.suffix.lower() not in CODECS]
        in_classes = {name.partition(os.sep)[0] for name in found if os.sep in name}
        empty = sorted({path.name for path in visible(self.folder) if path.is_dir()} - in_classes)
        if not found:
            raise DD2Error(f"{self.folder} holds no images: {', '.join(CODECS)} are read")
        if empty:
            raise DD2Error(f"{self.folder / empty[0]} holds no images: every folder in {self.folder} is a class")
        if self.classes and (loose := [name for name in found if os.sep not in name]):
            raise DD2Error(f"{self.folder / loose[0]} lies in no class's folder: move it into one")
        check_codecs(list(found))
        return found

    @cached_property
    def order(self) -> list[str]:
        """The files in the random order of the cache."""
        names = list(self.files)
        return [names[i] for i in torch.randperm(len(names), generator=stream(0, "image folder")).tolist()]

    def progress(self) -> tuple[int, dict[str, str]]:
        """Number of files that are decoded, and what is wrong with the broken ones; refuses a folder that changed."""
        manifest = read_json(self.cache / "manifest.json")
        if manifest and (changes := describe_changes(manifest["files"], self.files)):
            raise ArtifactError(
                f"the images in {self.folder} are not those of the cache {self.cache}: {changes}; "
                f"delete the cache to decode them again"
            )
        found = read_json(self.cache / "progress.json") if manifest else {}
        return found.get("done", 0), found.get("broken", {})

    def prepare(self) -> None:
        """Decode what is not in the cache yet, with a progress bar."""
        if self.progress()[0] == len(self.files):
            return
        if self.others:
            count, named = f"{len(self.others):,}", list_names(self.others)
            warnings.warn(f"{self.folder}: {count} files are not PNG, JPEG or WebP and not read: {named}", stacklevel=2)
        with directory_lock(self.cache):
            done, broken = self.progress()
            if not done:
                manifest = {**self.settings, "files": self.files}
                write_atomically(self.cache / "manifest.json", json.dumps(manifest, indent=1).encode())
            rest = self.order[done:]
            blocks = [rest[i : i + BLOCK] for i in range(0, len(rest), BLOCK)]
            with open(self.cache / "pixels.uint8", "ab") as pixels, ThreadPoolExecutor(os.cpu_count()) as pool:
                pixels.truncate((done - len(broken)) * self.channels * self.side**2)
                for block in tracked(blocks, f"decode {self.folder.name}", len(rest), size=BLOCK):
                    for name, result in zip(block, pool.map(self._decode, block), strict=True):
                        if isinstance(result, str):
                            broken[name] = result
                        else:
                            pixels.write(result.tobytes())
                    pixels.flush()
                    os.fsync(pixels.fileno())
                    done += len(block)
                    note = {"done": done, "broken": broken}
                    write_atomically(self.cache / "progress.json", json.dumps(note).encode())

    def _decode(self, name: str) -> np.ndarray | str:
        """The pixels of a file, or what is wrong with it."""
        try:
            return decode(self.folder / name, self.side, self.channels, self.enlarge)
        except BrokenImageError as error:
            return str(error)

    def read(self, skip_broken: bool = False) -> ImageSet:
        """All decoded images, mapped into memory, in the order of the cache; refuses broken ones or leaves them out."""
        names, (done, broken) = self.order, self.progress()
        if done != len(names):
            raise ArtifactError(f"{self.cache} is not complete: prepare_data() decodes the images of {self.folder}")
        if broken and not skip_broken:
            named = list_names([f"{name} {reason}" for name, reason in sorted(broken.items())])
            raise DD2Error(
                f"{len(broken):,} of {len(names):,} images in {self.folder} cannot be used: {named}; set "
                f"data.skip_broken: true to leave them out, or mend them and delete {self.cache}"
            )
        kept = [name for name in names if name not in broken]
        shape = (len(kept), self.channels, self.side, self.side)
        path = self.cache / "pixels.uint8"
        if not kept or not path.is_file() or path.stat().st_size != np.prod(shape):
            reason = "is damaged" if kept else "has no image that can be read"
            raise ArtifactError(f"the cache {self.cache} of {self.folder} {reason}; delete it")
        number = {name: k for k, name in enumerate(self.classes)}
        labels = torch.tensor([number.get(name.partition(os.sep)[0], 0) for name in kept])
        pixels = np.memmap(path, np.uint8, "c", shape=shape)  # PyTorch warns of arrays that cannot be written to
        return ImageSet(torch.from_numpy(pixels), labels)


def list_names(names: list[str]) -> str:
    """The first names of a list, for a message."""
    return ", ".join(names[:NAMED]) + (", …" if len(names) > NAMED else "")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file of the cache, {} where there is none."""
    try:
        return json.loads(path.read_text()) if path.is_file() else {}
    except ValueError as error:
        raise ArtifactError(f"{path} is damaged ({error}); delete {path.parent}") from error


def describe_changes(before: dict[str, int], now: dict[str, int]) -> str:
    """What happened to the files of a folder, in words; empty where nothing did."""
    kinds = {
        "added": sorted(now.keys() - before.keys()),
        "removed": sorted(before.keys() - now.keys()),
        "changed": sorted(name for name in before.keys() & now.keys() if before[name] != now[name]),
    }
    return ", ".join(f"{len(names):,} {kind} ({list_names(names)})" for kind, names in kinds.items() if names)
