"""``dd2 evaluate``: everything that is said of generators, in one command."""

from pathlib import Path
from typing import Any

import torch

from dd2_lightning.artifacts import Artifact, check_writable
from dd2_lightning.errors import DD2Error, check_at_least_one
from dd2_lightning.evaluation.classifier import FeatureNetwork
from dd2_lightning.evaluation.compare import Judge, compare
from dd2_lightning.evaluation.contenders import Contender
from dd2_lightning.evaluation.curves import save_curves
from dd2_lightning.evaluation.features import feature_network
from dd2_lightning.evaluation.lineup import STAGES, Models, line_up, read_entries, standard_line_up
from dd2_lightning.evaluation.pictures import save_comparison
from dd2_lightning.evaluation.report import make_report, print_table, results_path, write_report
from dd2_lightning.families.registry import AnySampling
from dd2_lightning.noise import SampleNoise
from dd2_lightning.sampling import Sampling

PICTURED = ("real", "teacher", "one_step", "dd1", "independent")


def evaluate(
    output: str,
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
    device: str = "cpu",
) -> dict[str, Any]:
    """Measure generators against their teacher, the other methods and the weak baselines.

    Writes ``results.json``, ``table.md``, ``samples.png``, ``steps.png`` and, for the next time, the digits'
    ``classifier.safetensors``.

    Args:
        output: directory of the report, or its ``….json`` file, which the rest is put beside.
        contenders: who is compared: a kind and its settings each, see configs/evaluate_var.yaml.
        models: in their place: directories of finished stages, compared with their teacher and independent tokens.
        teacher: directory of the teacher; by default that of the first of the models.
        runs: what the directories in contenders are relative to.
        sampling: guidance and truncation of the teacher, as the generators were distilled; with models by default what
            the first of them says.
        samples: of each contender.
        reference_samples: size of the teacher sample that everything is compared with.
        features: what pictures are measured in: digits, inception, or one's own network: my_module.MyFeatures.
        inception: weights file of Inception.
        seed: of all samples.
        batch_size: samples at a time; it changes no number.
        device: where to compute.

    Returns:
        The contents of ``results.json``.

    Raises:
        ArtifactError: if a directory cannot be read or the report cannot be written.
        DD2Error: if the teacher has no pictures or the ``demo`` extra is missing.
        ValueError: for numbers below 1, and for contenders that cannot be; the message names entry and key.
    """
    check_at_least_one("--", samples=samples, reference_samples=reference_samples, batch_size=batch_size)
    if models:
        contenders, runs = standard_line_up(models), "."
        teacher = teacher or str(Artifact.open(models[0], STAGES, "--models").teacher_path())
    if not contenders or teacher is None:
        raise ValueError("give --config with a teacher and contenders, like configs/evaluate_var.yaml, or --models")
    entries = read_entries(contenders)
    path = results_path(output)
    check_writable(path.parent)
    sources = Models(teacher, runs, sampling, device)
    if models and sampling is None:
        sources.sample_as_distilled(models)
    opened = line_up(entries, sources)
    network = feature_network(features, path.parent, inception, device)
    return evaluate_contenders(opened, network, path, sources.sampling, samples, reference_samples, seed, batch_size)


@torch.no_grad()
def evaluate_contenders(
    contenders: list[Contender],
    network: FeatureNetwork,
    output: str | Path,
    sampling: Sampling | None = None,
    samples: int = 20_000,
    reference_samples: int = 30_000,
    seed: int = 0,
    batch_size: int = 500,
    minimum: int = 500,
    quiet: bool = False,
) -> dict[str, Any]:
    """What :func:`evaluate` does, with open models.

    Args:
        contenders: all of one teacher, which is one of them.
        network: features.
        output: directory of the report, or its ``….json`` file.
        sampling: guidance and truncation of the teacher.
        samples: of each contender.
        reference_samples: size of the reference.
        seed: of all samples.
        batch_size: samples at a time.
        minimum: samples a class below which diversity is not given.
        quiet: print nothing.

    Returns:
        The contents of ``results.json``.

    Raises:
        ArtifactError: if the report cannot be written.
        DD2Error: if the teacher has no pictures.
    """
    path, teacher = results_path(output), contenders[0].teacher
    check_writable(path.parent)
    if not teacher.tokenizer.has_images:
        raise DD2Error("this teacher has no pictures to evaluate; its tests compare it with its exact distribution")
    device = teacher.codebook.device
    judge = Judge(teacher, network, sampling, seed, reference_samples, batch_size, minimum)
    report = make_report(compare(judge, contenders, samples), seed, samples, device)
    write_report(report, path)
    save_samples(contenders, path.with_name("samples.png"), seed, first=samples)
    save_curves(report["contenders"], path.with_name("steps.png"))
    if not quiet:
        print_table(report)
    return report


def save_samples(contenders: list[Contender], path: Path, seed: int, first: int, columns: int = 8) -> None:
    """The first contender of each kind in :data:`PICTURED` side by side, ``columns`` samples of every class.

    Args:
        contenders: those that were measured.
        path: PNG file.
        seed: of the noise.
        first: global index of the first sample; beyond those that were measured.
        columns: samples of each class.
    """
    teacher = contenders[0].teacher
    device = teacher.codebook.device
    labels = torch.arange(teacher.num_classes, device=device).repeat_interleave(columns)
    noise = SampleNoise(seed, first, len(labels), device)
    panels = {}
    for kind in PICTURED:
        for contender in [c for c in contenders if c.kind == kind][:1]:
            steps = "" if contender.steps is None else f" ({contender.steps} step{'s' * (contender.steps != 1)})"
            panels[contender.name + steps] = contender.drawn(labels, noise).images
    save_comparison(panels, path, [str(label) for label in range(teacher.num_classes)])
