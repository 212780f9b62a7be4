"""LlamaGen's release: its constructor arguments and its state dicts in our terms."""

import math
from typing import Any

from torch import Tensor

from dd2_lightning.families.release import Release, translate

TRANSFORMER = ("num_classes", "multiple_of", "ffn_dim_multiplier", "rope_base", "norm_eps")
TOKENIZER = ("ch", "encoder_ch_mult", "decoder_ch_mult", "num_res_blocks", "z_channels")
RENAMED = {
    **{key: key for key in (*TRANSFORMER, *TOKENIZER)},
    "vocab_size": "codes",
    "codebook_embed_dim": "token_dim",
    "dim": "width",
    "n_layer": "depth",
    "n_head": "heads",
    "n_kv_head": "kv_heads",
}
FIXED = {"model_type": "c2i", "cls_token_num": 1, "codebook_l2_norm": True}
TRAINING_ONLY = {"class_dropout_prob"}


def architecture(config: dict[str, Any], grid: int | None, latent_only: bool) -> dict[str, Any]:
    """Sizes of a ``LlamaGenTeacher``, see :class:`Release`.

    The grid, tokens a side, may follow from ``block_size``, the number of tokens, and must not contradict it.
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


def from_release(transformer: dict[str, Tensor], tokenizer: dict[str, Tensor]) -> dict[str, Tensor]:
    """State dict of a ``LlamaGenTeacher`` from the two files of a release, unwrapped.

    The transformer (``c2i_*.pt``) keeps its names; stored caches, mask and rotations are left out. In the tokenizer
    (``vq_ds*_c2i.pt``) ``conv_blocks`` become the encoder's ``down`` and the decoder's ``up``, whose level 0 is the
    finest (the release counts the decoder's in the order of execution); usage statistics are left out.
    """
    levels = 1 + max((int(key.split(".")[2]) for key in tokenizer if key.startswith("decoder.conv_blocks.")), default=0)
    state = {
        f"tokenizer.{_tokenizer_name(key, levels)}": value
        for key, value in tokenizer.items()
        if key != "quantize.codebook_used"
    }
    for key, value in transformer.items():
        if key in ("freqs_cis", "causal_mask") or ".kv_cache." in key:
            continue
        state[("classifier." if key.startswith(("norm.", "output.")) else "backbone.") + key] = value
    return state


def _tokenizer_name(key: str, levels: int) -> str:
    if ".conv_blocks." not in key and ".mid." not in key:
        return key
    network, group, *rest = key.split(".")
    if group == "mid":
        rest[0] = ("block_1", "attn_1", "block_2")[int(rest[0])]
    elif group == "conv_blocks":
        if network == "decoder":
            rest[0] = str(levels - 1 - int(rest[0]))
        group = "down" if network == "encoder" else "up"
        rest[1] = rest[1].replace("res", "block")
    return ".".join([network, group, *rest])


RELEASE = Release(architecture, from_release, adapted={"continuous_input": True})
