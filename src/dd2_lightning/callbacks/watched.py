"""What callbacks use of a stage, which is in a room above them."""

from typing import Protocol, cast

import lightning.pytorch as pl
import torch
from torch import Tensor

from dd2_lightning.data.batch import Batch
from dd2_lightning.layout import Layout


class WatchedStage(Protocol):
    """A stage; see :class:`~dd2_lightning.stages.base.Stage`."""

    name: str
    device: torch.device
    layout: Layout
    num_classes: int
    per_position: dict[str, Tensor]

    def draw_images(self, batch: Batch) -> Tensor | None: ...

    def draw_teacher_images(self, batch: Batch) -> Tensor | None: ...

    def write_artifact(self, directory: str) -> None: ...


def watched(module: pl.LightningModule) -> WatchedStage:
    """A module that is a stage."""
    return cast(WatchedStage, module)
