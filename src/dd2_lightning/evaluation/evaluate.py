"""``dd2 evaluate``: everything that is said of a generator, in one command."""

import warnings
from pathlib import Path
from typing import Any

import torch

from dd2_lightning.artifacts import Artifact, check_hash, check_writable, load_generator, load_init, load_teacher
from dd2_lightning.data.digits import load_digits_images
from dd2_lightning.errors import DD2Error
from dd2_lightning.evaluation.classifier import FeatureNetwork, load_classifier
from dd2_lightning.evaluation.compare import Judge, compare
from dd2_lightning.evaluation.contenders import (
    ARDiffusionContender,
    Contender,
    IndependentContender,
    OneStepContender,
    RealData,
    SampleNoise,
    TeacherContender,
)
from dd2_lightning.evaluation.pictures import save_comparison
from dd2_lightning.evaluation.report import make_report, print_table, results_path, write_report
from dd2_lightning.models.families import AnySampling
from dd2_lightning.models.generator import OneStepGenerator
from dd2_lightning.models.student import Student
from dd2_lightning.models.teacher import CodebookTeacher
from dd2_lightning.sampling import Sampling

PICTURED = ("real", "teacher", "one-step", "independent")


def evaluate(
    teacher: str,
    generator: str,
    output: str,
    init: str | None = None,
    sampling: AnySampling = Sampling(),
    samples: int = 20_000,
    reference_samples: int = 30_000,
    seed: int = 0,
    batch_size: int = 500,
    device: str = "cpu",
) -> dict[str, Any]:
    """Measure a one-step generator of digits against its teacher and the weak baselines.

    Writes ``results.json``, ``table.md``, ``samples.png`` and, for the next time, ``classifier.safetensors``.

    Args:
        teacher: directory of the teacher.
        generator: directory of a finished csd or align stage.
        output: directory of the report, or its ``….json`` file, which the rest is put beside.
        init: directory of the init stage, to measure the AR-diffusion model too.
        sampling: guidance and truncation of the teacher, as the generator was distilled.
        samples: of each contender.
        reference_samples: size of the teacher sample that everything is compared with.
        seed: of all samples.
        batch_size: samples at a time; it changes no number.
        device: where to compute.

    Returns:
        The contents of ``results.json``.

    Raises:
        ArtifactError: if a directory cannot be read or the report cannot be written.
        DD2Error: if the teacher has no pictures or the ``demo`` extra is missing.
        ValueError: for numbers below 1.
    """
    for name, value in (("samples", samples), ("reference_samples", reference_samples), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"--{name} must be at least 1, got {value}")
    check_writable(results_path(output).parent)
    origin = Artifact.open(teacher, ("teacher",), "teacher")
    check_origin(Artifact.open(generator, ("csd", "align"), "generator"), origin, sampling)
    if init:
        check_origin(Artifact.open(init, ("init",), "init"), origin, sampling)
    model = load_teacher(teacher).to(device)
    return evaluate_models(
        model,
        load_generator(generator, teacher=model).to(device),
        output,
        load_init(init, model).to(device) if init else None,
        sampling,
        samples,
        reference_samples,
        seed,
        batch_size,
    )


def check_origin(student: Artifact, teacher: Artifact, sampling: Sampling) -> None:
    """Refuse a student of another teacher; say so if it was distilled from another guidance.

    Raises:
        ArtifactError: naming both.
    """
    check_hash(teacher, student.config["teacher"]["sha256"], str(student.directory))
    distilled = student.config.get("settings", {}).get("teacher_sampling") or {}
    scale = distilled.get("guidance_scale", sampling.guidance_scale)
    if scale != sampling.guidance_scale:
        warnings.warn(
            f"{student.directory} was distilled with guidance_scale {scale}, "
            f"the teacher is evaluated with {sampling.guidance_scale}",
            stacklevel=3,
        )


@torch.no_grad()
def evaluate_models(
    teacher: CodebookTeacher,
    generator: OneStepGenerator,
    output: str | Path,
    init: Student | None = None,
    sampling: Sampling | None = None,
    samples: int = 20_000,
    reference_samples: int = 30_000,
    seed: int = 0,
    batch_size: int = 500,
    network: FeatureNetwork | None = None,
    minimum: int = 500,
    quiet: bool = False,
) -> dict[str, Any]:
    """What :func:`evaluate` does, with open models.

    Args:
        teacher: frozen.
        generator: distilled from it.
        output: directory of the report, or its ``….json`` file.
        init: AR-diffusion model.
        sampling: guidance and truncation of the teacher.
        samples: of each contender.
        reference_samples: size of the reference.
        seed: of all samples.
        batch_size: samples at a time.
        network: features; the digit classifier by default.
        minimum: samples a class below which diversity is not given.
        quiet: print nothing.

    Returns:
        The contents of ``results.json``.

    Raises:
        ArtifactError: if the report cannot be written.
        DD2Error: if the teacher has no pictures or the ``demo`` extra is missing.
    """
    path = results_path(output)
    check_writable(path.parent)
    if not teacher.tokenizer.has_pictures:
        raise DD2Error("this teacher has no pictures to evaluate; its tests compare it with its exact distribution")
    device = teacher.codebook.device
    if network is None:
        network = load_classifier(path.parent).to(device)
    judge = Judge(teacher, network, sampling, seed, reference_samples, batch_size, minimum)
    contenders: list[Contender] = [
        TeacherContender(teacher, judge.sampling),
        OneStepContender(teacher, generator),
        OneStepContender(teacher, generator, snapped=True),
        IndependentContender(teacher, judge.reference.indices, judge.reference.labels),
    ]
    if init is not None:
        contenders.append(ARDiffusionContender(teacher, init))
    images, labels = load_digits_images()
    contenders.append(RealData(teacher, images.to(device), labels.to(device)))
    report = make_report(compare(judge, contenders, samples), seed, samples, device)
    write_report(report, path)
    save_samples(contenders, path.with_name("samples.png"), seed, first=samples)
    if not quiet:
        print_table(report)
    return report


def save_samples(contenders: list[Contender], path: Path, seed: int, first: int, columns: int = 8) -> None:
    """Real data, teacher, one step and independent tokens side by side, ``columns`` of every class.

    Args:
        contenders: those whose names are in :data:`PICTURED` are drawn.
        path: PNG file.
        seed: of the noise.
        first: global index of the first sample; beyond those that were measured.
        columns: samples of each class.
    """
    shown = sorted((c for c in contenders if c.name in PICTURED), key=lambda c: PICTURED.index(c.name))
    teacher = shown[0].teacher
    device = teacher.codebook.device
    labels = torch.arange(teacher.num_classes, device=device).repeat_interleave(columns)
    noise = SampleNoise(seed, first, len(labels), device)
    panels = {}
    for contender in shown:
        steps = "" if contender.steps is None else f" ({contender.steps} step{'s' * (contender.steps != 1)})"
        panels[contender.name + steps] = contender.drawn(labels, noise).images
    save_comparison(panels, path, [str(label) for label in range(teacher.num_classes)])
