"""VAR's release: its constructor arguments and its state dicts in our terms."""

from typing import Any

from torch import Tensor

from dd2_lightning.families.release import Release, translate

RENAMED = {
    **{key: key for key in ("num_classes", "depth", "ch", "ch_mult", "num_res_blocks", "mlp_ratio")},
    "patch_nums": "sides",
    "V": "codes",
    "Cvae": "token_dim",
    "embed_dim": "width",
    "num_heads": "heads",
    "share_quant_resi": "num_phi",
    "attn_l2_norm": "l2_norm",
    "shared_aln": "shared_adaln",
}
CONSTANTS = ("lvl_1L", "attn_bias_for_masking")
FIXED = {"quant_resi": 0.5, "using_znorm": False, "norm_eps": 1e-6}


def architecture(config: dict[str, Any], grid: int | None, latent_only: bool) -> dict[str, Any]:
    """Sizes of a ``VARTeacher``, see :class:`Release`; a ``grid`` is refused."""
    if grid is not None:
        raise ValueError("--grid: the scales of a VAR model are part of its architecture (patch_nums)")
    return {**translate(config, RENAMED, FIXED), "pixels": not latent_only}


def from_release(transformer: dict[str, Tensor], tokenizer: dict[str, Tensor]) -> dict[str, Tensor]:
    """State dict of a ``VARTeacher`` from the files of transformer and tokenizer."""
    state = {f"tokenizer.{key}": value for key, value in tokenizer.items() if not key.endswith("ema_vocab_hit_SV")}
    phi = "tokenizer.quantize.quant_resi."
    state |= {f"backbone.pyramid.{key.removeprefix(phi)}": state[key] for key in list(state) if key.startswith(phi)}
    for key, value in transformer.items():
        if key not in CONSTANTS:
            state[("classifier." if key.startswith("head") else "backbone.") + key] = value
    return state


RELEASE = Release(architecture, from_release)
