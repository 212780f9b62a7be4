"""Learning rates and EMA rates as pure functions of a count: nothing to restore after a resume."""

from dataclasses import dataclass

import torch
from torch import nn

from dd2_lightning.errors import check_range


@dataclass(frozen=True)
class OptimizerSettings:
    """Adam and its learning rate.

    Attributes:
        lr: rate after the warm-up.
        warmup: updates over which the rate rises linearly from ``lr_start``. In stages 2 and 3 they are counted
            in *guidance updates* for both networks.
        lr_start: rate at the first update.
        decay_from: fraction of the run from which the rate falls linearly; 1 is never.
        lr_end: fraction of ``lr`` that is left at the end of the decay.
        betas: Adam's decay rates of the two moments, in [0, 1).
        weight_decay: decoupled weight decay.
        clip: largest gradient norm; 0 is no clipping.
    """

    lr: float = 2e-4
    warmup: int = 0
    lr_start: float = 1e-6
    decay_from: float = 1.0
    lr_end: float = 0.05
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0
    clip: float = 1.0

    def check(self, prefix: str) -> None:
        """Refuse values out of range; ``prefix`` stands before their names for the user: ``model.optimizer.``."""
        check_range(prefix, "(0, inf)", lr=self.lr)
        counts = {"warmup": self.warmup, "weight_decay": self.weight_decay, "clip": self.clip}
        check_range(prefix, "[0, inf)", **counts, lr_start=self.lr_start, lr_end=self.lr_end)
        check_range(prefix, "[0, 1]", decay_from=self.decay_from)
        check_range(prefix, "[0, 1)", betas=self.betas)

    def build(self, module: nn.Module) -> torch.optim.Optimizer:
        """Adam over the parameters of ``module`` that can be trained."""
        parameters = [p for p in module.parameters() if p.requires_grad]
        return torch.optim.AdamW(parameters, self.lr, self.betas, weight_decay=self.weight_decay, fused=True)

    def rate(self, update: int, total: int) -> float:
        """Learning rate of update number ``update`` (from 0) of ``total``."""
        if update < self.warmup:
            return self.lr_start + (self.lr - self.lr_start) * update / self.warmup
        start = self.decay_from * total
        if update <= start:
            return self.lr
        progress = (update - start) / max(total - start, 1)
        return self.lr * (1 - (1 - self.lr_end) * min(progress, 1))


def ema_rate(count: int, limit: float = 0.9999) -> float:
    """The paper's progressive rate min(limit, (it + 1) / (it + 10)) after ``count`` updates."""
    return min(limit, (count + 1) / (count + 10))


@torch.no_grad()
def update_ema(ema: nn.Module, module: nn.Module, rate: float) -> None:
    """Ema <- rate · ema + (1 - rate) · module for parameters; buffers are copied."""
    torch._foreach_lerp_(list(ema.parameters()), list(module.parameters()), 1 - rate)
    for mine, theirs in zip(ema.buffers(), module.buffers(), strict=True):
        mine.copy_(theirs)
