"""Time of the updates of the stages."""

from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import nn

from dd2_lightning.costs import computing_in, flops_of
from dd2_lightning.data.batch import Batch
from dd2_lightning.evaluation.timing import interleaved
from dd2_lightning.families.registry import teacher_from_config
from dd2_lightning.models.codebook_teacher import CodebookTeacher, require_codebook
from dd2_lightning.models.sizes import count_parameters
from dd2_lightning.planning import blank_batch
from dd2_lightning.sampling import Sampling
from dd2_lightning.stages import ARDiffusionInit, CSDDistill
from dd2_lightning.stages.distillation import DistillationStage
from dd2_lightning.stages.updates import Update

UPDATES = {"whole model": "init", "guidance": "guidance", "generator": "generator"}
"""What the stages call an update, and what the report does."""


def time_stages(
    family: str,
    architecture: dict[str, Any],
    batch_size: int,
    rounds: int,
    draws: int,
    sampling: Sampling,
    head: dict[str, int],
    precision: str,
    device: str,
) -> dict[str, dict[str, Any]]:
    """Time the updates of stages 1 and 2; see :func:`time_updates`."""
    with torch.device(device):
        teacher = require_codebook(teacher_from_config(family, architecture)).eval().requires_grad_(False)
    common = {"teacher": "", "draws": draws, "teacher_sampling": sampling}
    stages = {
        ARDiffusionInit: {**common, "head_width": head["width"], "head_depth": head["depth"]},
        CSDDistill: {**common, "init_from": ""},
    }
    timed: dict[str, dict[str, Any]] = {}
    for stage, settings in stages.items():  # one after the other: networks and Adam's moments are large
        timed |= time_updates(stage(**settings), teacher, head, batch_size, rounds, precision, device)
    return timed


def time_updates(
    stage: DistillationStage,
    teacher: CodebookTeacher,
    head: dict[str, int],
    batch_size: int,
    rounds: int,
    precision: str,
    device: str,
) -> dict[str, dict[str, Any]]:
    """Time the updates of a stage, by name; ``flops`` are those of a sample, ``tflops`` 10¹² operations a second."""
    batch = set_up(stage, teacher, head, batch_size, device)
    results = {}
    updates = {UPDATES[update.name]: update for update in stage.updates() if update.count(iterations=1)}
    steps = {name: step_of(stage, update, batch, precision, device) for name, update in updates.items()}
    timed = interleaved(steps, rounds, device)
    for name, step in steps.items():
        seconds, operations = median(timed[name]), flops_of(step)
        results[name] = {
            "parameters": count_parameters(updates[name].network),
            "flops": operations // batch_size,
            "seconds": timed[name],
            "seconds_per_sample": seconds / batch_size,
            "tflops": operations / seconds / 1e12,
        }
    return results


def set_up(
    stage: DistillationStage, teacher: CodebookTeacher, head: dict[str, int], batch_size: int, device: str = "cpu"
) -> Batch:
    """Give a stage its teacher and networks with random weights; returns a batch for it."""
    with torch.device(device):
        stage.teacher = teacher
        stage.build({"head": head})
        return blank_batch(stage, batch_size)


def step_of(stage: DistillationStage, update: Update, batch: Batch, precision: str, device: str) -> Callable[[], None]:
    """One optimizer step of a stage as a function: loss, gradient, clipping, Adam, EMA."""
    optimizer = update.optimizer.build(update.network.requires_grad_(True))

    def step() -> None:
        stage.requires_grad_(False)
        update.network.requires_grad_(True)
        with computing_in(precision, device):
            loss = update.loss(batch, 0).loss.mean()
        loss.backward()
        nn.utils.clip_grad_norm_(update.network.parameters(), update.optimizer.clip or float("inf"))
        optimizer.step()
        optimizer.zero_grad()
        if update.ema is not None:
            update.ema.update(batch.iteration)

    return step
