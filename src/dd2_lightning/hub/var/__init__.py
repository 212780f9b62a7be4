"""VAR: from the constructor arguments of the release to ours."""

from typing import Any

from dd2_lightning.hub.release import Release, translate
from dd2_lightning.models.var import from_release

RENAMED = {
    "patch_nums": "sides",
    "V": "codes",
    "Cvae": "token_dim",
    "num_classes": "num_classes",
    "embed_dim": "width",
    "depth": "depth",
    "num_heads": "heads",
    "ch": "ch",
    "ch_mult": "ch_mult",
    "num_res_blocks": "num_res_blocks",
    "share_quant_resi": "num_phi",
    "mlp_ratio": "mlp_ratio",
    "attn_l2_norm": "l2_norm",
    "shared_aln": "shared_adaln",
}
FIXED = {"quant_resi": 0.5, "using_znorm": False, "norm_eps": 1e-6}


def architecture(config: dict[str, Any], grid: int | None, latent_only: bool) -> dict[str, Any]:
    """Sizes of a :class:`VARTeacher` from the arguments of the release's constructors.

    Raises:
        ValueError: for an unknown or missing key, a value that this implementation does not have, or a ``grid``:
            the scales of a VAR are in its configuration.
    """
    if grid is not None:
        raise ValueError("--grid: the scales of a VAR model are part of its architecture (patch_nums)")
    return {**translate(config, RENAMED, FIXED), "pixels": not latent_only}


RELEASE = Release("var", architecture, from_release)
