"""What DDP's search for unused parameters takes: ``python -m benchmarks.speed.unused``.

An update gives gradients to one network of a stage, so DDP has to look for the parameters that get none. It walks
through the graph of operations, whose number the depth decides and the width does not: the networks here are narrow.
"""

import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from benchmarks.command import run_command
from dd2_lightning.evaluation.report import to_json
from dd2_lightning.families.registry import teacher_from_config
from dd2_lightning.files import write_atomically
from dd2_lightning.hub.cards import published
from dd2_lightning.models.codebook_teacher import require_codebook
from dd2_lightning.provenance import commit, hardware
from dd2_lightning.sampling import Sampling
from dd2_lightning.stages import CSDDistill
from dd2_lightning.timing.training import set_up

NARROW = {"width": 64, "heads": 4, "codes": 64, "pixels": False}


def search(name: str, rounds: int) -> dict[str, Any]:
    """Seconds of the search before the backward pass of every update of stage 2, at the depth of a published model."""
    family, architecture = published(name)
    teacher = require_codebook(teacher_from_config(family, architecture | NARROW)).eval().requires_grad_(False)
    stage = CSDDistill("", "", draws=1, teacher_sampling=Sampling(guidance_scale=2.0))
    batch = set_up(stage, teacher, {"width": 16, "depth": 4}, 1)
    wrapped = nn.parallel.DistributedDataParallel(stage, find_unused_parameters=True)
    found: dict[str, Any] = {"depth": architecture["depth"], "seconds": {}}
    for update in stage.updates():
        stage.requires_grad_(False)
        update.network.requires_grad_(True)
        taken = []
        for _ in range(rounds + 1):
            loss = update.loss(batch, 0).loss.mean()
            start = time.perf_counter()
            wrapped.reducer.prepare_for_backward([loss])
            taken.append(time.perf_counter() - start)
            loss.backward()
            stage.zero_grad()
        found["seconds"][update.name] = taken[1:]
    found["median_seconds"] = {update: median(taken) for update, taken in found["seconds"].items()}
    return found


def main(output: str, models: list[str] = ["var/d16", "llamagen/L"], rounds: int = 20) -> None:  # noqa: B006
    """Time the search at the depth of published models.

    Args:
        output: JSON file.
        models: published sizes.
        rounds: how often each is timed, after one to warm up; medians count.
    """
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    report: dict[str, Any] = {"hardware": hardware("cpu"), "torch": torch.__version__, "commit": commit()}
    try:
        report["models"] = {name: search(name, rounds) for name in models}
    finally:
        dist.destroy_process_group()
    for name, found in report["models"].items():
        print(name, {update: f"{1000 * taken:.2f} ms" for update, taken in found["median_seconds"].items()})
    write_atomically(Path(output), to_json(report))


if __name__ == "__main__":
    run_command("benchmarks.speed.unused", main)
