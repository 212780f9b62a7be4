"""Distilled Decoding 1 (DD1, arXiv 2412.17153), the main baseline, as released in ``microsoft/distilled_decoding``.

The teacher's flow, integrated position after position from noise ε_i, ends on one code q_i. That map makes a
trajectory X_0 = ε, ..., X_N = q of partly finished sequences,

    X_t = (q of the first t positions, ε of the others),

where t counts *finished positions*, from 0; it is no flow time. A student predicts X_N from X_t for two values of t, so
that it can sample in one call or in two. Token i depends on its own noise and on what is at earlier positions: the
dependencies of the map itself. Guidance is in the pairs (ε, q); the student knows none, and no null label.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from dd2_lightning.layout import Layout
from dd2_lightning.models.codebook import nearest_code
from dd2_lightning.models.generator import Generator
from dd2_lightning.models.layers import exact_linear, init_linear, layer_norm
from dd2_lightning.models.teacher import CodebookTeacher
from dd2_lightning.models.tokenizer import Tokenizer
from dd2_lightning.sampling import Sampling


class DD1Prediction(NamedTuple):
    """What a student says of the end of a trajectory.

    Attributes:
        tokens: continuous tokens, (B, n, C).
        logits: over the codes, (B, n, V).
    """

    tokens: Tensor
    logits: Tensor


class ContinuousHead(nn.Module):
    """Features to continuous tokens: Linear( LN(h)·(1 + b + c) + (a + c) ), with a, b learned and c the class vector.

    Args:
        width: of the features.
        token_dim: C.
    """

    def __init__(self, width: int, token_dim: int):
        super().__init__()
        self.scale_shift_table = nn.Parameter(torch.randn(2, width) / width**0.5)
        self.linear = nn.Linear(width, token_dim)
        init_linear(self.linear)

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        """(B, n, width), (B, width) -> (B, n, C), in float32 or wider."""
        shift, scale = self.scale_shift_table[:, None, None] + c[None, :, None]
        return exact_linear(self.linear, layer_norm(h) * (1 + scale) + shift)


class DD1Student(nn.Module, ABC):
    """A network from a point of the trajectory to its end.

    The class has a slot in front of the n tokens, and nothing is shifted: token i enters at its own slot, and what
    comes out there predicts token i. A two-row table marks what is data (row 1: the class, finished positions) and what
    is noise (row 0). State-dict keys are those of the release.

    Args:
        layout: the order of the tokens.
        token_dim: C.
        num_classes: classes; a null label is not known.
        width: d, of the features.

    Attributes:
        CONSTANTS: last parts of the keys under which a release's file may hold what is not learned.
    """

    CONSTANTS: ClassVar[tuple[str, ...]] = ()

    def __init__(self, layout: Layout, token_dim: int, num_classes: int, width: int):
        super().__init__()
        self.layout, self.token_dim, self.num_classes, self.width = layout, token_dim, num_classes, width
        self.n_d_embed = nn.Embedding(2, width)
        nn.init.trunc_normal_(self.n_d_embed.weight, std=0.02)
        self.final_layer_conti = ContinuousHead(width, token_dim)
        cpu = torch.device("cpu")  # constants, also where the network is built on "meta"
        position = torch.cat([torch.tensor([-1], device=cpu), layout.position_of_token(cpu)])
        own = torch.eye(len(position), dtype=torch.bool, device=cpu)
        self.register_buffer("position", position, persistent=False)
        self.register_buffer("mask", (position[:, None] > position) | own, persistent=False)

    @abstractmethod
    def features(self, x: Tensor, labels: Tensor, flags: Tensor) -> tuple[Tensor, Tensor]:
        """What both heads read.

        A slot may look at itself and at the slots of earlier positions, which is ``self.mask`` (n + 1, n + 1).

        Args:
            x: a point of the trajectory, (B, n, C).
            labels: (B,).
            flags: embedded marks of all slots, (B or 1, n + 1, d).

        Returns:
            Features of the tokens (B, n, d), and the class vectors (B, d).
        """

    @abstractmethod
    def classify(self, h: Tensor, c: Tensor) -> Tensor:
        """Features (B, n, d), class vectors (B, d) -> logits (B, n, V), in float32 or wider."""

    def forward(self, x: Tensor, labels: Tensor, t: int | Tensor) -> DD1Prediction:
        """Predict the end of the trajectory from X_t.

        Args:
            x: X_t, (B, n, C), see :func:`trajectory_point`.
            labels: (B,).
            t: how many positions are finished, one number or one a row, (B,).
        """
        finished = self.position < torch.as_tensor(t, device=x.device).view(-1, 1)
        h, c = self.features(x, labels, self.n_d_embed(finished.long()))
        return DD1Prediction(self.final_layer_conti(h, c), self.classify(h, c))

    @classmethod
    def is_constant(cls, key: str) -> bool:
        """Whether what a release's file holds under this key is not learned."""
        return key.rsplit(".", 1)[-1] in cls.CONSTANTS

    def adopt(self, tensors: dict[str, Tensor]) -> None:
        """Take over tensors of a teacher, by the names that they have here; all others stay as they are.

        Raises:
            RuntimeError: for a name or a shape that does not exist here.
        """
        self.load_state_dict({**self.state_dict(), **tensors})


def is_finished(layout: Layout, t: int | Tensor, device: torch.device) -> Tensor:
    """Which tokens belong to the first t positions: t one number or (B,) -> (1 or B, n, 1)."""
    return layout.position_of_token(device)[:, None] < torch.as_tensor(t, device=device).view(-1, 1, 1)


def trajectory_point(layout: Layout, tokens: Tensor, noise: Tensor, t: int | Tensor) -> Tensor:
    """X_t: tokens (B, n, C) at the first t positions, noise (B, n, C) at the others; t one number or (B,)."""
    return torch.where(is_finished(layout, t, noise.device), tokens, noise)


def joined(
    layout: Layout, codebook: Tensor, x: Tensor, prediction: DD1Prediction, t: int | Tensor, split: int
) -> Tensor:
    """The sequence that a call at t leaves.

    Finished positions stay as they are, the others take the prediction. Before ``split`` a token is a codebook vector,
    of the most likely code or, where it is finished, the nearest; from there on it stays continuous, on the codebook or
    off it, with its gradient.

    Args:
        layout: the order of the tokens.
        codebook: (V, C).
        x: X_t, (B, n, C).
        prediction: the student's at X_t.
        t: one number, or one a row, (B,).
        split: how many positions have codes.

    Returns:
        (B, n, C).
    """
    finished = is_finished(layout, t, x.device)
    codes = torch.where(finished[..., 0], nearest_code(x, codebook), prediction.logits.argmax(-1))
    tokens = torch.where(finished, x, prediction.tokens)
    return torch.where(is_finished(layout, split, x.device), codebook[codes], tokens)


class DD1Generator(Generator):
    """A student with what sampling needs.

    Args:
        student: usually with EMA weights.
        tokenizer: the teacher's.
        split: how many positions come out as codes; what is behind them stays continuous.
        second: t of the second call.

    Raises:
        ValueError: for a ``split`` or ``second`` that the layout does not have.
    """

    def __init__(self, student: DD1Student, tokenizer: Tokenizer, split: int, second: int):
        super().__init__(student, tokenizer)
        N = self.layout.num_positions
        if not 1 <= second < N:
            raise ValueError(f"second must be in 1..{N - 1} for {N} positions, got {second}")
        self.second, self.split = second, self.checked(split)

    def checked(self, split: int | None) -> int:
        """A split, the generator's own if None.

        Raises:
            ValueError: for one that the layout does not have.
        """
        split = self.split if split is None else split
        if not 0 <= split <= self.layout.num_positions:
            raise ValueError(f"split must be in 0..{self.layout.num_positions}, got {split}")
        return split

    def jump(self, tokens: Tensor, noise: Tensor, labels: Tensor, t: int, split: int | None = None) -> Tensor:
        """One call: keep the first t positions of ``tokens``, predict the others from their original noise.

        Args:
            tokens: the sequence so far, (B, n, C); only its first t positions matter.
            noise: ε, (B, n, C).
            labels: (B,).
            t: finished positions.
            split: the generator's own if None.

        Returns:
            (B, n, C), see :func:`joined`.
        """
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
        """Tokens in one call, or in two: at t = 0, and at ``second`` on the result with the same noise.

        Args:
            labels: (B,).
            noise: ε ~ N(0, I), (B, n, C); drawn from ``generator`` if None.
            generator: random source.
            steps: 1 or 2.
            split: the generator's own if None.

        Returns:
            (B, n, C).

        Raises:
            ValueError: for a label that no class has, noise of another shape, or another number of steps.
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
        chance: Tensor | None = None,
        unmasked_prefix: bool = False,
    ) -> Tensor:
        """Sample with the teacher in the middle, "pre-trained-n-m" of the papers, where m is ``second``.

        A call at 0; the teacher re-samples positions n+1..m given the codes nearest to the first n; a call at m. These
        are 1 + (m - n) + 1 steps, or m + 1 with n = 0, which needs no first call.

        Args:
            labels: (B,).
            teacher: reads codes only.
            start: n, how many positions the teacher is given.
            split: the generator's own if None; published figures have their own split for each n.
            sampling: guidance and truncation of the teacher.
            noise: ε, (B, n, C); drawn from ``generator`` if None.
            generator: random source.
            chance: the teacher's uniform numbers, (B, n); drawn from ``generator`` if None.
            unmasked_prefix: repeat a slip of the release, see :meth:`CodebookTeacher.unmasked_cache`.

        Returns:
            (B, n, C).

        Raises:
            ValueError: for a ``start`` outside 0..m-1, a teacher of another layout, and as :meth:`sample`.
            InputTypeError: for a teacher whose family has no such slip.
        """
        self.steps_from(start)
        if teacher.layout != self.layout:
            raise ValueError("the teacher has another layout than the model")
        noise = self.starting_noise(labels, noise, generator)
        prefix = None
        if start:
            draft = self.jump(noise, noise, labels, 0, split)
            prefix = teacher.snap(draft[:, : self.layout.offsets[start]])
        cache = teacher.unmasked_cache() if unmasked_prefix else None
        drawn = teacher.embed(teacher.sample(labels, sampling, generator, prefix, chance, self.second, cache))
        tokens = torch.cat([drawn, noise[:, drawn.shape[1] :]], 1)
        return self.jump(tokens, noise, labels, self.second, split)

    def steps_from(self, start: int) -> int:
        """Steps of :meth:`refine`, the teacher's included.

        Raises:
            ValueError: for a ``start`` outside 0..m-1.
        """
        if not 0 <= start < self.second:
            raise ValueError(f"start must be in 0..{self.second - 1}, before the second call, got {start}")
        return self.second + 1 if start == 0 else self.second - start + 2

    def refiner(
        self,
        teacher: CodebookTeacher,
        start: int,
        split: int | None = None,
        sampling: Sampling | None = None,
    ) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        """What :meth:`sampler` gives, for :meth:`refine`."""
        self.steps_from(start)
        self.checked(split)
        return lambda labels, noise, chance: self.refine(labels, teacher, start, split, sampling, noise, chance=chance)

    def sampler(
        self,
        steps: int = 1,
        teacher: CodebookTeacher | None = None,
        sampling: Sampling | None = None,
        split: int | None = None,
    ) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        """See :meth:`Generator.sampler`: 1 or 2 steps, or up to ``second`` + 1 with the teacher in the middle."""
        most = self.second + 1
        self.checked(split)
        if steps > 2 and teacher is None:
            raise ValueError(f"{steps} steps need a teacher (--teacher); without one there are 1 or 2")
        if not 1 <= steps <= max(most, 2):
            raise ValueError(f"steps must be in 1..{max(most, 2)}, got {steps}")
        if steps > 2:
            start = 0 if steps == most else most + 1 - steps
            return self.refiner(teacher, start, split, sampling)
        return lambda labels, noise, chance: self.sample(labels, noise, steps=steps, split=split)
