"""The exact oracle: distil a table teacher and measure the total variation, which is known without sampling error.

``dd2 tables`` runs the very stages that pictures go through on a random joint distribution over three tokens of
eight codes, of which about 36 of 512 sequences are possible, and writes the curve against iterations.
"""

import json
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from dd2_lightning.artifacts import check_writable, write_atomically, write_teacher
from dd2_lightning.callbacks import ExportArtifact
from dd2_lightning.data import PairData, PrefixData
from dd2_lightning.evaluation.report import commit, hardware
from dd2_lightning.models.table import TableTeacher
from dd2_lightning.models.walk import PAIR_STEPS
from dd2_lightning.noise import stream
from dd2_lightning.stages import ARDiffusionInit, CSDDistill, DD1Distill, Stage
from dd2_lightning.stages.base import DistillationStage
from dd2_lightning.stages.schedule import OptimizerSettings
from dd2_lightning.training import TRAINER_DEFAULTS

SAMPLES = 200_000


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


class TotalVariationCurve(pl.Callback):
    """Total variation of the EMA generator every so many iterations.

    Args:
        every: iterations.
        generator: from the stage to ``(noise (b, n, C), labels) -> tokens``, in one step.

    Attributes:
        curve: iteration, total variation, mass on impossible sequences.
    """

    def __init__(self, every: int, generator: Callable[[DistillationStage], Callable[[Tensor, Tensor], Tensor]]):
        self.every, self.generator, self.curve = every, generator, []

    def on_train_batch_end(self, trainer: pl.Trainer, stage: DistillationStage, *_) -> None:
        """Draw and compare."""
        if trainer.global_step % self.every == 0:
            tokens = draw_tokens(self.generator(stage), stage.teacher)
            distance, impossible = stage.teacher.total_variation(stage.teacher.snap(tokens))
            self.curve.append({"iteration": trainer.global_step, "total_variation": distance, "impossible": impossible})


@torch.no_grad()
def draw_tokens(generate: Callable[[Tensor, Tensor], Tensor], teacher: TableTeacher) -> Tensor:
    """``SAMPLES`` sequences of a generator."""
    labels = torch.zeros(SAMPLES, dtype=torch.long)
    noise = torch.randn(SAMPLES, teacher.layout.length, teacher.token_dim, generator=stream(0, "total variation"))
    parts = zip(noise.split(10_000), labels.split(10_000), strict=True)
    return torch.cat([generate(part, classes) for part, classes in parts])


def fit_quietly(stage: Stage, data: PrefixData, steps: int, root: Path, *callbacks: pl.Callback) -> None:
    """Run a stage and leave its directory, without logs."""
    pl.seed_everything(data.seed, verbose=False)
    pl.Trainer(
        **TRAINER_DEFAULTS,
        max_steps=steps,
        default_root_dir=root,
        accelerator="cpu",
        callbacks=[ExportArtifact(), *callbacks],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        limit_val_batches=0,
    ).fit(stage, data)


def distil_table(
    teacher: TableTeacher,
    seed: int,
    iterations: int,
    init_iterations: int = 2000,
    batch_size: int = 128,
    guidance_updates: int = 2,
    every: int = 500,
    head_width: int = 64,
    head_depth: int = 3,
    head_octaves: int = 2,
    guidance_lr: float = 1e-3,
    generator_lr: float = 5e-4,
    **csd: Any,
) -> list[dict[str, float]]:
    """Stages 1 and 2 on a table.

    Returns:
        The curve of :class:`TotalVariationCurve`.
    """

    def adam(lr: float, total: int) -> OptimizerSettings:
        return OptimizerSettings(lr=lr, warmup=total // 50, decay_from=0.5, lr_end=0.02, betas=(0.0, 0.95))

    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        write_teacher(root / "teacher", teacher)
        init = ARDiffusionInit(
            str(root / "teacher"),
            head_width=head_width,
            head_depth=head_depth,
            head_octaves=head_octaves,
            draws=2,
            optimizer=adam(2e-3, init_iterations),
        )
        fit_quietly(init, PrefixData(batch_size, "online", seed=seed), init_iterations, root / "init")
        stage = CSDDistill(
            str(root / "teacher"),
            str(root / "init"),
            guidance_updates=guidance_updates,
            draws=2,
            ema_limit=0.999,
            **{"form": "dmd", "head_time": 0.4, **csd},
            guidance_optimizer=adam(guidance_lr, iterations * guidance_updates),
            generator_optimizer=adam(generator_lr, iterations * guidance_updates),
        )
        watch = TotalVariationCurve(
            every, lambda stage: lambda eps, labels: stage.ema.generate(eps, labels, stage.settings.head_time)
        )
        fit_quietly(stage, PrefixData(batch_size, "none", seed=seed), iterations, root / "csd", watch)
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
        The curve of :class:`TotalVariationCurve`.
    """
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        write_teacher(root / "teacher", teacher)
        adam = OptimizerSettings(lr=lr, warmup=iterations // 50, decay_from=0.5, lr_end=0.02)
        stage = DD1Distill(
            str(root / "teacher"),
            second=1,
            split=teacher.layout.num_positions,
            distance_weight=0.0,
            optimizer=adam,
            ema_limit=0.999,
        )
        watch = TotalVariationCurve(
            every, lambda stage: lambda eps, labels: stage.generator(stage.ema).sample(labels, eps)
        )
        fit_quietly(
            stage, PairData(batch_size=batch_size, steps=pair_steps, seed=seed), iterations, root / "dd1", watch
        )
    return watch.curve


def tables(
    output: str,
    seeds: list[int] | None = None,
    iterations: int = 6000,
    init_iterations: int = 2000,
    every: int = 500,
    threads: int = 1,
) -> None:
    """Distil random exact tables and write the total variation against iterations.

    Args:
        output: JSON file: ``{"runs": [{"seed", "independent", "curve", "final"}], "median", …}``.
        seeds: of table, networks and noise; 0, 1, 2 by default.
        iterations: of stage 2.
        init_iterations: of stage 1.
        every: iterations between two points of the curve.
        threads: of torch; these networks are too small to gain from more.

    Raises:
        ArtifactError: if the file cannot be written.
    """
    check_writable(Path(output).parent)
    torch.set_num_threads(threads)
    runs = []
    for seed in [0, 1, 2] if seeds is None else seeds:
        teacher = random_table(seed, {"width": 64, "depth": 2, "heads": 4, "octaves": 2})
        curve = distil_table(teacher, seed, iterations, init_iterations, every=every)
        independent = independent_total_variation(teacher)
        runs.append({"seed": seed, "independent": independent, "curve": curve, "final": curve[-1]["total_variation"]})
        print(f"seed {seed}: total variation {runs[-1]['final']:.4f} (independent tokens {independent:.4f})")
    summary = {
        "runs": runs,
        "median": median(run["final"] for run in runs),
        "iterations": iterations,
        "samples": SAMPLES,
        "hardware": hardware(),
        "commit": commit(),
    }
    write_atomically(Path(output), (json.dumps(summary, indent=2) + "\n").encode())


def independent_total_variation(teacher: TableTeacher) -> float:
    """Exact distance between the joint of class 0 and the product of its marginals."""
    joint = teacher.joint[0]
    product = torch.ones(())
    for axis in range(joint.ndim):
        marginal = joint.sum([other for other in range(joint.ndim) if other != axis])
        product = product[..., None] * marginal
    return (product - joint).abs().sum().item() / 2
