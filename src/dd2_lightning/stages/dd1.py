"""Distilled Decoding 1 (arXiv 2412.17153), the main baseline: learn the teacher's map from noise to codes."""

import copy
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dd2_lightning.data.batch import Batch
from dd2_lightning.errors import DD2Error
from dd2_lightning.losses import DD1Loss, dd1_loss
from dd2_lightning.metrics.perceptual import lpips_distance
from dd2_lightning.models.codebook_teacher import require_codebook
from dd2_lightning.models.dd1 import DD1Student, is_finished, joined, trajectory_point
from dd2_lightning.models.dd1_generator import DD1Generator
from dd2_lightning.sampling import Sampling
from dd2_lightning.stages.distillation import GeneratorStage
from dd2_lightning.stages.schedule import OptimizerSettings
from dd2_lightning.stages.updates import EMA, Losses, Update, watched_means


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
        super().__init__(teacher, accumulate)
        if distance == "lpips" and not lpips_weights:
            raise ValueError("model.distance is 'lpips': name the file of its weights in model.lpips_weights")
        self.second, self.split = second, split
        self.distance, self.distance_weight, self.lpips_weights = distance, distance_weight, lpips_weights
        self.optimizer, self.ema_limit = optimizer, ema_limit
        self.save_settings(DD1Distill)

    def build(self, source: dict[str, Any]) -> None:
        self.student = require_codebook(self.teacher).dd1_student()
        self.ema = copy.deepcopy(self.student).requires_grad_(False)
        try:
            self.generator(self.ema)
        except ValueError as error:
            raise DD2Error(f"model.second and model.split do not fit the teacher: {error}") from error

    def trained_networks(self) -> list[nn.Module]:
        return [self.student]

    def ema_networks(self) -> list[nn.Module]:
        return [self.ema]

    def generator(self, student: DD1Student) -> DD1Generator:
        """A one-step generator from a student."""
        return DD1Generator(student, self.teacher.tokenizer, self.split, self.second)

    def draw(self, noise: Tensor, labels: Tensor) -> Tensor:
        return self.generator(self.ema).sample(labels, noise)

    def updates(self) -> list[Update]:
        ema = EMA(self.ema, self.student, self.ema_limit)
        return [Update("student", self.student, self.student_loss, self.optimizer, ema=ema)]

    def student_loss(self, batch: Batch, k: int) -> Losses:
        """DD1's loss per token, from both points of the trajectory."""
        return watched(self.jump_loss(self.student, batch, self.times(batch)))

    def times(self, batch: Batch) -> Tensor:
        """The t of every sample, (b,): 0 and ``second`` in turn, by global sample and iteration."""
        sample = batch.start + batch.iteration + torch.arange(len(batch), device=batch.labels.device)
        return self.second * (sample % 2)

    def jump_loss(self, student: DD1Student, batch: Batch, t: int | Tensor) -> DD1Loss:
        """The loss per token, (b, n), of predicting the end of the trajectory from X_t; t one number or (b,)."""
        noise, tokens = batch.required("noise"), batch.required("tokens")
        q = self.teacher.embed(tokens)
        x = trajectory_point(self.layout, q, noise, t)
        prediction = student(x, batch.labels, t)
        end = joined(self.layout, self.teacher.codebook, x, prediction, t, self.split)
        unfinished = (~is_finished(self.layout, t, q.device)[..., 0]).expand(len(batch), -1).float()
        distance = self.sequence_distance(end, q)
        return dd1_loss(prediction.logits, tokens, unfinished, distance, self.distance_weight)

    def sequence_distance(self, end: Tensor, q: Tensor) -> Tensor:
        """The distance d of two sequences (b, n, C): (b, n) of tokens, (b, 1) of images."""
        if self.distance == "mse":
            return (end - q).square().sum(-1)
        if not hasattr(self, "_lpips"):
            assert self.lpips_weights is not None
            self._lpips = lpips_distance(self.lpips_weights)
        return self._lpips(self.teacher.decode(end), self.teacher.decode(q))[:, None]

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        for t in (0, self.second):
            jump = self.jump_loss(self.ema, batch, t)
            means = watched_means([watched(jump)])
            self.watch_held_out(batch, {f"val_{t}_{name}": mean for name, mean in means.items()})
            for name, value in (("cross_entropy", jump.cross_entropy), ("accuracy", jump.hit)):
                mean = value.sum() / jump.unfinished.sum()
                self.log(f"val/{name}_from_{t}", mean, prog_bar=t == 0, batch_size=len(batch), sync_dist=True)
        self.log_likelihood(batch, self.draw(batch.required("noise"), batch.labels), self.image_sampling)

    @cached_property
    def image_sampling(self) -> Sampling:
        return self.trainer.datamodule.sampling  # type: ignore[attr-defined]

    def artifact(self) -> tuple[dict[str, Any], dict[str, nn.Module]]:
        config = {**self.provenance(), "split": self.split, "second": self.second}
        return config, {"generator": self.ema, "generator_raw": self.student}


def watched(jump: DD1Loss) -> Losses:
    """The loss, with cross-entropy and accuracy of every token where it is noise."""
    watch = {"cross_entropy": jump.cross_entropy, "accuracy": jump.hit}
    return Losses(jump.loss, watch, weight=jump.unfinished, progress=("accuracy",))
