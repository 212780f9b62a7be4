"""``dd2 evaluate``: samplers against their teacher, in one command."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from dd2_lightning.artifacts import Artifact
from dd2_lightning.devices import check_precision, resolve_device
from dd2_lightning.errors import DD2Error, check_samples
from dd2_lightning.evaluation.compare import Evaluator, compare
from dd2_lightning.evaluation.config import STAGES, Models, open_samplers, read_samplers, standard_samplers
from dd2_lightning.evaluation.figures import blank_figure, save_comparison, save_curves
from dd2_lightning.evaluation.report import make_report, print_table, results_path, write_report
from dd2_lightning.evaluation.samplers import Sampler
from dd2_lightning.families.registry import AnySampling
from dd2_lightning.files import check_writable
from dd2_lightning.images.files import check_not_directory
from dd2_lightning.metrics.features import FeatureNetwork, feature_network
from dd2_lightning.metrics.warning import collect_warnings
from dd2_lightning.noise import SampleNoise

SHOWN = ("real", "teacher", "one_step", "dd1", "independent")
"""Kinds of samplers in ``samples.png``."""


def evaluate(
    output: str,
    samplers: list[dict[str, Any]] | None = None,
    contenders: list[dict[str, Any]] | None = None,
    models: list[str] | None = None,
    teacher: str | None = None,
    runs: str = ".",
    sampling: AnySampling | None = None,
    samples: int = 20_000,
    reference_samples: int = 30_000,
    features: str = "digits",
    inception: str | None = None,
    seed: int = 0,
    batch_size: int = 500,
    device: str = "auto",
    precision: str | int = "32",
) -> dict[str, Any]:
    """Measure generators against their teacher, the other methods and the weak baselines.

    Writes ``results.json``, ``table.md``, ``samples.png``, ``steps.png`` and, for the next time, the digits'
    ``classifier.safetensors``.

    Args:
        output: directory of the report, or its ``….json`` file, which the rest is put beside.
        samplers: who is compared: a kind and its settings each, see configs/evaluate_var.yaml.
        contenders: former name of samplers.
        models: in their place: directories of finished stages, compared with their teacher and independent tokens.
        teacher: directory of the teacher; by default that of the first of the models.
        runs: what the directories in samplers are relative to.
        sampling: guidance and truncation of the teacher, as the generators were distilled; with models by default what
            the first of them says.
        samples: of each sampler.
        reference_samples: size of the teacher sample that everything is compared with.
        features: what images are measured in: digits, inception, or a class of your own: my_module.MyFeatures.
        inception: weights file of Inception.
        seed: of all samples.
        batch_size: samples at a time; it changes no number.
        device: where to compute: auto, cpu, cuda, cuda:1, mps.
        precision: of the networks that sample: 32 or bf16; metrics and likelihood are always in float32 or float64.

    Returns:
        The contents of ``results.json``.

    Raises:
        ArtifactError: if a directory cannot be read or the report cannot be written.
        DD2Error: if the teacher has no images or the ``demo`` extra is missing.
        ValueError: for numbers out of range, and for samplers that cannot be; the message names entry and key.
    """
    check_samples(seed, samples=samples, reference_samples=reference_samples, batch_size=batch_size)
    if samplers and contenders:
        raise ValueError("give samplers only: contenders is their former name")
    entries = samplers or contenders
    if models:
        entries, runs = standard_samplers(models), "."
        teacher = teacher or str(Artifact.open(models[0], STAGES, "--models").teacher_path())
    if not entries or teacher is None:
        raise ValueError("give --config with a teacher and samplers, like configs/evaluate_var.yaml, or --models")
    listed = read_samplers(entries)
    chosen = resolve_device(device)
    check_precision(chosen, precision)
    path = check_output(output)
    with collect_warnings() as messages:
        opened = Models(teacher, runs, sampling, chosen)
        if models and sampling is None:
            opened.sample_as_distilled(models)
        ready = open_samplers(listed, opened)
    network = feature_network(features, path.parent, inception, chosen)
    settings = {"seed": seed, "reference_samples": reference_samples, "batch_size": batch_size, "precision": precision}
    return evaluate_samplers(ready, network, path, samples, messages, sampling=opened.sampling, **settings)


def check_output(output: str | Path) -> Path:
    """The JSON file of a report; refuse now, not hours later, what cannot be drawn or written."""
    path = results_path(output)
    check_not_directory(path)
    blank_figure(1, 1)
    check_writable(path.parent)
    return path


@torch.no_grad()
def evaluate_samplers(
    samplers: list[Sampler],
    network: FeatureNetwork,
    output: str | Path,
    samples: int = 20_000,
    messages: Sequence[str] = (),
    **settings: Any,
) -> dict[str, Any]:
    """Measure samplers that are bound to one teacher, which is one of them, and write the report.

    Args:
        samplers: who is compared.
        network: features.
        output: directory of the report, or its ``….json`` file.
        samples: of each sampler.
        messages: warnings that the report begins with.
        settings: of the :class:`Evaluator`.

    Returns:
        The contents of ``results.json``.
    """
    path, teacher = check_output(output), samplers[0].teacher
    if not teacher.tokenizer.has_images:
        raise DD2Error("this teacher has no images to evaluate; its tests compare it with its exact distribution")
    with collect_warnings() as found:
        evaluator = Evaluator(teacher, network, **settings)
        scores = compare(evaluator, samplers, samples)
    report = make_report(scores, evaluator.seed, samples, teacher.codebook.device, messages=[*messages, *found])
    save_samples(samplers, path.with_name("samples.png"), evaluator.seed, first=samples)
    save_curves(report["contenders"], path.with_name("steps.png"))
    write_report(report, path)
    print_table(report)
    return report


def save_samples(samplers: list[Sampler], path: Path, seed: int, first: int, columns: int = 8) -> None:
    """Draw the first sampler of each kind in :data:`SHOWN` side by side, ``columns`` samples of every class.

    ``first`` is the global index of the first sample, beyond those that were measured.
    """
    teacher = samplers[0].teacher
    device = teacher.codebook.device
    labels = torch.arange(teacher.num_classes, device=device).repeat_interleave(columns)
    noise = SampleNoise(seed, first, len(labels), device)
    panels = {}
    for kind in SHOWN:
        for sampler in [sampler for sampler in samplers if sampler.kind == kind][:1]:
            steps = "" if sampler.passes is None else f" ({sampler.passes} step{'s' * (sampler.passes != 1)})"
            panels[sampler.name + steps] = sampler.draw(labels, noise).images
    save_comparison(panels, path, [str(label) for label in range(teacher.num_classes)])
