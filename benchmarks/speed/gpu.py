"""Figures of one GPU, the most valuable first: ``python -m benchmarks.speed.gpu OUTPUT.json [SECONDS]``.

Every piece has a time limit of its own, and the file is written after each, so that little is lost when time runs out.
Networks have random weights, which do not change the time.
"""

import gc
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

from dd2_lightning.devices import autocast
from dd2_lightning.evaluation.timing import interleaved
from dd2_lightning.families.registry import teacher_from_config
from dd2_lightning.hub.cards import published
from dd2_lightning.models.codebook_teacher import require_codebook
from dd2_lightning.models.graphs import Replayed, cast_linears
from dd2_lightning.models.student import build_student
from dd2_lightning.provenance import commit, hardware
from dd2_lightning.sampling import Sampling
from dd2_lightning.stages import CSDDistill
from dd2_lightning.timing.flows import time_flow
from dd2_lightning.timing.sampling import allocated_bytes, time_sampling
from dd2_lightning.timing.training import set_up, step_of

DEVICE = "cuda"
GUIDED = {
    "var": Sampling(guidance_scale=2.0, top_k=900, top_p=0.95),
    "llamagen": Sampling(guidance_scale=2.0, top_k=8000),
}
HEAD = {"width": 1024, "depth": 4}


@contextmanager
def limit(seconds: float):
    """Raise a ``TimeoutError`` after so many seconds."""

    def stop(*_: Any) -> None:
        raise TimeoutError(f"more than {seconds:.0f} s")

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def sampling(name: str, batch_size: int, graphs: bool, rounds: int = 3) -> dict[str, Any]:
    """Teacher, one step and decoder in bfloat16."""
    family, sizes = published(name)
    head = HEAD["width"], HEAD["depth"]
    return time_sampling(family, sizes, batch_size, rounds, GUIDED[family], head, DEVICE, "bf16", graphs)


def equal_samples(name: str) -> dict[str, Any]:
    """Whether a captured sampler draws the tokens of the one that is called, and one step its vectors."""
    family, sizes = published(name)
    with torch.device(DEVICE):
        teacher = require_codebook(teacher_from_config(family, {**sizes, "pixels": False})).to(DEVICE).eval()
        student = build_student(teacher, **HEAD).to(DEVICE).eval()
        labels, uniforms = torch.arange(2), torch.rand(2, teacher.layout.length)
        noise = torch.randn(2, teacher.layout.length, teacher.token_dim)

    def tokens(y: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        return teacher.sample(y, GUIDED[family], uniforms=u)

    def once(y: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
        return student.generate(eps, y)

    with torch.no_grad():
        replayed, recorded = Replayed(tokens), Replayed(once)
        replayed(labels, uniforms.roll(1, 0)), recorded(labels, noise.roll(1, 0))
        return {
            "teacher_equal": replayed(labels, uniforms).eq(tokens(labels, uniforms)).double().mean().item(),
            "one_step_difference": (recorded(labels, noise) - once(labels, noise)).abs().max().item(),
        }


def training(name: str, micro_batch: int, rounds: int = 2) -> dict[str, Any]:
    """The updates of a CSD iteration in bf16-mixed, their peak memory, and the bare passes they consist of."""
    family, sizes = published(name)
    with torch.device(DEVICE):
        teacher = require_codebook(teacher_from_config(family, {**sizes, "pixels": False})).eval()
        stage = CSDDistill("", "", GUIDED[family])
    batch = set_up(stage, teacher.to(DEVICE).requires_grad_(False), HEAD, micro_batch, DEVICE)
    steps = {update.name: step_of(stage, update, batch, "bf16-mixed", DEVICE) for update in stage.updates()}
    noise = torch.randn(micro_batch, teacher.layout.length, teacher.token_dim, device=DEVICE)

    def bare(gradient: bool) -> None:
        network = stage.guidance.backbone.requires_grad_(gradient)
        with torch.set_grad_enabled(gradient), torch.autocast(DEVICE, torch.bfloat16):
            loss = network(noise, batch.labels).float().square().mean()
        if gradient:
            loss.backward()
            network.zero_grad()

    steps["bare forward"] = partial(bare, gradient=False)
    steps["bare forward and backward"] = partial(bare, gradient=True)
    seconds = interleaved(steps, rounds, DEVICE)
    peaks = {key: allocated_bytes(step, DEVICE) for key, step in steps.items()}
    return {"micro_batch": micro_batch, "seconds": seconds, "bytes": peaks}


def compiled(name: str, batch_size: int, mode: str) -> dict[str, Any]:
    """One step through ``torch.compile``, against the same as it is."""
    family, sizes = published(name)
    with torch.device(DEVICE):
        teacher = require_codebook(teacher_from_config(family, {**sizes, "pixels": False})).eval()
        student = cast_linears(build_student(teacher, **HEAD), torch.bfloat16).to(DEVICE).eval()
        labels = torch.arange(batch_size)
        noise = torch.randn(batch_size, teacher.layout.length, teacher.token_dim)
    fast = torch.compile(student.generate, mode=mode, fullgraph=True)

    def run(function: Callable[..., torch.Tensor]) -> torch.Tensor:
        with torch.no_grad(), autocast(torch.device(DEVICE), "bf16"):
            return function(noise, labels)

    start = time.perf_counter()
    run(fast)
    first = time.perf_counter() - start
    functions = {"as it is": partial(run, student.generate), mode: partial(run, fast)}
    return {"first_call": first, "seconds": interleaved(functions, 5, DEVICE)}


def flow(name: str) -> dict[str, Any]:
    """The posterior mean and its gradient, with and without double precision."""
    return time_flow(*published(name), batch_size=4, draws=4, rounds=3, device=DEVICE)


def tests() -> dict[str, Any]:
    """The tests that need a GPU."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-m",
        "gpu",
        "tests/unit",
        "tests/families",
        "-p",
        "no:cacheprovider",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    return {"status": done.returncode, "output": (done.stdout + done.stderr)[-3000:]}


PIECES: dict[str, tuple[float, Callable[[], dict[str, Any]]]] = {
    "sampling var/d16 batch 1": (25, partial(sampling, "var/d16", 1, False)),
    "sampling var/d16 batch 1 graphs": (25, partial(sampling, "var/d16", 1, True)),
    "sampling var/d16 batch 64": (25, partial(sampling, "var/d16", 64, False)),
    "sampling llamagen/L batch 1": (40, partial(sampling, "llamagen/L", 1, False, 2)),
    "sampling llamagen/L batch 1 graphs": (50, partial(sampling, "llamagen/L", 1, True, 2)),
    "csd var/d16 micro-batch 16": (25, partial(training, "var/d16", 16)),
    "sampling var/d24 batch 1 graphs": (25, partial(sampling, "var/d24", 1, True)),
    "sampling llamagen/L batch 64": (40, partial(sampling, "llamagen/L", 64, False, 2)),
    "equal samples var/d16": (25, partial(equal_samples, "var/d16")),
    "pytest -m gpu": (100, tests),
    "sampling var/d24 batch 64": (25, partial(sampling, "var/d24", 64, False)),
    "flow var/d16": (15, partial(flow, "var/d16")),
    "flow llamagen/L": (15, partial(flow, "llamagen/L")),
    "csd llamagen/L micro-batch 16": (25, partial(training, "llamagen/L", 16)),
    "csd var/d24 micro-batch 4": (25, partial(training, "var/d24", 4)),
    "compile var/d16 batch 1": (90, partial(compiled, "var/d16", 1, "reduce-overhead")),
}


def normal(tensor: torch.Tensor, std: float = 1.0) -> torch.Tensor:
    """Initialise weights fast; their values do not matter."""
    return nn.init.normal_(tensor, std=std)


def main(output: Path, seconds: float = 230.0) -> None:
    """Run the pieces that fit in so many seconds, and write them as they come."""
    end = time.monotonic() + seconds
    report: dict[str, Any] = {
        "hardware": hardware(DEVICE),
        "torch": torch.__version__,
        "commit": commit(),
        "pieces": {},
    }
    for name, (most, piece) in PIECES.items():
        left = end - time.monotonic()
        if left < 5:
            break
        start = time.monotonic()
        try:
            with limit(min(most, left)), patch.object(nn.init, "trunc_normal_", normal):
                found = piece()
        except Exception as error:
            found = {"error": f"{type(error).__name__}: {str(error)[:500]}"}
        gc.collect()
        torch.cuda.empty_cache()
        found["took"] = time.monotonic() - start
        report["pieces"][name] = found
        output.write_text(json.dumps(report, indent=1))
        print(f"{name}: {found.get('median_seconds') or found.get('error') or found.get('seconds')}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(float, sys.argv[2:]))
