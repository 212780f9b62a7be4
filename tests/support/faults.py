"""What goes wrong on real machines, made to happen: each is a clear error, and what was there stays as it was."""

import math
import resource
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dd2_lightning.callbacks import IterationCheckpoint
from dd2_lightning.data import Batch
from dd2_lightning.stages import CSDDistill
from evidence import left_behind, unequal
from processes import forked
from runs import any_config, fit
from watching import watch_losses


def die_at(iteration: int, how: int = signal.SIGKILL) -> None:
    """Make this process send itself a signal in the middle of an iteration, when its first loss is computed."""
    sent = []

    def send(stage, update, batch, k, losses):
        if batch.iteration == iteration and not sent:
            sent.append(iteration)
            signal.raise_signal(how)

    watch_losses(pytest.MonkeyPatch(), send)


class Scene:
    """A run that meets a fault, and the same run without one.

    Args:
        root: what the runs start from, see :func:`runs.prepare_all`.
        directory: of this fault.
        stage: the stage that is run.
        data: settings of the data module; its cache is in ``directory``.
    """

    def __init__(self, root: Path, directory: Path, stage: str = "csd", **data):
        self.directory, self.run = directory, directory / "run"
        directory.mkdir(parents=True)
        self.config = any_config(root, stage, self.run)
        self.config["data"]["init_args"] |= data
        whole = {**self.config, "trainer": {**self.config["trainer"], "default_root_dir": str(directory / "whole")}}
        self.expect(0, "", config=whole)

    def expect(self, status: int, *words: str, before: Callable[[], None] = lambda: None, config=None) -> None:
        """Run or resume in a process of its own, where ``before`` may change things; it has to end like this."""

        def body():
            before()
            fit(config or self.config, self.directory, "--ckpt_path", "auto")

        log = self.directory / "log"
        log.unlink(missing_ok=True)
        ended, text = forked(body, log)
        assert ended == status, f"status {ended}: {text[-3000:]}"
        assert all(word in text for word in words), text[-3000:]

    def lost(self, saved: int) -> int:
        """What the fault cost: iterations before the last checkpoint, and whatever is not the same in the end."""
        iterations = saved - torch.load(self.run / "checkpoints/last.ckpt", weights_only=True)["global_step"]
        self.expect(0)
        return iterations + len(unequal(left_behind(self.directory / "whole"), left_behind(self.run)))


def disk_full(root: Path, directory: Path) -> int:
    """No more room when the second checkpoint is written."""
    scene = Scene(root, directory)

    def fill_up():
        save = IterationCheckpoint.save

        def save_and_fill(self, trainer):
            save(self, trainer)
            if self.path.is_file():
                half = self.path.stat().st_size // 2
                resource.setrlimit(resource.RLIMIT_FSIZE, (half, half))

        IterationCheckpoint.save = save_and_fill

    scene.expect(1, "cannot write", "last.ckpt", "File too large", before=fill_up)
    return scene.lost(2)


def poisoned(original: Callable) -> Callable:
    """A loss of a stage, with a NaN at token 1 in the fifth iteration."""

    def loss(self, *arguments):
        found = original(self, *arguments)
        if next(part for part in arguments if isinstance(part, Batch)).iteration == 4:
            found.loss[0, 1] = math.nan
        return found

    return loss


def nan_batch(root: Path, directory: Path) -> int:
    """A loss that is not a number, in the fifth iteration."""
    scene = Scene(root, directory)

    def poison():
        CSDDistill.generator_loss = poisoned(CSDDistill.generator_loss)

    scene.expect(1, "generator is nan at iteration 4, position 1", before=poison)
    return scene.lost(4)


def damaged_shard(root: Path, directory: Path) -> int:
    """One byte of the sequence cache is another when the run is resumed."""
    cache = directory / "cache"
    scene = Scene(root, directory, "init", sequences="cached", cache_dir=str(cache), cache_size=40)
    scene.expect(-9, before=lambda: die_at(3))
    shard = cache / "00000.npy"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    scene.expect(1, str(shard), "is damaged", "checksum")
    shard.unlink()
    shard.with_suffix(".sha256").unlink()
    return scene.lost(2)


def changed_teacher(root: Path, directory: Path) -> int:
    """The teacher's file is another when the run is resumed."""
    scene = Scene(root, directory)
    scene.expect(-9, before=lambda: die_at(3))
    path = root / "teacher" / "teacher.safetensors"
    content = path.read_bytes()
    try:
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        scene.expect(1, str(path), "is not the teacher")
    finally:
        path.write_bytes(content)
    return scene.lost(2)


def truncated_checkpoint(root: Path, directory: Path) -> int:
    """Half of the checkpoint is gone; a copy of it is not."""
    scene = Scene(root, directory)
    scene.expect(-9, before=lambda: die_at(3))
    path = scene.run / "checkpoints/last.ckpt"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    scene.expect(1, str(path), "truncated or damaged")
    path.write_bytes(content)
    return scene.lost(2)


FAULTS = {
    "disk full during a checkpoint": disk_full,
    "NaN in a batch": nan_batch,
    "damaged shard of the sequence cache": damaged_shard,
    "teacher's file changed": changed_teacher,
    "checkpoint truncated": truncated_checkpoint,
}
