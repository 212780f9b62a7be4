"""Runs in processes of their own, forked so that nothing is imported twice."""

import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import psutil


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


def together(function: Callable[[], None], number: int, log: Path) -> None:
    """Run a function in so many processes that know of each other, as torchrun would start them."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(number),
        "GLOO_SOCKET_IFNAME": "lo",
    }
    common |= {"LOCAL_WORLD_SIZE": str(number), "TORCHELASTIC_RUN_ID": "test", "GROUP_RANK": "0"}
    processes = [Forked(function, log, {**common, "RANK": str(i), "LOCAL_RANK": str(i)}) for i in range(number)]
    status = dict.fromkeys(processes)
    while None in status.values() and not any(status.values()):
        status |= {process: process.wait(0.05) for process in processes if status[process] is None}
    for process in processes:
        if status[process] is None:  # it would wait for the one that failed
            process.send(signal.SIGKILL)
            process.wait()
    assert not any(status.values()), f"{list(status.values())}: {log.read_text()[-3000:]}"
