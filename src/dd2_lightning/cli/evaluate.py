"""``dd2 evaluate``: samplers against their teacher."""

import os
from typing import TYPE_CHECKING, Any, Literal

from dd2_lightning.errors import check_samples
from dd2_lightning.families.registry import AnySampling
from dd2_lightning.sampling import Sampling

if TYPE_CHECKING:
    import torch

    from dd2_lightning.models.codebook_teacher import CodebookTeacher


def evaluate(
    output: str,
    samplers: list[dict[str, Any]] | None = None,
    models: list[str] | None = None,
    teacher: str | None = None,
    runs: str = ".",
    sampling: AnySampling | None = None,
    data: dict[str, Any] | str | None = None,
    samples: int = 20_000,
    reference_samples: int = 30_000,
    features: dict[str, Any] | str = "classifier",
    inception: str | None = None,
    seed: int = 0,
    batch_size: int | Literal["auto"] = "auto",
    device: str = "auto",
    precision: str | int = "32",
) -> dict[str, Any]:
    """Measure generators against their teacher, the other methods and the weak baselines.

    Writes ``results.json``, ``table.md``, ``samples.png`` and ``steps.png``; beside the teacher, for the next time, the
    ``classifier.safetensors`` of its images.

    Args:
        output: directory of the report, or its ``….json`` file, which the rest is put beside.
        samplers: who is compared: a kind and its settings each, see configs/evaluate_var.yaml.
        models: in their place: directories of finished stages, compared with their teacher and independent tokens.
        teacher: directory of the teacher; by default that of the first of the models.
        runs: what the directories in samplers are relative to.
        sampling: guidance and truncation of the teacher, as the generators were distilled; with models by default what
            the first of them says.
        data: images that the teacher was trained on: the name of a data module, or its class_path and init_args; by
            default as the teacher's config.json says.
        samples: of each sampler.
        reference_samples: size of the teacher sample that everything is compared with.
        features: what images are measured in: classifier, which is trained on the images of data, inception, or a
            class of your own: my_module.MyFeatures, perhaps as class_path and init_args.
        inception: weights file of Inception.
        seed: of all samples.
        batch_size: samples at a time; auto is the largest that fits the GPU's memory, or 4 GB on a CPU, up to 500. It
            changes no number.
        device: where to compute: auto, cpu, cuda, cuda:1, mps.
        precision: of the networks that sample: 32 or bf16; metrics and likelihood are always in float32 or float64.

    Examples:
        dd2 evaluate --config evaluate_var.yaml
        dd2 evaluate --models '[runs/var/csd, runs/var/align]' --samples 5000 --output runs/var/quick
    """
    from dd2_lightning.artifacts import Artifact
    from dd2_lightning.cli.finish import finish
    from dd2_lightning.devices import check_precision, resolve_device
    from dd2_lightning.evaluation.config import STAGES, Models, open_samplers, read_samplers, standard_samplers
    from dd2_lightning.evaluation.evaluate import check_output, evaluate_samplers
    from dd2_lightning.metrics.features import check_reads, feature_network
    from dd2_lightning.metrics.warning import collect_warnings

    size = None if batch_size == "auto" else batch_size
    check_samples(seed, samples=samples, reference_samples=reference_samples, batch_size=size)
    if models:
        teacher, runs = teacher or str(Artifact.open(models[0], STAGES, "--models").teacher_path()), "."
        known = "data" in Artifact.open(teacher, ("teacher",), "teacher").config
        samplers = standard_samplers(models, real=known or data is not None)
    if not samplers or teacher is None:
        raise ValueError("give --config with a teacher and samplers, like configs/evaluate_var.yaml, or --models")
    listed = read_samplers(samplers)
    chosen = resolve_device(device)
    check_precision(chosen, precision)
    path = check_output(output)
    with collect_warnings() as messages:
        opened = Models(teacher, runs, sampling, chosen, data)
        if models and sampling is None:
            opened.sample_as_distilled(models)
        ready = open_samplers(listed, opened)
    images = opened.images if features == "classifier" else None
    kept = teacher if os.access(teacher, os.W_OK) else path.parent
    network = feature_network(features, kept, inception, chosen, images)
    check_reads(network, features, opened.image_shape, chosen)
    size = size or evaluation_batch(opened.teacher, opened.sampling, max(samples, reference_samples), chosen)
    settings = {"seed": seed, "reference_samples": reference_samples, "batch_size": size, "precision": precision}
    report = evaluate_samplers(ready, network, path, samples, messages, sampling=opened.sampling, **settings)
    finish("evaluate", f"{path.name}, table.md, samples.png, steps.png -> {path.parent}")
    return report


def evaluation_batch(teacher: "CodebookTeacher", sampling: Sampling, samples: int, device: "torch.device") -> int:
    """How many samples at a time the teacher can draw, score and decode."""
    import torch

    from dd2_lightning.costs import largest_batch, peak_of, sampling_peak
    from dd2_lightning.metrics.likelihood import sequence_nll

    def peak(size: int) -> int:
        with torch.device(device), torch.no_grad():
            indices = torch.zeros(size, teacher.layout.length, dtype=torch.long)
            scored = peak_of(lambda: sequence_nll(teacher, indices, indices[:, 0], sampling))
            return max(scored, peak_of(lambda: teacher.decode(indices)) if teacher.tokenizer.has_images else 0)

    return largest_batch(device, samples, peak, lambda size: sampling_peak(teacher, size, sampling))
