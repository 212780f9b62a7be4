"""The exact oracle: distil a table teacher and measure the total variation, which is known without sampling error.

``dd2 tables`` runs the very stages that pictures go through on a random joint distribution over three tokens of
eight codes, of which about 36 of 512 sequences are possible, and writes the curve against iterations.
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

from dd2_lightning.artifacts import check_writable, write_atomically, write_teacher
from dd2_lightning.callbacks import LearningCurve
from dd2_lightning.data import PairData, PrefixData
from dd2_lightning.distil import fit
from dd2_lightning.evaluation.report import commit, hardware, to_json
from dd2_lightning.models.table import TableTeacher
from dd2_lightning.models.walk import PAIR_STEPS
from dd2_lightning.noise import stream
from dd2_lightning.stages import ARDiffusionInit, CSDDistill, DD1Distill
from dd2_lightning.stages.schedule import OptimizerSettings

SAMPLES = 200_000
MAX_TOKENS = 7
BATCH_SIZE = 128
STUDENT = {"width": 64, "depth": 2, "heads": 4, "octaves": 2}


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
    generator = stream(seed, "random table")
    joint = torch.ones(1)
    for i in range(tokens):
        contexts = len(joint)
        allowed = torch.rand(contexts, codes, generator=generator).argsort(-1) < (codes // 2 if i == 0 else 3)
        logits = 1.5 * torch.randn(contexts, codes, generator=generator)
        joint = (joint[:, None] * logits.masked_fill(~allowed, -math.inf).softmax(-1)).flatten()
    angle = 2 * math.pi * torch.arange(codes) / codes
    codebook = 1.4 * torch.stack([angle.cos(), angle.sin()], -1)
    return TableTeacher(joint.reshape(1, *[codes] * tokens), codebook, student)


@torch.no_grad()
def draw_tokens(generate: Callable[[Tensor, Tensor], Tensor], teacher: TableTeacher, samples: int = SAMPLES) -> Tensor:
    """One-step sequences, (samples, n, C); those of the same number have the same noise.

    Args:
        generate: ``(noise (b, n, C), labels (b,)) -> tokens (b, n, C)``.
        teacher: says the shapes.
        samples: how many.
    """
    labels = torch.zeros(samples, dtype=torch.long)
    noise = torch.randn(samples, teacher.layout.length, teacher.token_dim, generator=stream(0, "total variation"))
    parts = zip(noise.split(10_000), labels.split(10_000), strict=True)
    return torch.cat([generate(part, classes) for part, classes in parts])


def distance(generate: Callable[[Tensor, Tensor], Tensor], teacher: TableTeacher) -> dict[str, float]:
    """Total variation between what a generator draws and the joint, and the mass on impossible sequences."""
    total_variation, impossible = teacher.total_variation(teacher.snap(draw_tokens(generate, teacher)))
    return {"total_variation": total_variation, "impossible": impossible}


def table_recipe(
    iterations: int,
    init_iterations: int = 2000,
    guidance_updates: int = 2,
    head_width: int = 64,
    head_depth: int = 3,
    head_octaves: int = 2,
    guidance_lr: float = 1e-3,
    generator_lr: float = 5e-4,
    **csd: Any,
) -> dict[str, dict[str, Any]]:
    """Settings of stages 1 and 2 on a table.

    Args:
        iterations: of stage 2.
        init_iterations: of stage 1.
        guidance_updates: K.
        head_width: width of the velocity head.
        head_depth: residual blocks of the velocity head.
        head_octaves: sinusoids that the head reads its input through.
        guidance_lr: learning rate of the guidance network.
        generator_lr: learning rate of the generator.
        csd: further settings of :class:`CSDDistill`.

    Returns:
        Arguments of :class:`ARDiffusionInit` as ``init``, of :class:`CSDDistill` as ``csd``; no directories.
    """

    def adam(lr: float, total: int) -> OptimizerSettings:
        return OptimizerSettings(lr=lr, warmup=total // 50, decay_from=0.5, lr_end=0.02, betas=(0.0, 0.95))

    return {
        "init": {
            "head_width": head_width,
            "head_depth": head_depth,
            "head_octaves": head_octaves,
            "draws": 2,
            "optimizer": adam(2e-3, init_iterations),
        },
        "csd": {
            "guidance_updates": guidance_updates,
            "draws": 2,
            "ema_limit": 0.999,
            **{"form": "dmd", "head_time": 0.4, **csd},
            "guidance_optimizer": adam(guidance_lr, iterations * guidance_updates),
            "generator_optimizer": adam(generator_lr, iterations * guidance_updates),
        },
    }


def distil_table(
    teacher: TableTeacher,
    seed: int,
    iterations: int,
    init_iterations: int = 2000,
    batch_size: int = BATCH_SIZE,
    every: int = 500,
    **settings: Any,
) -> list[dict[str, float]]:
    """Stages 1 and 2 on a table.

    Args:
        teacher: the table.
        seed: of networks and noise.
        iterations: of stage 2.
        init_iterations: of stage 1.
        batch_size: samples an iteration.
        every: iterations between two points of the curve.
        settings: see :func:`table_recipe`.

    Returns:
        The curve of the EMA generator: iteration, seconds (stage 1 included), total variation, mass on impossible
        sequences.
    """

    def measure(stage: CSDDistill) -> dict[str, float]:
        return distance(partial(stage.ema.generate, head_time=stage.head_time), stage.teacher)

    recipe = table_recipe(iterations, init_iterations, **settings)
    clock = LearningCurve(init_iterations, lambda stage: {})
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        write_teacher(root / "teacher", teacher)
        init = ARDiffusionInit(str(root / "teacher"), **recipe["init"])
        fit(init, PrefixData(batch_size, "online", seed=seed), init_iterations, root / "init", clock)
        watch = LearningCurve(every, measure, clock.seconds)
        csd = CSDDistill(str(root / "teacher"), str(root / "init"), **recipe["csd"])
        fit(csd, PrefixData(batch_size, "none", seed=seed), iterations, root / "csd", watch)
    return watch.curve


def distil_table_dd1(
    teacher: TableTeacher,
    seed: int,
    iterations: int,
    batch_size: int = 256,
    pair_steps: int = PAIR_STEPS,
    every: int = 500,
    lr: float = 2e-3,
) -> list[dict[str, float]]:
    """The baseline DD1 on a table, from fresh pairs and with codes at every position.

    Returns:
        As :func:`distil_table`.
    """

    def measure(stage: DD1Distill) -> dict[str, float]:
        generator = stage.generator(stage.ema)
        return distance(lambda noise, labels: generator.sample(labels, noise), stage.teacher)

    watch = LearningCurve(every, measure)
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        write_teacher(root / "teacher", teacher)
        stage = DD1Distill(
            str(root / "teacher"),
            second=1,
            split=teacher.layout.num_positions,
            distance_weight=0.0,
            optimizer=OptimizerSettings(lr=lr, warmup=iterations // 50, decay_from=0.5, lr_end=0.02),
            ema_limit=0.999,
        )
        data = PairData(batch_size=batch_size, steps=pair_steps, seed=seed)
        fit(stage, data, iterations, root / "dd1", watch)
    return watch.curve


def tables(
    output: str,
    seeds: list[int] | None = None,
    iterations: int = 6000,
    init_iterations: int = 2000,
    every: int = 500,
    threads: int = 1,
    tokens: int = 3,
    dd1_iterations: int = 0,
) -> None:
    """Distil random exact tables and write the total variation against iterations.

    Args:
        output: JSON file: ``{"runs": [{"seed", "independent", "curve", "final"}], "median", …}``; with
            ``dd1_iterations`` also ``dd1_curve``, ``dd1_final`` and ``dd1_median``.
        seeds: of table, networks and noise; 0, 1, 2 by default.
        iterations: of stage 2.
        init_iterations: of stage 1.
        every: iterations between two points of the curve.
        threads: of torch; these networks are too small to gain from more.
        tokens: n; a joint has 8 to the power of n entries.
        dd1_iterations: of the baseline DD1 on the same table; 0 is without it.

    Raises:
        ArtifactError: if the file cannot be written.
        ValueError: for fewer than two tokens, or more than a joint has room for.
    """
    check_writable(Path(output).parent)
    if not 2 <= tokens <= MAX_TOKENS:
        raise ValueError(f"--tokens must be 2 to {MAX_TOKENS}, got {tokens}")
    torch.set_num_threads(threads)
    runs = []
    for seed in [0, 1, 2] if seeds is None else seeds:
        teacher = random_table(seed, STUDENT, tokens)
        run = {"seed": seed, "independent": independent_total_variation(teacher)}
        run |= ended("", distil_table(teacher, seed, iterations, init_iterations, every=every))
        line = f"seed {seed}: total variation {run['final']:.4f} (independent tokens {run['independent']:.4f})"
        print(line, flush=True)
        if dd1_iterations:
            run |= ended("dd1_", distil_table_dd1(teacher, seed, dd1_iterations, every=every))
            print(f"seed {seed}: total variation {run['dd1_final']:.4f}, DD1", flush=True)
        runs.append(run)
    summary = {
        "runs": runs,
        "median": median(run["final"] for run in runs),
        **({"dd1_median": median(run["dd1_final"] for run in runs)} if dd1_iterations else {}),
        "tokens": tokens,
        "iterations": iterations,
        "samples": SAMPLES,
        "hardware": hardware(),
        "commit": commit(),
    }
    write_atomically(Path(output), to_json(summary))


def ended(who: str, curve: list[dict[str, float]]) -> dict[str, Any]:
    """A curve and where it ends."""
    return {f"{who}curve": curve, f"{who}final": curve[-1]["total_variation"]}


def independent_total_variation(teacher: TableTeacher) -> float:
    """Exact distance between the joint of class 0 and the product of its marginals."""
    joint = teacher.joint[0]
    product = torch.ones(())
    for axis in range(joint.ndim):
        marginal = joint.sum([other for other in range(joint.ndim) if other != axis])
        product = product[..., None] * marginal
    return (product - joint).abs().sum().item() / 2
