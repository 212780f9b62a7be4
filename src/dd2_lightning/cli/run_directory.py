"""The directory of a training run, and what protects it from being overwritten."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dd2_lightning.errors import ArtifactError
from dd2_lightning.files import DirectoryLock, remove_temporary


class RunDirectory:
    """``trainer.default_root_dir`` of a ``fit``: checkpoint, logs, ``config.yaml`` and, at the end, the artifact.

    Args:
        root: the directory; nothing is created yet.
    """

    def __init__(self, root: str | Path):
        self.root = Path(root)
        self.lock = DirectoryLock(self.root)

    @property
    def checkpoint(self) -> Path:
        """Where the last checkpoint lies."""
        return self.root / "checkpoints" / "last.ckpt"

    def resolve_checkpoint(self, ckpt_path: str | None, overwrite: bool = False) -> str | None:
        """Path of the checkpoint that a run starts from, or None for a fresh start.

        Args:
            ckpt_path: ``last`` (the checkpoint of this directory must be there), ``auto`` (if it is there), a file,
                or None for a fresh start.
            overwrite: whether a fresh start may delete a run that is there.

        Raises:
            ArtifactError: if ``last`` finds nothing, or a fresh start would overwrite a run.
        """
        found = self.checkpoint.is_file()
        if ckpt_path == "last" and not found:
            raise ArtifactError(
                f"--ckpt_path last: {self.checkpoint} does not exist, there is nothing to resume; leave --ckpt_path out"
                f" to start, or take --ckpt_path auto, which resumes if it can"
            )
        if ckpt_path in ("last", "auto"):
            return str(self.checkpoint) if found else None
        if ckpt_path is None and not overwrite:
            self._check_unused()
        return ckpt_path

    def _check_unused(self) -> None:
        if (self.root / "config.json").exists():
            state = "a finished run"
        elif self.checkpoint.exists():
            state = "an unfinished run"
        else:
            return
        raise ArtifactError(
            f"{self.root} holds {state}, which this one would overwrite: continue it with --ckpt_path last, choose "
            f"another --trainer.default_root_dir, or delete it and start again with --overwrite"
        )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Context in which this process alone writes into the directory.

        After a failure before the first checkpoint, no directory stays behind that was not there.

        Raises:
            ArtifactError: if another process writes into it, or it cannot be written.
        """
        created = [path for path in (self.root, *self.root.parents) if not path.exists()]
        try:
            with self.lock:
                try:
                    yield
                except BaseException:
                    if created and not self.checkpoint.exists():
                        self._delete_run()
                    raise
        except BaseException:
            with suppress(OSError):  # not empty
                for path in created:
                    path.rmdir()
            raise

    def prepare(self, overwrite: bool = False) -> None:
        """Delete what a killed process left half-written and, to overwrite it, an earlier run."""
        if overwrite:
            self._delete_run()
        remove_temporary(self.root)

    def _delete_run(self) -> None:
        (self.root / "config.json").unlink(missing_ok=True)
        for pattern in ("*.safetensors", "config.yaml", "events.out.tfevents.*"):
            for path in self.root.glob(pattern):
                path.unlink()
        shutil.rmtree(self.root / "checkpoints", ignore_errors=True)
