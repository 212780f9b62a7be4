"""Golden tensors of the public releases, and teachers that carry their weights."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from dd2_lightning.families.llamagen.model import LlamaGenTeacher
from dd2_lightning.families.llamagen.release import from_release as llamagen_from_release
from dd2_lightning.families.var.model import VARTeacher
from dd2_lightning.families.var.release import from_release as var_from_release
from dd2_lightning.hub.cards import load_card

GOLDEN = Path(__file__).parent / "golden"


def golden(name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a file and the sizes they belong to."""
    with safe_open(GOLDEN / f"{name}.safetensors", "pt") as file:
        keys = file.keys()
        return {key: file.get_tensor(key) for key in keys}, json.loads(file.metadata().get("config", "{}"))


def under(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """What lies under ``NAME/`` in a file, without that."""
    return {key.removeprefix(f"{name}/"): value for key, value in tensors.items() if key.startswith(f"{name}/")}


def weights(tensors: dict[str, Tensor], part: str) -> dict[str, Tensor]:
    """One of the state dicts in a file."""
    return under(tensors, f"weights/{part}")


def golden_var(name: str) -> tuple[VARTeacher, dict[str, Tensor]]:
    """A teacher with a file's weights, and the tensors; files without pixel networks leave those as they are."""
    tensors, sizes = golden(name)
    teacher = VARTeacher.from_config(
        {
            "sides": sizes["patch_nums"],
            "codes": sizes["V"],
            "token_dim": sizes["Cvae"],
            "num_classes": sizes["num_classes"],
            "width": sizes["embed_dim"],
            "depth": sizes["depth"],
            "heads": sizes["num_heads"],
            "ch": sizes["ch"],
            "ch_mult": sizes["ch_mult"],
            "num_res_blocks": sizes["num_res_blocks"],
            "num_phi": sizes["share_quant_resi"],
            "mlp_ratio": sizes["mlp_ratio"],
            "l2_norm": sizes["attn_l2_norm"],
            "shared_adaln": sizes["shared_aln"],
        }
    )
    state = var_from_release(weights(tensors, "var"), weights(tensors, "vae"))
    pixels = ("tokenizer.encoder.", "tokenizer.decoder.", "tokenizer.quant_conv.", "tokenizer.post_quant_conv.")
    if not any(key.startswith(pixels) for key in state):
        state |= {key: value for key, value in teacher.state_dict().items() if key.startswith(pixels)}
    teacher.load_state_dict(state)
    return teacher.eval().requires_grad_(False), tensors


def golden_llamagen() -> tuple[LlamaGenTeacher, dict[str, Tensor], dict[str, Tensor]]:
    """A teacher with the weights of both files, the transformer's tensors and the tokenizer's."""
    (gpt, sizes), (vq, pixels) = golden("llamagen_tiny"), golden("llamagen_vq_tiny")
    teacher = LlamaGenTeacher.from_config(
        {
            "grid": round(sizes["block_size"] ** 0.5),
            "codes": sizes["vocab_size"],
            "token_dim": pixels["codebook_embed_dim"],
            "num_classes": sizes["num_classes"],
            "width": sizes["dim"],
            "depth": sizes["n_layer"],
            "heads": sizes["n_head"],
            "kv_heads": sizes["n_kv_head"],
            "multiple_of": sizes["multiple_of"],
            "rope_base": sizes["rope_base"],
            "norm_eps": sizes["norm_eps"],
            **{key: pixels[key] for key in ("ch", "encoder_ch_mult", "decoder_ch_mult")},
            **{key: pixels[key] for key in ("num_res_blocks", "z_channels")},
        }
    )
    teacher.load_state_dict(llamagen_from_release(weights(gpt, "gpt"), weights(vq, "vq")))
    return teacher.eval().requires_grad_(False), gpt, vq


def _dd1_var(tensors: dict[str, Tensor], sizes: dict[str, Any]) -> VARTeacher:
    teacher = VARTeacher.from_config(
        {
            "sides": sizes["patch_nums"],
            "codes": sizes["V"],
            "token_dim": sizes["C"],
            "num_classes": sizes["num_classes"],
            "width": sizes["width"],
            "depth": sizes["depth"],
            "heads": sizes["heads"],
            "num_phi": sizes["share_quant_resi"],
            "l2_norm": sizes["attn_l2_norm"],
            "ch": 32,
            "ch_mult": [1],
            "num_res_blocks": 1,
            "pixels": False,
        }
    )
    teacher.load_state_dict(var_from_release(under(tensors, "teacher"), under(tensors, "vae")))
    return teacher


def _dd1_llamagen(tensors: dict[str, Tensor], sizes: dict[str, Any]) -> LlamaGenTeacher:
    teacher = LlamaGenTeacher.from_config(
        {
            "grid": sizes["grid"],
            "codes": sizes["V"],
            "token_dim": sizes["C"],
            "num_classes": sizes["num_classes"],
            "width": sizes["dim"],
            "depth": sizes["layers"],
            "heads": sizes["heads"],
            "multiple_of": sizes["ffn_multiple_of"],
            "rope_base": sizes["rope_base"],
            "norm_eps": sizes["norm_eps"],
            "ch": 32,
            "encoder_ch_mult": [1],
            "decoder_ch_mult": [1],
            "num_res_blocks": 1,
            "z_channels": 8,
            "pixels": False,
        }
    )
    tokenizer = {"quantize.embedding.weight": tensors["in/codebook"]}
    teacher.load_state_dict(llamagen_from_release(under(tensors, "teacher"), tokenizer))
    return teacher


def golden_dd1(family: str) -> tuple[VARTeacher | LlamaGenTeacher, dict[str, Tensor], dict[str, Any]]:
    """The teacher of a golden file of DD1, the tensors and the sizes."""
    tensors, sizes = golden(f"dd1_{family}_tiny")
    teacher = {"var": _dd1_var, "llamagen": _dd1_llamagen}[family](tensors, sizes)
    return teacher.eval().requires_grad_(False), tensors, sizes


def manifest(name: str) -> dict[str, Tensor]:
    """The keys and shapes of a released file, without values."""
    shapes = json.loads((GOLDEN / f"manifest_{name}.json").read_text())
    return {key: torch.empty(shape, device="meta") for key, (shape, _) in shapes.items()}


def close(value: Tensor, expected: Tensor, tolerance: float = 1e-4) -> None:
    """Assert equality up to an absolute tolerance."""
    torch.testing.assert_close(value, expected, rtol=0, atol=tolerance)


def release_files(root: Path, family: str, name: str | None = None) -> dict[str, Path]:
    """Files as a release publishes them, made of the golden tensors: under every published name, and ``sizes.json``."""
    transformer, tokenizer = {"var": ("var", "vae"), "llamagen": ("gpt", "vq")}[family]
    files = {"var": (name or "var_tiny",), "llamagen": ("llamagen_tiny", "llamagen_vq_tiny")}[family]
    tensors, config = {}, {}
    for file in files:
        more, sizes = golden(file)
        tensors, config = tensors | more, config | sizes
    root = root / family
    root.mkdir(exist_ok=True)
    for name, part in (("transformer.pth", transformer), ("tokenizer.pth", tokenizer)):
        torch.save(weights(tensors, part), root / name)
    (root / "sizes.json").write_text(json.dumps(config))
    card = load_card(family)
    published = {facts["file"]: root / "tokenizer.pth" for facts in card.tokenizers.values()}
    own = {name: root / name for name in ("transformer.pth", "tokenizer.pth", "sizes.json")}
    return {**{name: root / "transformer.pth" for name in card.files()}, **published, **own}
