"""Evaluation protocols: which classes are drawn, and how many samples the metrics take.

Results name their protocol, since figures of two differ by more than the generators do: VAR-d16 is quoted with a FID
of 3.55 in its repository and of 4.19 in DD1's table.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dd2_lightning.errors import check_at_least_one
from dd2_lightning.noise import SampleNoise


@dataclass(frozen=True)
class Protocol:
    """A way to draw and measure a set of samples."""

    name: str  # in results
    draw_labels: Callable[[int, int, int], Tensor]  # (num, classes, seed) -> (num,)
    manifold_samples: int  # generated samples that precision and recall take
    samples: int | None = None  # in all; figures of fewer are not comparable. None where a protocol does not say it.

    def labels(self, num: int, classes: int, seed: int = 0) -> Tensor:
        """Classes of samples 0 to ``num - 1``, (num,); a ValueError for a number that the protocol does not have."""
        check_at_least_one("", num=num, classes=classes)
        return self.draw_labels(num, classes, seed)


def balanced(num: int, classes: int, seed: int = 0) -> Tensor:
    """Every class equally often; sample i has class i mod classes.

    OpenAI's evaluator takes the inception score of 5,000 samples at a time: in the order of their classes these would
    have 100 classes, and no score above 100. Likewise, the first 10,000 stand for all in precision and recall.
    """
    if num % classes:
        raise ValueError(f"{num} samples are not the same number of each of {classes} classes; take a multiple")
    return torch.arange(num) % classes


def uniform(num: int, classes: int, seed: int = 0) -> Tensor:
    """Independent and uniform; the class of sample i depends on the seed and i only."""
    return (SampleNoise(seed, 0, num).rand("label").double() * classes).long()


PROTOCOLS = {
    # OpenAI's evaluator, 50 samples a class, as VAR and LlamaGen report: all samples are in the manifold
    "openai": Protocol("openai", balanced, manifold_samples=50_000, samples=50_000),
    # the scripts of DD1
    "dd1": Protocol("dd1", uniform, manifold_samples=10_000),
}


def protocol_named(name: str) -> Protocol:
    """The protocol of this name."""
    if name not in PROTOCOLS:
        raise ValueError(f"unknown protocol '{name}'; there are: {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]
