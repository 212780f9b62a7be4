"""Processor time of samplers, passes and decoders against the reference algorithm: ``python -m benchmarks.speed``."""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch
from torch import Tensor

from benchmarks.command import run_command
from benchmarks.speed.reference import reference_backbone, reference_decoder, reference_sample
from dd2_lightning.evaluation.report import to_json
from dd2_lightning.evaluation.timing import interleaved
from dd2_lightning.families.registry import teacher_from_config
from dd2_lightning.files import write_atomically
from dd2_lightning.hub.cards import published
from dd2_lightning.models.codebook_teacher import require_codebook
from dd2_lightning.provenance import commit, hardware
from dd2_lightning.sampling import Sampling

SAMPLING = {"var": Sampling(guidance_scale=2.0, top_k=900, top_p=0.95), "llamagen": Sampling(guidance_scale=2.0)}


def in_turn(functions: dict[str, Callable[[], Tensor]], rounds: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Processor seconds of ``ours`` and the ``reference``, their ratios, and the last results."""
    results: dict[str, Tensor] = {}

    def call(key: str) -> None:
        results[key] = functions[key]()

    seconds = interleaved({key: partial(call, key) for key in functions}, rounds, clock=time.process_time)
    ratios = [b / a for a, b in zip(seconds["ours"], seconds["reference"], strict=True)]
    return {"seconds": seconds, "ratios": ratios, "median_ratio": median(ratios)}, results


def teachers(name: str, batch_size: int, rounds: int) -> dict[str, Any]:
    """Time and tokens of two samplers of a teacher."""
    family, sizes = published(name)
    teacher = require_codebook(teacher_from_config(family, {**sizes, "pixels": False})).eval()
    inputs = (torch.arange(batch_size), SAMPLING[family])
    uniforms = torch.rand(batch_size, teacher.layout.length)
    found, tokens = in_turn(
        {
            "ours": lambda: teacher.sample(*inputs, uniforms=uniforms),
            "reference": lambda: reference_sample(teacher, *inputs, uniforms),
        },
        rounds,
    )
    return {**found, "equal_tokens": tokens["ours"].eq(tokens["reference"]).double().mean().item()}


def passes(name: str, batch_size: int, rounds: int) -> dict[str, Any]:
    """Time and features of two passes over whole sequences, of four layers: as many scores as are seen, or a mask."""
    family, sizes = published(name)
    teacher = require_codebook(teacher_from_config(family, {**sizes, "depth": 4, "pixels": False})).eval()
    ours, reference = teacher.backbone, reference_backbone(teacher)
    tokens, labels = torch.randn(batch_size, teacher.layout.length, teacher.token_dim), torch.arange(batch_size)
    found, features = in_turn(
        {"ours": lambda: ours(tokens, labels), "reference": lambda: reference(tokens, labels)}, rounds
    )
    return {**found, "largest_difference": (features["ours"] - features["reference"]).abs().max().item()}


def decoders(name: str, batch_size: int, rounds: int) -> dict[str, Any]:
    """Time and images of two decoders; the transformer is cut to a layer."""
    family, sizes = published(name)
    teacher = require_codebook(teacher_from_config(family, {**sizes, "depth": 1})).eval()
    ours, reference = teacher.tokenizer, reference_decoder(teacher.tokenizer)
    tokens = torch.randn(batch_size, teacher.layout.length, teacher.token_dim)
    found, images = in_turn(
        {"ours": lambda: ours.decode(tokens), "reference": lambda: reference.decode(tokens)}, rounds
    )
    return {**found, "largest_difference": (images["ours"] - images["reference"]).abs().max().item()}


COMPARISONS = {"teachers": teachers, "passes": passes, "decoders": decoders}


@torch.no_grad()
def main(
    what: Literal["teachers", "passes", "decoders"],
    output: str,
    models: list[str],
    batch_size: int = 1,
    rounds: int = 5,
) -> None:
    """Compare published sizes with random weights, on one thread.

    Args:
        what: samplers of teachers, passes over whole sequences, or decoders.
        output: JSON file, written after each model.
        models: var/d16, llamagen/B, …
        batch_size: sequences or images at a time; guidance doubles them.
        rounds: how often each is timed.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    report: dict[str, Any] = {"hardware": hardware("cpu"), "torch": torch.__version__, "commit": commit()}
    report |= {"batch_size": batch_size, "rounds": rounds, "models": {}}
    for name in models:
        found = report["models"][name] = COMPARISONS[what](name, batch_size, rounds)
        print(name, {key: value for key, value in found.items() if key != "seconds"}, flush=True)
        write_atomically(Path(output), to_json(report))


if __name__ == "__main__":
    run_command("benchmarks.speed", main)
