"""Contenders without a network of their own: independent tokens, a teacher that stops early, real pictures."""

from collections.abc import Iterator

import torch
from torch import Tensor

from dd2_lightning.evaluation.contenders import Contender, Drawn, networks_of
from dd2_lightning.models.codebook_teacher import CodebookTeacher
from dd2_lightning.noise import SampleNoise
from dd2_lightning.sampling import Sampling


class SkipContender(Contender):
    """Skip-n: the teacher stops before its last n positions, which are filled in at once with independent tokens.

    Positions 1..N-n are the teacher's own, with its key-value cache. Every token of the others is drawn from its
    marginal given the class, see :class:`Marginals`: independent of each other and of what the teacher drew. That
    takes no pass, so there are N - n of them, as the literature counts (VAR skip-2: 8 of 10). Skip-0 is the teacher
    and, with the same random numbers, skip-N is :class:`IndependentContender`.

    Args:
        teacher: itself.
        skipped: n.
        sampling: guidance and truncation.

    Raises:
        ValueError: if n is not in 0..N.
    """

    kind = "skip"

    def __init__(self, teacher: CodebookTeacher, skipped: int, sampling: Sampling | None = None):
        super().__init__(teacher)
        N = teacher.layout.num_positions
        if not 0 <= skipped <= N:
            raise ValueError(f"skipped must be in 0..{N} for a teacher of {N} positions, got {skipped}")
        self.skipped, self.sampling, self.name = skipped, sampling, f"skip-{skipped}"
        self.steps = max(1, N - skipped)
        self.networks = networks_of(teacher) if skipped < N else ()

    def sample(self, labels: Tensor, noise: SampleNoise) -> Tensor:
        """Indices (B, n); embeddings (B, n, C) if the family's sampling settings make soft tokens."""
        n, until = self.teacher.layout.length, self.teacher.layout.num_positions - self.skipped
        drawn = self.teacher.sample(labels, self.sampling, uniforms=noise.rand("teacher", n), until=until)
        rest = self.marginals.draw(labels, noise.rand("independent", n))[:, drawn.shape[1] :]
        return torch.cat([drawn, self.teacher.embed(rest) if drawn.is_floating_point() else rest], 1)


class IndependentContender(Contender):
    """One step without a model: every token from its marginal at that position and class.

    Args:
        teacher: snaps, decodes and judges.
    """

    kind = name = "independent"
    steps = 1

    def sample(self, labels: Tensor, noise: SampleNoise) -> Tensor:
        """Indices (B, n)."""
        return self.marginals.draw(labels, noise.rand("independent", self.teacher.layout.length))


class RealData(Contender):
    """Real pictures. Their token sequences are the tokenizer's; their pictures have not been through it.

    Args:
        teacher: encodes and judges.
        images: (N, channels, H, W) in [0, 1].
        labels: (N,).
    """

    kind = name = "real"
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
