"""Losses per position, as scalars and heat maps."""

from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from dd2_lightning.callbacks.logs import last_iteration, writer_of
from dd2_lightning.callbacks.watched import WatchedStage, watched

MAX_SCALARS = 16  # more positions than this are averaged into as many bins


class PerPositionMonitor(pl.Callback):
    """Log what a stage puts into ``per_position``: a scalar per position and a heat map per token over time.

    A heat map keeps at most ``heat_map_rows`` points in time; older ones are thinned out.
    """

    def __init__(self, every_n_iterations: int = 50, heat_map_rows: int = 128):
        if every_n_iterations < 1:
            raise ValueError(f"every_n_iterations must be at least 1, got {every_n_iterations}")
        self.every_n_iterations, self.heat_map_rows = every_n_iterations, heat_map_rows
        self.history: dict[str, list[Tensor]] = {}

    def state_dict(self) -> dict[str, Any]:
        return {name: torch.stack(rows) for name, rows in self.history.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.history = {name: list(rows) for name, rows in state.items()}

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_) -> None:
        if trainer.global_step % self.every_n_iterations == 0:
            self._log(trainer, watched(pl_module))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.sanity_checking:
            self._log(trainer, watched(pl_module))

    def _log(self, trainer: pl.Trainer, stage: WatchedStage) -> None:
        values = {name: trainer.strategy.reduce(value.float()).cpu() for name, value in stage.per_position.items()}
        stage.per_position.clear()
        if (board := writer_of(trainer)) is None:
            return
        step = last_iteration(trainer)
        for name, per_token in values.items():
            means = stage.layout.mean_per_position(per_token)
            for first, last, value in bins(means):
                label = f"{first:03d}" if first == last else f"{first:03d}-{last:03d}"
                board.add_scalar(f"{name}_at_position/{label}", value, step)
            rows = self.history.setdefault(name, [])
            rows.append(per_token)
            if len(rows) > self.heat_map_rows:
                del rows[1::2]
            board.add_image(f"{name}_per_token", heat_map(torch.stack(rows)), step)


def bins(means: Tensor) -> list[tuple[int, int, float]]:
    """At most ``MAX_SCALARS`` runs of positions: first, last, mean."""
    parts = torch.arange(len(means)).tensor_split(min(len(means), MAX_SCALARS))
    return [(int(part[0]), int(part[-1]), means[part].mean().item()) for part in parts]


def heat_map(rows: Tensor, zoom: int = 8) -> Tensor:
    """Logarithms of (time, n) as a grey image (1, time·zoom, n·zoom): white is the largest, time runs down."""
    logs = rows.clamp(min=1e-12).log()
    scaled = (logs - logs.min()) / (logs.max() - logs.min()).clamp(min=1e-6)
    return scaled.repeat_interleave(zoom, 0).repeat_interleave(zoom, 1)[None]
