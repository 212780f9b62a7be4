"""Ctrl-C in the commands that take long: status 130, no traceback, and the same command continues."""

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from processes import dd2, started


def interrupted(line: list[str], directory: Path, pattern: str) -> str:
    """Start a command and press Ctrl-C in its terminal when it has written a file; what it says."""
    process, until = started(*line), time.monotonic() + 100
    while not list(directory.glob(pattern)):
        assert time.monotonic() < until and process.poll() is None, process.communicate()
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    _, text = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in text, text
    return text


def test_sampling_continues(var_run, tmp_path):
    line = ["sample", "--model", str(var_run / "csd"), "--device", "cpu", "--batch_size", "4", "--protocol", "dd1"]
    line += ["--output", str(tmp_path / "x.npz"), "--num"]
    interrupted([*line, "4000"], tmp_path, "x.npz.parts/*.npy")
    assert not (tmp_path / "x.npz").exists()
    first = next(iter(sorted((tmp_path / "x.npz.parts").glob("*.npy"))))
    modified = first.stat().st_mtime_ns, len(list(first.parent.glob("*.npy")))
    assert modified[1] < 1000
    process = started(*line, "4000")
    until = time.monotonic() + 100
    while len(list(first.parent.glob("*.npy"))) <= modified[1]:
        assert time.monotonic() < until and process.poll() is None
        time.sleep(0.02)
    assert first.stat().st_mtime_ns == modified[0]  # not drawn again
    process.kill()
    process.communicate()


@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_cache_continues(var_run, tmp_path, processes):
    line = [
        "cache",
        "--teacher",
        str(var_run / "teacher"),
        "--device",
        "cpu",
        "--shard_size",
        "50",
        "--num",
        "20000",
    ]
    line += ["--processes", processes, "--output", str(tmp_path / "cache")]
    interrupted(line, tmp_path / "cache", "*.sha256")
    shards = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").glob("*.sha256")}
    assert 0 < len(shards) < 400
    done = dd2(*line)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "cache").glob("*.sha256"))) == 400
    assert all(path.stat().st_mtime_ns == modified for path, modified in shards.items())
    assert np.load(tmp_path / "cache/00000.npy").shape == (50,)
