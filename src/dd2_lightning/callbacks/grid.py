"""Samples at fixed noise, as they change over a run."""

import lightning.pytorch as pl
import torch
from einops import rearrange

from dd2_lightning.callbacks.logs import last_iteration, writer_of
from dd2_lightning.callbacks.watched import watched
from dd2_lightning.data.batch import Batch


class SampleGrid(pl.Callback):
    """Log a grid of samples at every validation: one column a class, ``rows`` of them, the noise always the same."""

    def __init__(self, rows: int = 4, max_classes: int = 10):
        self.rows, self.max_classes = rows, max_classes

    @torch.no_grad()
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        writer, stage = writer_of(trainer), watched(pl_module)
        if trainer.sanity_checking or writer is None:
            return
        labels = torch.arange(min(stage.num_classes, self.max_classes), device=stage.device).repeat(self.rows)
        images = stage.draw_images(Batch(labels, 0, 0, 0, len(labels)))
        if images is not None:
            grid = rearrange(images, "(row label) c h w -> c (row h) (label w)", row=self.rows)
            writer.add_image("samples", grid.clamp(0, 1), last_iteration(trainer))
