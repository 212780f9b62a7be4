"""The directory of a training run, and what protects it from being overwritten."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dd2_lightning.errors import ArtifactError
from dd2_lightning.files import directory_lock, remove_temporary


class RunDirectory:
    """``trainer.default_root_dir`` of a ``fit``: checkpoint, logs, ``config.yaml`` and, at the end, the artifact."""

    def __init__(self, root: str | Path):
        self.root = Path(root)
        self.checkpoint = self.root / "checkpoints" / "last.ckpt"

    def resolve_checkpoint(self, ckpt_path: str | None, overwrite: bool = False) -> str | None:
        """Path of the checkpoint that a run starts from, or None for a fresh start, which may ``overwrite`` a run.

        ``last`` is the checkpoint of this directory, ``auto`` the same if there is one, any other a file.
        """
        found = self.checkpoint.is_file()
        if ckpt_path == "last" and not found:
            raise ArtifactError(
                f"--ckpt_path last: {self.checkpoint} does not exist, there is nothing to resume; leave --ckpt_path out"
                f" to start, or take --ckpt_path auto, which resumes if it can"
            )
        if ckpt_path in ("last", "auto"):
            return str(self.checkpoint) if found else None
        finished = (self.root / "config.json").exists()
        if ckpt_path is None and not overwrite and (finished or found):
            raise ArtifactError(
                f"{self.root} holds {'a finished' if finished else 'an unfinished'} run, which this one would "
                f"overwrite: continue it with --ckpt_path last, choose another --trainer.default_root_dir, or delete "
                f"it and start again with --overwrite"
            )
        return ckpt_path

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Context in which this process alone writes into the directory.

        After a failure before the first checkpoint, no directory stays behind that was not there.
        """
        created = [path for path in (self.root, *self.root.parents) if not path.exists()]
        try:
            with directory_lock(self.root):
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
        for pattern in ("*.safetensors", "config.yaml", "time.json", "events.out.tfevents.*"):
            for path in self.root.glob(pattern):
                path.unlink()
        shutil.rmtree(self.root / "checkpoints", ignore_errors=True)
