"""``dd2 plan``: parameters, memory and operations of a run, counted on the shapes of its networks."""

import math
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import LightningDataModule, Trainer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from dd2_lightning.artifacts import Artifact, read_config
from dd2_lightning.costs import (
    COUNTED_AT,
    LARGEST,
    USABLE,
    Cost,
    computing_in,
    loss_cost,
    peak_of,
    sampling_flops,
    sampling_peak,
    shapes_only,
)
from dd2_lightning.data import Batch, PrefixData
from dd2_lightning.errors import check_range
from dd2_lightning.families.registry import build_meta
from dd2_lightning.hub.cards import published
from dd2_lightning.models.codebook_teacher import CodebookTeacher, require_codebook
from dd2_lightning.models.sizes import count_parameters
from dd2_lightning.models.tokenizer import PIXELS, VQTokenizer
from dd2_lightning.progress import tracked
from dd2_lightning.remote import HubModel
from dd2_lightning.stages import ARDiffusionInit, Stage
from dd2_lightning.stages.distillation import DistillationStage
from dd2_lightning.stages.updates import Update

GIGA = 1e9


@dataclass
class UpdatePlan:
    """Cost of one kind of optimizer step."""

    name: str  # of the update
    count: int  # number of them in the run
    cost: Cost  # of one sample
    fixed: Cost  # what does not grow with the batch, the number of updated parameters included

    @property
    def parameters(self) -> int:
        return self.fixed.updated


@dataclass
class Phase:
    """What is done beside the updates, without gradients."""

    name: str  # with the number of samples that a GPU takes at a time
    activations: int  # bytes of theirs


@dataclass
class Plan:
    """Networks, updates and teacher sequences of a run."""

    stage: str  # its name
    teacher: str  # where the sizes are from
    parameters: dict[str, int]  # network to its number of parameters
    weights: int  # bytes of all networks, buffers included
    updates: list[UpdatePlan]  # the kinds of optimizer steps
    phases: list[Phase]  # validation, sampling, decoding
    batch_size: int  # of all GPUs together
    devices: int  # number of GPUs
    micro_batch: int  # samples a GPU holds at a time
    sequences: int  # teacher sequences to sample
    sequence_flops: float  # operations of one of them

    @property
    def gradients(self) -> int:
        """Bytes of the gradients; those of one kind of update are gone before the next."""
        return 4 * max(update.parameters for update in self.updates)

    @property
    def optimizer(self) -> int:
        """Bytes of Adam's two moments, of every optimizer."""
        return 8 * sum(update.parameters for update in self.updates)

    @property
    def constant(self) -> int:
        """Bytes that do not depend on the batch."""
        return self.weights + self.gradients + self.optimizer + max(update.fixed.peak for update in self.updates)

    @property
    def activations(self) -> int:
        """Bytes of activations a sample, in the update that needs the most."""
        return max(update.cost.peak for update in self.updates)

    @property
    def peaks(self) -> dict[str, int]:
        """Bytes that a GPU holds in all, at the most, in each update and phase."""
        kept = self.weights + self.optimizer
        updates = {
            f"update of the {u.name}": kept + self.gradients + u.fixed.peak + self.micro_batch * u.cost.peak
            for u in self.updates
        }
        return updates | {phase.name: kept + phase.activations for phase in self.phases}

    def fits(self, memory: float) -> int:
        """The largest micro-batch for a GPU of so many bytes; 0 if not even the networks fit."""
        return max(0, math.floor((USABLE * memory - self.constant) / self.activations))

    @property
    def training_flops(self) -> float:
        return float(sum(u.count * (self.batch_size * u.cost.flops + u.fixed.flops) for u in self.updates))

    @property
    def sampling_flops(self) -> float:
        return self.sequences * self.sequence_flops

    def hours(self, flops: float, throughput: float) -> float:
        """Hours at so many operations a second and GPU."""
        return flops / (self.devices * throughput) / 3600


def make_plan(
    stage: Stage,
    data: LightningDataModule,
    trainer: dict[str, Any],
    release: str | None = None,
    phases: bool = False,
) -> Plan:
    """Count what a stage would take, as its config makes it; nothing that it reads needs to exist.

    Settings of the ``trainer`` that count are ``max_steps``, ``devices``, ``num_nodes`` and ``precision``. A published
    size, ``release``, stands in for a teacher's directory that is not there. What a run does beside its updates, its
    ``phases``, is counted if asked for.
    """
    if not isinstance(stage, DistillationStage):
        raise ValueError(f"{type(stage).__name__} is not planned; the stages after the teacher are")
    if not isinstance(data, PrefixData):
        raise ValueError(f"{type(data).__name__} is not planned; PrefixData and PairData are")
    iterations, devices, precision = trainer["max_steps"], device_count(trainer), trainer.get("precision")
    if iterations < 1:
        raise ValueError("set trainer.max_steps: the number of iterations of this stage")
    micro_batch, rest = divmod(data.batch_size, devices * stage.accumulate)
    if rest:
        raise ValueError(
            f"data.batch_size {data.batch_size} is not divisible by {devices} GPUs times "
            f"model.accumulate {stage.accumulate}"
        )
    source = build_networks(stage, release)
    networks = {f"teacher's {name}": module for name, module in stage.teacher.named_children()}
    networks |= {name: module for name, module in stage.named_children() if name != "teacher"}
    with shapes_only(stage):
        due = [update for update in stage.updates() if update.count(iterations)]
        counted = tracked(due, "count operations", len(due), "updates")
        updates = [count_update(stage, update, iterations, precision) for update in counted]
        guided = data.sampling.guidance_scale is not None
        sequence = sampling_flops(stage.teacher, guided, precision, data.pair_steps or 0)
        beside = list(count_phases(stage, data, micro_batch, precision)) if phases else []
    return Plan(
        stage=stage.name,
        teacher=source,
        parameters={name: count_parameters(module) for name, module in networks.items()},
        weights=sum(t.numel() * t.element_size() for t in (*stage.parameters(), *stage.buffers())),
        updates=updates,
        phases=beside,
        batch_size=data.batch_size,
        devices=devices,
        micro_batch=micro_batch,
        sequences={"none": 0, "cached": data.cache_size, "online": data.batch_size * iterations}[data.sequences],
        sequence_flops=sequence,
    )


def build_networks(stage: DistillationStage, release: str | None = None) -> str:
    """Build a stage's networks, its teacher among them, on the meta device; the name of what sizes are from."""
    published_as_it_is = stage.artifact_kind == "teacher"  # a stage that makes a teacher starts from a release
    stage.teacher, source = meta_teacher(stage.teacher_path, release, adapted=not published_as_it_is)
    with torch.device("meta"):
        stage.build(source_config(stage))
    return source


def count_update(stage: DistillationStage, update: Update, iterations: int, precision: Any) -> UpdatePlan:
    """Count one kind of update, at two batch sizes: what grows between them is the cost of a sample."""

    def cost(size: int) -> Cost:
        return loss_cost(stage, update.network, lambda: update.loss(blank_batch(stage, size), 0).loss, precision)

    few, many = COUNTED_AT
    first, second = cost(few), cost(many)
    sample = Cost(*((b - a) // (many - few) for a, b in zip(first, second, strict=True)))
    fixed = Cost(*(max(0, total - many * each) for total, each in zip(second, sample, strict=True)))
    return UpdatePlan(update.name, update.count(iterations), sample, fixed)


def count_phases(stage: DistillationStage, data: PrefixData, micro_batch: int, precision: Any) -> Iterator[Phase]:
    """Count what a run does beside its updates: it validates, samples the teacher, and decodes images to show."""
    teacher = stage.teacher

    size = min(micro_batch, data.validation_size)
    stage.image_sampling = data.sampling  # there is no trainer to ask
    with torch.no_grad(), computing_in(precision), warnings.catch_warnings(action="ignore"):
        batch = blank_batch(stage, size)
        yield Phase(f"validation, {size} samples", peak_of(lambda: stage.validation_step(batch, 0)))
    drawing = sampling_peak(teacher, micro_batch, data.sampling, bool(data.pair_steps))
    yield Phase(f"sampling the teacher, {micro_batch} sequences", drawing)
    if teacher.tokenizer.has_images:
        images = max(1, min(LARGEST, PIXELS // math.prod(cast(VQTokenizer, teacher.tokenizer).image_shape[1:])))
        tokens = torch.zeros(images, stage.layout.length, teacher.token_dim)
        with torch.no_grad(), computing_in(precision):
            yield Phase(f"decoding, {images} images", peak_of(lambda: teacher.decode(tokens)))


def blank_batch(stage: DistillationStage, size: int) -> Batch:
    """A batch of ``size`` samples, all zeros."""
    tokens = torch.zeros(size, stage.layout.length, dtype=torch.long)
    noise = torch.zeros(*tokens.shape, stage.teacher.token_dim) if stage.learns_from_pairs else None
    labels, images = torch.zeros(size, dtype=torch.long), None
    if getattr(stage, "adversarial", None):
        images = torch.zeros(size, *cast(VQTokenizer, stage.teacher.tokenizer).image_shape)
    return Batch(labels, 0, 0, 0, size, tokens, noise, images, labels)


def meta_teacher(directory: str, release: str | None, adapted: bool) -> tuple[CodebookTeacher, str]:
    """A teacher on the meta device and its name: from its directory or, while that is missing, a published size."""
    if release and not (Path(directory) / "config.json").is_file():
        teacher, name = build_meta(*published(release, adapted)), f"{release} ({directory} is not there yet)"
    else:
        config = Artifact.open(directory, ("teacher",), "model.teacher").config
        teacher, name = build_meta(config["family"], config["architecture"]), directory
    return require_codebook(teacher), name


def source_config(stage: DistillationStage) -> dict[str, Any]:
    """Settings of the stage that comes before, or the defaults while its directory is not there."""
    directory = getattr(stage, "init_from", "")
    hub, path = HubModel.named(directory), Path(directory) / "config.json"
    path = hub.fetch("config.json", "model.init_from") if hub else path
    found = read_config(path) if path.is_file() else {}
    return {"head": ARDiffusionInit(teacher="").head_config, "head_time": 1.0, **found}


def device_count(trainer: dict[str, Any]) -> int:
    """Processes of a trainer; a ``ValueError`` if its settings leave them to the machine."""
    devices = trainer.get("devices")
    if devices in (None, "auto"):
        devices = 1
    if isinstance(devices, list):
        devices = len(devices)
    if not str(devices).isdigit() or int(devices) < 1:
        raise ValueError(f"trainer.devices must be a number of GPUs for a plan, got {devices}")
    return int(devices) * (trainer.get("num_nodes") or 1)


class PlanTrainer(Trainer):
    """A trainer for the command line that plans instead of training; for its attributes see :func:`make_plan`."""

    settings: dict[str, Any]
    release: str | None

    def plan(
        self, model: Stage, datamodule: LightningDataModule, memory: float = 80.0, throughput: float = 100.0
    ) -> None:
        """Count parameters, memory and operations of a stage, without running it.

        Args:
            memory: of one GPU, in GB (10⁹ bytes).
            throughput: what one GPU achieves, in TFLOP/s; 100 is a third of an A100's peak in bfloat16.
        """
        check_range("--", "(0, inf)", memory=memory, throughput=throughput)
        plan = make_plan(model, datamodule, self.settings, self.release, phases=True)
        print_plan(plan, memory * GIGA, throughput * 1e12)

    @classmethod
    def of_settings(cls, settings: dict[str, Any], release: str | None) -> "PlanTrainer":
        """A plan trainer of a trainer's settings; it looks for no GPU."""
        trainer = cls.__new__(cls)
        trainer.settings, trainer.release = settings, release
        return trainer


def print_plan(plan: Plan, memory: float, throughput: float) -> None:
    """Print a plan as tables, for GPUs of so many bytes and operations a second."""
    console, size = Console(), partial(decimal, precision=2)
    fits, activations = plan.fits(memory), plan.micro_batch * plan.activations

    def show(*header: str, rows: Iterable[tuple[str, ...]]) -> None:
        table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
        for i, column in enumerate(header):
            table.add_column(column, justify="right" if i else "left")
        for row in rows:
            table.add_row(*row)
        console.print(table, "")

    def hours(name: str, sequences: int, flops: float) -> tuple[str, ...]:
        return name, f"{sequences:,}", f"{flops / 1e15:,.3f}", f"{plan.hours(flops, throughput):,.2f}"

    batch = f"{plan.batch_size} = {plan.devices} GPUs x {plan.batch_size // plan.devices // plan.micro_batch}"
    console.print(f"Stage {plan.stage}, teacher {plan.teacher}; batch {batch} x {plan.micro_batch}\n", highlight=False)
    show("network", "parameters", rows=((name, f"{number:,}") for name, number in plan.parameters.items()))
    show(
        *("update", "how many", "GFLOP/sample", "activations/sample", "kept for backward"),
        rows=(
            (u.name, f"{u.count:,}", f"{u.cost.flops / GIGA:,.3f}", size(u.cost.peak), size(u.cost.saved))
            for u in plan.updates
        ),
    )
    memory_rows = {
        "weights": size(plan.weights),
        "gradients": size(plan.gradients),
        "optimizer state": size(plan.optimizer),
        f"activations of {plan.micro_batch} samples": size(activations),
        "sum": size(plan.constant + activations),
        **{name: size(number) for name, number in plan.peaks.items()},
        "peak": f"{size(max(plan.peaks.values()))} ({max(plan.peaks, key=plan.peaks.__getitem__)})",
        f"micro-batch that fits {memory / GIGA:g} GB": f"{fits:,} samples" if fits else "none",
    }
    show("memory of a GPU", "bytes", rows=memory_rows.items())
    training = hours("training", plan.batch_size * sum(u.count for u in plan.updates), plan.training_flops)
    sampling = hours("sampling the teacher", plan.sequences, plan.sampling_flops)
    show("time", "sequences", "PFLOP", "hours", rows=(training, sampling))
    console.print(
        f"Hours at {throughput / 1e12:g} TFLOP/s a GPU, on {plan.devices}. One teacher sequence: "
        f"{plan.sequence_flops / GIGA:,.3f} GFLOP. {1 - USABLE:.0%} of the memory is left for the runtime.",
        style="dim",
        highlight=False,
    )
