"""Runs in processes of their own, forked so that nothing is imported twice."""

import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import psutil

from dd2_lightning.cli import main


class Forked:
    """A function in a forked process.

    Args:
        function: what it runs; its exit status is that of ``SystemExit``, 1 for other exceptions.
        log: file that its output is appended to.
        environment: variables that are set in it.
    """

    def __init__(self, function: Callable[[], None], log: Path, environment: dict[str, str] | None = None):
        self.log = log
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            self._run(function, environment or {})

    def _run(self, function: Callable[[], None], environment: dict[str, str]) -> None:
        status = 1
        try:
            descriptor = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
            sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.environ.update(environment)
            function()
            status = 0
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)  # nothing of the parent's is to be cleaned up

    def wait(self, seconds: float = 3600, work: float = float("inf")) -> int | None:
        """Exit status, negative for a signal; None if it is still running after so many seconds, or so many at work.

        Seconds at work are those of the processor: they do not depend on what else a machine is doing.
        """
        until = time.monotonic() + seconds
        while True:
            pid, status, usage = os.wait4(self.pid, os.WNOHANG)
            if pid:
                self.worked = usage.ru_utime + usage.ru_stime
                return os.waitstatus_to_exitcode(status)
            times = psutil.Process(self.pid).cpu_times()
            if time.monotonic() > until or times.user + times.system >= work:
                return None
            time.sleep(0.01)

    def send(self, number: int) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    def output(self) -> str:
        """Everything in its log, in one line."""
        return " ".join(self.log.read_text().split())


def forked(function: Callable[[], None], log: Path) -> tuple[int, str]:
    """Exit status and output of a function in a process of its own."""
    process = Forked(function, log)
    return process.wait(), process.output()


def forked_command(log: Path, *arguments: str) -> Forked:
    """``dd2 arguments`` in a process group of its own, as a terminal starts it."""

    def run() -> None:
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        main(list(arguments))

    return Forked(run, log)


def forked_ranks(number: int, log: Path, *arguments: str) -> list[Forked]:
    """``dd2 arguments`` in so many processes of one run, with the variables that torchrun gives them."""
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "TORCHELASTIC_RUN_ID": "test"}
    shared |= {"WORLD_SIZE": str(number), "LOCAL_WORLD_SIZE": str(number), "GROUP_RANK": "0"}
    return [
        Forked(
            lambda: main(list(arguments)), Path(f"{log}{rank}"), {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        )
        for rank in range(number)
    ]


def free_port() -> int:
    """A port that nobody listens at."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


DD2 = Path(sys.executable).with_name("dd2")
"""The installed command."""


def environment(**variables: str) -> dict[str, str]:
    """Environment of a command that finds the modules of the tests and of this source tree."""
    support = Path(__file__).parent
    path = os.pathsep.join([str(support.parents[1] / "src"), str(support), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **variables}


def dd2(*arguments: str, program: tuple[str, ...] = (str(DD2),), **options) -> subprocess.CompletedProcess:
    """Run the installed command, or another ``program``, to its end."""
    options = {"env": environment(), "capture_output": True, "text": True, "timeout": 120, **options}
    return subprocess.run([*program, *arguments], **options)


def started(*arguments: str, **options) -> subprocess.Popen:
    """Start the installed command in a process group of its own."""
    options = {"env": environment(), "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **options}
    return subprocess.Popen([DD2, *arguments], start_new_session=True, **options)
