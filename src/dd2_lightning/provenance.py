"""Where results come from: the hardware, and the commit of this package."""

import platform
import subprocess
from pathlib import Path

import torch


def hardware(device: torch.device | str = "cpu") -> str:
    """Name of the GPU, or of the processor with the number of threads in use."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name, described = platform.processor() or platform.machine(), Path("/proc/cpuinfo")  # Linux names it there
    lines = described.read_text().splitlines() if described.is_file() else []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return f"{next(names, name)}, {torch.get_num_threads()} threads"


def commit() -> str | None:
    """Commit of the checkout that this package is imported from; None if it is an installed copy."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")  # a copy may lie in somebody else's repository
        return git("rev-parse", "HEAD")
    except (OSError, subprocess.SubprocessError):
        return None
