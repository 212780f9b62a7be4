"""Exact tables: distil random joint distributions, whose total variation is known without sampling error.

The stages are those that image models go through. A joint over three tokens of eight codes has 512 sequences, of
which about 36 are possible. ``python -m benchmarks.tables`` writes total variation against iterations.
"""

import math
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks.command import run_command
from benchmarks.training import Config, LearningCurve, build, fit, read_config
from dd2_lightning.artifacts import write_teacher
from dd2_lightning.evaluation.report import to_json
from dd2_lightning.families.table.model import TableTeacher
from dd2_lightning.files import check_writable, write_atomically
from dd2_lightning.noise import stream
from dd2_lightning.provenance import commit, hardware

CONFIGS = Path(__file__).parent / "configs"
SAMPLES = 200_000
MAX_TOKENS = 7
STUDENT = {"width": 64, "depth": 2, "heads": 4, "frequencies": 2}


def two_sequences(student: dict[str, int]) -> TableTeacher:
    """{(0, 0), (1, 1)}, each with probability one half: the smallest set that independent tokens cannot draw."""
    joint = torch.zeros(1, 2, 2)
    joint[0, 0, 0] = joint[0, 1, 1] = 0.5
    return TableTeacher(joint, torch.tensor([[-1.0, 0.0], [1.0, 0.0]]), student)


def random_table(seed: int, student: dict[str, int], tokens: int = 3, codes: int = 8) -> TableTeacher:
    """A random joint over ``tokens`` tokens of ``codes`` codes on a circle of radius 1.4.

    The first token has half of the codes to choose from, each later one three, which ones and with what
    probabilities depending on all tokens before it.
    """
    rng = stream(seed, "random table")
    joint = torch.ones(1)
    for i in range(tokens):
        contexts = len(joint)
        allowed = torch.rand(contexts, codes, generator=rng).argsort(-1) < (codes // 2 if i == 0 else 3)
        logits = 1.5 * torch.randn(contexts, codes, generator=rng)
        joint = (joint[:, None] * logits.masked_fill(~allowed, -math.inf).softmax(-1)).flatten()
    angle = 2 * math.pi * torch.arange(codes) / codes
    codebook = 1.4 * torch.stack([angle.cos(), angle.sin()], -1)
    return TableTeacher(joint.reshape(1, *[codes] * tokens), codebook, student)


def independent_total_variation(teacher: TableTeacher) -> float:
    """Exact distance between the joint of class 0 and the product of its marginals."""
    joint = teacher.joint[0]
    product = torch.ones(())
    for axis in range(joint.ndim):
        marginal = joint.sum([other for other in range(joint.ndim) if other != axis])
        product = product[..., None] * marginal
    return (product - joint).abs().sum().item() / 2


@torch.no_grad()
def draw_tokens(generate: Callable[[Tensor, Tensor], Tensor], teacher: TableTeacher, samples: int) -> Tensor:
    """One-step sequences, (samples, n, C), from noise that depends on their number only.

    ``generate`` is ``(noise (b, n, C), labels (b,)) -> tokens (b, n, C)``.
    """
    labels = torch.zeros(samples, dtype=torch.long)
    noise = torch.randn(samples, teacher.layout.length, teacher.token_dim, generator=stream(0, "total variation"))
    batches = zip(noise.split(10_000), labels.split(10_000), strict=True)
    return torch.cat([generate(*batch) for batch in batches])


def distance(generate: Callable[[Tensor, Tensor], Tensor], teacher: TableTeacher, samples: int) -> dict[str, float]:
    """Total variation between a generator's snapped sequences and the joint, and their mass on impossible ones."""
    total_variation, impossible = teacher.total_variation(teacher.snap(draw_tokens(generate, teacher, samples)))
    return {"total_variation": total_variation, "impossible": impossible}


def stage_config(stage: str, iterations: int, **settings: Any) -> Config:
    """Config of a stage on a table, with other settings of its model; a fiftieth of its updates is warm-up."""
    config = read_config(CONFIGS / f"{stage}_table.yaml")
    arguments = config["model"]["init_args"]
    arguments |= settings
    for name, optimizer in arguments.items():
        if name.endswith("optimizer"):
            optimizer["warmup"] = iterations * arguments.get("guidance_updates", 1) // 50
    return config


def distil_table(
    teacher: TableTeacher,
    seed: int,
    iterations: int,
    init_iterations: int = 2000,
    every: int = 500,
    samples: int = SAMPLES,
    **head: int,
) -> list[dict[str, float]]:
    """Run stages 1 and 2 on a table; ``head`` are sizes of the velocity head, as stage 1 takes them.

    Returns:
        The curve of the EMA generator, a point ``every`` iterations of stage 2: iteration, seconds (stage 1 included),
        total variation, mass on impossible sequences.
    """
    configs = {"init": stage_config("init", init_iterations, **head), "csd": stage_config("csd", iterations)}
    head_time = configs["csd"]["model"]["init_args"]["head_time"]

    def measure(stage: Any) -> dict[str, float]:
        return distance(partial(stage.ema.generate, head_time=head_time), stage.teacher, samples)

    clock = LearningCurve(init_iterations, lambda stage: {})
    with tempfile.TemporaryDirectory() as directory:
        places = {"teacher": f"{directory}/teacher"}
        write_teacher(places["teacher"], teacher)
        init = build(configs["init"], places, {"seed": seed})
        fit(*init, init_iterations, Path(directory, "init"), clock)
        watch = LearningCurve(every, measure, clock.seconds)
        csd = build(configs["csd"], {**places, "init_from": f"{directory}/init"}, {"seed": seed})
        fit(*csd, iterations, Path(directory, "csd"), watch)
    return watch.curve


def distil_table_dd1(
    teacher: TableTeacher,
    seed: int,
    iterations: int,
    every: int = 500,
    samples: int = SAMPLES,
    lr: float = 2e-3,
    **data: int,
) -> list[dict[str, float]]:
    """Run the baseline DD1 on a table, from fresh pairs and with codes at every position; the curve of its EMA."""
    config = stage_config("dd1", iterations, split=teacher.layout.num_positions)
    config["model"]["init_args"]["optimizer"]["lr"] = lr

    def measure(stage: Any) -> dict[str, float]:
        generator = stage.generator(stage.ema)
        return distance(lambda noise, labels: generator.sample(labels, noise), stage.teacher, samples)

    watch = LearningCurve(every, measure)
    with tempfile.TemporaryDirectory() as directory:
        write_teacher(f"{directory}/teacher", teacher)
        stage = build(config, {"teacher": f"{directory}/teacher"}, {"seed": seed, **data})
        fit(*stage, iterations, Path(directory, "dd1"), watch)
    return watch.curve


def with_end(prefix: str, curve: list[dict[str, float]]) -> dict[str, Any]:
    """A curve and its last total variation."""
    return {f"{prefix}curve": curve, f"{prefix}final": curve[-1]["total_variation"]}


def tables(
    output: str = "benchmarks/tables.json",
    seeds: list[int] = [0, 1, 2],  # noqa: B006
    iterations: int = 6000,
    init_iterations: int = 2000,
    every: int = 500,
    threads: int = 1,
    tokens: int = 3,
    dd1_iterations: int = 0,
    samples: int = SAMPLES,
) -> None:
    """Distil random exact tables and write the total variation against iterations.

    Args:
        output: JSON file: ``{"runs": [{"seed", "independent", "curve", "final"}], "median", …}``; with
            ``dd1_iterations`` also ``dd1_curve``, ``dd1_final`` and ``dd1_median``.
        seeds: of table, networks and noise.
        iterations: of stage 2.
        init_iterations: of stage 1.
        every: iterations between two points of the curve.
        threads: of torch; these networks are too small to gain from more.
        tokens: n; a joint has 8 to the power of n entries.
        dd1_iterations: of the baseline DD1 on the same table; 0 leaves it out.
        samples: that the total variation of a point is counted on.
    """
    check_writable(Path(output).parent)
    if not 2 <= tokens <= MAX_TOKENS:
        raise ValueError(f"--tokens must be 2 to {MAX_TOKENS}, got {tokens}")
    torch.set_num_threads(threads)
    runs = []
    for seed in seeds:
        teacher = random_table(seed, STUDENT, tokens)
        run = {"seed": seed, "independent": independent_total_variation(teacher)}
        run |= with_end("", distil_table(teacher, seed, iterations, init_iterations, every, samples))
        line = f"seed {seed}: total variation {run['final']:.4f} (independent tokens {run['independent']:.4f})"
        print(line, flush=True)
        if dd1_iterations:
            run |= with_end("dd1_", distil_table_dd1(teacher, seed, dd1_iterations, every, samples))
            print(f"seed {seed}: total variation {run['dd1_final']:.4f}, DD1", flush=True)
        runs.append(run)
    summary = {
        "runs": runs,
        "median": median(run["final"] for run in runs),
        **({"dd1_median": median(run["dd1_final"] for run in runs)} if dd1_iterations else {}),
        "tokens": tokens,
        "iterations": iterations,
        "samples": samples,
        "hardware": hardware(),
        "commit": commit(),
    }
    write_atomically(Path(output), to_json(summary))


def main(arguments: list[str] | None = None) -> None:
    """Run ``python -m benchmarks.tables``."""
    run_command("benchmarks.tables", tables, arguments)


if __name__ == "__main__":
    main()
