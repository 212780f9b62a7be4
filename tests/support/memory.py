"""The peak memory of a computation, measured in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

STATUS = Path("/proc/self/status")
needs_proc = pytest.mark.skipif(not STATUS.exists(), reason="the peak memory of a process is read from /proc")


def peak() -> float:
    """Largest memory of this process so far, in MB.

    Not ``resource.ru_maxrss``: Linux hands a child the peak of the process that forked it.
    """
    return next(int(line.split()[1]) for line in STATUS.read_text().splitlines() if line.startswith("VmHWM")) / 1024


def output_of(script: str, *arguments: object) -> str:
    """What a script prints that may import this module; one thread."""
    paths = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[2] / "src")])
    run = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout
