"""Sizes of the VAR family; its teacher and its network for DD1 are built from them."""

from dataclasses import dataclass
from typing import ClassVar

from dd2_lightning.layout import Layout
from dd2_lightning.models.sizes import Sizes


@dataclass(frozen=True)
class VARConfig(Sizes):
    """Sizes of a VAR teacher, tokenizer included; plain values only.

    Attributes:
        sides: side of each scale, growing, at least two.
        codes: V.
        token_dim: C.
        num_classes: classes without the null class.
        width: of the transformer.
        depth: its blocks.
        heads: attention heads.
        ch: base width of the tokenizer's encoder and decoder, a multiple of 32.
        ch_mult: width of each level over ``ch``, highest resolution first.
        num_res_blocks: residual blocks a level of the encoder.
        image_channels: channels of an image.
        num_phi: phi convolutions that the scales share.
        mlp_ratio: hidden width of the feed-forward over ``width``.
        l2_norm: unit queries and keys with a learned temperature a head.
        shared_adaln: one modulation for all blocks (VAR-d36).
        pixels: False leaves out the tokenizer's encoder and decoder; such a teacher can be distilled, not looked at.

    Raises:
        ValueError: for sizes that do not make a model; the message names the key.
    """

    FAMILY: ClassVar[str] = "VAR"

    sides: tuple[int, ...]
    codes: int
    token_dim: int
    num_classes: int
    width: int
    depth: int
    heads: int
    ch: int
    ch_mult: tuple[int, ...]
    num_res_blocks: int
    image_channels: int = 3
    num_phi: int = 4
    mlp_ratio: float = 4.0
    l2_norm: bool = True
    shared_adaln: bool = False
    pixels: bool = True

    def __post_init__(self):
        super().__post_init__()
        if len(self.sides) < 2 or list(self.sides) != sorted(set(self.sides)):
            raise ValueError(f"'sides' must grow from scale to scale, and be two or more, got {self.sides}")
        self.check_multiple("width", "heads")
        self.check_ch()

    @property
    def layout(self) -> Layout:
        """One position a scale."""
        return Layout(tuple(side**2 for side in self.sides))
