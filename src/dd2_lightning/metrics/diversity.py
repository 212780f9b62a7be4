"""Diversity: how different the samples of one class are."""

import torch
from torch import Tensor
from torchmetrics import Metric


class WithinClassVariance(Metric):
    """Trace of the within-class feature covariance, averaged over classes.

    Diversity is this, divided by the teacher's. With fewer than ``minimum`` samples of a class it is refused.
    """

    full_state_update = False
    higher_is_better = True
    count: Tensor
    total: Tensor
    squares: Tensor

    def __init__(self, num_classes: int, width: int, minimum: int = 500):
        super().__init__()
        self.width, self.minimum = width, max(2, minimum)
        self.add_state("count", torch.zeros(num_classes, dtype=torch.float64), "sum")
        self.add_state("total", torch.zeros(num_classes, width, dtype=torch.float64), "sum")
        self.add_state("squares", torch.zeros(num_classes, dtype=torch.float64), "sum")

    def update(self, features: Tensor, labels: Tensor) -> None:
        """Add features (B, d) of classes ``labels`` (B,)."""
        if features.ndim != 2 or features.shape[1] != self.width or labels.shape != features.shape[:1]:
            shapes = f"{tuple(features.shape)} and {tuple(labels.shape)}"
            raise ValueError(f"features must be (B, {self.width}) and labels (B,), got {shapes}")
        features = features.double()
        self.count.index_add_(0, labels, torch.ones_like(features[:, 0]))
        self.total.index_add_(0, labels, features)
        self.squares.index_add_(0, labels, features.square().sum(1))

    @property
    def enough(self) -> bool:
        """Whether every class has the minimum of samples."""
        return self.count.min().item() >= self.minimum

    def compute(self) -> float:
        if not self.enough:
            fewest, scarce = int(self.count.min()), int(self.count.argmin())
            raise ValueError(f"class {scarce} has {fewest} samples, diversity needs at least {self.minimum}")
        mean = self.total / self.count[:, None]
        traces = (self.squares - self.count * mean.square().sum(1)) / (self.count - 1)
        return traces.mean().item()
