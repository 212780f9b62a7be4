"""Distilled Decoding 1 (arXiv 2412.17153), the main baseline: learn the teacher's map from noise to codes."""

import copy
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dd2_lightning.data.batch import Batch
from dd2_lightning.errors import DD2Error
from dd2_lightning.losses import DD1Loss, dd1_loss
from dd2_lightning.models.codebook_teacher import require_codebook
from dd2_lightning.models.dd1 import DD1Student, is_finished, joined, trajectory_point
from dd2_lightning.models.dd1_generator import DD1Generator
from dd2_lightning.models.perceptual import lpips_distance
from dd2_lightning.stages.base import Update
from dd2_lightning.stages.generator import GeneratorStage
from dd2_lightning.stages.schedule import OptimizerSettings, ema_rate, update_ema


class DD1Distill(GeneratorStage):
    """Distil the teacher into a student that jumps from any of two points of the trajectory to its end.

    From X_t (q at the first t positions, the original noise at the others) it predicts all that is still noise: the
    index of every code by cross-entropy, and a continuous token by the distance d of the joined sequence, which has
    codebook vectors before ``split`` and continuous tokens from there on. t is 0 in one half of a batch and ``second``
    in the other. Its data are pairs, ``PairData``, whose sampling settings are the teacher's.

    Published are ``second``, ``split``, the two heads and that there is an EMA; d = LPIPS is inferred from the public
    code. No training code and no settings were published: λ, Adam, its rates, the EMA's rate, batch, iterations, the
    number of pairs, their solver and the distribution of t are **ours**.

    Args:
        teacher: directory of the teacher.
        second: the larger t, in positions; 0 is the other one.
        split: how many positions come out as codes.
        distance: d, ``mse`` of tokens (summed over channels) or ``lpips`` of the decoded sequences.
        distance_weight: λ.
        lpips_weights: file with the weights of LPIPS, see :func:`lpips_distance`.
        optimizer: Adam and its schedule, counted in iterations.
        ema_limit: largest EMA rate; the rate after i iterations is min(limit, (i+1)/(i+10)).
        accumulate: micro-batches an update is split into.

    Raises:
        ValueError: for ``accumulate`` below 1, a negative ``distance_weight``, or ``lpips`` without its weights.
    """

    name = "dd1"
    learns_from_pairs = True

    def __init__(
        self,
        teacher: str,
        second: int,
        split: int,
        distance: Literal["mse", "lpips"] = "mse",
        distance_weight: float = 1.0,
        lpips_weights: str | None = None,
        optimizer: OptimizerSettings = OptimizerSettings(),
        ema_limit: float = 0.9999,
        accumulate: int = 1,
    ):
        super().__init__()
        self.keep_settings(locals())
        self.check_at_least_one(accumulate=accumulate)
        if distance_weight < 0:
            raise ValueError(f"model.distance_weight must be 0 or more, got {distance_weight}")
        if distance == "lpips" and not lpips_weights:
            raise ValueError("model.distance is 'lpips': name the file of its weights in model.lpips_weights")

    # --- networks ------------------------------------------------------------------------------------------------

    def configure_students(self) -> None:
        """The student, from the teacher's weights, and its EMA."""
        self.student = require_codebook(self.teacher).dd1_student()
        self.ema = copy.deepcopy(self.student).requires_grad_(False)
        try:
            self.generator(self.ema)
        except ValueError as error:
            raise DD2Error(f"model.second and model.split do not fit the teacher: {error}") from error

    def outline_students(self, head: dict[str, int]) -> None:
        """The same; there is no velocity head."""
        self.configure_students()

    def trained(self) -> list[nn.Module]:
        """The student."""
        return [self.student]

    def replicas(self) -> list[nn.Module]:
        """The EMA."""
        return [self.ema]

    def configure_optimizers(self):
        """Adam of the student."""
        return self.settings.optimizer.build(self.student)

    def generator(self, student: DD1Student) -> DD1Generator:
        """A student with what sampling needs."""
        return DD1Generator(student, self.teacher.tokenizer, self.settings.split, self.settings.second)

    def draw(self, noise: Tensor, labels: Tensor) -> Tensor:
        """See :meth:`GeneratorStage.draw`."""
        return self.generator(self.ema).sample(labels, noise)

    def updates(self, iterations: int) -> list[Update]:
        """All of the student, in every iteration."""
        return [Update("student", self.student, lambda part: self.student_loss(part).loss, iterations)]

    # --- losses --------------------------------------------------------------------------------------------------

    def times(self, batch: Batch) -> Tensor:
        """The t of every sample, (b,): 0 and ``second`` in turn, by global sample and iteration."""
        sample = batch.start + batch.iteration + torch.arange(len(batch), device=batch.labels.device)
        return self.settings.second * (sample % 2)

    def jump_loss(self, student: DD1Student, batch: Batch, t: int | Tensor) -> DD1Loss:
        """The loss per token, (b, n), of predicting the end of the trajectory from X_t; t one number or (b,).

        Raises:
            DD2Error: for data without noise.
        """
        if batch.noise is None:
            raise DD2Error("DD1Distill learns from pairs of noise and sequence: set data.class_path to PairData")
        q = self.teacher.embed(batch.tokens)
        x = trajectory_point(self.layout, q, batch.noise, t)
        prediction = student(x, batch.labels, t)
        end = joined(self.layout, self.teacher.codebook, x, prediction, t, self.settings.split)
        unfinished = (~is_finished(self.layout, t, q.device)[..., 0]).expand(len(batch), -1).float()
        return dd1_loss(
            prediction.logits, batch.tokens, unfinished, self.distance(end, q), self.settings.distance_weight
        )

    def student_loss(self, batch: Batch) -> DD1Loss:
        """What an iteration minimises."""
        return self.jump_loss(self.student, batch, self.times(batch))

    def distance(self, end: Tensor, q: Tensor) -> Tensor:
        """The distance d of two sequences (b, n, C): (b, n) of tokens, (b, 1) of pictures."""
        if self.settings.distance == "mse":
            return (end - q).square().sum(-1)
        if not hasattr(self, "_lpips"):
            self._lpips = lpips_distance(self.settings.lpips_weights, q.device)
        return self._lpips(self.teacher.decode(end), self.teacher.decode(q))[:, None]

    # --- steps ---------------------------------------------------------------------------------------------------

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """One iteration, and one EMA update."""
        settings, jumps = self.settings.optimizer, []

        def loss(part: Batch) -> Tensor:
            jumps.append(self.student_loss(part))
            return jumps[-1].loss

        lr = settings.rate(batch.iteration, self.trainer.max_steps)
        self.update(self.optimizers(), settings, lr, batch, loss, "student")
        rate = ema_rate(batch.iteration, self.settings.ema_limit)
        update_ema(self.ema, self.student, rate)
        self.note(jumps, "")
        self.record(batch, {"accuracy": self.per_position["accuracy"].mean()}, prog_bar=True)
        self.record(batch, {"ema_rate": rate})

    def note(self, jumps: list[DD1Loss], prefix: str) -> None:
        """Cross-entropy and accuracy of every token, where it was noise."""
        number = sum(jump.unfinished.sum(0) for jump in jumps).clamp(min=1)
        for name, of in (("cross_entropy", "cross_entropy"), ("accuracy", "hit")):
            self.per_position[prefix + name] = sum(getattr(jump, of).sum(0) for jump in jumps) / number

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Cross-entropy and accuracy of the EMA on held-out pairs, from both t; likelihood of its one-step samples."""
        for t in (0, self.settings.second):
            jump = self.jump_loss(self.ema, batch, t)
            self.note([jump], f"val_{t}_")
            for name, value in (("cross_entropy", jump.cross_entropy), ("accuracy", jump.hit)):
                mean = value.sum() / jump.unfinished.sum()
                self.log(f"val/{name}_from_{t}", mean, prog_bar=t == 0, batch_size=len(batch), sync_dist=True)
        self.log_likelihood(batch, self.draw(batch.noise, batch.labels), self.trainer.datamodule.sampling)

    def artifact(self) -> tuple[dict[str, Any], dict[str, nn.Module]]:
        """Student (EMA and raw)."""
        config = {**self.distilled(), "split": self.settings.split, "second": self.settings.second}
        return config, {"generator": self.ema, "generator_raw": self.student}
