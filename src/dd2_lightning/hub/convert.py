"""``dd2 convert``: published checkpoint files into a teacher's directory."""

from dd2_lightning.hub.llamagen import RELEASE as LLAMAGEN
from dd2_lightning.hub.release import convert
from dd2_lightning.hub.var import RELEASE as VAR


def convert_var(transformer: str, tokenizer: str, arch: str, output: str, latent_only: bool = False) -> None:
    """Convert VAR (arXiv 2404.02905) into a teacher's directory.

    Args:
        transformer: the file of the transformer, or hf://FoundationVision/var/var_d16.pth and its kind.
        tokenizer: the file of the tokenizer, or hf://FoundationVision/var/vae_ch160v4096z32.pth.
        arch: d16, d20, d24, d30, d36, or a JSON file with the constructor arguments of transformer and tokenizer.
        output: directory to write; dd2.load_teacher and model.teacher read it.
        latent_only: take nothing of the tokenizer but its quantiser: such a teacher can be distilled, not decode.
    """
    convert(VAR, transformer, tokenizer, arch, output, latent_only=latent_only)


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
    convert(LLAMAGEN, transformer, tokenizer, arch, output, grid, latent_only)
