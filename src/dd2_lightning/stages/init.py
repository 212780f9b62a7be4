"""Stage 1: train an AR-diffusion model on the teacher's flow (section 4.3 and eq. 6 of the paper)."""

from functools import partial
from typing import Any, Literal

from torch import Tensor, nn

from dd2_lightning.data.batch import Batch
from dd2_lightning.families.registry import AnySampling
from dd2_lightning.losses import fcs_loss, gts_loss
from dd2_lightning.models.student import build_student
from dd2_lightning.models.walk import integrate_walk
from dd2_lightning.sampling import Sampling
from dd2_lightning.stages.distillation import DistillationStage
from dd2_lightning.stages.schedule import OptimizerSettings
from dd2_lightning.stages.updates import Losses, Update


class ARDiffusionInit(DistillationStage):
    """Train an AR-diffusion model on teacher sequences; it initialises generator and guidance network.

    Args:
        teacher: directory of the teacher.
        loss: ``gts`` regresses on the teacher's exact velocity, ``diffusion`` on ε - q (the ablation).
        teacher_sampling: guidance and truncation of the teacher *inside the loss*.
        head_width: width of the velocity head.
        head_depth: residual blocks of the velocity head.
        head_frequencies: Fourier features of the head's input, see :class:`VelocityHead`; the paper has none.
        head_iterations: iterations in which only the head is trained; then the whole model is.
        draws: m, noise draws a token that share one backbone pass.
        t_min: smallest flow time that is drawn.
        t_logit_mean: None draws flow times uniformly; a number m draws the logistic function of N(m, 1).
        optimizer: Adam and its schedule, counted in iterations.
        accumulate: micro-batches an update is split into.
    """

    name = "init"

    def __init__(
        self,
        teacher: str,
        loss: Literal["gts", "diffusion"] = "gts",
        teacher_sampling: AnySampling = Sampling(),
        head_width: int = 1024,
        head_depth: int = 4,
        head_frequencies: int = 0,
        head_iterations: int = 0,
        draws: int = 4,
        t_min: float = 0.02,
        t_logit_mean: float | None = None,
        optimizer: OptimizerSettings = OptimizerSettings(),
        accumulate: int = 1,
    ):
        super().__init__(teacher, accumulate)
        self.loss, self.teacher_sampling, self.optimizer = loss, teacher_sampling, optimizer
        self.head_width, self.head_depth, self.head_frequencies = head_width, head_depth, head_frequencies
        self.head_iterations = head_iterations
        self.draws, self.t_min, self.t_logit_mean = draws, t_min, t_logit_mean
        self.save_settings(ARDiffusionInit)

    @property
    def head_config(self) -> dict[str, int]:
        return {"width": self.head_width, "depth": self.head_depth, "frequencies": self.head_frequencies}

    def build(self, source: dict[str, Any]) -> None:
        self.student = build_student(self.teacher, **self.head_config)

    def trained_networks(self) -> list[nn.Module]:
        return [self.student.backbone, self.student.head]

    def updates(self) -> list[Update]:
        update = partial(Update, loss=self.student_loss, optimizer=self.optimizer, clock=1, logged_as=self.loss)
        return [
            update("head", self.student.head, stop=self.head_iterations),
            update("whole model", self.student, start=self.head_iterations),
        ]

    def student_loss(self, batch: Batch, k: int) -> Losses:
        """L_GTS (or the diffusion loss) per token at noised teacher sequences."""
        losses = self.losses(batch, self.loss, "init")
        return Losses(losses, {self.loss: losses})

    def losses(self, batch: Batch, loss: str, key: str) -> Tensor:
        """Loss per token, (b, n), at teacher sequences noised with the random numbers of a key."""
        q = self.teacher.embed(batch.required("tokens"))
        noised = self.noised(batch, q, self.t_min, key)
        flow = self.student.flow(q, batch.labels)
        if loss == "diffusion":
            return fcs_loss(flow, noised)
        return gts_loss(flow, self.teacher_flow(q, batch.labels), noised)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        error = self.losses(batch, "gts", "validation")
        self.log("val/gts", error.mean(), prog_bar=True, batch_size=len(batch), sync_dist=True)
        self.watch_held_out(batch, {"val_gts": error.mean(0)})

    def draw_images(self, batch: Batch) -> Tensor | None:
        if not self.teacher.tokenizer.has_images:
            return None
        tokens = integrate_walk(self.student.walk(batch.labels), self.image_noise(batch), steps=10)
        return self.teacher.decode(tokens)

    def artifact(self) -> tuple[dict[str, Any], dict[str, nn.Module]]:
        return {**self.provenance(), "head": self.head_config}, {"student": self.student}
