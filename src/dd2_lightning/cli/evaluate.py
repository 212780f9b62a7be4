"""``dd2 evaluate``: samplers against their teacher."""

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
    batch_size: int | Literal["auto"] = "auto",
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
        batch_size: samples at a time; auto is the largest that fits the GPU's memory, or 4 GB on a CPU, up to 500. It
            changes no number.
        device: where to compute: auto, cpu, cuda, cuda:1, mps.
        precision: of the networks that sample: 32 or bf16; metrics and likelihood are always in float32 or float64.
    """
    from dd2_lightning.artifacts import Artifact
    from dd2_lightning.cli.finish import finish
    from dd2_lightning.devices import check_precision, resolve_device
    from dd2_lightning.evaluation.config import STAGES, Models, open_samplers, read_samplers, standard_samplers
    from dd2_lightning.evaluation.evaluate import check_output, evaluate_samplers
    from dd2_lightning.metrics.features import feature_network
    from dd2_lightning.metrics.warning import collect_warnings

    size = None if batch_size == "auto" else batch_size
    check_samples(seed, samples=samples, reference_samples=reference_samples, batch_size=size)
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
    size = size or evaluation_batch(opened.teacher, opened.sampling, chosen)
    settings = {"seed": seed, "reference_samples": reference_samples, "batch_size": size, "precision": precision}
    report = evaluate_samplers(ready, network, path, samples, messages, sampling=opened.sampling, **settings)
    finish("evaluate", f"{path.name}, table.md, samples.png, steps.png -> {path.parent}")
    return report


def evaluation_batch(teacher: "CodebookTeacher", sampling: Sampling, device: "torch.device") -> int:
    """How many samples at a time the teacher can draw, score and decode."""
    import torch

    from dd2_lightning.costs import largest_batch, peak_of, sampling_peak
    from dd2_lightning.metrics.likelihood import sequence_nll

    def peak(size: int) -> int:
        with torch.device(device), torch.no_grad():
            indices = torch.zeros(size, teacher.layout.length, dtype=torch.long)
            scored = peak_of(lambda: sequence_nll(teacher, indices, indices[:, 0], sampling))
            return max(scored, peak_of(lambda: teacher.decode(indices)) if teacher.tokenizer.has_images else 0)

    return largest_batch(device, peak, lambda size: sampling_peak(teacher, size, sampling))
