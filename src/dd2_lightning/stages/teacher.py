"""Train a small teacher from images: the tokenizer first, then the autoregressive transformer."""

import copy
from dataclasses import replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dd2_lightning.callbacks.logs import last_iteration, writer_of
from dd2_lightning.data.batch import Batch
from dd2_lightning.data.named import describe_images
from dd2_lightning.families.registry import FAMILIES, AnySampling, teacher_from_config
from dd2_lightning.images.files import mosaic
from dd2_lightning.layout import Layout
from dd2_lightning.metrics.perceptual import lpips_distance
from dd2_lightning.models.codebook import perplexity, spacing
from dd2_lightning.models.codebook_teacher import CodebookTeacher, require_codebook
from dd2_lightning.models.discriminator import PatchDiscriminator, hinge_loss
from dd2_lightning.models.tokenizer import VQTokenizer
from dd2_lightning.sampling import Sampling
from dd2_lightning.stages.base import Stage
from dd2_lightning.stages.schedule import OptimizerSettings
from dd2_lightning.stages.tokenizer import DiscriminatorSettings, adaptive_weight
from dd2_lightning.stages.updates import EMA, Losses, Update

SHOWN = 10  # images whose reconstructions are logged, below them


def cross_entropy(model: CodebookTeacher, read: Tensor, labels: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of every token, (b, n), with indices (b, n) or probabilities (b, n, V) as the target.

    The backbone's input ``read`` is that of :meth:`CodebookTeacher.prepare`; labels (b,) may be the null label.
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


def sample_images(model: CodebookTeacher, batch: Batch, sampling: Sampling) -> Tensor:
    """Images (b, channels, H, W) of a teacher for a batch's labels, from its random numbers."""
    uniforms = batch.rand("pictures", shape=(model.layout.length,))
    return model.decode(model.sample(batch.labels, sampling, uniforms=uniforms))


def check_images(model: CodebookTeacher, num_classes: int, image_shape: tuple[int, int, int]) -> None:
    """Refuse a teacher of other images than those of the data."""
    if model.num_classes != num_classes:
        raise ValueError(f"model.architecture.num_classes is {model.num_classes}, that of the data {num_classes}")
    expected = getattr(model.tokenizer, "image_shape", image_shape)
    if tuple(expected) != tuple(image_shape):
        ours, theirs = ("x".join(map(str, shape)) for shape in (expected, image_shape))
        raise ValueError(
            f"model.architecture is for images {ours} (channels, height, width), the data has {theirs}: the side is "
            f"that of the largest map of tokens times 2 for every level of ch_mult after the first"
        )


def describe_codes(codebook: Tensor) -> str:
    """The scale of a codebook (V, C) and how far its codes lie from each other, in words."""
    apart = spacing(codebook.float())
    low, middle, high = apart.quantile(torch.tensor([0.05, 0.5, 0.95], device=apart.device)).tolist()
    rms = codebook.float().square().mean().sqrt().item()
    return (
        f"{len(codebook):,} codes of {codebook.shape[1]} numbers, rms {rms:.2f} (noise: 1); the nearest other code is "
        f"{middle:.2f} away ({low:.2f} to {high:.2f} for 9 in 10), "
        f"as far as noise reaches at t = {middle / (middle + 2):.2f}"
    )


class TeacherTraining(Stage):
    """Train a teacher of any family on labelled images.

    Args:
        family: name of the family.
        architecture: its sizes, see the family's config class.
        tokenizer_iterations: iterations of the tokenizer; the transformer takes the rest of the run.
        reconstruction_weight: weight of the pixels' error against the codebook's in the tokenizer's loss.
        commitment_weight: weight of what the encoder is charged for its distance from the codes.
        perceptual_weight: weight of LPIPS, how far reconstructions look from images, in the tokenizer's loss.
        lpips_weights: file with the weights of LPIPS, see :func:`lpips_distance`.
        discriminator: a discriminator that the tokenizer is trained against; None is without.
        tokenizer_batch_size: images of a batch that the tokenizer learns from; None is all. It divides
            ``data.batch_size``, which is the transformer's.
        codebook_rms: root mean square of the codebook's entries, set (without changing an image) when the tokenizer
            is done. Noise has 1.
        label_dropout: share of samples that learn the null label of classifier-free guidance.
        input_noise: standard deviation of noise on the embeddings that the transformer reads; a student will hand
            it tokens that are not quite codes. A teacher that reads indices takes no noise.
        input_swaps: share of the tokens that the transformer reads that are replaced by random codes; keeps a
            transformer from learning a few images by heart.
        tokenizer_optimizer: Adam of the tokenizer.
        transformer_optimizer: Adam of the transformer.
        ema_limit: largest rate of the transformer's EMA, which is what is kept.
        sampling: for the sample grid.
        accumulate: micro-batches an update of the transformer is split into; those of the tokenizer, which counts
            its dead codes in all of a batch, are not.
        images: ``num_classes`` and ``image_shape`` of the data. They give a published family's architecture its
            ``num_classes`` and ``image_channels``, unless it has them. The command line takes them from the data.
    """

    name = "teacher"

    def __init__(
        self,
        family: str,
        architecture: dict[str, Any],
        tokenizer_iterations: int = 1000,
        reconstruction_weight: float = 1.0,
        commitment_weight: float = 0.25,
        perceptual_weight: float = 0.0,
        lpips_weights: str | None = None,
        discriminator: DiscriminatorSettings | None = None,
        tokenizer_batch_size: int | None = None,
        codebook_rms: float = 1.0,
        label_dropout: float = 0.1,
        input_noise: float = 0.0,
        input_swaps: float = 0.0,
        tokenizer_optimizer: OptimizerSettings = OptimizerSettings(),
        transformer_optimizer: OptimizerSettings = OptimizerSettings(),
        ema_limit: float = 0.99,
        sampling: AnySampling = Sampling(),
        accumulate: int = 1,
        images: dict[str, Any] | None = None,
    ):
        super().__init__(accumulate)
        if images and family in FAMILIES:
            found = {"num_classes": images["num_classes"], "image_channels": images["image_shape"][0]}
            architecture = {**found, **architecture}
        self.family, self.architecture, self.images = family, architecture, images
        self.tokenizer_iterations = tokenizer_iterations
        self.reconstruction_weight, self.commitment_weight = reconstruction_weight, commitment_weight
        self.perceptual_weight, self.lpips_weights, self.discriminator = perceptual_weight, lpips_weights, discriminator
        if perceptual_weight and not lpips_weights:
            raise ValueError("model.perceptual_weight is LPIPS's: name the file of its weights in model.lpips_weights")
        self.perceptual_distance = lpips_distance(lpips_weights) if perceptual_weight and lpips_weights else None
        self.tokenizer_batch_size, self.codebook_rms = tokenizer_batch_size, codebook_rms
        self.label_dropout, self.input_noise, self.input_swaps = label_dropout, input_noise, input_swaps
        self.tokenizer_optimizer, self.transformer_optimizer = tokenizer_optimizer, transformer_optimizer
        self.ema_limit, self.sampling = ema_limit, sampling
        self.save_settings(TeacherTraining)
        self.model = require_codebook(teacher_from_config(family, architecture))
        if images:
            check_images(self.model, **images)
        self.critic: PatchDiscriminator | None = None
        if discriminator is not None:
            channels, side, _ = cast(VQTokenizer, self.model.tokenizer).image_shape
            self.critic = PatchDiscriminator(channels, side, discriminator.width, discriminator.layers)
        self.ema = copy.deepcopy(self.model).requires_grad_(False)

    @property
    def layout(self) -> Layout:
        return self.model.layout

    @property
    def num_classes(self) -> int:
        return self.model.num_classes

    def configure_model(self) -> None:
        self.prepare_networks()

    def trained_networks(self) -> list[nn.Module]:
        return [self.model.backbone, self.model.classifier]  # a tokenizer is small

    def ema_networks(self) -> list[nn.Module]:
        return [self.ema.backbone, self.ema.classifier]

    def updates(self) -> list[Update]:
        boundary = self.tokenizer_iterations
        tokenizer = Update(
            "tokenizer",
            self.model.tokenizer,
            self.tokenizer_loss,
            self.tokenizer_optimizer,
            stop=boundary,
            accumulate=False,
            batch_size=self.tokenizer_batch_size,
        )
        transformer = Update(
            "transformer",
            nn.ModuleList(self.trained_networks()),
            self.transformer_loss,
            self.transformer_optimizer,
            start=boundary,
            ema=EMA(self.ema, self.model, self.ema_limit),
            logged_as="cross_entropy",
            begin=self.finish_tokenizer,
        )
        if self.discriminator is None or self.critic is None:
            return [tokenizer, transformer]
        critic = replace(
            tokenizer,
            name="discriminator",
            network=self.critic,
            loss=self.discriminator_loss,
            optimizer=self.discriminator.optimizer,
            start=self.discriminator.start,
        )
        return [tokenizer, critic, transformer]

    def tokenizer_loss(self, batch: Batch, k: int) -> Losses:
        """Reconstruction, codebook, commitment and, where they are on, the perceptual and adversarial terms, (1, 1)."""
        tokenizer, images = cast(VQTokenizer, self.model.tokenizer), batch.required("images")
        losses = tokenizer.training_losses(
            images, batch.stream("codes"), self.reconstruction_weight, self.commitment_weight
        )
        loss, watch = losses.loss, {"reconstruction": losses.reconstruction, "perplexity": losses.perplexity}
        if self.perceptual_distance is not None:
            watch["perceptual"] = self.perceptual_distance((losses.pixels + 1) / 2, images).mean()
            loss = loss + self.perceptual_weight * watch["perceptual"]
        if self.discriminator is not None and self.critic is not None and batch.iteration >= self.discriminator.start:
            adversarial = -self.critic(losses.pixels).mean()
            last = tokenizer.decoder.get_parameter("conv_out.weight")
            ratio = adaptive_weight(loss, adversarial, last, self.trainer.strategy.reduce)
            loss = loss + self.discriminator.weight * ratio * adversarial
            watch |= {"adversarial": adversarial, "adversarial_weight": ratio}
        return Losses(loss.view(1, 1), watch, progress=tuple(watch))

    def discriminator_loss(self, batch: Batch, k: int) -> Losses:
        """How badly images and reconstructions are told from each other, (1, 1)."""
        images = batch.required("images")
        with torch.no_grad():
            drawn = cast(VQTokenizer, self.model.tokenizer).training_losses(images).pixels
        assert self.critic is not None
        return Losses(hinge_loss(self.critic(2 * images - 1), self.critic(drawn)).view(1, 1))

    def finish_tokenizer(self) -> None:
        """Bring the codebook to the scale of noise and hand the tokenizer to the transformer."""
        self.model.tokenizer.rescale_codebook(self.codebook_rms)
        self.model.adopt_tokenizer()
        self.ema.load_state_dict(self.model.state_dict())

    def transformer_loss(self, batch: Batch, k: int) -> Losses:
        """Cross-entropy per token, with some labels dropped."""
        with torch.no_grad():
            indices = self.model.encode(batch.required("images"))
        labels = drop_labels(self.model, batch, self.label_dropout)
        read = self.model.prepare(swapped(indices, len(self.model.codebook), batch, self.input_swaps))
        losses = cross_entropy(self.model, with_noise(read, batch, self.input_noise), labels, indices)
        return Losses(losses, {"cross_entropy": losses})

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        images = batch.required("images")
        indices = self.model.encode(images)
        decoded = self.model.decode(indices)
        used = perplexity(torch.bincount(indices.flatten(), minlength=len(self.model.codebook)))
        measured = {"val/reconstruction": F.mse_loss(decoded, images), "val/perplexity": used}
        self.log_dict(measured, batch_size=len(batch), sync_dist=True)
        if batch_idx == 0 and not self.trainer.sanity_checking and (writer := writer_of(self.trainer)) is not None:
            pairs = torch.cat([images[:SHOWN], decoded[:SHOWN]])
            writer.add_image("reconstructions", mosaic(pairs, len(pairs) // 2), last_iteration(self.trainer))
        if self.trainer.global_step > self.tokenizer_iterations:
            losses = cross_entropy(self.ema, self.ema.prepare(indices), batch.labels, indices)
            self.log("val/cross_entropy", losses.mean(), prog_bar=True, batch_size=len(batch), sync_dist=True)

    def on_train_end(self) -> None:
        """Say how the codes lie, which is what a student's noise levels have to resolve."""
        described = describe_codes(self.model.codebook.detach())
        if self.trainer.is_global_zero:
            print(described)
        if (writer := writer_of(self.trainer)) is not None:
            writer.add_text("codes", described, last_iteration(self.trainer))

    def draw_images(self, batch: Batch) -> Tensor | None:
        if self.trainer.global_step <= self.tokenizer_iterations:
            return None
        return sample_images(self.ema, batch, self.sampling)

    def artifact(self) -> tuple[dict[str, Any], dict[str, nn.Module]]:
        data = describe_images(self.trainer.datamodule)  # type: ignore[attr-defined]
        return {"family": self.family, "architecture": self.ema.config, **data}, {"teacher": self.ema}
