"""Everything that reaches into Lightning's private names, in one place; verified on lightning 2.6.

Each function has a test that runs against the installed version, so that an upgrade that moves a name is noticed.
"""

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from subprocess import Popen
from typing import Any
from unittest.mock import patch

from lightning.fabric.strategies.launchers import subprocess_script
from lightning.pytorch import Trainer
from lightning.pytorch.core.optimizer import LightningOptimizer, do_nothing_closure
from lightning.pytorch.strategies import DDPStrategy, Strategy

GRACE = 10.0  # seconds that the main process has to end by itself after one of its processes failed


class _FailureObserver(subprocess_script._ChildProcessObserver):
    """Thread that ends a run with the exit status of the process that failed first.

    Lightning's own kills the main process, whose status 137 and silence say nothing.
    """

    def __init__(self, main_pid: int, child_processes: list[Popen]):
        super().__init__(main_pid, child_processes, sleep_period=0.5)  # type: ignore[arg-type]  # it may be a fraction

    def _terminate_all(self) -> None:
        failed = next(process.returncode for process in self._child_processes if process.returncode)
        time.sleep(GRACE)  # the main process may be saving, or about to report the same
        for process in self._child_processes:
            with suppress(ProcessLookupError):
                process.kill()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(exit_status(failed))


def exit_status(returncode: int) -> int:
    """Exit status of the shell for a process's return code: 128 + n for a process that signal n has killed."""
    return 128 - returncode if returncode < 0 else returncode


def launched_processes(trainer: Trainer) -> list[Popen]:
    """Processes that this one has launched for the run."""
    return getattr(trainer.strategy.launcher, "procs", []) if trainer.strategy is not None else []


def end_launched_processes(trainer: Trainer) -> None:
    """Kill the processes that this one has launched; they may be waiting for it in a collective operation."""
    for process in launched_processes(trainer):
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)


@contextmanager
def end_with_failed_process(trainer: Trainer) -> Iterator[None]:
    """Within it, a launched process that fails ends this one with its exit status."""
    try:
        with patch.object(subprocess_script, "_ChildProcessObserver", _FailureObserver):
            yield
    except RuntimeError as error:
        if status := failed_status(trainer):  # the error follows from the other's failure
            raise SystemExit(status) from error
        raise


def failed_status(trainer: Trainer, seconds: float = 5.0) -> int:
    """Exit status of the launched process that failed first; 0 if none fails within some seconds."""
    processes, until = launched_processes(trainer), time.monotonic() + seconds
    while processes and time.monotonic() < until:
        for process in processes:
            if process.poll():
                return exit_status(process.returncode)
        time.sleep(0.05)
    return 0


@contextmanager
def uncounted(optimizer: LightningOptimizer) -> Iterator[None]:
    """Within this context, steps of ``optimizer`` do not advance ``trainer.global_step``.

    In manual optimization Lightning counts every ``optimizer.step``, through two callbacks that it binds to each
    optimizer before every ``training_step``.
    """
    counters = optimizer._on_before_step, optimizer._on_after_step
    optimizer._on_before_step = optimizer._on_after_step = do_nothing_closure
    try:
        yield
    finally:
        optimizer._on_before_step, optimizer._on_after_step = counters


def find_unused_parameters(strategy: Strategy) -> None:
    """Let DDP look for the parameters that an update gives no gradient; nothing for other strategies."""
    if isinstance(strategy, DDPStrategy):
        strategy._ddp_kwargs["find_unused_parameters"] = True


def set_progress(checkpoint: dict[str, Any], iterations: int, is_last: bool) -> None:
    """Set the loops' counters in a checkpoint to those that Lightning stores in ``on_train_batch_end``.

    A checkpoint that is written later than that holds what the loops count afterwards, and a restart would make
    another epoch or validation of it. ``is_last`` says whether the last of these ``iterations`` ends the run.
    """
    loops = checkpoint["loops"]["fit_loop"]
    loops["epoch_loop.state_dict"]["_batches_that_stepped"] = iterations - 1
    for counter in ("total", "current"):
        started = dict.fromkeys(("ready", "started", "processed"), iterations)
        loops["epoch_loop.batch_progress"][counter].update(started, completed=iterations - 1)
        loops["epoch_progress"][counter].update(ready=1, started=1, processed=0, completed=0)
    loops["epoch_loop.batch_progress"]["is_last_batch"] = is_last
    loops["epoch_loop.val_loop.batch_progress"]["total"].update(ready=0, started=0, processed=0, completed=0)
