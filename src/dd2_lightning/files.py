"""Files and directories: atomic writes, hashes, manifests of resumable outputs, and locks."""

import fcntl
import hashlib
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from dd2_lightning.errors import ArtifactError


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Temporary path to write to, which replaces ``path`` once it is complete and flushed to the disk.

    The file gets the permissions of any new file. A read-only directory or a full disk is an ``ArtifactError``.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        permissions = temporary.stat().st_mode
        yield temporary
        os.chmod(temporary, permissions)
        with open(temporary, "r+b") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}") from error
    finally:
        with suppress(OSError):  # where the directory cannot be reached, the first error says so
            temporary.unlink(missing_ok=True)


def write_atomically(path: Path, data: bytes | Path) -> None:
    """Write bytes, or a copy of a file, in one step, with the errors of :func:`atomic_path`.

    After a failure the old content is there.
    """
    with atomic_path(path) as temporary:
        if isinstance(data, Path):
            shutil.copyfile(data, temporary)
        else:
            temporary.write_bytes(data)


def remove_temporary(directory: str | Path, of: str = "*") -> None:
    """Remove what killed processes left of :func:`atomic_path`, of one file or of all; none must be writing."""
    for temporary in Path(directory).glob(f".{of}.*.part"):
        temporary.unlink(missing_ok=True)


def check_writable(directory: str | Path) -> None:
    """Refuse a directory that cannot be written, with an ``ArtifactError``, before hours of work; creates nothing."""
    existing = Path(directory).absolute()
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir():
        raise ArtifactError(f"cannot write {directory}: {existing} is a file, a directory is needed")
    try:
        tempfile.TemporaryFile(dir=existing).close()
    except OSError as error:
        raise ArtifactError(f"cannot write {directory}: {error.strerror}") from error


def open_manifest(path: Path, description: dict[str, Any], advice: str, **free: Any) -> dict[str, Any]:
    """Create the manifest of a resumable output, or check that the existing one has the same settings; return it.

    A setting of the ``description`` that differs is an ``ArtifactError``, with ``advice`` what to do; ``free`` settings
    are chosen by the first writer, and later ones take them over.
    """
    if not path.is_file():
        write_atomically(path, json.dumps({**description, **free}, indent=2).encode())
    try:
        found = dict(json.loads(path.read_text()))
        missing = [key for key in free if key not in found]
    except (OSError, ValueError, TypeError) as error:
        raise ArtifactError(f"{path} is damaged ({error}); delete {path.parent}") from error
    if missing:
        raise ArtifactError(f"{path} is damaged ({missing[0]} is missing); delete {path.parent}")
    for key in [*description, *(key for key in found if key not in description and key not in free)]:
        theirs, ours = found.get(key), description.get(key)
        if theirs != ours:
            raise ArtifactError(f"{path.parent} was sampled with {key} = {theirs}, this run wants {ours}; {advice}")
    return found


def sha256(path: str | Path) -> str:
    """Hash of a file, in hexadecimal. An unchanged file is read once a process."""
    status = Path(path).stat()
    return _sha256(Path(path).resolve(), status.st_mtime_ns, status.st_size)


@lru_cache
def _sha256(path: Path, modified: int, size: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def directory_lock(directory: str | Path, name: str = ".lock") -> Iterator[None]:
    """Context in which this process alone writes into a directory, which is created.

    The lock is the operating system's (``flock``) on a file that names process and host: a killed process leaves the
    file, but not the lock, and the next one takes it over. Where it is held, an ``ArtifactError`` says by whom. Writers
    of different parts of a directory have locks of different names.
    """
    path = Path(directory) / name
    check_writable(path.parent)
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        file = open(path, "a+")  # noqa: SIM115  (open for as long as the lock is held)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            file.close()
            raise ArtifactError(
                f"{path.parent} is being written by {holder}; wait for it, stop it, or use another directory"
            ) from None
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                break
        file.close()  # its holder has just removed it
    try:
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield
    finally:
        path.unlink(missing_ok=True)
        file.close()
