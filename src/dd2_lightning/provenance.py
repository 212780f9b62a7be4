"""Where results come from: the hardware, and the commit of this package."""

import platform
import subprocess
from pathlib import Path

import torch

import dd2_lightning


def hardware(device: torch.device | str = "cpu") -> str:
    """Name of the GPU, or of the processor with the number of threads in use."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass  # not Linux, or a processor without a name
    return f"{name}, {torch.get_num_threads()} threads"


def commit() -> str | None:
    """Commit of the checkout that this package is imported from; None if it is an installed copy."""
    directory = Path(dd2_lightning.__file__).parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(directory), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        # a copy inside a virtual environment may lie in somebody else's repository
        git("ls-files", "--error-unmatch", "__init__.py")
        return git("rev-parse", "HEAD")
    except (OSError, subprocess.SubprocessError):
        return None
