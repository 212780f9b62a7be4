"""Stage 3: performance alignment (section 4.4 of the paper)."""

import math
from dataclasses import replace
from typing import Any, ClassVar

from dd2_lightning.artifacts import Artifact
from dd2_lightning.stages.csd import CSDDistill
from dd2_lightning.stages.updates import Update


class PerformanceAlign(CSDDistill):
    """Align a converged stage 2: its EMA becomes the generator, guidance catches up, distillation resumes.

    The optimizers start afresh, the EMA count restarts with the resumed alternation, and there is no warm-up
    unless the optimizers ask for one. These three are ours; the paper does not say.

    Args:
        align_guidance_updates: guidance updates before the generator moves again; rounded up to whole iterations of
            ``guidance_updates``.
        guidance_updates: K of both phases.
        head_time: t_g; None is the one that the csd stage was trained with.
        kwargs: as for :class:`CSDDistill`, without ``initialise``; ``init_from`` is that of a finished csd stage.
    """

    name = "align"
    starts_from: ClassVar[tuple[str, ...]] = ("csd",)

    def __init__(
        self, align_guidance_updates: int = 8000, guidance_updates: int = 2, head_time: float | None = None, **kwargs
    ):
        # head_time is None until the networks are built
        super().__init__(guidance_updates=guidance_updates, head_time=head_time, **kwargs)  # type: ignore[arg-type]
        if self.initialise != "both":
            raise ValueError("model.initialise is for CSDDistill; here both networks are those of stage 2")
        self.align_guidance_updates = align_guidance_updates
        self.align_iterations = math.ceil(align_guidance_updates / guidance_updates)
        self.save_settings(PerformanceAlign)

    def updates(self) -> list[Update]:
        guidance, generator = super().updates()
        return [guidance, replace(generator, start=self.align_iterations)]

    def build(self, source: dict[str, Any]) -> None:
        super().build(source)
        if self.head_time is None:
            self.head_time = source["head_time"]

    def load(self, source: Artifact) -> None:
        source.load_into(self.generator, "generator")  # the EMA of stage 2
        source.load_into(self.guidance, "guidance")
        self.ema.load_state_dict(self.generator.state_dict())
