"""``python -m benchmarks.scale run|measure|report``."""

from benchmarks.command import run_command
from benchmarks.scale.run import run_all

if __name__ == "__main__":
    run_command("benchmarks.scale", {"run": run_all})
