"""Sizes of the LlamaGen family."""

from dataclasses import dataclass
from typing import ClassVar

from dd2_lightning.layout import Layout
from dd2_lightning.models.sizes import ImageModelSizes


@dataclass(frozen=True, kw_only=True)
class LlamaGenConfig(ImageModelSizes):
    """Sizes of a LlamaGen teacher, tokenizer included. The defaults are the release's."""

    FAMILY: ClassVar[str] = "LlamaGen"

    grid: int  # tokens a side: 16, 24 or 32 in the releases. No weight depends on it, so a file does not tell it.
    encoder_ch_mult: tuple[int, ...]  # width of each level of the encoder over ``ch``, highest resolution first
    decoder_ch_mult: tuple[int, ...]  # the same of the decoder; as many levels
    z_channels: int  # channels between the pixel networks and the convolutions around the codebook
    kv_heads: int | None = None  # heads of keys and values; None is as many as ``heads``
    multiple_of: int = 256  # what the SwiGLU's width is rounded up to a multiple of
    ffn_dim_multiplier: float | None = None  # factor on the SwiGLU's width
    rope_base: float = 10_000.0  # of the rotation's frequencies
    norm_eps: float = 1e-5  # of the RMS norms
    continuous_input: bool = False  # an MLP C -> width -> width in the place of the embedding table
    code_norm: float = 1.0  # length of the codebook vectors, see :class:`SphereVQ`

    def __post_init__(self):
        super().__post_init__()
        if self.width // self.heads % 4:
            raise ValueError(f"'heads' must have a multiple of 4 channels each, got {self.width // self.heads}")
        self.check_multiple("heads", "kv_heads")
        down, up = len(self.encoder_ch_mult), len(self.decoder_ch_mult)
        if down != up:
            raise ValueError(f"'encoder_ch_mult' and 'decoder_ch_mult' must have as many levels, got {down} and {up}")

    @property
    def layout(self) -> Layout:
        return Layout((1,) * self.grid**2)
