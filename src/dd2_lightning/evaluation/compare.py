"""Measuring contenders against a large teacher sample, and against each other's clock."""

import math
import warnings
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import partial
from statistics import median

import torch
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from dd2_lightning.evaluation.classifier import FeatureNetwork
from dd2_lightning.evaluation.contenders import Contender, TeacherContender
from dd2_lightning.evaluation.marginals import Marginals
from dd2_lightning.evaluation.metrics import WithinClassVariance, agree, sequence_nll
from dd2_lightning.evaluation.path_length import feature_distance, path_length
from dd2_lightning.evaluation.progress import tracked
from dd2_lightning.evaluation.quality import Quality
from dd2_lightning.evaluation.timing import interleaved
from dd2_lightning.models.codebook_teacher import CodebookTeacher
from dd2_lightning.noise import SampleNoise
from dd2_lightning.sampling import Sampling


@dataclass
class Score:
    """A row of the table; None where a number is not defined or not to be trusted.

    Attributes:
        kind: of the contender.
        snapped: whether its tokens were replaced by their nearest codes before they were decoded.
        frechet: Fréchet distance to the reference sample; FID if the features are Inception's.
        kid: kernel distance to it.
        inception_score: of the classifier's logits.
        precision: share of samples in the manifold of the reference.
        recall: share of the reference in the manifold of the samples.
        nll: mean negative log likelihood of the snapped sequences under the teacher, nats a sequence.
        accuracy: share of samples that the classifier sees as their class.
        diversity: within-class variance, divided by the teacher's.
        steps: sequential passes through a backbone.
        seconds_per_image: pictures included.
        parameters: of the networks that sample, tokenizer excluded.
        path_length: perceptual, in the features of the network, see :func:`path_length`.
    """

    kind: str
    snapped: bool = False
    frechet: float | None = None
    kid: float | None = None
    inception_score: float | None = None
    precision: float | None = None
    recall: float | None = None
    nll: float | None = None
    accuracy: float | None = None
    diversity: float | None = None
    steps: int | None = None
    seconds_per_image: float | None = None
    parameters: int | None = None
    path_length: float | None = None


def first_of(scores: dict[str, Score], kind: str) -> Score | None:
    """The first row of a kind; None if there is none."""
    return next((score for score in scores.values() if score.kind == kind), None)


@dataclass
class Reference:
    """A large teacher sample that everything is compared with.

    Attributes:
        quality: measures features against its own.
        variance: within its classes; None with too few samples.
        marginals: of its tokens.
    """

    quality: Quality
    variance: float | None
    marginals: Marginals


class Judge:
    """Teacher, feature network and reference: what a contender is measured with.

    Args:
        teacher: reference of the distances, and the likelihood.
        network: features and classifier.
        sampling: guidance and truncation of the reference; of these, likelihood uses the guidance only.
        seed: of every sample.
        reference_samples: size of the reference.
        batch_size: samples at a time; it changes no number.
        minimum: samples a class below which diversity is not given.
        manifold_samples: samples that precision, recall and KID take; 0 leaves them out.
        progress: show a bar, in a terminal.
        paths: of noise, whose lengths are averaged; 0 leaves them out.
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
    ):
        self.teacher, self.network, self.sampling = teacher, network, sampling or Sampling()
        self.seed, self.batch_size, self.minimum = seed, batch_size, minimum
        self.manifold_samples, self.progress, self.paths = manifold_samples, progress, paths
        self.reference = self._sample_reference(reference_samples)

    @torch.no_grad()
    def _sample_reference(self, samples: int) -> Reference:
        contender = TeacherContender(self.teacher, self.sampling, key="reference")
        variance = self._variance()
        features, indices, labels = [], [], []
        for batch in self._progress(contender, samples, "reference"):
            features.append(self.network.features(batch.images))
            variance.update(features[-1], batch.labels)
            indices.append(batch.indices)
            labels.append(batch.labels)
        quality = Quality.of(torch.cat(features), manifold_samples=self.manifold_samples, seed=self.seed)
        marginals = Marginals(torch.cat(indices), torch.cat(labels), self.teacher.num_classes)
        return Reference(quality, variance.compute() if variance.enough else None, marginals)

    def _variance(self) -> WithinClassVariance:
        variance = WithinClassVariance(self.teacher.num_classes, self.network.width, self.minimum)
        return variance.to(self.teacher.codebook.device)

    def _progress(self, contender: Contender, samples: int, name: str) -> Iterable:
        batches = contender.batches(samples, self.seed, self.batch_size)
        total = math.ceil(samples / self.batch_size)
        return tracked(batches, name, total) if self.progress else batches

    @torch.no_grad()
    def score(self, contender: Contender, samples: int, known: Score | None = None) -> Score:
        """Measure one contender, without its speed.

        Args:
            contender: whose samples.
            samples: how many; real data are as many as there are.
            known: the row of a contender with the same sequences, whose likelihood is not computed again.

        Returns:
            Its row; diversity still has to pass :func:`check_diversity`.
        """
        device = self.teacher.codebook.device
        quality = self.reference.quality
        quality.reset()
        contender.learn(self.reference.marginals)
        variance, nll = self._variance(), MeanMetric(nan_strategy="disable").set_dtype(torch.float64).to(device)
        accuracy = MulticlassAccuracy(self.teacher.num_classes, average="micro").to(device)
        for batch in self._progress(contender, samples, contender.name):
            features = self.network.features(batch.images)
            logits = self.network.logits(features)
            quality.update(features, logits)
            variance.update(features, batch.labels)
            if known is None:
                nll.update(sequence_nll(self.teacher, batch.indices, batch.labels, self.sampling).double())
            if self.network.held_out_accuracy is not None:  # Inception's classes are others
                accuracy.update(logits, batch.labels)
        score = Score(contender.kind, contender.source is not contender, **asdict(quality.compute()))
        score.steps, score.parameters = contender.steps, contender.parameters
        score.nll = known.nll if known else finite(nll.compute().item())
        if self.network.held_out_accuracy is not None:
            # on real pictures it was trained on a classifier is always right
            score.accuracy = accuracy.compute().item() if contender.sampled else self.network.held_out_accuracy
        if variance.enough and self.reference.variance:
            score.diversity = variance.compute() / self.reference.variance
        if contender.smooth and self.paths:
            score.path_length = self._path_length(contender)
        return score

    def _path_length(self, contender: Contender) -> float:
        return path_length(
            lambda labels, noise: self.teacher.decode(contender.smooth(labels, noise)),
            (self.teacher.layout.length, self.teacher.token_dim),
            self.teacher.num_classes,
            feature_distance(self.network),
            self.paths,
            seed=self.seed,
            batch_size=self.batch_size,
            device=self.teacher.codebook.device,
        ).mean


def finite(value: float) -> float | None:
    """None for infinity and NaN, which JSON has no numbers for."""
    return value if math.isfinite(value) else None


def check_diversity(scores: dict[str, Score]) -> None:
    """Withdraw all diversities unless two teacher samples agree within 5%; says so in a warning."""
    teacher = first_of(scores, "teacher").diversity
    if teacher is None or agree(teacher, 1.0):
        return
    warnings.warn(
        f"two teacher samples differ by the factor {teacher:.3f} in within-class variance: diversity is left out; "
        f"take more samples",
        stacklevel=2,
    )
    for score in scores.values():
        score.diversity = None


def ratios(scores: dict[str, Score]) -> dict[str, float | None]:
    """How much of the independent tokens' error is left in DD2's one step: 0 is the teacher, 1 is independent.

    ``frechet`` is (F(one-step) - F0) / (F(independent) - F0), with F0 the distance of a second teacher sample to
    the reference; ``nll`` is (N(one-step) - N(teacher)) / (N(independent) - N(teacher)).

    Returns:
        Both ratios; None where a part is missing or independent tokens are no worse than the teacher.
    """
    rows = [first_of(scores, kind) for kind in ("one_step", "teacher", "independent")]
    result = {}
    for metric in ("frechet", "nll"):
        parts = [getattr(row, metric) if row else None for row in rows]
        one_step, teacher, independent = parts
        defined = None not in parts and independent > teacher
        result[metric] = (one_step - teacher) / (independent - teacher) if defined else None
    return result


@torch.no_grad()
def time_contenders(
    contenders: list[Contender], seed: int = 0, batch_size: int = 100, rounds: int = 7
) -> dict[str, float]:
    """Seconds an image, pictures included, random numbers not.

    The contenders take turns, so that whatever else the machine does falls on all of them; the first round warms up.

    Args:
        contenders: those that sample.
        seed: of the noise.
        batch_size: pictures at a time.
        rounds: how many are timed; the median counts.

    Returns:
        Name to seconds.
    """
    device = contenders[0].teacher.codebook.device
    labels = torch.arange(batch_size, device=device) % contenders[0].teacher.num_classes
    noise = SampleNoise(seed, 0, batch_size, device)

    def draw(contender: Contender) -> None:
        contender.teacher.decode(contender.sample(labels, noise))

    times = interleaved({contender.name: partial(draw, contender) for contender in contenders}, rounds, device)
    return {name: median(taken) / batch_size for name, taken in times.items()}


def compare(
    judge: Judge, contenders: list[Contender], samples: int, timing_batch: int = 100, rounds: int = 7
) -> dict[str, Score]:
    """Measure all contenders and time them.

    Args:
        judge: what they are measured with.
        contenders: one of them the teacher; names differ.
        samples: of each.
        timing_batch: batch size of the timing.
        rounds: of the timing.

    Returns:
        Name to row, in the order given.

    Raises:
        ValueError: if names repeat or the teacher is missing.
    """
    names = [contender.name for contender in contenders]
    if len(set(names)) < len(names) or not any(contender.kind == "teacher" for contender in contenders):
        raise ValueError(f"contenders need different names and one of them must be the teacher, got {names}")
    scores: dict[str, Score] = {}
    by_source: dict[Contender, Score] = {}
    for contender in contenders:
        score = judge.score(contender, samples, by_source.get(contender.source))
        by_source[contender.source] = scores[contender.name] = score
    check_diversity(scores)
    timed = time_contenders([c for c in contenders if c.sampled], judge.seed, timing_batch, rounds)
    for name, seconds in timed.items():
        scores[name].seconds_per_image = seconds
    return scores
