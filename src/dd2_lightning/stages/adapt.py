"""Stage 0: a teacher that reads indices learns to read embeddings (DD2, arXiv 2510.21003, section on LlamaGen)."""

import copy
import warnings
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dd2_lightning.artifacts import Artifact, teacher_reference
from dd2_lightning.data.batch import Batch
from dd2_lightning.errors import DD2Error
from dd2_lightning.families.registry import AnySampling, family_of
from dd2_lightning.sampling import Sampling
from dd2_lightning.stages.base import DistillationStage, Update
from dd2_lightning.stages.schedule import OptimizerSettings, ema_rate, update_ema
from dd2_lightning.stages.teacher import cross_entropy, drop_labels, with_noise

TOLERANCE = 0.005
"""What the adapted teacher's cross-entropy may exceed the original's by."""


class ContinuousInput(DistillationStage):
    r"""Replace the embedding table of a teacher's input by an MLP over codebook vectors, and lose nothing by it.

    First :math:`\sum_j \|\mathrm{mlp}(c_j) - \mathrm{emb}(j)\|^2` is minimised over the MLP, then the autoregressive
    cross-entropy over the whole transformer. What the stage leaves is a teacher like the original, for all later
    stages. Sequences are those of the data module: sampled from the original teacher (unguided, so that the adapted
    one is drawn to the same distribution), or real pictures through its tokenizer.

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

    Raises:
        ValueError: for ``accumulate`` below 1.
    """

    name = "adapt"
    leaves = "teacher"

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
        super().__init__()
        self.keep_settings(locals())
        self.check_at_least_one(accumulate=accumulate)
        self.ratio: float | None = None

    def configure_students(self) -> None:
        """The copy that is trained, and its EMA."""
        self.model = self.teacher.continuous()
        self.model.tokenizer.requires_grad_(False)
        self.ema = copy.deepcopy(self.model).requires_grad_(False)

    def outline_students(self, head: dict[str, int]) -> None:
        """The same; there is no head."""
        self.configure_students()

    def updates(self, iterations: int) -> list[Update]:
        """The input alone, then the whole transformer."""
        first = min(self.settings.input_iterations, iterations)
        transformer = self.transformer()
        return [
            Update("input", transformer, lambda _: self.input_loss(), first),
            Update("transformer", transformer, self.transformer_loss, iterations - first),
        ]

    def transformer(self) -> nn.ModuleList:
        """What is trained: backbone and classifier."""
        return nn.ModuleList(self.trained())

    def trained(self) -> list[nn.Module]:
        """Backbone and classifier."""
        return [self.model.backbone, self.model.classifier]

    def replicas(self) -> list[nn.Module]:
        """The same of the EMA."""
        return [self.ema.backbone, self.ema.classifier]

    def configure_optimizers(self):
        """One optimizer a phase."""
        transformer = self.transformer()
        return [settings.build(transformer) for settings in (self.settings.input_optimizer, self.settings.optimizer)]

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """One iteration of the input alone or, after its last, of the whole transformer."""
        input_only, full = self.optimizers()
        boundary = self.settings.input_iterations
        if batch.iteration < boundary:
            self.tick_only(input_only)
            settings = self.settings.input_optimizer
            lr = settings.rate(batch.iteration, boundary)
            self.update(input_only, settings, lr, batch, lambda _: self.input_loss(), "input")
            update_ema(self.ema, self.model, 0.0)
            return
        self.tick_only(full)
        settings, iteration = self.settings.optimizer, batch.iteration - boundary
        lr = settings.rate(iteration, self.trainer.max_steps - boundary)
        losses = self.update(full, settings, lr, batch, self.transformer_loss, "cross_entropy")
        self.per_position["cross_entropy"] = losses
        update_ema(self.ema, self.model, ema_rate(iteration, self.settings.ema_limit))

    def input_loss(self) -> Tensor:
        """‖mlp(c_j) - emb(j)‖², averaged over the codes, (1, 1)."""
        return self.model.input_error(self.teacher).mean().view(1, 1)

    def indices(self, batch: Batch) -> Tensor:
        """The batch's sequences, (b, n).

        Raises:
            DD2Error: if it has neither sequences nor pictures.
        """
        if batch.tokens is not None:
            return batch.tokens
        if batch.images is None:
            raise DD2Error("this stage reads sequences: set data.sequences to cached or online, or give pictures")
        return self.teacher.encode(batch.images)

    def transformer_loss(self, batch: Batch) -> Tensor:
        """Cross-entropy per token, (b, n), with some labels dropped."""
        target = indices = self.indices(batch)
        labels = drop_labels(self.model, batch, self.settings.label_dropout)
        if self.settings.targets == "teacher":
            with torch.no_grad():
                target = self.teacher.predict(self.teacher.prepare(indices), labels).softmax(-1)
        read = with_noise(self.model.prepare(indices), batch, self.settings.input_noise)
        return cross_entropy(self.model, read, labels, target)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Cross-entropy of the original and of the adapted teacher on held-out sequences, and their ratio."""
        indices, means = self.indices(batch), {}
        for name, model in (("original", self.teacher), ("adapted", self.ema)):
            losses = cross_entropy(model, model.prepare(indices), batch.labels, indices)
            means[name] = losses.mean()
            self.log(f"val/cross_entropy_{name}", means[name], batch_size=len(batch), sync_dist=True)
            self.per_position[f"val_cross_entropy_{name}"] = losses.mean(0)
        self.ratio = (means["adapted"] / means["original"]).item()
        self.log("val/ratio", self.ratio, prog_bar=True, batch_size=len(batch), sync_dist=True)
        self.log("val/input", self.ema.input_error(self.teacher).mean(), batch_size=len(batch), sync_dist=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """And the last validation's ratio: what the artifact says does not depend on interruptions."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["ratio"] = self.ratio

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """And the ratio."""
        super().on_load_checkpoint(checkpoint)
        self.ratio = checkpoint["ratio"]

    def pictures(self, batch: Batch) -> Tensor | None:
        """Samples of the adapted teacher at the random numbers of this batch, for grids; None without pictures."""
        if not self.teacher.tokenizer.has_images:
            return None
        uniforms = batch.rand("pictures", shape=(self.layout.length,))
        return self.ema.decode(self.ema.sample(batch.labels, self.settings.sampling, uniforms=uniforms))

    def artifact(self) -> tuple[dict[str, Any], dict[str, nn.Module]]:
        """The adapted teacher, with its cross-entropy relative to the original's at the last validation."""
        if self.ratio is not None and self.ratio > 1 + TOLERANCE:
            warnings.warn(
                f"the adapted teacher's cross-entropy is {self.ratio:.4f} times the original's, "
                f"{1 + TOLERANCE} is the goal: train it for more iterations",
                stacklevel=2,
            )
        original = Artifact.open(self.settings.teacher, ("teacher",), "model.teacher")
        config = {
            "family": family_of(self.teacher),
            "architecture": self.ema.config,
            "original": teacher_reference(original, self.trainer.default_root_dir),
            "cross_entropy_ratio": self.ratio,
        }
        return config, {"teacher": self.ema}
