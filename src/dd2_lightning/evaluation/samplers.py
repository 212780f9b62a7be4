"""Samplers: everything that makes samples of given classes and is compared.

A sampler is a dataclass whose fields are its settings, as a config lists them; :meth:`Sampler.bind` gives it the
teacher and opens its network. A sample is a pure function of the seed and its global index: random numbers come from
:class:`SampleNoise`, so neither the batch size nor the number of processes changes a set. A new kind is a subclass with
``setup`` and ``generate``, and an entry of :data:`~dd2_lightning.evaluation.config.KINDS`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from dd2_lightning.devices import autocast
from dd2_lightning.models import generator
from dd2_lightning.models.codebook_teacher import CodebookTeacher
from dd2_lightning.models.dd1_generator import DD1Generator
from dd2_lightning.models.sizes import count_parameters
from dd2_lightning.models.student import Student
from dd2_lightning.models.walk import integrate_walk
from dd2_lightning.noise import SampleNoise
from dd2_lightning.sampling import Sampling

OpenModel = Callable[[str, tuple[str, ...]], nn.Module]  # ``(directory, stages that it may come from) -> network``


@dataclass
class Samples:
    """A batch: labels (B,), images (B, channels, H, W) in [0, 1], and snapped token sequences (B, n)."""

    labels: Tensor
    images: Tensor
    indices: Tensor


@dataclass(kw_only=True, eq=False)
class Sampler(ABC):
    """A way to make tokens of given classes."""

    kind: ClassVar[str]  # its name in a config
    synthetic: ClassVar[bool] = True  # False for real images, which have no cost and no seed
    name: str = ""  # its row in the table; by default ``title``
    title: str = field(init=False)  # the default name, set by ``setup`` or the class
    snapped: bool = field(init=False, default=False)  # whether nearest codes replace the tokens that are decoded
    passes: int | None = field(init=False, default=None)  # sequential passes through a backbone for one sample
    networks: tuple[nn.Module, ...] = field(init=False, default=())  # those it samples with, tokenizer excluded
    # identities of the feature networks that its training has seen; their distances measure nothing
    trained_on: tuple[str, ...] = field(init=False, default=())
    # ``(labels (B,), noise (B, n, C)) -> tokens`` where these are a smooth function of noise alone, so that images have
    # a path length
    smooth: Callable[[Tensor, Tensor], Tensor] | None = field(init=False, default=None)

    def bind(
        self, teacher: CodebookTeacher, sampling: Sampling | None = None, open_model: OpenModel | None = None
    ) -> Self:
        """Make it ready to sample with a teacher; settings that this does not allow are a ValueError.

        A directory is opened by ``open_model``; without it the networks themselves have to be given.
        """
        self.teacher, self.sampling = teacher, sampling
        self.setup()
        self.name = self.name or self.title + " snapped" * self.snapped
        return self

    def setup(self) -> None:  # noqa: B027
        """Check the settings against the teacher; set ``passes`` and ``networks``."""

    @abstractmethod
    def generate(self, labels: Tensor, noise: SampleNoise) -> Tensor:
        """Tokens of classes ``labels`` (B,): indices (B, n) or embeddings (B, n, C)."""

    @property
    def parameters(self) -> int | None:
        """Parameters of its networks; None if it has none."""
        return count_parameters(*self.networks) if self.networks else None

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for samplers whose snapped sequences are the same."""
        relevant = [name for name in setting_names(self) if name not in ("name", "snapped", "optional")]
        return type(self), self.networks, *(getattr(self, name) for name in relevant)

    def sample(self, labels: Tensor, noise: SampleNoise) -> Tensor:
        """Tokens as they are decoded: those of :meth:`generate`, snapped if ``snapped``."""
        tokens = self.generate(labels, noise)
        return self.teacher.snap(tokens) if self.snapped else tokens

    def draw(self, labels: Tensor, noise: SampleNoise) -> Samples:
        tokens = self.sample(labels, noise)
        indices = self.teacher.snap(tokens) if tokens.is_floating_point() else tokens
        return Samples(labels, self.teacher.decode(tokens).float(), indices)

    @torch.no_grad()
    def batches(self, samples: int, seed: int, batch_size: int, precision: str | int = "32") -> Iterator[Samples]:
        """The samples 0 to ``samples - 1`` in batches; sample i has class i mod classes."""
        device = self.teacher.codebook.device
        for start in range(0, samples, batch_size):
            count = min(batch_size, samples - start)
            labels = (torch.arange(count, device=device) + start) % self.teacher.num_classes
            with autocast(device, precision):
                batch = self.draw(labels, SampleNoise(seed, start, count, device))
            yield batch


def setting_names(sampler: Sampler | type[Sampler]) -> list[str]:
    """The settings of a sampler: the keys of its entry in a config, without ``kind``."""
    return [field.name for field in fields(sampler) if field.init]


def teacher_networks(teacher: CodebookTeacher) -> tuple[nn.Module, ...]:
    """The networks that a teacher samples with."""
    return teacher.backbone, teacher.classifier


class TeacherSampler(Sampler):
    """The teacher at its full number of steps."""

    kind = title = "teacher"
    purpose = "teacher"  # samples of different purposes are independent

    def setup(self) -> None:
        self.passes, self.networks = self.teacher.layout.num_positions, teacher_networks(self.teacher)

    def generate(self, labels: Tensor, noise: SampleNoise) -> Tensor:
        return self.teacher.sample(labels, self.sampling, uniforms=noise.rand(self.purpose, self.teacher.layout.length))


class ReferenceSampler(TeacherSampler):
    """The teacher with other random numbers: a reference that is independent of the teacher's row."""

    purpose = "reference"


@dataclass(kw_only=True, eq=False)
class DistilledSampler(Sampler):
    """A model that was distilled from the teacher; its tokens are continuous.

    All of them see the same noise, and where the teacher takes steps it draws with the random numbers of
    :class:`TeacherSampler`.
    """

    stages: ClassVar[tuple[str, ...]] = ("csd", "align", "frechet")  # those that its directory may come from
    model: str | nn.Module  # directory of its finished stage; from Python also the network itself
    snapped: bool = False
    optional: bool = False  # leave it out, with a message, while the stage has not finished
    network: Any = field(init=False)
    transport: generator.Sampler = field(init=False)  # the generator's way to sample, set by ``setup``

    def bind(
        self, teacher: CodebookTeacher, sampling: Sampling | None = None, open_model: OpenModel | None = None
    ) -> Self:
        if isinstance(self.model, nn.Module):
            self.network = self.model
        else:
            assert open_model is not None, "a directory needs open_model"
            self.network = open_model(self.model, self.stages)
        self.trained_on = getattr(self.network, "trained_on", ())
        return super().bind(teacher, sampling)

    def generate(self, labels: Tensor, noise: SampleNoise) -> Tensor:
        return self.transport(labels, *noise.for_generators(self.teacher.layout.length, self.teacher.token_dim))


class OneStepSampler(DistilledSampler):
    """DD2 in one step."""

    kind, title, passes = "one_step", "one-step", 1
    network: generator.OneStepGenerator

    def setup(self) -> None:
        self.transport, self.networks = self.network.sampler(), (self.network.student,)
        self.smooth = None if self.snapped else self.network.sample


@dataclass(kw_only=True, eq=False)
class RefinedSampler(DistilledSampler):
    """DD2, its last positions drawn again by the teacher (alg. 4)."""

    kind = "refined"
    steps: int  # the one step and one for each position that is drawn again, at most N + 1
    network: generator.OneStepGenerator = field(init=False)

    def setup(self) -> None:
        self.title, self.passes = f"refined {self.steps}-step", self.steps
        self.transport = self.network.sampler(self.steps, self.teacher, self.sampling)
        self.networks = (self.network.student, *teacher_networks(self.teacher))


@dataclass(kw_only=True, eq=False)
class DD1Sampler(DistilledSampler):
    """DD1 in one step or two, or with the teacher in the middle ("pre-trained-n-m"; the second call starts at m)."""

    kind = "dd1"
    stages = ("dd1",)
    steps: int | None = None  # 1 or 2, without the teacher
    start: int | None = None  # in its place, with the teacher: n, the first position, from 0, that this draws
    split: int | None = None  # how many positions come out as codes; by default as it was trained
    network: DD1Generator = field(init=False)

    def setup(self) -> None:
        network = self.network
        self.networks = (network.student,)
        if self.steps is not None and self.start is None:
            self.title, self.passes = f"DD1 {self.steps}-step", self.steps
            self.transport = network.sampler(self.steps, split=self.split)
        elif self.start is not None and self.steps is None:
            self.title, self.passes = f"DD1 {self.start}-{network.second}", network.steps_from(self.start)
            self.transport = network.refiner(self.teacher, self.start, self.split, self.sampling)
            self.networks += teacher_networks(self.teacher)
        else:
            raise ValueError("give steps (1 or 2) or start (the teacher in the middle)")


@dataclass(kw_only=True, eq=False)
class ARDiffusionSampler(DistilledSampler):
    """The AR-diffusion model of stage 1 with its sampler: Euler steps for each position in turn."""

    kind, title = "ar_diffusion", "AR-diffusion"
    stages = ("init",)
    euler_steps: int = 10  # for each position; passes through the head, not through the backbone
    network: Student = field(init=False)

    def setup(self) -> None:
        if self.euler_steps < 1:
            raise ValueError(f"euler_steps must be at least 1, got {self.euler_steps}")
        self.passes, self.networks = self.network.layout.num_positions, (self.network,)

    def generate(self, labels: Tensor, noise: SampleNoise) -> Tensor:
        eps = noise.randn("AR-diffusion", self.teacher.layout.length, self.teacher.token_dim)
        return integrate_walk(self.network.walk(labels), eps, self.euler_steps)
