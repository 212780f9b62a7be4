"""Stage 0: a teacher that reads indices learns to read embeddings (DD2, arXiv 2510.21003, section on LlamaGen)."""

import copy
import warnings
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from dd2_lightning.artifacts import teacher_reference
from dd2_lightning.data.batch import Batch
from dd2_lightning.families.registry import AnySampling, family_of
from dd2_lightning.models.codebook_teacher import CodebookTeacher
from dd2_lightning.sampling import Sampling
from dd2_lightning.stages.distillation import DistillationStage
from dd2_lightning.stages.schedule import OptimizerSettings
from dd2_lightning.stages.teacher import cross_entropy, drop_labels, sample_images, with_noise
from dd2_lightning.stages.updates import EMA, Losses, Update

TOLERANCE = 0.005  # what the adapted teacher's cross-entropy may exceed the original's by


class ContinuousInput(DistillationStage):
    r"""Replace the embedding table of a teacher's input by an MLP over codebook vectors, and lose nothing by it.

    First :math:`\sum_j \|\mathrm{mlp}(c_j) - \mathrm{emb}(j)\|^2` is minimised over the MLP, then the autoregressive
    cross-entropy over the whole transformer. The stage makes a teacher like the original, for all later
    stages. Sequences are those of the data module: sampled from the original teacher (unguided, so that the adapted
    one is drawn to the same distribution), or images through its tokenizer.

    Args:
        teacher: directory of the original teacher.
        input_iterations: iterations of the MLP alone; the whole transformer takes the rest of the run.
        targets: of the cross-entropy: the ``codes`` of the sequence (the paper's), or the ``teacher``'s own
            probabilities of them, whose expected gradient on teacher sequences is the same with less noise.
        label_dropout: share of samples with the null label of classifier-free guidance.
        input_noise: standard deviation of noise on the embeddings that the transformer reads; a student will hand
            it tokens that are not quite codes.
        input_optimizer: Adam of the MLP.
        optimizer: Adam of the whole transformer.
        ema_limit: largest rate of the EMA, which is what is kept.
        sampling: for the sample grid.
        accumulate: micro-batches an update is split into.
    """

    name = "adapt"
    artifact_kind = "teacher"

    def __init__(
        self,
        teacher: str,
        input_iterations: int = 5000,
        targets: Literal["codes", "teacher"] = "codes",
        label_dropout: float = 0.1,
        input_noise: float = 0.0,
        input_optimizer: OptimizerSettings = OptimizerSettings(),
        optimizer: OptimizerSettings = OptimizerSettings(),
        ema_limit: float = 0.999,
        sampling: AnySampling = Sampling(),
        accumulate: int = 1,
    ):
        super().__init__(teacher, accumulate)
        self.input_iterations, self.targets = input_iterations, targets
        self.label_dropout, self.input_noise = label_dropout, input_noise
        self.input_optimizer, self.optimizer = input_optimizer, optimizer
        self.ema_limit, self.sampling = ema_limit, sampling
        self.ratio: float | None = None
        self.save_settings(ContinuousInput)

    def build(self, source: dict[str, Any]) -> None:
        self.model = self.teacher.continuous()
        self.model.tokenizer.requires_grad_(False)
        self.ema = copy.deepcopy(self.model).requires_grad_(False)

    def trained_networks(self) -> list[nn.Module]:
        return [self.model.backbone, self.model.classifier]

    def ema_networks(self) -> list[nn.Module]:
        return [self.ema.backbone, self.ema.classifier]

    def updates(self) -> list[Update]:
        boundary, transformer = self.input_iterations, nn.ModuleList(self.trained_networks())
        copied, averaged = (EMA(self.ema, self.model, limit) for limit in (0.0, self.ema_limit))
        return [
            Update("input", transformer, self.input_loss, self.input_optimizer, stop=boundary, ema=copied),
            Update(
                "transformer",
                transformer,
                self.transformer_loss,
                self.optimizer,
                start=boundary,
                ema=averaged,
                logged_as="cross_entropy",
            ),
        ]

    def input_loss(self, batch: Batch, k: int) -> Losses:
        """‖mlp(c_j) - emb(j)‖², averaged over the codes, (1, 1); it does not depend on the batch."""
        return Losses(self.input_error(self.model).view(1, 1))

    def input_error(self, model: CodebookTeacher) -> Tensor:
        """Mean of a model's ``input_error``, (), see :meth:`Teacher.continuous`."""
        return cast(Any, model).input_error(self.teacher).mean()

    def indices(self, batch: Batch) -> Tensor:
        """The batch's sequences, or its images as sequences, (b, n)."""
        if batch.tokens is None and batch.images is not None:
            return self.teacher.encode(batch.images)
        return batch.required("tokens")

    def transformer_loss(self, batch: Batch, k: int) -> Losses:
        target = indices = self.indices(batch)
        labels = drop_labels(self.model, batch, self.label_dropout)
        if self.targets == "teacher":
            with torch.no_grad():
                target = self.teacher.predict(self.teacher.prepare(indices), labels).softmax(-1)
        read = with_noise(self.model.prepare(indices), batch, self.input_noise)
        losses = cross_entropy(self.model, read, labels, target)
        return Losses(losses, {"cross_entropy": losses})

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        indices = self.indices(batch)
        for name, model in (("original", self.teacher), ("adapted", self.ema)):
            losses = cross_entropy(model, model.prepare(indices), batch.labels, indices)
            self.log(f"val/cross_entropy_{name}", losses.mean(), batch_size=len(batch), sync_dist=True)
            self.watch_held_out(batch, {f"val_cross_entropy_{name}": losses.mean(0)})
        self.log("val/input", self.input_error(self.ema), batch_size=len(batch), sync_dist=True)

    def on_validation_epoch_end(self) -> None:
        original, adapted = (self.per_position[f"val_cross_entropy_{name}"].mean() for name in ("original", "adapted"))
        self.ratio = (adapted / original).item()
        self.log("val/ratio", self.ratio, prog_bar=True, sync_dist=True)

    on_test_epoch_end = on_validation_epoch_end

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["ratio"] = self.ratio  # for the artifact, which does not depend on interruptions

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.ratio = checkpoint["ratio"]

    def draw_images(self, batch: Batch) -> Tensor | None:
        return sample_images(self.ema, batch, self.sampling) if self.teacher.tokenizer.has_images else None

    def draw_teacher_images(self, batch: Batch) -> Tensor | None:
        return sample_images(self.teacher, batch, self.sampling) if self.teacher.tokenizer.has_images else None

    def artifact(self) -> tuple[dict[str, Any], dict[str, nn.Module]]:
        if self.ratio is not None and self.ratio > 1 + TOLERANCE:
            warnings.warn(
                f"the adapted teacher's cross-entropy is {self.ratio:.4f} times the original's, "
                f"{1 + TOLERANCE} is the goal: train it for more iterations",
                stacklevel=2,
            )
        original = self.open_teacher()
        config = {
            "family": family_of(self.teacher),
            "architecture": self.ema.config,
            "original": teacher_reference(original, self.trainer.default_root_dir),
            "cross_entropy_ratio": self.ratio,
            **{key: original.config[key] for key in ("data",) if key in original.config},
        }
        return config, {"teacher": self.ema}
