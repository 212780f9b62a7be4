"""Who is compared: everything that can produce a sample of a given class.

A contender's sample is a pure function of the seed and its global index. The random numbers of a
sample come from :class:`SampleNoise`, so neither the batch size nor the number of processes changes a set.
A new contender is a subclass with one method.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from dd2_lightning.evaluation.marginals import Marginals
from dd2_lightning.models.codebook_teacher import CodebookTeacher
from dd2_lightning.models.dd1_generator import DD1Generator
from dd2_lightning.models.generator import OneStepGenerator
from dd2_lightning.models.sizes import count_parameters
from dd2_lightning.models.student import Student
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
        kind: what a line-up calls it.
        name: its row in the table.
        steps: sequential passes through a backbone for one sample.
        networks: what it samples with, tokenizer excluded.
        sampled: False for the real data, which have no cost and no seed.
        smooth: ``(labels (B,), noise (B, n, C)) -> tokens``, where tokens change smoothly with noise and with nothing
            else; their pictures have a path length.
    """

    kind: ClassVar[str]
    name: str
    steps: int | None
    networks: tuple[nn.Module, ...] = ()
    sampled: bool = True
    smooth: Callable[[Tensor, Tensor], Tensor] | None = None

    def __init__(self, teacher: CodebookTeacher):
        self.teacher = teacher

    @property
    def parameters(self) -> int | None:
        """Parameters of the networks it samples with; None if it has none."""
        return count_parameters(*self.networks) if self.networks else None

    @property
    def source(self) -> "Contender":
        """A contender whose snapped sequences are the very same: itself, unless it snaps another's."""
        return self

    @abstractmethod
    def sample(self, labels: Tensor, noise: SampleNoise) -> Tensor:
        """Tokens of classes ``labels`` (B,): indices (B, n) or embeddings (B, n, C)."""

    def learn(self, marginals: Marginals) -> None:
        """Keep what was counted in a teacher sample: baselines without a network draw from it."""
        self.marginals = marginals

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

    kind = name = "teacher"

    def __init__(self, teacher: CodebookTeacher, sampling: Sampling | None = None, key: str = "teacher"):
        super().__init__(teacher)
        self.sampling, self.key = sampling, key
        self.steps = teacher.layout.num_positions
        self.networks = networks_of(teacher)

    def sample(self, labels: Tensor, noise: SampleNoise) -> Tensor:
        """Indices (B, n)."""
        return self.teacher.sample(labels, self.sampling, uniforms=noise.rand(self.key, self.teacher.layout.length))


def networks_of(teacher: CodebookTeacher) -> tuple[nn.Module, ...]:
    """What a teacher samples with."""
    return teacher.backbone, teacher.classifier


class GeneratorContender(Contender):
    """A distilled generator; its tokens are decoded as they leave it.

    All see the same noise, and where the teacher takes steps it draws with the random numbers of
    :class:`TeacherContender`.

    Attributes:
        draw: ``(labels (B,), noise (B, n, C), uniform numbers (B, n)) -> tokens (B, n, C)``.
    """

    draw: Callable[[Tensor, Tensor, Tensor], Tensor]

    def sample(self, labels: Tensor, noise: SampleNoise) -> Tensor:
        """Embeddings (B, n, C)."""
        return self.draw(labels, *noise.for_generators(self.teacher.layout.length, self.teacher.token_dim))


class OneStepContender(GeneratorContender):
    """DD2 in one step.

    Args:
        teacher: snaps, decodes and judges.
        generator: with EMA weights.
    """

    kind, name, steps = "one_step", "one-step", 1

    def __init__(self, teacher: CodebookTeacher, generator: OneStepGenerator):
        super().__init__(teacher)
        self.draw, self.networks, self.smooth = generator.sampler(), (generator.student,), generator.sample


class RefinedContender(GeneratorContender):
    """The draft of DD2, its last k - 1 positions drawn again by the teacher (alg. 4).

    Args:
        teacher: refines, snaps, decodes and judges.
        generator: with EMA weights.
        steps: k; 1 is the draft, N + 1 the teacher.
        sampling: guidance and truncation of the teacher.

    Raises:
        ValueError: if ``steps`` is not in 1..N+1.
    """

    kind = "refined"

    def __init__(
        self, teacher: CodebookTeacher, generator: OneStepGenerator, steps: int, sampling: Sampling | None = None
    ):
        super().__init__(teacher)
        self.draw, self.steps, self.name = generator.sampler(steps, teacher, sampling), steps, f"refined {steps}-step"
        self.networks = (generator.student, *networks_of(teacher))


class DD1Contender(GeneratorContender):
    """DD1 in one step or two, or with the teacher in the middle ("pre-trained-n-m", m is where the second call starts).

    Args:
        teacher: snaps, decodes and judges, and draws positions n+1..m.
        generator: with EMA weights.
        steps: 1 or 2, without the teacher.
        start: n, with the teacher; in the place of ``steps``.
        split: how many positions come out as codes; the generator's own if None.
        sampling: guidance and truncation of the teacher.

    Raises:
        ValueError: for settings that the generator does not have, and unless there is one of ``steps`` and ``start``.
    """

    kind = "dd1"

    def __init__(
        self,
        teacher: CodebookTeacher,
        generator: DD1Generator,
        steps: int | None = None,
        start: int | None = None,
        split: int | None = None,
        sampling: Sampling | None = None,
    ):
        super().__init__(teacher)
        if (steps is None) == (start is None):
            raise ValueError("give steps (1 or 2) or start (the teacher in the middle)")
        self.networks = (generator.student,)
        if start is None:
            self.draw, self.steps, self.name = generator.sampler(steps, split=split), steps, f"DD1 {steps}-step"
        else:
            self.draw, self.steps = generator.refiner(teacher, start, split, sampling), generator.steps_from(start)
            self.name = f"DD1 {start}-{generator.second}"
            self.networks += networks_of(teacher)


class ARDiffusionContender(Contender):
    """The AR-diffusion model of stage 1 with its own sampler: Euler steps for each position in turn.

    Args:
        teacher: snaps, decodes and judges.
        student: the model.
        euler_steps: for each position; they are passes through the head, not through the backbone.

    Raises:
        ValueError: for fewer than one Euler step.
    """

    kind, name = "ar_diffusion", "AR-diffusion"

    def __init__(self, teacher: CodebookTeacher, student: Student, euler_steps: int = 10):
        super().__init__(teacher)
        if euler_steps < 1:
            raise ValueError(f"euler_steps must be at least 1, got {euler_steps}")
        self.student, self.euler_steps, self.networks = student, euler_steps, (student,)
        self.steps = student.layout.num_positions

    def sample(self, labels: Tensor, noise: SampleNoise) -> Tensor:
        """Embeddings (B, n, C)."""
        eps = noise.randn(self.name, self.teacher.layout.length, self.teacher.token_dim)
        return integrate_walk(self.student.walk(labels), eps, self.euler_steps)


class SnappedContender(Contender):
    """Another contender whose continuous tokens are replaced by their nearest codes before they are decoded.

    Both see the same noise, so they differ in nothing else.

    Args:
        source: the other one.
    """

    def __init__(self, source: Contender):
        super().__init__(source.teacher)
        self._source, self.kind, self.name = source, source.kind, f"{source.name} snapped"
        self.steps, self.networks = source.steps, source.networks

    @property
    def source(self) -> Contender:
        """The other one."""
        return self._source

    def sample(self, labels: Tensor, noise: SampleNoise) -> Tensor:
        """Indices (B, n)."""
        return self.teacher.snap(self.source.sample(labels, noise))
