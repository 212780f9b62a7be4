"""The one-step generator as a user holds it: noise in, tokens or pictures out."""

import torch
from torch import Tensor, nn

from dd2_lightning.layout import Layout
from dd2_lightning.models.student import Student
from dd2_lightning.models.teacher import check_labels
from dd2_lightning.models.tokenizer import Tokenizer


class OneStepGenerator(nn.Module):
    """A distilled student, the time its head is called at, and the tokenizer that draws its tokens.

    Args:
        student: usually with EMA weights.
        tokenizer: the teacher's.
        head_time: t_g, see :meth:`Student.generate`.
    """

    def __init__(self, student: Student, tokenizer: Tokenizer, head_time: float):
        super().__init__()
        self.student, self.tokenizer, self.head_time = student, tokenizer, head_time

    @property
    def layout(self) -> Layout:
        """Tokens per position."""
        return self.student.layout

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return self.student.backbone.num_classes

    @torch.no_grad()
    def sample(self, labels: Tensor, noise: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Tokens in one backbone pass.

        Args:
            labels: (B,).
            noise: ε ~ N(0, I), (B, n, C); drawn from ``generator`` if None.
            generator: random source.

        Returns:
            (B, n, C): near codebook vectors, not snapped to them.

        Raises:
            ValueError: for a label that no class has, or noise of another shape.
        """
        check_labels(labels, self.num_classes)
        shape = (len(labels), self.layout.length, self.student.backbone.token_dim)
        if noise is None:
            noise = torch.randn(shape, generator=generator, device=labels.device)
        if noise.shape != shape:
            raise ValueError(f"noise must be {shape}, got {tuple(noise.shape)}")
        return self.student.generate(noise, labels, self.head_time)

    @torch.no_grad()
    def decode(self, tokens: Tensor) -> Tensor:
        """Tokens (B, n, C) -> pictures (B, channels, H, W) in [0, 1]."""
        return self.tokenizer.decode(tokens)
