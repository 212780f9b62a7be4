"""Stage 3: performance alignment (section 4.4 of the paper)."""

import math

from dd2_lightning.artifacts import load_student
from dd2_lightning.models.student import Student
from dd2_lightning.stages.csd import CSDDistill


class PerformanceAlign(CSDDistill):
    """Align a converged stage 2: its EMA becomes the generator, guidance catches up, distillation resumes.

    The optimizers start afresh, the EMA count restarts with the resumed alternation, and there is no warm-up
    unless the optimizers ask for one. These three are ours; the paper does not say.

    Args:
        align_guidance_updates: guidance updates before the generator moves again; rounded up to whole iterations of
            ``guidance_updates``.
        guidance_updates: K of both phases.
        head_time: t_g; None is the one that the csd stage was trained with.
        kwargs: as for :class:`CSDDistill`; ``init_from`` is the directory of a finished csd stage.

    Raises:
        ValueError: as :class:`CSDDistill`, for a negative ``align_guidance_updates``, and for ``initialise``: here both
            networks are those of stage 2.
    """

    name = "align"

    def __init__(
        self,
        align_guidance_updates: int = 8000,
        guidance_updates: int = 2,
        head_time: float | None = None,
        **kwargs,
    ):
        super().__init__(guidance_updates=guidance_updates, head_time=head_time, **kwargs)
        if align_guidance_updates < 0:
            raise ValueError(f"model.align_guidance_updates must be 0 or more, got {align_guidance_updates}")
        if self.settings.initialise != "both":
            raise ValueError("model.initialise is for CSDDistill; here both networks are those of stage 2")
        self.keep_settings({**vars(self.settings), "align_guidance_updates": align_guidance_updates})
        self.align_iterations = math.ceil(align_guidance_updates / guidance_updates)

    def start(self) -> tuple[Student, Student, dict[str, int]]:
        """The EMA generator and the guidance network of stage 2."""
        csd = self.open_init("csd")
        if self.settings.head_time is None:
            self.settings.head_time = csd.config["head_time"]
        generator, guidance = (load_student(csd, self.teacher, name) for name in ("generator", "guidance"))
        return generator, guidance, csd.config["head"]

    def trains_generator(self, iteration: int) -> bool:
        """Not before the guidance network has caught up."""
        return iteration >= self.align_iterations

    def ema_count(self, iteration: int) -> int:
        """Counted from the resumed alternation."""
        return iteration - self.align_iterations
