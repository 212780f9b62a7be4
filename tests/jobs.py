"""Jobs for processes of their own: this module imports nothing, so they start at once."""

import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Job:
    """Leaves a file, raises, or is killed."""

    path: Path
    fate: str = "done"

    def perform(self):
        print("at work")
        if self.fate == "raises":
            raise RuntimeError("a made-up failure")
        if self.fate == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        self.path.write_text(f"{os.getpid()} {os.environ.get('PREPARED')}")


def prepare():
    assert not sys.stdout.isatty()
    os.environ["PREPARED"] = "yes"
