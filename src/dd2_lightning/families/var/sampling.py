"""Sampling settings of the VAR family."""

from dataclasses import dataclass

from dd2_lightning.sampling import Sampling


@dataclass(frozen=True)
class VARSampling(Sampling):
    """How VAR is sampled.

    Attributes:
        more_smooth: soft tokens, means of codes under a Gumbel-softmax that hardens along the scales: smoother
            images, but not samples of the model. For looking at, never for training or measuring.
    """

    more_smooth: bool = False
