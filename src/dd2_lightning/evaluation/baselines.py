"""Samplers without a network to train: independent tokens, a teacher that stops early, real images."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dd2_lightning.data.images import ImageData
from dd2_lightning.evaluation.samplers import Sampler, Samples, teacher_networks
from dd2_lightning.noise import SampleNoise


class ClassRows:
    """Draws rows of given classes from a set with labels (N,)."""

    def __init__(self, labels: Tensor, num_classes: int):
        self.order, self.count = labels.argsort(stable=True), torch.bincount(labels, minlength=num_classes)
        self.first = self.count.cumsum(0) - self.count

    def draw(self, labels: Tensor, uniforms: Tensor) -> Tensor:
        """Independent rows of classes ``labels`` from uniform numbers, both of one shape: row numbers."""
        return self.order[self.first[labels] + (uniforms.double() * self.count[labels]).long()]


class Marginals(ClassRows):
    """Marginals of the tokens in a sample of sequences (N, n) with labels (N,).

    A token is drawn by taking that of a random sequence of its class, another sequence for every token: no table of
    classes x tokens x codes is needed. A class without a sequence is a ValueError.
    """

    def __init__(self, indices: Tensor, labels: Tensor, num_classes: int):
        super().__init__(labels, num_classes)
        if not self.count.all():
            raise ValueError(f"the teacher sample has no sequence of class {int(self.count.argmin())}")
        self.indices = indices

    def draw(self, labels: Tensor, uniforms: Tensor) -> Tensor:
        """Independent tokens of classes ``labels`` (B,) from uniform numbers (B, n): indices (B, n)."""
        rows = super().draw(labels[:, None].expand_as(uniforms), uniforms)
        return self.indices[rows, torch.arange(uniforms.shape[1], device=labels.device)]


@dataclass(kw_only=True, eq=False)
class IndependentSampler(Sampler):
    """One step without a model: every token from its marginal at that position and class."""

    kind = title = "independent"
    passes = 1
    marginals: Marginals = field(init=False)  # of a teacher sample; to be set before anything is drawn

    def generate(self, labels: Tensor, noise: SampleNoise) -> Tensor:
        return self.marginals.draw(labels, noise.rand("independent", self.teacher.layout.length))


@dataclass(kw_only=True, eq=False)
class SkipSampler(IndependentSampler):
    """Skip-n: the teacher stops before its last n positions, which are filled in at once with independent tokens.

    Tokens of the others are drawn from their marginals given the class, independent of what the teacher drew. This
    takes no pass, so there are N - n of them, as the literature counts (VAR skip-2: 8 of 10). Skip-0 is the teacher
    and, with the same random numbers, skip-N is :class:`IndependentSampler`.
    """

    kind = "skip"
    skipped: int  # n, in 0..N

    def setup(self) -> None:
        N = self.teacher.layout.num_positions
        if not 0 <= self.skipped <= N:
            raise ValueError(f"skipped must be in 0..{N} for a teacher of {N} positions, got {self.skipped}")
        self.title, self.passes = f"skip-{self.skipped}", max(1, N - self.skipped)
        self.networks = teacher_networks(self.teacher) if self.skipped < N else ()

    def generate(self, labels: Tensor, noise: SampleNoise) -> Tensor:
        n, until = self.teacher.layout.length, self.teacher.layout.num_positions - self.skipped
        drawn = self.teacher.sample(labels, self.sampling, uniforms=noise.rand("teacher", n), until=until)
        rest = super().generate(labels, noise)[:, drawn.shape[1] :]
        return torch.cat([drawn, self.teacher.embed(rest) if drawn.is_floating_point() else rest], 1)


@dataclass(kw_only=True, eq=False)
class RealImages(Sampler):
    """Real images. Their token sequences are the tokenizer's; their images have not been through it."""

    kind = title = "real"
    synthetic = False
    data: ImageData = field(init=False)  # the images; to be set before :meth:`bind`

    def setup(self) -> None:
        self.images = self.data.everything()
        self.labels = self.images.labels.to(self.teacher.codebook.device)

    def generate(self, labels: Tensor, noise: SampleNoise) -> Tensor:
        return self.draw(labels, noise).indices

    def draw(self, labels: Tensor, noise: SampleNoise) -> Samples:
        rows = ClassRows(self.labels, self.teacher.num_classes).draw(labels, noise.rand("real"))
        return self._read(labels, rows)

    def _read(self, labels: Tensor, rows: Tensor) -> Samples:
        images = self.images.pixels(rows.cpu()).to(labels.device)
        return Samples(labels, images, self.teacher.encode(images))

    def batches(self, samples: int, seed: int, batch_size: int, precision: str | int = "32") -> Iterator[Samples]:
        """Every real image once, whatever the number of samples."""
        for rows in torch.arange(self.images.size).split(batch_size):
            yield self._read(self.labels[rows], rows)
