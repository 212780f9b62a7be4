"""``dd2 fit`` that ends at a point of time, its number of iterations following the measured rate.

    python -m benchmarks.scale.fit DEADLINE[,SNAPSHOT,...] DIRECTORY fit --config …

Times are those of the Unix clock. The learning rates, functions of the share of the run that is done, follow. At each
snapshot the moving average of the weights goes to ``DIRECTORY/SECONDS_ITERATION.safetensors``, in half precision.
"""

import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from dd2_lightning.cli import main
from dd2_lightning.stages.base import Stage

WARM_UP = 10  # iterations before the rate is measured


class Deadline:
    """The hook ``on_train_batch_start`` of a stage."""

    def __init__(self, deadline: float, snapshots: list[float], directory: Path):
        self.deadline, self.snapshots, self.directory = deadline, snapshots, directory
        self.start: tuple[float, int] | None = None

    def __call__(self, stage: Any, batch: Any, index: int) -> None:
        now, iteration = time.time(), stage.trainer.global_step
        if self.start is None:
            self.start = now, iteration
        done = iteration - self.start[1]
        if done < WARM_UP or iteration % WARM_UP:
            return
        left = max(0.0, self.deadline - now) * done / (now - self.start[0])
        stage.trainer.fit_loop.epoch_loop.max_steps = iteration + max(2, int(left))
        if self.snapshots and now >= self.snapshots[0]:
            self.snapshots.pop(0)
            self.directory.mkdir(parents=True, exist_ok=True)
            weights = {name: value.detach().half().cpu().contiguous() for name, value in stage.ema.state_dict().items()}
            save_file(weights, self.directory / f"{now - float(os.environ['STUDY_START']):.0f}_{iteration}.safetensors")


def run(times: str, directory: str, *arguments: str) -> None:
    """Run ``dd2`` with these arguments until the first of the times."""
    deadline, *snapshots = map(float, times.split(","))
    hook = Deadline(deadline, snapshots, Path(directory))
    Stage.on_train_batch_start = lambda self, batch, index: hook(self, batch, index)  # type: ignore[method-assign]
    torch.set_num_threads(1)
    main(list(arguments))


if __name__ == "__main__":
    run(*sys.argv[1:])
