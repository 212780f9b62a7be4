"""LlamaGen: from the constructor arguments of the release to ours."""

import math
from typing import Any

from dd2_lightning.hub.release import Release, translate
from dd2_lightning.models.llamagen import from_release

RENAMED = {
    "vocab_size": "codes",
    "codebook_embed_dim": "token_dim",
    "num_classes": "num_classes",
    "dim": "width",
    "n_layer": "depth",
    "n_head": "heads",
    "n_kv_head": "kv_heads",
    "multiple_of": "multiple_of",
    "ffn_dim_multiplier": "ffn_dim_multiplier",
    "rope_base": "rope_base",
    "norm_eps": "norm_eps",
    "ch": "ch",
    "encoder_ch_mult": "encoder_ch_mult",
    "decoder_ch_mult": "decoder_ch_mult",
    "num_res_blocks": "num_res_blocks",
    "z_channels": "z_channels",
}
FIXED = {"model_type": "c2i", "cls_token_num": 1, "codebook_l2_norm": True}
TRAINING_ONLY = {"class_dropout_prob"}


def architecture(config: dict[str, Any], grid: int | None, latent_only: bool) -> dict[str, Any]:
    """Sizes of a :class:`LlamaGenTeacher` from the arguments of the release's constructors.

    Args:
        config: arguments; ``block_size``, the number of tokens, may be among them.
        grid: tokens a side; None takes the root of ``block_size``.
        latent_only: without the tokenizer's encoder and decoder.

    Raises:
        ValueError: for an unknown or missing key, a value that this implementation does not have, or a grid that is
            missing or contradicts ``block_size``.
    """
    config = {key: value for key, value in config.items() if key not in TRAINING_ONLY}
    tokens, codebook = config.pop("block_size", None), config.pop("codebook_size", None)
    if grid is None and isinstance(tokens, int):
        grid = math.isqrt(tokens)
    if grid is None:
        raise ValueError("--grid: nothing in the files of LlamaGen tells it; give the tokens a side (16 at 256 pixels)")
    if tokens not in (None, grid**2):
        raise ValueError(f"--grid: {grid} tokens a side are {grid**2} tokens, the arch has block_size {tokens}")
    if codebook not in (None, config.get("vocab_size")):
        raise ValueError(
            f"--arch: the tokenizer's codebook_size {codebook} is not the transformer's vocab_size "
            f"{config.get('vocab_size')}"
        )
    return {**translate(config, RENAMED, FIXED), "grid": grid, "pixels": not latent_only}


RELEASE = Release("llamagen", architecture, from_release, adapted={"continuous_input": True})
