"""Processor time of our teacher samplers against the reference algorithm: ``python -m benchmarks.speed``."""

import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.command import run_command
from benchmarks.speed.reference import reference_sample
from dd2_lightning.evaluation.report import to_json
from dd2_lightning.families.registry import teacher_from_config
from dd2_lightning.files import write_atomically
from dd2_lightning.hub.cards import published
from dd2_lightning.models.codebook_teacher import require_codebook
from dd2_lightning.provenance import commit, hardware
from dd2_lightning.sampling import Sampling

SAMPLING = {"var": Sampling(guidance_scale=2.0, top_k=900, top_p=0.95), "llamagen": Sampling(guidance_scale=2.0)}


def compare(name: str, batch_size: int, rounds: int, depth: int | None, grid: int | None) -> dict[str, Any]:
    """Seconds of both samplers in turn, after one round to warm up, the ratio of every round, and equal tokens."""
    family, sizes = published(name)
    changed = {"pixels": False, "depth": depth, "grid": grid if family == "llamagen" else None}
    sizes |= {key: value for key, value in changed.items() if value is not None}
    teacher = require_codebook(teacher_from_config(family, sizes)).eval().requires_grad_(False)
    labels, uniforms = torch.arange(batch_size), torch.rand(batch_size, teacher.layout.length)
    functions = {"ours": lambda *x: teacher.sample(*x[1:3], uniforms=x[3]), "reference": reference_sample}
    seconds: dict[str, list[float]] = {key: [] for key in functions}
    tokens = {}
    for _ in range(rounds + 1):
        for key, function in functions.items():
            start = time.process_time()
            tokens[key] = function(teacher, labels, SAMPLING[family], uniforms)
            seconds[key].append(time.process_time() - start)
    kept = {key: taken[1:] for key, taken in seconds.items()}
    ratios = [b / a for a, b in zip(kept["ours"], kept["reference"], strict=True)]
    equal = tokens["ours"].eq(tokens["reference"]).double().mean().item()
    return {"seconds": kept, "ratios": ratios, "median_ratio": median(ratios), "equal_tokens": equal, "sizes": changed}


def teachers(
    output: str,
    models: list[str],
    batch_size: int = 1,
    rounds: int = 3,
    depth: int | None = None,
    grid: int | None = None,
) -> None:
    """Compare teachers of published sizes, with random weights, on one thread.

    Args:
        output: JSON file.
        models: var/d16, llamagen/B, …
        batch_size: sequences at a time; guidance doubles them.
        rounds: how often each is timed.
        depth: layers, if not all.
        grid: tokens a side of LlamaGen, if not as published.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    report: dict[str, Any] = {"hardware": hardware("cpu"), "torch": torch.__version__, "commit": commit()}
    report |= {"batch_size": batch_size, "rounds": rounds, "models": {}}
    for name in models:
        found = report["models"][name] = compare(name, batch_size, rounds, depth, grid)
        print(f"{name}: {found['median_ratio']:.2f} of {found['ratios']}, equal {found['equal_tokens']}", flush=True)
        write_atomically(Path(output), to_json(report))


if __name__ == "__main__":
    run_command("benchmarks.speed", teachers)
