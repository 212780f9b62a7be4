"""Distilled Decoding 1 (DD1, arXiv 2412.17153), the main baseline, as released in ``microsoft/distilled_decoding``.

The teacher's flow, integrated position after position from noise ε_i, ends on one code q_i. That map makes a
trajectory X_0 = ε, ..., X_N = q of partly finished sequences,

    X_t = (q of the first t positions, ε of the others),

where t counts *finished positions*, from 0; it is no flow time. A student predicts X_N from X_t for two values of t, so
that it can sample in one call or in two. Token i depends on its own noise and on what is at earlier positions: the
dependencies of the map itself. Guidance is in the pairs (ε, q); the student knows none, and no null label.
"""

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from dd2_lightning.layout import Layout
from dd2_lightning.models.codebook import nearest_code
from dd2_lightning.models.layers import exact_linear, init_linear, layer_norm


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
