"""Stage 1: the teacher's flow, learned by a network (section 4.3 and eq. 6 of the paper)."""

from typing import Any, Literal

from torch import Tensor, nn

from dd2_lightning.data.batch import Batch
from dd2_lightning.families.registry import AnySampling
from dd2_lightning.losses import fcs_loss, gts_loss
from dd2_lightning.models.student import build_student
from dd2_lightning.sampling import Sampling
from dd2_lightning.stages.base import DistillationStage, Update
from dd2_lightning.stages.schedule import OptimizerSettings


class ARDiffusionInit(DistillationStage):
    """Train an AR-diffusion model on teacher sequences; it initialises generator and guidance network.

    Args:
        teacher: directory of the teacher.
        loss: ``gts`` regresses on the teacher's exact velocity, ``diffusion`` on ε - q (the ablation).
        teacher_sampling: guidance and truncation of the teacher *inside the loss*.
        head_width: width of the velocity head.
        head_depth: residual blocks of the velocity head.
        head_octaves: sinusoids that the head reads its input through, see :class:`VelocityHead`; the paper has none.
        head_iterations: iterations in which only the head is trained; then the whole model is.
        draws: m, noise draws a token that share one backbone pass.
        t_min: smallest flow time that is drawn.
        t_logit_mean: None draws flow times uniformly; a number m draws the logistic function of N(m, 1).
        optimizer: Adam and its schedule, counted in iterations.
        accumulate: micro-batches an update is split into.

    Raises:
        ValueError: for ``draws`` or ``accumulate`` below 1.
    """

    name = "init"

    def __init__(
        self,
        teacher: str,
        loss: Literal["gts", "diffusion"] = "gts",
        teacher_sampling: AnySampling = Sampling(),
        head_width: int = 1024,
        head_depth: int = 4,
        head_octaves: int = 0,
        head_iterations: int = 0,
        draws: int = 4,
        t_min: float = 0.02,
        t_logit_mean: float | None = None,
        optimizer: OptimizerSettings = OptimizerSettings(),
        accumulate: int = 1,
    ):
        super().__init__()
        self.keep_settings(locals())
        self.check_at_least_one(draws=draws, accumulate=accumulate, head_width=head_width, head_depth=head_depth)

    def configure_students(self) -> None:
        """A student with the teacher's backbone and a fresh head."""
        self.student = build_student(self.teacher, **self.head_config)

    def outline_students(self, head: dict[str, int]) -> None:
        """The same; the size of the head is a setting of this stage."""
        self.configure_students()

    def updates(self, iterations: int) -> list[Update]:
        """The head alone, then everything."""
        head = min(self.settings.head_iterations, iterations)
        phases = ("head", self.student.head, head), ("whole model", self.student, iterations - head)
        return [
            Update(name, module, lambda part: self.losses(part, "init"), count)
            for name, module, count in phases
            if count
        ]

    def trained(self) -> list[nn.Module]:
        """Backbone and head."""
        return [self.student.backbone, self.student.head]

    @property
    def head_config(self) -> dict[str, int]:
        """Size of the velocity head."""
        settings = self.settings
        return {"width": settings.head_width, "depth": settings.head_depth, "octaves": settings.head_octaves}

    def configure_optimizers(self):
        """One optimizer a phase: the head alone, then everything."""
        return [self.settings.optimizer.build(module) for module in (self.student.head, self.student)]

    def losses(self, batch: Batch, *key: int | str) -> Tensor:
        """Loss per token, (b, n), at noised teacher sequences."""
        q = self.teacher.embed(batch.tokens)
        noised = self.noised(batch, q, self.settings.t_min, *key)
        flow = self.student.flow(q, batch.labels)
        if self.settings.loss == "diffusion":
            return fcs_loss(flow, noised)
        return gts_loss(flow, self.teacher_flow(q, batch.labels), noised)

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """One iteration."""
        head_only, full = self.optimizers()
        optimizer = head_only if batch.iteration < self.settings.head_iterations else full
        self.tick_only(optimizer)
        settings = self.settings.optimizer
        lr = settings.rate(batch.iteration, self.trainer.max_steps)
        losses = self.update(optimizer, settings, lr, batch, lambda part: self.losses(part, "init"), self.settings.loss)
        self.per_position[self.settings.loss] = losses

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Velocity error against the exact teacher on held-out sequences."""
        q = self.teacher.embed(batch.tokens)
        noised = self.noised(batch, q, self.settings.t_min, "validation")
        error = gts_loss(self.student.flow(q, batch.labels), self.teacher_flow(q, batch.labels), noised)
        self.log("val/gts", error.mean(), prog_bar=True, batch_size=len(batch), sync_dist=True)
        self.per_position["val_gts"] = error.mean(0)

    def artifact(self) -> tuple[dict[str, Any], dict[str, nn.Module]]:
        """The AR-diffusion model."""
        return {**self.distilled(), "head": self.head_config}, {"student": self.student}
