"""An evaluation and its report: samplers against their teacher."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from dd2_lightning.errors import DD2Error
from dd2_lightning.evaluation.baselines import RealImages
from dd2_lightning.evaluation.compare import Evaluator, compare
from dd2_lightning.evaluation.figures import save_comparison, save_curves
from dd2_lightning.evaluation.reconstruction import measure_reconstruction
from dd2_lightning.evaluation.report import make_report, markdown, print_table, results_path, to_json
from dd2_lightning.evaluation.samplers import Sampler
from dd2_lightning.files import check_writable, sha256, write_atomically
from dd2_lightning.images.figures import blank_figure
from dd2_lightning.images.files import check_not_directory
from dd2_lightning.metrics.features import FeatureNetwork
from dd2_lightning.metrics.warning import collect_warnings
from dd2_lightning.noise import SampleNoise

SHOWN = ("real", "teacher", "one_step", "dd1", "independent")  # kinds of samplers in ``samples.png``


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
    """Measure samplers that are bound to one teacher, which is one of them; write the report, the JSON file last.

    The report begins with ``messages``, which are warnings; ``settings`` are those of the :class:`Evaluator`.
    Where real images are a sampler, the tokenizer is measured on them, too.
    """
    path, teacher = check_output(output), samplers[0].teacher
    if not teacher.tokenizer.has_images:
        raise DD2Error("this teacher has no images to evaluate; its tests compare it with its exact distribution")
    with collect_warnings() as found:
        evaluator = Evaluator(teacher, network, **settings)
        scores = compare(evaluator, samplers, samples)
    report = make_report(scores, evaluator.seed, samples, teacher.codebook.device, messages=[*messages, *found])
    for real in [sampler for sampler in samplers if isinstance(sampler, RealImages)][:1]:
        report["tokenizer"] = measure_reconstruction(teacher, network, real.data, evaluator.batch_size)
    report["weights"] = {sampler.name: weights for sampler in samplers if (weights := weights_of(sampler))}
    save_samples(samplers, path.with_name("samples.png"), evaluator.seed, first=samples)
    save_curves(report["samplers"], path.with_name("steps.png"))
    write_atomically(path.with_name("table.md"), markdown(report).encode())
    write_atomically(path, to_json(report))
    print_table(report)
    return report


def weights_of(sampler: Sampler) -> str | None:
    """SHA-256 of the file that a sampler's generator was loaded from, by which a model card finds its report."""
    directory = getattr(getattr(sampler, "network", None), "directory", None)
    return directory and sha256(directory / "generator.safetensors")


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
