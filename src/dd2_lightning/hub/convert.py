"""``dd2 convert``: published checkpoint files into a teacher's directory."""

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
