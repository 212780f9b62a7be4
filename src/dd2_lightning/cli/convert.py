"""``dd2 convert``: published checkpoint files to a directory of ours."""

from typing import Literal


def convert_var(transformer: str, tokenizer: str, arch: str, output: str, latent_only: bool = False) -> None:
    """Convert VAR (arXiv 2404.02905) into a teacher's directory.

    Args:
        transformer: the file of the transformer, or hf://FoundationVision/var/var_d16.pth and its kind.
        tokenizer: the file of the tokenizer, or hf://FoundationVision/var/vae_ch160v4096z32.pth.
        arch: d16, d20, d24, d30, d36, or a JSON file with the constructor arguments of transformer and tokenizer.
        output: directory to write; dd2.load_teacher and model.teacher read it.
        latent_only: take nothing of the tokenizer but its quantiser: such a teacher can be distilled, not decode.
    """
    from dd2_lightning.cli.finish import finish
    from dd2_lightning.hub.convert import convert

    convert("var", transformer, tokenizer, arch, output, None, latent_only)
    finish("convert var", f"VAR {arch} -> {output}", output=output)


def convert_llamagen(
    transformer: str, tokenizer: str, arch: str, grid: int, output: str, latent_only: bool = False
) -> None:
    """Convert class-conditional LlamaGen (arXiv 2406.06525) into a teacher's directory.

    Args:
        transformer: the file of the transformer, or hf://FoundationVision/LlamaGen/c2i_L_256.pt and its kind.
        tokenizer: the file of the tokenizer, or hf://FoundationVision/LlamaGen/vq_ds16_c2i.pt.
        arch: B, L, XL, XXL, 3B, or a JSON file with the constructor arguments of transformer and tokenizer.
        grid: tokens a side, which no file tells: 16 at 256 pixels, 24 at 384.
        output: directory to write; dd2.load_teacher and model.teacher read it.
        latent_only: take nothing of the tokenizer but its quantiser: such a teacher can be distilled, not decode.
    """
    from dd2_lightning.cli.finish import finish
    from dd2_lightning.hub.convert import convert

    convert("llamagen", transformer, tokenizer, arch, output, grid, latent_only)
    finish("convert llamagen", f"LlamaGen {arch} -> {output}", output=output)


def convert_dd1(
    checkpoint: str,
    teacher: str,
    output: str,
    weights: Literal["ema", "raw"] = "ema",
    split: int | None = None,
    second: int | None = None,
) -> None:
    """Convert a network of Distilled Decoding 1 (arXiv 2412.17153) into a directory that dd2 sample reads.

    Args:
        checkpoint: the file, or hf://microsoft/distilled_decoding/VAR-DD/var-d16.pth and its kind.
        teacher: directory of the converted teacher that it was distilled from.
        output: directory to write; dd2 sample and dd2.load_generator read it.
        weights: which of the two that the file holds: ema, those that its figures were made with, or raw.
        split: how many positions come out as codes, tokens of the rest are continuous; known for published files.
        second: positions that are finished before the second call; known for published files.
    """
    from dd2_lightning.cli.finish import finish
    from dd2_lightning.hub import convert

    convert.convert_dd1(checkpoint, teacher, output, weights, split, second)
    finish("convert dd1", f"DD1, {checkpoint} ({weights}) -> {output}", output=output)
