"""Generators: from noise and labels to tokens and images, in one step or several."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dd2_lightning.models.codebook_teacher import CodebookTeacher, require_codebook
from dd2_lightning.models.dd1 import DD1Student
from dd2_lightning.models.student import Student
from dd2_lightning.models.teacher import Teacher, check_labels
from dd2_lightning.models.tokenizer import Tokenizer
from dd2_lightning.sampling import Sampling

Sampler = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``(labels (B,), noise (B, n, C), uniform random numbers (B, n)) -> tokens (B, n, C)``."""


class Generator(nn.Module, ABC):
    """Draws tokens with a network, and decodes them with the tokenizer of its teacher."""

    directory: Path | None = None  # the directory that it was loaded from
    trained_on: tuple[str, ...] = ()  # identities of the feature networks that it was trained on

    def __init__(self, network: Student | DD1Student | CodebookTeacher, tokenizer: Tokenizer):
        super().__init__()
        self.tokenizer = tokenizer
        self.layout, self.num_classes, self.token_dim = network.layout, network.num_classes, network.token_dim

    def push_to_hub(self, repo: str, **options: Any) -> None:
        """Publish it as ``user/name``; ``options`` are those of :func:`dd2_lightning.push_to_hub`.

        A ``ValueError`` refuses a generator that was not loaded from a directory.
        """
        import dd2_lightning

        if self.directory is None:
            raise ValueError("this generator comes from no directory; load it with load_generator, then push it")
        dd2_lightning.push_to_hub(self.directory, repo, **options)

    def starting_noise(self, labels: Tensor, noise: Tensor | None, generator: torch.Generator | None) -> Tensor:
        """The noise given, or drawn if None: (B, n, C). Other shapes, and labels of no class, are a ``ValueError``."""
        check_labels(labels, self.num_classes)
        shape = (len(labels), self.layout.length, self.token_dim)
        if noise is None:
            noise = torch.randn(shape, generator=generator, device=labels.device)
        if noise.shape != shape:
            raise ValueError(f"noise must be {shape}, got {tuple(noise.shape)}")
        return noise

    @abstractmethod
    def sampler(
        self, steps: int = 1, teacher: Teacher | None = None, sampling: Sampling | None = None, split: int | None = None
    ) -> Sampler:
        """Open a sampler of a number of steps, and refuse settings before anything is drawn.

        The steps are passes over positions, the teacher's included, whose guidance and truncation are ``sampling``; a
        ``ValueError`` says when one is needed. A ``split`` is for generators that have one; None is the generator's.
        """

    @torch.no_grad()
    def decode(self, tokens: Tensor) -> Tensor:
        """Tokens (B, n, C) -> images (B, channels, H, W) in [0, 1]."""
        return self.tokenizer.decode(tokens)


class TeacherGenerator(Generator):
    """A teacher at its full number of steps, in the place of a generator: what published figures of it are made of."""

    def __init__(self, teacher: CodebookTeacher):
        super().__init__(teacher, teacher.tokenizer)
        self.teacher = teacher

    def sampler(
        self, steps: int = 1, teacher: Teacher | None = None, sampling: Sampling | None = None, split: int | None = None
    ) -> Sampler:
        if steps > 1 or split is not None:
            raise ValueError("a teacher takes all its steps: --model is one, so go without --steps and --split")
        return lambda labels, noise, uniforms: self.teacher.embed(
            self.teacher.sample(labels, sampling, uniforms=uniforms)
        )


class OneStepGenerator(Generator):
    """A distilled student, usually of EMA weights, its head called at t_g = ``head_time``.

    More steps are :meth:`CodebookTeacher.refine`.
    """

    def __init__(self, student: Student, tokenizer: Tokenizer, head_time: float):
        super().__init__(student, tokenizer)
        self.student, self.head_time = student, head_time

    @torch.no_grad()
    def sample(self, labels: Tensor, noise: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Tokens (B, n, C) in one backbone pass: near codebook vectors, not snapped to them.

        From labels (B,) and ε ~ N(0, I), (B, n, C); see :meth:`starting_noise`.
        """
        return self.student.generate(self.starting_noise(labels, noise, generator), labels, self.head_time)

    def sampler(
        self, steps: int = 1, teacher: Teacher | None = None, sampling: Sampling | None = None, split: int | None = None
    ) -> Sampler:
        if split is not None:
            raise ValueError("split is for DD1 models; all tokens of this one are continuous")
        if steps == 1:
            return lambda labels, noise, uniforms: self.sample(labels, noise)
        if teacher is None:
            raise ValueError("steps above 1 need a teacher that refines (--teacher)")
        refiner = require_codebook(teacher)
        refiner.check_steps(steps)
        return lambda labels, noise, uniforms: refiner.refine(
            self.sample(labels, noise), labels, steps, sampling, uniforms=uniforms
        )
