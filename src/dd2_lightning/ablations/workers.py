"""Independent runs, several at a time."""

import multiprocessing
import os
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import wait
from pathlib import Path
from typing import Protocol


class Job(Protocol):
    """What can be run in a process of its own; it leaves files."""

    path: Path

    def perform(self) -> None:
        """Do it."""


def log_of(job: Job) -> Path:
    """Where a job's process writes; it is kept if the job fails."""
    return job.path.with_suffix(".log")


def in_its_process(job: Job, prepare: Callable[[], None]) -> None:
    """What a spawned process does."""
    descriptor = os.open(log_of(job), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    prepare()
    job.perform()


def reason(job: Job, status: int) -> str:
    """Why a process failed: the last line that it wrote, or the signal that ended it."""
    with suppress(OSError):
        lines = [line for line in log_of(job).read_text().splitlines() if line.strip()]
        if status > 0 and lines:
            return f"{lines[-1].strip()} ({log_of(job)})"
    return f"its process ended with status {status}"


def perform(
    jobs: list[Job],
    processes: int,
    prepare: Callable[[], None],
    finished: Callable[[Job, str | None], None],
) -> None:
    """Do all jobs; one that fails does not keep the others from being done.

    Args:
        jobs: independent of each other.
        processes: at a time; each job has a spawned one of its own. 1 does all jobs in this process.
        prepare: called first in every process.
        finished: told of every job at its end: why it failed, or None.
    """
    if processes == 1:
        prepare()
        for job in jobs:
            finished(job, here(job))
        return
    context = multiprocessing.get_context("spawn")
    waiting, running = list(jobs), {}
    with ended(running):
        while waiting or running:
            while waiting and len(running) < processes:
                job = waiting.pop(0)
                log_of(job).parent.mkdir(parents=True, exist_ok=True)
                process = context.Process(target=in_its_process, args=(job, prepare), daemon=True)
                process.start()
                running[process.sentinel] = job, process
            for sentinel in wait(list(running)):
                job, process = running.pop(sentinel)
                process.join()
                problem = reason(job, process.exitcode) if process.exitcode else None
                if problem is None:
                    log_of(job).unlink(missing_ok=True)
                finished(job, problem)


def here(job: Job) -> str | None:
    """Do a job in this process; why it failed, or None."""
    try:
        job.perform()
    except Exception as error:
        log_of(job).parent.mkdir(parents=True, exist_ok=True)
        log_of(job).write_text(traceback.format_exc())
        return f"{type(error).__name__}: {error} ({log_of(job)})"
    return None


@contextmanager
def ended(running: dict) -> Iterator[None]:
    """Leave no process behind, whatever happens here."""
    try:
        yield
    finally:
        for _, process in running.values():
            process.terminate()
