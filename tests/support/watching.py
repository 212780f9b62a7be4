"""Watching what a run computes, through the list of updates that its stage declares."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from dd2_lightning import stages
from dd2_lightning.data import Batch
from dd2_lightning.stages import Stage
from dd2_lightning.stages.updates import Losses, Update


def watch_losses(patch: pytest.MonkeyPatch, watch: Callable[[Stage, Update, Batch, int, Losses], None]) -> None:
    """Call ``watch`` with every loss that a stage computes."""

    def watching(declared: Callable[[Stage], list[Update]]) -> Callable[[Stage], list[Update]]:
        def watched(stage: Stage, update: Update) -> Update:
            def loss(batch: Batch, k: int) -> Losses:
                losses = update.loss(batch, k)
                watch(stage, update, batch, k, losses)
                return losses

            loss.is_watched = True
            return update if hasattr(update.loss, "is_watched") else replace(update, loss=loss)

        return lambda stage: [watched(stage, update) for update in declared(stage)]

    for kind in (getattr(stages, name) for name in stages.__all__ if name != "Stage"):
        patch.setattr(kind, "updates", watching(kind.updates))
