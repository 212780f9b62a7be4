"""Losses per position, as scalars and heat maps."""

import math
import warnings
from importlib.util import find_spec
from itertools import pairwise
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from dd2_lightning.callbacks.logs import last_iteration, log_image, writer_of
from dd2_lightning.callbacks.tags import LINEAR
from dd2_lightning.callbacks.watched import WatchedStage, watched
from dd2_lightning.images.figures import blank_figure, figure_pixels
from dd2_lightning.layout import Layout

MAX_SCALARS = 16  # more positions than this are averaged into as many bins


class PerPositionMonitor(pl.Callback):
    """Log what a stage puts into ``per_position``: a scalar per position, and at validations a heat map per token.

    A heat map keeps at most ``heat_map_columns`` points in time; older ones are thinned out.
    """

    def __init__(self, every_n_iterations: int = 50, heat_map_columns: int = 128):
        if every_n_iterations < 1:
            raise ValueError(f"every_n_iterations must be at least 1, got {every_n_iterations}")
        self.every_n_iterations, self.heat_map_columns = every_n_iterations, heat_map_columns
        self.history: dict[str, list[tuple[int, Tensor]]] = {}

    def state_dict(self) -> dict[str, Any]:
        return {name: (list(times), torch.stack(columns)) for name, (times, columns) in self._columns().items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.history = {name: list(zip(*saved, strict=True)) for name, saved in state.items()}

    def _columns(self) -> dict[str, tuple[tuple[int, ...], tuple[Tensor, ...]]]:
        return {name: tuple(zip(*columns, strict=True)) for name, columns in self.history.items()}  # type: ignore[misc]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._draws = find_spec("matplotlib") is not None
        if not self._draws and writer_of(trainer) is not None:
            warnings.warn("no heat maps without matplotlib: pip install 'dd2-lightning[demo]'", stacklevel=2)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_) -> None:
        if trainer.global_step % self.every_n_iterations == 0:
            self._log(trainer, watched(pl_module))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        stage = watched(pl_module)
        self._log(trainer, stage)
        writer = writer_of(trainer)
        if writer is None or not self._draws:
            return
        for name, (times, columns) in self._columns().items():
            if len(times) < 2:
                continue
            image = heat_map(times, torch.stack(columns), stage.layout, name)
            log_image(writer, f"{name}_per_token", image, last_iteration(trainer))

    def _log(self, trainer: pl.Trainer, stage: WatchedStage) -> None:
        values = {name: trainer.strategy.reduce(value.float()).cpu() for name, value in stage.per_position.items()}
        stage.per_position.clear()
        step, scalars = last_iteration(trainer), {}
        for name, per_token in values.items():
            for first, last, value in bins(stage.layout.mean_per_position(per_token)):
                label = f"{first:03d}" if first == last else f"{first:03d}-{last:03d}"
                scalars[f"{name}_at_position/{label}"] = value
            columns = self.history.setdefault(name, [])
            columns.append((step, per_token))
            if len(columns) > self.heat_map_columns:
                del columns[1::2]
        for logger in trainer.loggers if scalars else ():
            logger.log_metrics(scalars, step)


def bins(means: Tensor) -> list[tuple[int, int, float]]:
    """At most ``MAX_SCALARS`` runs of positions: first, last, mean."""
    parts = torch.arange(len(means)).tensor_split(min(len(means), MAX_SCALARS))
    return [(int(part[0]), int(part[-1]), means[part].mean().item()) for part in parts]


def colour_limits(values: Tensor, linear: bool) -> tuple[float, float]:
    """Limits of a colour scale that seldom change from figure to figure: [0, 1], or powers of ten."""
    positive = values[values > 0]
    if linear or not len(positive):
        return 0.0, 1.0
    low, high = (math.log10(value) for value in (positive.min().item(), positive.max().item()))
    return 10.0 ** math.floor(low), 10.0 ** max(math.ceil(high), math.floor(low) + 1)


def edges(times: tuple[int, ...]) -> list[float]:
    """Borders of the columns of increasing points in time, midway between them."""
    between = [(a + b) / 2 for a, b in pairwise(times)]
    return [times[0] - 0.5, *between, times[-1] + 0.5]


def heat_map(times: tuple[int, ...], values: Tensor, layout: Layout, name: str) -> Tensor:
    """Values (time, n) as a figure with axes and a colour bar, bytes (3, height, width); borders between positions."""
    from matplotlib.colors import LogNorm, Normalize

    linear, borders = name.endswith(LINEAR), layout.offsets
    low, high = colour_limits(values, linear)
    figure = blank_figure(7, 4, dpi=100)
    ax = figure.add_axes((0.1, 0.13, 0.77, 0.78))
    norm = (Normalize if linear else LogNorm)(low, high)
    mesh = ax.pcolormesh(edges(times), range(layout.length + 1), values.clamp(low, high).T, norm=norm)
    ylabel, shown = "position", [borders[-1]]
    if layout.length > layout.num_positions:
        ylabel = "token (lines: positions)"
        ax.hlines(borders[1:-1], *ax.get_xlim(), color="white", lw=0.6)
    for border in reversed(borders):  # numbers where there is room for them
        if shown[-1] - border >= layout.length / 12:
            shown.append(border)
    ax.set(title=name, xlabel="iteration", ylabel=ylabel, yticks=shown)
    ticks = [low, high] if linear else [10.0**k for k in range(round(math.log10(low)), round(math.log10(high)) + 1)]
    bar = figure.colorbar(mesh, cax=figure.add_axes((0.89, 0.13, 0.025, 0.78)), ticks=ticks)
    bar.ax.minorticks_off()
    bar.ax.set_yticklabels([f"{tick:g}" for tick in ticks])
    return figure_pixels(figure)
