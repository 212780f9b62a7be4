"""Who is compared: everything that can produce a sample of a given class.

A contender's sample is a pure function of the seed and its global index. The random numbers of a
sample come from :class:`SampleNoise`, so neither the batch size nor the number of processes changes a set.
A new contender is a subclass with one method.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from dd2_lightning.models.generator import OneStepGenerator
from dd2_lightning.models.student import Student
from dd2_lightning.models.teacher import CodebookTeacher
from dd2_lightning.models.walk import integrate_walk
from dd2_lightning.noise import SampleNoise
from dd2_lightning.sampling import Sampling


@dataclass
class Drawn:
    """A batch of samples, as the metrics read it.

    Attributes:
        labels: (B,).
        images: (B, channels, H, W) in [0, 1].
        indices: the snapped token sequences, (B, n).
    """

    labels: Tensor
    images: Tensor
    indices: Tensor


class Contender(ABC):
    """A way to make tokens of given classes.

    Attributes:
        name: its row in the table.
        steps: sequential passes through a backbone for one sample.
        sampled: False for the real data, which have no cost and no seed.
        sequences_of: name of a contender whose snapped sequences are the very same; their likelihood is taken over.
    """

    name: str
    steps: int | None
    sampled: bool = True
    sequences_of: str | None = None

    def __init__(self, teacher: CodebookTeacher):
        self.teacher = teacher

    @abstractmethod
    def sample(self, labels: Tensor, noise: SampleNoise) -> Tensor:
        """Tokens of classes ``labels`` (B,): indices (B, n) or embeddings (B, n, C)."""

    def drawn(self, labels: Tensor, noise: SampleNoise) -> Drawn:
        """A batch of samples; pictures are decoded from the tokens as they are, snapped or not."""
        tokens = self.sample(labels, noise)
        indices = self.teacher.snap(tokens) if tokens.is_floating_point() else tokens
        return Drawn(labels, self.teacher.decode(tokens), indices)

    @torch.no_grad()
    def batches(self, samples: int, seed: int, batch_size: int) -> Iterator[Drawn]:
        """The whole set: sample i has class i mod classes."""
        device = self.teacher.codebook.device
        for start in range(0, samples, batch_size):
            count = min(batch_size, samples - start)
            labels = (torch.arange(count, device=device) + start) % self.teacher.num_classes
            yield self.drawn(labels, SampleNoise(seed, start, count, device))


class TeacherContender(Contender):
    """The teacher at its full number of steps.

    Args:
        teacher: itself.
        sampling: guidance and truncation.
        key: samples of different keys are independent.
    """

    name = "teacher"

    def __init__(self, teacher: CodebookTeacher, sampling: Sampling | None = None, key: str = "teacher"):
        super().__init__(teacher)
        self.sampling, self.key = sampling, key
        self.steps = teacher.layout.num_positions

    def sample(self, labels: Tensor, noise: SampleNoise) -> Tensor:
        """Indices (B, n)."""
        return self.teacher.sample(labels, self.sampling, chance=noise.rand(self.key, self.teacher.layout.length))


class OneStepContender(Contender):
    """A one-step generator: raw tokens, decoded as they leave it, or snapped to their nearest codes.

    Both see the same noise, so they differ in nothing but the snapping.

    Args:
        teacher: snaps, decodes and judges.
        generator: with EMA weights.
        snapped: whether pictures are made of codes.
    """

    steps = 1

    def __init__(self, teacher: CodebookTeacher, generator: OneStepGenerator, snapped: bool = False):
        super().__init__(teacher)
        self.generator, self.snapped = generator, snapped
        self.name = "one-step snapped" if snapped else "one-step"
        self.sequences_of = "one-step" if snapped else None

    def sample(self, labels: Tensor, noise: SampleNoise) -> Tensor:
        """Embeddings (B, n, C), or indices (B, n) if snapped."""
        tokens = self.generator.sample(
            labels, noise.randn("one-step", self.teacher.layout.length, self.teacher.token_dim)
        )
        return self.teacher.snap(tokens) if self.snapped else tokens


class IndependentContender(Contender):
    """One step without a model: every token from its marginal at that position and class.

    The marginals are those of a teacher sample. A token is drawn from its marginal by taking that of a random
    sequence of its class, another one for every position: no table of classes x positions x codes is needed.

    Args:
        teacher: snaps, decodes and judges.
        indices: the teacher sample, (N, n).
        labels: its classes, (N,).

    Raises:
        ValueError: if a class has no sequence.
    """

    name = "independent"
    steps = 1

    def __init__(self, teacher: CodebookTeacher, indices: Tensor, labels: Tensor):
        super().__init__(teacher)
        self.count = torch.bincount(labels, minlength=teacher.num_classes)
        if not self.count.all():
            raise ValueError(f"the teacher sample has no sequence of class {int(self.count.argmin())}")
        self.first = self.count.cumsum(0) - self.count
        self.indices = indices[labels.argsort(stable=True)]

    def sample(self, labels: Tensor, noise: SampleNoise) -> Tensor:
        """Indices (B, n)."""
        n = self.indices.shape[1]
        chance = noise.rand(self.name, n).double()
        row = self.first[labels, None] + (chance * self.count[labels, None]).long()
        return self.indices[row, torch.arange(n, device=labels.device)]


class ARDiffusionContender(Contender):
    """The AR-diffusion model of stage 1 with its own sampler: Euler steps for each position in turn.

    Args:
        teacher: snaps, decodes and judges.
        student: the model.
        euler_steps: for each position.
    """

    name = "AR-diffusion"

    def __init__(self, teacher: CodebookTeacher, student: Student, euler_steps: int = 10):
        super().__init__(teacher)
        self.student, self.euler_steps = student, euler_steps
        self.steps = student.layout.num_positions

    def sample(self, labels: Tensor, noise: SampleNoise) -> Tensor:
        """Embeddings (B, n, C)."""
        eps = noise.randn(self.name, self.teacher.layout.length, self.teacher.token_dim)
        return integrate_walk(self.student.walk(labels), eps, self.euler_steps)


class RealData(Contender):
    """Real pictures. Their token sequences are the tokenizer's; their pictures have not been through it.

    Args:
        teacher: encodes and judges.
        images: (N, channels, H, W) in [0, 1].
        labels: (N,).
    """

    name = "real"
    steps = None
    sampled = False

    def __init__(self, teacher: CodebookTeacher, images: Tensor, labels: Tensor):
        super().__init__(teacher)
        self.images, self.labels = images, labels

    def sample(self, labels: Tensor, noise: SampleNoise) -> Tensor:
        """Indices (B, n) of random real pictures of these classes."""
        return self.drawn(labels, noise).indices

    def drawn(self, labels: Tensor, noise: SampleNoise) -> Drawn:
        """Random real pictures of these classes."""
        order, count = self.labels.argsort(stable=True), torch.bincount(self.labels, minlength=self.teacher.num_classes)
        first = count.cumsum(0) - count
        rows = order[first[labels] + (noise.rand(self.name).double() * count[labels]).long()]
        return Drawn(labels, self.images[rows], self.teacher.encode(self.images[rows]))

    def batches(self, samples: int, seed: int, batch_size: int) -> Iterator[Drawn]:
        """Every real picture once, whatever the number of samples."""
        for images, labels in zip(self.images.split(batch_size), self.labels.split(batch_size), strict=True):
            yield Drawn(labels, images, self.teacher.encode(images))
