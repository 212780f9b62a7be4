"""Settings of guidance and truncation. Importing them imports no torch."""

from dataclasses import dataclass

from dd2_lightning.errors import check_range

PAIR_STEPS = 25
"""Evaluations of the flow a token of DD1's pairs: 1 in 1,000 is another than in the limit (docs/architecture.md)."""


@dataclass(frozen=True)
class Sampling:
    """How a teacher's logits become the distribution that is sampled or distilled.

    Attributes:
        guidance_scale: classifier-free guidance in the convention of the teacher's family; None is off.
        top_k: keep the k most likely tokens (ties stay); 0 keeps all.
        top_p: keep the smallest set of tokens with this mass, in the family's convention; 1 keeps all.
        temperature: logits are divided by it before truncation.
    """

    guidance_scale: float | None = None
    top_k: int = 0
    top_p: float = 1.0
    temperature: float = 1.0

    def __post_init__(self):
        check_range("", "[0, inf)", guidance_scale=self.guidance_scale, top_k=self.top_k)
        check_range("", "(0, 1]", top_p=self.top_p)
        check_range("", "(0, inf)", temperature=self.temperature)
