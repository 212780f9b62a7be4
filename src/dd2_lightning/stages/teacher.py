"""Training a small teacher from pictures: tokenizer first, then the autoregressive transformer."""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dd2_lightning.data.batch import Batch
from dd2_lightning.families.registry import AnySampling, teacher_from_config
from dd2_lightning.layout import Layout
from dd2_lightning.models.codebook_teacher import CodebookTeacher
from dd2_lightning.sampling import Sampling
from dd2_lightning.stages.base import Stage
from dd2_lightning.stages.schedule import OptimizerSettings, ema_rate, update_ema


def cross_entropy(model: CodebookTeacher, read: Tensor, labels: Tensor, target: Tensor) -> Tensor:
    """Of every token, (b, n).

    Args:
        model: whose prediction it is.
        read: what its backbone reads, see :meth:`CodebookTeacher.prepare`.
        labels: (b,), the null label included.
        target: indices (b, n) or probabilities (b, n, V).
    """
    target = target.transpose(1, 2) if target.is_floating_point() else target.long()
    return F.cross_entropy(model.predict(read, labels).transpose(1, 2), target, reduction="none")


def drop_labels(model: CodebookTeacher, batch: Batch, share: float) -> Tensor:
    """The batch's labels (b,), some replaced by the null label of classifier-free guidance."""
    dropped = batch.rand("label dropout", shape=()) < share
    return torch.where(dropped, model.num_classes, batch.labels)


def swapped(indices: Tensor, codes: int, batch: Batch, share: float) -> Tensor:
    """Indices (b, n), some replaced by random ones of all ``codes``."""
    if not share:
        return indices
    n = indices.shape[1]
    drawn = (codes * batch.rand("swapped codes", shape=(n,))).long()
    return torch.where(batch.rand("swaps", shape=(n,)) < share, drawn, indices)


def with_noise(read: Tensor, batch: Batch, std: float) -> Tensor:
    """Embeddings (b, n, C) with Gaussian noise; indices as they are."""
    if not read.is_floating_point():
        return read
    return read + std * batch.randn("input noise", shape=read.shape[1:])


class TeacherTraining(Stage):
    """Train a teacher of any family on labelled pictures.

    Args:
        family: name of the family.
        architecture: its sizes, see the family's config class.
        tokenizer_iterations: iterations of the tokenizer; the transformer takes the rest of the run.
        reconstruction_weight: weight of the pixels' error against the codebook's in the tokenizer's loss.
        commitment_weight: weight of what the encoder is charged for its distance from the codes.
        codebook_rms: root mean square of the codebook's entries, set (without changing a picture) when the tokenizer
            is done. Noise has 1.
        label_dropout: share of samples that learn the null label of classifier-free guidance.
        input_noise: standard deviation of noise on the embeddings that the transformer reads; a student will hand
            it tokens that are not quite codes. A teacher that reads indices takes no noise.
        input_swaps: share of the tokens that the transformer reads that are replaced by random codes; keeps a
            transformer from learning a few pictures by heart.
        tokenizer_optimizer: Adam of the tokenizer.
        transformer_optimizer: Adam of the transformer.
        ema_limit: largest rate of the transformer's EMA, which is what is kept.
        sampling: for the sample grid.
        accumulate: micro-batches an update of the transformer is split into; those of the tokenizer, which counts
            its dead codes in a whole batch, are not.

    Raises:
        ValueError: for an unknown family or sizes that it refuses.
    """

    name = "teacher"

    def __init__(
        self,
        family: str,
        architecture: dict[str, Any],
        tokenizer_iterations: int = 1000,
        reconstruction_weight: float = 1.0,
        commitment_weight: float = 0.25,
        codebook_rms: float = 1.0,
        label_dropout: float = 0.1,
        input_noise: float = 0.0,
        input_swaps: float = 0.0,
        tokenizer_optimizer: OptimizerSettings = OptimizerSettings(),
        transformer_optimizer: OptimizerSettings = OptimizerSettings(),
        ema_limit: float = 0.99,
        sampling: AnySampling = Sampling(),
        accumulate: int = 1,
    ):
        super().__init__()
        self.keep_settings(locals())
        self.check_at_least_one(accumulate=accumulate)
        self.model = teacher_from_config(family, architecture)
        self.ema = copy.deepcopy(self.model).requires_grad_(False)

    @property
    def layout(self) -> Layout:
        """Tokens per position."""
        return self.model.layout

    @property
    def num_classes(self) -> int:
        """Classes of the pictures."""
        return self.model.num_classes

    def configure_model(self) -> None:
        """Run the networks as wanted."""
        self.prepare_networks()

    def trained(self) -> list[nn.Module]:
        """Backbone and classifier; a tokenizer is small."""
        return [self.model.backbone, self.model.classifier]

    def replicas(self) -> list[nn.Module]:
        """The same of the EMA."""
        return [self.ema.backbone, self.ema.classifier]

    def configure_optimizers(self):
        """Adam of the tokenizer, Adam of the transformer."""
        transformer = nn.ModuleList(self.trained())
        return [
            self.settings.tokenizer_optimizer.build(self.model.tokenizer),
            self.settings.transformer_optimizer.build(transformer),
        ]

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """One iteration of the tokenizer or, after its last, of the transformer."""
        tokenizer, transformer = self.optimizers()
        boundary = self.settings.tokenizer_iterations
        if batch.iteration < boundary:
            self.tick_only(tokenizer)
            settings = self.settings.tokenizer_optimizer
            lr = settings.rate(batch.iteration, boundary)
            self.update(tokenizer, settings, lr, batch, self.tokenizer_loss, "tokenizer", parts=1)
            return
        if batch.iteration == boundary:
            self.finish_tokenizer()
        self.tick_only(transformer)
        settings, iteration = self.settings.transformer_optimizer, batch.iteration - boundary
        lr = settings.rate(iteration, self.trainer.max_steps - boundary)
        losses = self.update(transformer, settings, lr, batch, self.transformer_loss, "cross_entropy")
        self.per_position["cross_entropy"] = losses
        update_ema(self.ema, self.model, ema_rate(iteration, self.settings.ema_limit))

    def tokenizer_loss(self, batch: Batch) -> Tensor:
        """Reconstruction and commitment, (1, 1)."""
        losses = self.model.tokenizer.training_losses(
            batch.images,
            batch.stream("codes"),
            self.settings.reconstruction_weight,
            self.settings.commitment_weight,
        )
        self.record(batch, {"reconstruction": losses.reconstruction, "perplexity": losses.perplexity}, prog_bar=True)
        return losses.loss.view(1, 1)

    def finish_tokenizer(self) -> None:
        """Bring the codebook to the scale of noise and hand the tokenizer to the transformer."""
        self.model.tokenizer.rescale_codebook(self.settings.codebook_rms)
        self.model.adopt_tokenizer()
        self.ema.load_state_dict(self.model.state_dict())

    def transformer_loss(self, batch: Batch) -> Tensor:
        """Cross-entropy per token, (b, n), with some labels dropped."""
        with torch.no_grad():
            indices = self.model.encode(batch.images)
        labels = drop_labels(self.model, batch, self.settings.label_dropout)
        read = self.model.prepare(swapped(indices, len(self.model.codebook), batch, self.settings.input_swaps))
        return cross_entropy(self.model, with_noise(read, batch, self.settings.input_noise), labels, indices)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Reconstruction error and cross-entropy on held-out pictures."""
        indices = self.model.encode(batch.images)
        error = F.mse_loss(self.model.decode(indices), batch.images)
        self.log("val/reconstruction", error, batch_size=len(batch), sync_dist=True)
        if self.trainer.global_step > self.settings.tokenizer_iterations:
            losses = cross_entropy(self.ema, self.ema.prepare(indices), batch.labels, indices)
            self.log("val/cross_entropy", losses.mean(), prog_bar=True, batch_size=len(batch), sync_dist=True)

    def pictures(self, batch: Batch) -> Tensor | None:
        """Teacher samples at the random numbers of this batch, for grids; None while there is no transformer."""
        if self.trainer.global_step <= self.settings.tokenizer_iterations:
            return None
        uniforms = batch.rand("pictures", shape=(self.layout.length,))
        return self.ema.decode(self.ema.sample(batch.labels, self.settings.sampling, uniforms=uniforms))

    def artifact(self) -> tuple[dict[str, Any], dict[str, nn.Module]]:
        """The teacher with the transformer's EMA weights."""
        return {"family": self.settings.family, "architecture": self.ema.config}, {"teacher": self.ema}
