"""Time of a teacher against one step."""

from statistics import median
from typing import Any

import torch

from dd2_lightning.evaluation.timing import interleaved
from dd2_lightning.families.registry import teacher_from_config
from dd2_lightning.models.codebook_teacher import require_codebook
from dd2_lightning.models.generator import OneStepGenerator
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
) -> dict[str, Any]:
    """Seconds a batch of teacher sequences, of one-step sequences, and of decoding them, with their ratios."""
    with torch.device(device):
        teacher = require_codebook(teacher_from_config(family, architecture)).to(device).eval()
        student = build_student(teacher, width=head[0], depth=head[1]).to(device).eval()
    generator = OneStepGenerator(student, teacher.tokenizer, head_time=1.0)
    labels = torch.arange(batch_size, device=device) % teacher.num_classes
    tokens = torch.randn(batch_size, teacher.layout.length, teacher.token_dim, device=device)
    seconds = interleaved(
        {
            "teacher": lambda: teacher.sample(labels, sampling),
            "one_step": lambda: generator.sample(labels),
            "decoder": lambda: generator.decode(tokens),
        },
        rounds,
        device,
    )
    middle = {name: median(taken) for name, taken in seconds.items()}
    return {
        "steps": teacher.layout.num_positions,
        "tokens": teacher.layout.length,
        "parameters": {
            "teacher": count_parameters(teacher.backbone, teacher.classifier),
            "one_step": count_parameters(student),
        },
        "seconds": seconds,
        "median_seconds": middle,
        "ratio": middle["teacher"] / middle["one_step"],
        "ratio_with_decoder": (middle["teacher"] + middle["decoder"]) / (middle["one_step"] + middle["decoder"]),
    }
