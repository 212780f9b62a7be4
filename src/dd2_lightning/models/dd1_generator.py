"""Sampling with a network of DD1: in one call, in two, or with the teacher in the middle (arXiv 2412.17153)."""

import torch
from torch import Tensor

from dd2_lightning.models.codebook_teacher import CodebookTeacher, require_codebook
from dd2_lightning.models.dd1 import DD1Student, joined, trajectory_point
from dd2_lightning.models.generator import Generator, Sampler
from dd2_lightning.models.teacher import Teacher
from dd2_lightning.models.tokenizer import Tokenizer
from dd2_lightning.sampling import Sampling


class DD1Generator(Generator):
    """A network of DD1: samples in 1 or 2 steps, in up to ``second`` + 1 with the teacher in the middle.

    The first ``split`` positions come out as codes, the tokens of later ones are continuous; ``second`` is t of the
    second call.
    """

    def __init__(self, student: DD1Student, tokenizer: Tokenizer, split: int, second: int):
        super().__init__(student, tokenizer)
        self.student = student
        N = self.layout.num_positions
        if not 1 <= second < N:
            raise ValueError(f"second must be in 1..{N - 1} for {N} positions, got {second}")
        self.second, self.split = second, self.checked(split)

    def checked(self, split: int | None) -> int:
        """A split, the generator's if None; refuses one that the layout does not have."""
        split = self.split if split is None else split
        if not 0 <= split <= self.layout.num_positions:
            raise ValueError(f"split must be in 0..{self.layout.num_positions}, got {split}")
        return split

    def jump(self, tokens: Tensor, noise: Tensor, labels: Tensor, t: int, split: int | None = None) -> Tensor:
        """One call: keep the first t positions of ``tokens`` (B, n, C), predict the others from their ``noise``."""
        x = trajectory_point(self.layout, tokens, noise, t)
        prediction = self.student(x, labels, t)
        return joined(self.layout, self.tokenizer.codebook, x, prediction, t, self.checked(split))

    @torch.no_grad()
    def sample(
        self,
        labels: Tensor,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
        steps: int = 1,
        split: int | None = None,
    ) -> Tensor:
        """Tokens (B, n, C) in one call, or in two: at t = 0, and at ``second`` on the result with the same noise.

        From labels (B,) and ε ~ N(0, I), (B, n, C), see :meth:`starting_noise`; ``split`` is the generator's if None.
        """
        if steps not in (1, 2):
            raise ValueError(f"steps must be 1 or 2 without a teacher, got {steps}")
        noise = self.starting_noise(labels, noise, generator)
        tokens = noise
        for t in (0, self.second)[:steps]:
            tokens = self.jump(tokens, noise, labels, t, split)
        return tokens

    @torch.no_grad()
    def refine(
        self,
        labels: Tensor,
        teacher: CodebookTeacher,
        start: int,
        split: int | None = None,
        sampling: Sampling | None = None,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
        uniforms: Tensor | None = None,
    ) -> Tensor:
        """Sample with the teacher in the middle, "pre-trained-n-m" of the papers, where n = ``start``, m = ``second``.

        A call at 0; the teacher re-samples positions n+1..m given the codes nearest to the first n; a call at m. These
        are 1 + (m - n) + 1 steps, or m + 1 with n = 0, which needs no first call. Published figures have another
        ``split`` for each n. Other arguments are those of :meth:`sample` and :meth:`Teacher.sample`.
        """
        self.steps_from(start)
        if teacher.layout != self.layout:
            raise ValueError("the teacher has another layout than the model")
        noise = self.starting_noise(labels, noise, generator)
        prefix = None
        if start:
            draft = self.jump(noise, noise, labels, 0, split)
            prefix = teacher.snap(draft[:, : self.layout.offsets[start]])
        drawn = teacher.embed(teacher.sample(labels, sampling, generator, prefix, uniforms, self.second))
        tokens = torch.cat([drawn, noise[:, drawn.shape[1] :]], 1)
        return self.jump(tokens, noise, labels, self.second, split)

    def steps_from(self, start: int) -> int:
        """Steps of :meth:`refine`, the teacher's included; refuses a ``start`` outside 0..m-1."""
        if not 0 <= start < self.second:
            raise ValueError(f"start must be in 0..{self.second - 1}, before the second call, got {start}")
        return self.second + 1 if start == 0 else self.second - start + 2

    def refiner(
        self, teacher: Teacher, start: int, split: int | None = None, sampling: Sampling | None = None
    ) -> Sampler:
        """:meth:`refine` as a :data:`Sampler`."""
        self.steps_from(start)
        self.checked(split)
        reader = require_codebook(teacher)
        return lambda labels, noise, uniforms: self.refine(
            labels, reader, start, split, sampling, noise, uniforms=uniforms
        )

    def sampler(
        self, steps: int = 1, teacher: Teacher | None = None, sampling: Sampling | None = None, split: int | None = None
    ) -> Sampler:
        most = self.second + 1
        self.checked(split)
        if steps > 2 and teacher is None:
            raise ValueError(f"{steps} steps need a teacher (--teacher); without one there are 1 or 2")
        if not 1 <= steps <= most:
            raise ValueError(f"steps must be in 1..{most}, got {steps}")
        if teacher is not None and steps > 2:
            return self.refiner(teacher, 0 if steps == most else most + 1 - steps, split, sampling)
        return lambda labels, noise, uniforms: self.sample(labels, noise, steps=steps, split=split)
