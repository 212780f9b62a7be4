"""Sizes of the LlamaGen family; its teacher and its network for DD1 are built from them."""

from dataclasses import dataclass
from typing import ClassVar

from dd2_lightning.layout import Layout
from dd2_lightning.models.sizes import Sizes


@dataclass(frozen=True)
class LlamaGenConfig(Sizes):
    """Sizes of a LlamaGen teacher, tokenizer included; plain values only. The defaults are the release's.

    Attributes:
        grid: tokens a side: 16, 24 or 32 in the releases. No weight depends on it, so a file does not tell it.
        codes: V.
        token_dim: C.
        num_classes: classes without the null class.
        width: of the transformer.
        depth: its blocks.
        heads: query heads.
        ch: base width of the tokenizer's encoder and decoder, a multiple of 32.
        encoder_ch_mult: width of each level of the encoder over ``ch``, highest resolution first.
        decoder_ch_mult: the same of the decoder; as many levels.
        num_res_blocks: residual blocks a level of the encoder.
        z_channels: channels between the pixel networks and the convolutions around the codebook.
        image_channels: channels of an image.
        kv_heads: heads of keys and values; None is as many as ``heads``.
        multiple_of: what the SwiGLU's width is rounded up to a multiple of.
        ffn_dim_multiplier: factor on the SwiGLU's width.
        rope_base: of the rotation's frequencies.
        norm_eps: of the RMS norms.
        continuous_input: an MLP C -> width -> width in the place of the embedding table.
        code_norm: length of the codebook vectors, see :class:`SphereVQ`.
        pixels: False leaves out the tokenizer's encoder and decoder; such a teacher can be distilled, not looked at.

    Raises:
        ValueError: for sizes that do not make a model; the message names the key.
    """

    FAMILY: ClassVar[str] = "LlamaGen"

    grid: int
    codes: int
    token_dim: int
    num_classes: int
    width: int
    depth: int
    heads: int
    ch: int
    encoder_ch_mult: tuple[int, ...]
    decoder_ch_mult: tuple[int, ...]
    num_res_blocks: int
    z_channels: int
    image_channels: int = 3
    kv_heads: int | None = None
    multiple_of: int = 256
    ffn_dim_multiplier: float | None = None
    rope_base: float = 10_000.0
    norm_eps: float = 1e-5
    continuous_input: bool = False
    code_norm: float = 1.0
    pixels: bool = True

    def __post_init__(self):
        super().__post_init__()
        self.check_multiple("width", "heads")
        if self.width // self.heads % 4:
            raise ValueError(f"'heads' must have a multiple of 4 channels each, got {self.width // self.heads}")
        if self.kv_heads is not None:
            self.check_multiple("heads", "kv_heads")
        self.check_ch()
        if len(self.encoder_ch_mult) != len(self.decoder_ch_mult):
            raise ValueError(
                f"'encoder_ch_mult' and 'decoder_ch_mult' must have as many levels, "
                f"got {len(self.encoder_ch_mult)} and {len(self.decoder_ch_mult)}"
            )

    @property
    def layout(self) -> Layout:
        """One token a position."""
        return Layout((1,) * self.grid**2)
