"""Independent tokens: the distribution of every single token given the class."""

import torch
from torch import Tensor


class Marginals:
    """Marginals of the tokens in a sample of sequences.

    A token is drawn by taking that of a random sequence of its class, another sequence for every token: no table of
    classes x tokens x codes is needed.

    Args:
        indices: the sequences, (N, n).
        labels: their classes, (N,).
        num_classes: number of classes.

    Raises:
        ValueError: if a class has no sequence.
    """

    def __init__(self, indices: Tensor, labels: Tensor, num_classes: int):
        self.count = torch.bincount(labels, minlength=num_classes)
        if not self.count.all():
            raise ValueError(f"the teacher sample has no sequence of class {int(self.count.argmin())}")
        self.first = self.count.cumsum(0) - self.count
        self.indices = indices[labels.argsort(stable=True)]

    def draw(self, labels: Tensor, chance: Tensor) -> Tensor:
        """Independent tokens of classes ``labels`` (B,) from uniform numbers (B, n): indices (B, n)."""
        row = self.first[labels, None] + (chance.double() * self.count[labels, None]).long()
        return self.indices[row, torch.arange(chance.shape[1], device=labels.device)]
