"""Time of a teacher against one step."""

from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor

from dd2_lightning.costs import flops_of
from dd2_lightning.devices import PRECISIONS, autocast, check_precision
from dd2_lightning.evaluation.timing import interleaved
from dd2_lightning.families.registry import teacher_from_config
from dd2_lightning.models.codebook_teacher import require_codebook
from dd2_lightning.models.generator import OneStepGenerator
from dd2_lightning.models.graphs import Replayed, cast_linears
from dd2_lightning.models.sizes import count_parameters
from dd2_lightning.models.student import build_student
from dd2_lightning.sampling import Sampling


@torch.no_grad()
def time_sampling(
    family: str,
    architecture: dict[str, Any],
    batch_size: int,
    rounds: int,
    sampling: Sampling,
    head: tuple[int, int],
    device: str,
    precision: str | int = "32",
    graphs: bool = False,
) -> dict[str, Any]:
    """Seconds a batch of teacher sequences, of one-step sequences, and of decoding them, with their ratios.

    One step is compared with a pass of its backbone alone, too: what it takes beyond that is its velocity head.
    ``flops`` are the operations of both. With ``graphs`` all are replayed as CUDA graphs. On a GPU, ``bytes`` are the
    largest that each allocates, weights included.
    """
    with torch.device(device):
        teacher = require_codebook(teacher_from_config(family, architecture)).to(device).eval()
        student = build_student(teacher, width=head[0], depth=head[1]).to(device).eval()
    generator = OneStepGenerator(student, teacher.tokenizer, head_time=1.0)
    with torch.device(device):
        labels = torch.arange(batch_size) % teacher.num_classes
        tokens = torch.randn(batch_size, teacher.layout.length, teacher.token_dim)
        uniforms = torch.rand(batch_size, teacher.layout.length)
    check_precision(torch.device(device), precision)
    for network in (teacher, student):
        cast_linears(network, PRECISIONS[str(precision)])

    def computed(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        with autocast(torch.device(device), precision):
            return function(*inputs)

    calls: dict[str, tuple[Callable[..., Tensor], Tensor, Tensor]] = {
        "teacher": (lambda y, u: teacher.sample(y, sampling, uniforms=u), labels, uniforms),
        "one_step": (lambda y, noise: generator.sample(y, noise=noise), labels, tokens),
        "backbone": (lambda y, noise: student.backbone(noise, y), labels, tokens),
        "decoder": (lambda y, tokens: generator.decode(tokens), labels, tokens),
    }
    plain = {name: partial(computed, function) for name, (function, *_) in calls.items()}
    functions = {
        name: partial(Replayed(plain[name]) if graphs else plain[name], *inputs) for name, (_, *inputs) in calls.items()
    }
    seconds = interleaved(functions, rounds, device)
    middle = {name: median(taken) for name, taken in seconds.items()}
    flops = {name: flops_of(partial(plain[name], *calls[name][1:])) for name in ("one_step", "backbone")}
    return {
        "steps": teacher.layout.num_positions,
        "tokens": teacher.layout.length,
        "parameters": {
            "teacher": count_parameters(teacher.backbone, teacher.classifier),
            "one_step": count_parameters(student),
        },
        "seconds": seconds,
        "bytes": {name: allocated_bytes(function, device) for name, function in functions.items()},
        "median_seconds": middle,
        "flops": flops,
        "passes": {"seconds": middle["one_step"] / middle["backbone"], "flops": flops["one_step"] / flops["backbone"]},
        "ratio": middle["teacher"] / middle["one_step"],
        "ratio_with_decoder": (middle["teacher"] + middle["decoder"]) / (middle["one_step"] + middle["decoder"]),
    }


def allocated_bytes(function: Callable[[], Any], device: str) -> int | None:
    """The largest number of bytes that are allocated on a GPU while a function runs; None elsewhere."""
    if torch.device(device).type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats(device)
    function()
    return torch.cuda.max_memory_allocated(device)
