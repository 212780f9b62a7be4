"""Measure samplers against a large teacher sample, and against each other's clock."""

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from dd2_lightning.devices import autocast
from dd2_lightning.evaluation.baselines import IndependentSampler, Marginals, RealImages
from dd2_lightning.evaluation.samplers import ReferenceSampler, Sampler, Samples
from dd2_lightning.evaluation.timing import interleaved
from dd2_lightning.metrics.diversity import WithinClassVariance
from dd2_lightning.metrics.features import FeatureNetwork, identity
from dd2_lightning.metrics.likelihood import sequence_nll
from dd2_lightning.metrics.path_length import feature_distance, path_length
from dd2_lightning.metrics.quality import Quality
from dd2_lightning.metrics.warning import SampleWarning
from dd2_lightning.models.codebook_teacher import CodebookTeacher
from dd2_lightning.noise import SampleNoise
from dd2_lightning.progress import tracked
from dd2_lightning.sampling import Sampling


@dataclass
class Score:
    """A row of the table; None where a number is not defined or not to be trusted.

    ``frechet`` to ``recall`` are :class:`~dd2_lightning.metrics.quality.QualityScores` against the reference sample.
    """

    kind: str  # of the sampler
    snapped: bool = False  # whether its tokens were replaced by their nearest codes before they were decoded
    frechet: float | None = None
    kid: float | None = None
    inception_score: float | None = None
    precision: float | None = None
    recall: float | None = None
    nll: float | None = None  # mean negative log likelihood of the snapped sequences under the teacher, nats a sequence
    accuracy: float | None = None  # share of samples that the classifier sees as their class
    diversity: float | None = None  # within-class variance, divided by the teacher's
    steps: int | None = None  # sequential passes through a backbone
    seconds_per_image: float | None = None  # decoding included
    parameters: int | None = None  # of the networks that sample, tokenizer excluded
    path_length: float | None = None  # perceptual, in the features of the network, see :func:`path_length`
    trained_on: bool = False  # whether its training has seen the feature network, so that ``frechet`` is no headline


class Evaluator:
    """Teacher, feature network and a reference sample of the teacher: what a sampler is measured with.

    The teacher makes the reference, with guidance and truncation of ``sampling``, and the likelihood, with the guidance
    only. The ``precision`` is that of the networks that sample and decode; likelihood, path length, features and
    metrics are in float32 or float64. The batch size changes no number.

    Args:
        minimum: samples a class below which diversity is not given.
        manifold_samples: samples that precision, recall and KID take; 0 leaves them out.
        paths: of noise, whose lengths are averaged, as many as there are reference samples at most; 0 leaves them out.
    """

    def __init__(
        self,
        teacher: CodebookTeacher,
        network: FeatureNetwork,
        sampling: Sampling | None = None,
        seed: int = 0,
        reference_samples: int = 30_000,
        batch_size: int = 500,
        minimum: int = 500,
        manifold_samples: int = 5000,
        progress: bool = True,
        paths: int = 2000,
        precision: str | int = "32",
    ):
        self.teacher, self.network, self.sampling = teacher, network, sampling or Sampling()
        self.seed, self.batch_size, self.minimum = seed, batch_size, minimum
        self.manifold_samples, self.progress, self.paths = manifold_samples, progress, min(paths, reference_samples)
        self.precision, self.device = precision, teacher.codebook.device
        self.identity = identity(network)
        self._sample_reference(reference_samples)

    @torch.no_grad()
    def _sample_reference(self, samples: int) -> None:
        """Sample the teacher; keep metrics, within-class variance (None of too few samples) and marginals."""
        sampler = ReferenceSampler(name="reference").bind(self.teacher, self.sampling)
        variance = self._within_class_variance()
        features, indices, labels = [], [], []
        for batch in self._batches(sampler, samples):
            features.append(self.network.features(batch.images))
            variance.update(features[-1], batch.labels)
            indices.append(batch.indices)
            labels.append(batch.labels)
        quality = Quality.of(torch.cat(features), manifold_samples=self.manifold_samples, seed=self.seed)
        self.quality = quality.to(self.device)
        self.variance = variance.compute() if variance.enough else None
        self.marginals = Marginals(torch.cat(indices), torch.cat(labels), self.teacher.num_classes)

    def _within_class_variance(self) -> WithinClassVariance:
        return WithinClassVariance(self.teacher.num_classes, self.network.width, self.minimum).to(self.device)

    def _batches(self, sampler: Sampler, samples: int) -> Iterator[Samples]:
        batches = sampler.batches(samples, self.seed, self.batch_size, self.precision)
        if not self.progress:
            return batches
        return tracked(batches, f"evaluate: {sampler.name}", samples, size=self.batch_size)

    @torch.no_grad()
    def score(self, sampler: Sampler, samples: int, known: Score | None = None) -> Score:
        """Measure samples of one sampler, without its speed; diversity still has to pass :func:`check_diversity`.

        ``known`` is the row of a sampler with the same sequences, whose likelihood is not computed again.
        """
        if isinstance(sampler, IndependentSampler):
            sampler.marginals = self.marginals
        if isinstance(sampler, RealImages):
            samples = sampler.images.size
        self.quality.reset()
        variance = self._within_class_variance()
        nll = MeanMetric(nan_strategy="disable").set_dtype(torch.float64).to(self.device)
        accuracy = MulticlassAccuracy(self.teacher.num_classes, average="micro").to(self.device)
        held_out = self.network.held_out_accuracy  # None of Inception, whose classes are others
        for batch in self._batches(sampler, samples):
            features = self.network.features(batch.images)
            logits = self.network.logits(features)
            self.quality.update(features, logits)
            variance.update(features, batch.labels)
            if known is None:
                nll.update(sequence_nll(self.teacher, batch.indices, batch.labels, self.sampling).double())
            if logits is not None and held_out is not None:
                accuracy.update(logits, batch.labels)
        score = Score(sampler.kind, sampler.snapped, **asdict(self.quality.compute()))
        score.steps, score.parameters = sampler.passes, sampler.parameters
        score.trained_on = self.identity in sampler.trained_on
        if score.trained_on:
            seen = f"{sampler.name} was trained on these features ({self.identity})"
            message = f"{seen}: its distances, precision and recall measure nothing; name other --features"
            warnings.warn(message, SampleWarning, stacklevel=2)
        score.nll = known.nll if known else finite(nll.compute().item())
        if held_out is not None:  # on real images it was trained on a classifier is always right
            score.accuracy = accuracy.compute().item() if sampler.synthetic else held_out
        if variance.enough and self.variance:
            score.diversity = variance.compute() / self.variance
        if sampler.smooth and self.paths:
            score.path_length = self._path_length(sampler.smooth)
        return score

    def _path_length(self, smooth: Callable[[Tensor, Tensor], Tensor]) -> float:
        return path_length(
            lambda labels, noise: self.teacher.decode(smooth(labels, noise)),
            (self.teacher.layout.length, self.teacher.token_dim),
            self.teacher.num_classes,
            feature_distance(self.network),
            self.paths,
            seed=self.seed,
            batch_size=self.batch_size,
            device=self.device,
            progress=self.progress,
        ).mean


def finite(value: float) -> float | None:
    """None for infinity and NaN, which JSON has no numbers for."""
    return value if math.isfinite(value) else None


def check_diversity(scores: dict[str, Score], tolerance: float = 0.05) -> None:
    """Withdraw all diversities, with a warning, unless two teacher samples agree in within-class variance."""
    teacher = next(score.diversity for score in scores.values() if score.kind == "teacher")
    if teacher is None or abs(teacher - 1) <= tolerance:
        return
    differ = f"two teacher samples differ by the factor {teacher:.3f} in within-class variance"
    warnings.warn(f"{differ}: diversity is left out; take more samples", SampleWarning, stacklevel=2)
    for score in scores.values():
        score.diversity = None


@torch.no_grad()
def time_samplers(
    samplers: list[Sampler], seed: int = 0, batch_size: int = 100, rounds: int = 7, precision: str | int = "32"
) -> dict[str, float]:
    """Seconds an image by name: the median over ``rounds`` in turn, decoding included, random numbers not."""
    teacher = samplers[0].teacher
    device = teacher.codebook.device
    labels = torch.arange(batch_size, device=device) % teacher.num_classes
    noise = SampleNoise(seed, 0, batch_size, device)

    def draw(sampler: Sampler) -> None:
        with autocast(device, precision):
            teacher.decode(sampler.sample(labels, noise))

    times = interleaved({sampler.name: partial(draw, sampler) for sampler in samplers}, rounds, device)
    return {name: median(seconds) / batch_size for name, seconds in times.items()}


def compare(
    evaluator: Evaluator, samplers: list[Sampler], samples: int, timing_batch: int = 100, rounds: int = 7
) -> dict[str, Score]:
    """Measure and time samplers of different names, one of them the teacher: name to row, in the order given."""
    names = [sampler.name for sampler in samplers]
    if len(set(names)) < len(names) or not any(sampler.kind == "teacher" for sampler in samplers):
        raise ValueError(f"samplers need different names and one of them must be the teacher, got {names}")
    scores: dict[str, Score] = {}
    same_sequences: dict[tuple[Any, ...], Score] = {}
    for sampler in samplers:
        score = evaluator.score(sampler, samples, same_sequences.get(sampler.key))
        same_sequences[sampler.key] = scores[sampler.name] = score
    check_diversity(scores)
    timed = [sampler for sampler in samplers if sampler.synthetic]
    for name, seconds in time_samplers(timed, evaluator.seed, timing_batch, rounds, evaluator.precision).items():
        scores[name].seconds_per_image = seconds
    return scores
