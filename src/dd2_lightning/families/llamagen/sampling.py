"""Sampling settings of the LlamaGen family."""

from dataclasses import dataclass

from dd2_lightning.errors import check_range
from dd2_lightning.sampling import Sampling


@dataclass(frozen=True)
class LlamaGenSampling(Sampling):
    """How LlamaGen is sampled. A ``guidance_scale`` of 1 is no guidance.

    Attributes:
        cfg_interval: m: guidance for tokens 0..m+1 and none after them, as the release counts; -1 is everywhere.
    """

    cfg_interval: int = -1

    def __post_init__(self):
        super().__post_init__()
        check_range("", "[-1, inf)", cfg_interval=self.cfg_interval)
