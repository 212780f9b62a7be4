"""Terms of a tokenizer's training besides its own losses: how images look, and whether they pass for real.

Both are those of VQGAN (arXiv 2012.09841, sec. 3.1), and off by default.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dd2_lightning.errors import check_range
from dd2_lightning.stages.schedule import OptimizerSettings

LARGEST_WEIGHT = 1e4  # of the adversarial term against the others


@dataclass(frozen=True)
class DiscriminatorSettings:
    """A discriminator of patches that the tokenizer is trained against.

    Attributes:
        weight: of the adversarial term, times the ratio of gradients, see :func:`adaptive_weight`.
        start: first iteration that has it; reconstructions should have their colours and outlines by then.
        width: channels of its first layer, a multiple of 4.
        layers: layers that halve the side of an image.
        optimizer: its Adam.
    """

    weight: float = 0.8
    start: int = 1000
    width: int = 32
    layers: int = 2
    optimizer: OptimizerSettings = field(default_factory=lambda: OptimizerSettings(betas=(0.5, 0.9)))

    def check(self, prefix: str) -> None:
        """Refuse values out of range; a user reads their names behind ``prefix``."""
        check_range(prefix, "(0, inf)", weight=self.weight)
        check_range(prefix, "[0, inf)", start=self.start)
        check_range(prefix, "[1, inf)", width=self.width, layers=self.layers)
        self.optimizer.check(f"{prefix}optimizer.")


def adaptive_weight(loss: Tensor, adversarial: Tensor, layer: Tensor, mean: Callable[[Tensor], Tensor]) -> Tensor:
    """Weight that gives two losses gradients of one length in the weights of the decoder's last layer, ().

    ``mean`` averages over the processes.
    """
    ours, theirs = (mean(torch.autograd.grad(term, layer, retain_graph=True)[0]) for term in (loss, adversarial))
    return (ours.norm() / (theirs.norm() + 1e-4)).clamp(max=LARGEST_WEIGHT)
