"""Sizes of the VAR family."""

from dataclasses import dataclass
from typing import ClassVar

from dd2_lightning.layout import Layout
from dd2_lightning.models.layers import AdaLNBlock
from dd2_lightning.models.sizes import ImageModelSizes


@dataclass(frozen=True, kw_only=True)
class VARConfig(ImageModelSizes):
    """Sizes of a VAR teacher, tokenizer included."""

    FAMILY: ClassVar[str] = "VAR"

    sides: tuple[int, ...]  # side of each scale, growing, at least two
    ch_mult: tuple[int, ...]  # width of each level of the tokenizer over ``ch``, highest resolution first
    num_phi: int = 4  # phi convolutions that the scales share
    mlp_ratio: float = 4.0  # hidden width of the feed-forward over ``width``
    l2_norm: bool = True  # unit queries and keys with a learned temperature per head
    shared_adaln: bool = False  # one modulation for all blocks (VAR-d36)

    def __post_init__(self):
        super().__post_init__()
        if len(self.sides) < 2 or list(self.sides) != sorted(set(self.sides)):
            raise ValueError(f"'sides' must grow from scale to scale, and be two or more, got {self.sides}")

    @property
    def layout(self) -> Layout:
        return Layout(tuple(side**2 for side in self.sides))

    def block(self) -> AdaLNBlock:
        """A transformer block of these sizes, with fresh weights."""
        return AdaLNBlock(self.width, self.heads, self.mlp_ratio, self.l2_norm, self.shared_adaln)
