"""What the generators of a setting are measured with, made once and kept: it needs no images to be opened again."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.scale.study import Setting, Study
from dd2_lightning.artifacts import Artifact, load_teacher
from dd2_lightning.data.named import images_of, open_images
from dd2_lightning.evaluation.baselines import IndependentSampler, Marginals
from dd2_lightning.evaluation.report import to_json
from dd2_lightning.evaluation.samplers import ReferenceSampler, Sampler, TeacherSampler
from dd2_lightning.files import sha256, write_atomically
from dd2_lightning.metrics.classifier import ImageClassifier, load_classifier, read_classifier
from dd2_lightning.metrics.frechet import FeatureGaussian, Gaussian, frechet_distance
from dd2_lightning.metrics.likelihood import sequence_nll
from dd2_lightning.metrics.references import open_reference, write_statistics
from dd2_lightning.models.codebook_teacher import CodebookTeacher
from dd2_lightning.sampling import Sampling

BATCH = 500
Figures = dict[str, Any]


@dataclass
class Ruler:
    """Reference and scale of a setting.

    Attributes:
        teacher: on the device.
        sampling: its guidance and truncation.
        network: classifier of the images that it was trained on.
        reference: fit of the features of a sample of the teacher.
        ends: number of samples to the figures of as many of the teacher and of independent tokens.
    """

    teacher: CodebookTeacher
    sampling: Sampling
    network: ImageClassifier
    reference: Gaussian
    ends: dict[int, dict[str, Figures]]

    @torch.no_grad()
    def raw(self, sampler: Sampler, samples: int) -> Figures:
        """Fréchet distance, likelihood of the snapped sequences in nats, and accuracy."""
        fit, nll, hits = FeatureGaussian(self.network.width).to(self.teacher.codebook.device), 0.0, 0
        for batch in sampler.batches(samples, 0, BATCH):
            features = self.network.features(batch.images)
            fit.update(features)
            nll += sequence_nll(self.teacher, batch.indices, batch.labels, self.sampling).double().sum().item()
            hits += int((self.network.logits(features).argmax(1) == batch.labels).sum())
        distance = frechet_distance(self.reference, fit.compute())
        return {"frechet": distance, "nll": nll / samples, "accuracy": hits / samples}

    def measure(self, sampler: Sampler, samples: int) -> Figures:
        """The same, and what is left of the independent tokens' error: 0 is the teacher, 1 is independent."""
        figures, ends = self.raw(sampler, samples), self.ends[samples]
        zero, one = ends["teacher"], ends["independent"]
        left = {key: (figures[key] - zero[key]) / (one[key] - zero[key]) for key in ("frechet", "nll")}
        return {"samples": samples, **figures, "left": left}


def open_ruler(study: Study, setting: Setting, directory: Path, teacher_path: str, device: torch.device) -> Ruler:
    """Open the ruler that lies in a directory; one that is not there, or of another teacher, is made."""
    teacher = load_teacher(teacher_path).to(device)
    sampling = teacher.sampling_type(**setting.teacher_sampling())
    artifact, path = Artifact.open(teacher_path, ("teacher",), "teacher"), directory / "ruler.json"
    known = {
        "teacher": sha256(Path(teacher_path) / "teacher.safetensors"),
        "sampling": setting.teacher_sampling(),
        "samples": [study.point_samples, study.samples, study.reference_samples],
    }
    found = json.loads(path.read_text()) if path.is_file() else {}
    if {key: found.get(key) for key in known} == known:
        network = read_classifier(directory / "classifier.safetensors").to(device)
        gaussian = open_reference(directory / "reference.safetensors").gaussian
        assert gaussian is not None
        return Ruler(teacher, sampling, network, gaussian, {int(n): ends for n, ends in found["ends"].items()})
    data = open_images(setting.data) if setting.data else images_of(artifact.directory, artifact.config)
    network = load_classifier(directory, data).to(device)
    reference, marginals = sample_reference(teacher, sampling, network, study.reference_samples)
    ruler, independent = Ruler(teacher, sampling, network, reference, {}), IndependentSampler().bind(teacher)
    independent.marginals = marginals
    samplers = {"teacher": TeacherSampler().bind(teacher, sampling), "independent": independent}
    for samples in {study.point_samples, study.samples}:
        ruler.ends[samples] = {name: ruler.raw(sampler, samples) for name, sampler in samplers.items()}
    write_statistics(directory / "reference.safetensors", reference, network)
    write_atomically(path, to_json({**known, "ends": ruler.ends}))
    return ruler


@torch.no_grad()
def sample_reference(
    teacher: CodebookTeacher, sampling: Sampling, network: ImageClassifier, samples: int
) -> tuple[Gaussian, Marginals]:
    """Fit of the features, and marginals of the tokens, of a sample of the teacher."""
    fit, indices, labels = FeatureGaussian(network.width).to(teacher.codebook.device), [], []
    for batch in ReferenceSampler().bind(teacher, sampling).batches(samples, 0, BATCH):
        fit.update(network.features(batch.images))
        indices.append(batch.indices)
        labels.append(batch.labels)
    return fit.compute(), Marginals(torch.cat(indices), torch.cat(labels), teacher.num_classes)


def describe(ruler: Ruler) -> Figures:
    """Sizes of a setting, and the teacher's entropy: the mean of -log p over its own samples, in nats."""
    layout = ruler.teacher.layout
    ends = ruler.ends[max(ruler.ends)]
    return {
        "tokens": layout.length,
        "positions": layout.num_positions,
        "codes": len(ruler.teacher.codebook),
        "nats": ends["teacher"]["nll"],
        "nats_per_token": ends["teacher"]["nll"] / layout.length,
        "classifier": ruler.network.held_out_accuracy,
        **ends,
    }
