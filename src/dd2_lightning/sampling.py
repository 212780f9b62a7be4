"""Settings of guidance and truncation. Importing them imports no torch."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Sampling:
    """How a teacher's logits become the distribution that is sampled or distilled.

    Attributes:
        guidance_scale: classifier-free guidance in the convention of the teacher's family; None is off.
        top_k: keep the k most likely tokens (ties stay); 0 keeps all.
        top_p: keep the smallest set of tokens with this mass, in the family's convention; 1 keeps all.
        temperature: logits are divided by it before truncation.

    Raises:
        ValueError: for values that no distribution can have.
    """

    guidance_scale: float | None = None
    top_k: int = 0
    top_p: float = 1.0
    temperature: float = 1.0

    def __post_init__(self):
        if self.top_k < 0:
            raise ValueError(f"top_k must be 0 (off) or more, got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], got {self.top_p}")
        if not self.temperature > 0:
            raise ValueError(f"temperature must be positive, got {self.temperature}")
