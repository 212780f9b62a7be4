"""Ctrl-C in the commands that take long: status 130, no traceback, and the same command continues."""

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from dd2_lightning.cli import main
from processes import forked_command


def interrupted(line: list[str], directory: Path, pattern: str) -> None:
    """Start a command and press Ctrl-C in its terminal when it has written a file."""
    process, until = forked_command(directory.parent / "log", *line), time.monotonic() + 100
    while not list(directory.glob(pattern)):
        assert time.monotonic() < until and process.wait(0.02) is None, process.output()
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(60) == 130 and "Traceback" not in process.output(), process.output()


def test_sampling_continues(var_run, tmp_path):
    line = ["sample", "--model", str(var_run / "csd"), "--device", "cpu", "--batch_size", "4", "--protocol", "dd1"]
    line += ["--output", str(tmp_path / "x.npz"), "--num"]
    interrupted([*line, "4000"], tmp_path / "x.npz.parts", "*.npy")
    assert not (tmp_path / "x.npz").exists()
    first = next(iter(sorted((tmp_path / "x.npz.parts").glob("*.npy"))))
    modified = first.stat().st_mtime_ns, len(list(first.parent.glob("*.npy")))
    assert modified[1] < 1000
    process, until = forked_command(tmp_path / "log", *line, "4000"), time.monotonic() + 100
    while len(list(first.parent.glob("*.npy"))) <= modified[1]:
        assert time.monotonic() < until and process.wait(0.02) is None
    assert first.stat().st_mtime_ns == modified[0]  # not drawn again
    process.send(signal.SIGKILL)
    process.wait()


@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_cache_continues(var_run, tmp_path, processes):
    line = ["cache", "--teacher", str(var_run / "teacher"), "--device", "cpu", "--shard_size", "50", "--num", "5000"]
    line += ["--processes", processes, "--output", str(tmp_path / "cache")]
    interrupted(line, tmp_path / "cache", "*.sha256")
    shards = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").glob("*.sha256")}
    assert 0 < len(shards) < 100
    main([*line, "--processes", "1"])
    assert len(list((tmp_path / "cache").glob("*.sha256"))) == 100
    assert all(path.stat().st_mtime_ns == modified for path, modified in shards.items())
    assert np.load(tmp_path / "cache/00000.npy").shape == (50,)
