"""Samples at fixed noise, as they change over a run."""

import lightning.pytorch as pl
import torch
from torch import Tensor

from dd2_lightning.callbacks.logs import last_iteration, log_image, writer_of
from dd2_lightning.callbacks.watched import watched
from dd2_lightning.data.batch import Batch
from dd2_lightning.images.files import GAP, grid_scale, mosaic, to_bytes


class SampleGrid(pl.Callback):
    """Log a grid of samples at every validation, one column a class, the noise always the same.

    What the teacher makes of the same noise stands beside it, where the stage distils one. Classes are shown up to
    ``max_classes``, and as long as a grid is no wider than ``max_width`` pixels.
    """

    def __init__(self, rows: int = 4, max_classes: int = 10, max_width: int = 1024):
        self.rows, self.max_classes, self.max_width = rows, max_classes, max_width
        self._teacher: Tensor | None = None

    @torch.no_grad()
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking or not trainer.loggers:
            return
        stage = watched(pl_module)
        labels = torch.arange(min(stage.num_classes, self.max_classes), device=stage.device).repeat(self.rows)
        batch = Batch(labels, 0, 0, 0, len(labels))
        images = stage.draw_images(batch)  # in all processes: parameters may be shared among them
        writer = writer_of(trainer)
        if writer is None or images is None:
            return
        if self._teacher is None:
            teacher = stage.draw_teacher_images(batch)
            self._teacher = images.new_empty(0) if teacher is None else self._grid(teacher)
        panels = [self._grid(images), *([self._teacher] if len(self._teacher) else [])]
        log_image(writer, "samples", side_by_side(panels), last_iteration(trainer))

    def _grid(self, images: Tensor) -> Tensor:
        """Images (rows * classes, channels, H, W), row by row, as one image of bytes; small ones are enlarged."""
        scale = grid_scale(images.shape[-1], len(images))
        columns = max(1, min(len(images) // self.rows, self.max_width // (images.shape[-1] * scale + GAP)))
        shown = to_bytes(images.unflatten(0, (self.rows, -1))[:, :columns].flatten(0, 1))
        return mosaic(shown.repeat_interleave(scale, -1).repeat_interleave(scale, -2), columns, GAP, 255)


def side_by_side(panels: list[Tensor]) -> Tensor:
    """Images of bytes (channels, H, W), of one height, with a white gap between them."""
    gap = panels[0].new_full((*panels[0].shape[:2], 8 * GAP), 255)
    return torch.cat([part for panel in panels for part in (gap, panel)][1:], -1)
