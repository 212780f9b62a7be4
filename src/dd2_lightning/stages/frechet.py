"""Stage 4: train a one-step generator on the Fréchet distance of its images' features (FD-loss, arXiv:2604.28190)."""

from functools import partial
from typing import Any, ClassVar, cast

from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn

from dd2_lightning.artifacts import Artifact
from dd2_lightning.data.batch import Batch
from dd2_lightning.data.images import ImageData
from dd2_lightning.data.named import images_of
from dd2_lightning.errors import ArtifactError
from dd2_lightning.losses import position_weight
from dd2_lightning.metrics.features import FeatureNetwork, identity
from dd2_lightning.metrics.frechet import Gaussian, RunningFrechet
from dd2_lightning.metrics.references import open_reference
from dd2_lightning.metrics.simple import PixelFeatures
from dd2_lightning.stages.align import PerformanceAlign
from dd2_lightning.stages.features import (
    FeatureSettings,
    check_features,
    check_fit,
    features_for_training,
    gathered,
    open_networks,
)
from dd2_lightning.stages.moments import MomentImages
from dd2_lightning.stages.updates import EMA, Losses, Update

FLOOR = 0.01  # added to a distance where its gradient is divided by it


class FrechetAlign(PerformanceAlign):
    r"""Lower the Fréchet distance between a generator's images and a reference, in the features of any networks.

    .. math:: L = \sum_f w_f \frac{d_f}{\mathrm{stop}(d_f) + 0.01} + \lambda\, L_{CSD}

    The distance d is that of running moments, see :class:`~dd2_lightning.metrics.frechet.RunningFrechet`; those of the
    generator are filled before the first step. Tokens are decoded as the generator makes them, continuous and not
    snapped to their codes, as in one-step sampling: so the decoder hands on the gradient. A reference of *real* images
    is not bounded by the teacher. What was trained on is no measure any more: the artifact names its feature networks,
    and evaluation leaves them out.

    Without λ there is no guidance network, and an iteration is one generator update. With accumulation, each
    micro-batch meets the running moments of the iteration before, and their mean is taken into them.

    Args:
        features: the feature networks and their references.
        moment_samples: images that the generator's moments, and a teacher's reference, are filled with.
        moment_batch: images at a time while they are.
        moment_decay: β, the part of the running moments that an iteration leaves.
        csd_weight: λ; above 0 guidance updates and L_CSD go on as in stage 2.
        kwargs: as for :class:`PerformanceAlign`; ``init_from`` is the directory of a finished csd or align stage.
    """

    name = "frechet"
    starts_from: ClassVar[tuple[str, ...]] = ("csd", "align")
    feature_networks: Any  # a ModuleList of them
    distances: Any  # a ModuleList of their running distances

    def __init__(
        self,
        features: list[FeatureSettings],
        moment_samples: int = 50_000,
        moment_batch: int = 500,
        moment_decay: float = 0.999,
        csd_weight: float = 0.0,
        **kwargs,
    ):
        super().__init__(align_guidance_updates=0, **kwargs)
        check_features(features)
        if self.adversarial and not csd_weight:
            raise ValueError("model.adversarial needs the guidance network: set model.csd_weight above 0")
        self.features, self.csd_weight = features, csd_weight
        self.moment_samples, self.moment_batch, self.moment_decay = moment_samples, moment_batch, moment_decay
        self.save_settings(FrechetAlign)

    def build(self, source: dict[str, Any]) -> None:
        super().build(source)
        self.teacher.tokenizer.check_pixels()
        if not self.csd_weight:
            del self.guidance
        self.use_networks([PixelFeatures() for _ in self.features])  # for dd2 plan, which opens no files

    def use_networks(self, networks: list[FeatureNetwork]) -> None:
        """Measure with these feature networks, from empty moments on."""
        running = [RunningFrechet(network.width, self.moment_decay, type(network).__name__) for network in networks]
        self.feature_networks, self.distances = nn.ModuleList(cast(list[nn.Module], networks)), nn.ModuleList(running)

    def load(self, source: Artifact) -> None:
        source.load_into(self.generator, "generator")  # the EMA
        if self.csd_weight:
            source.load_into(self.guidance, "guidance")
        self.ema.load_state_dict(self.generator.state_dict())
        self.use_networks(open_networks(self.features, self.trainer.default_root_dir, self.classified_images))

    def trained_networks(self) -> list[nn.Module]:
        return super().trained_networks() if self.csd_weight else list(self.generator.children())

    def updates(self) -> list[Update]:
        if self.csd_weight:
            return super().updates()
        ema = EMA(self.ema, self.generator, self.ema_limit)
        return [Update("generator", self.generator, self.generator_loss, self.generator_optimizer, ema=ema)]

    def generator_loss(self, batch: Batch, k: int) -> Losses:
        """Sum of the distances, each divided by itself, and weighted L_CSD at the same samples."""
        q = self.generate(self.generator, batch, "generator")
        images = self.teacher.decode(q)
        loss, watch = q.new_zeros(1, 1), dict[str, Tensor]()
        for entry, network, measure in zip(self.features, self.feature_networks, self.distances, strict=True):
            features = gathered(features_for_training(network, images))
            watch[f"frechet_{entry.network}{entry.seed or ''}"] = distance = measure(features)
            loss = loss + (entry.weight * distance / (distance.detach() + FLOOR)).float()
        if self.csd_weight:
            csd = self.csd_loss(batch, q, "generator")
            weight = position_weight(self.layout, *self.position_weights, device=q.device)
            loss, watch["score_gap"] = loss + self.csd_weight * weight * csd.loss, csd.gap
        return Losses(loss, watch, progress=tuple(watch))

    def perform(self, update: Update, optimizer: LightningOptimizer, batch: Batch, k: int) -> None:
        super().perform(update, optimizer, batch, k)
        if update.name == "generator":
            for distance in self.distances:
                distance.update()

    def _check_finite(self, losses: Tensor, name: str, iteration: int) -> None:
        if name == "generator":
            for distance in self.distances:
                distance.check_finite()
        super()._check_finite(losses, name, iteration)

    def on_train_start(self) -> None:
        """Fill the moments, unless they came with a checkpoint."""
        super().on_train_start()
        self.feature_networks.eval()
        if not all(distance.count for distance in self.distances):
            images = MomentImages(self, self.moment_samples, self.moment_batch)
            draw = partial(self.generator.generate, head_time=self.head_time)
            generated = images.fit(list(self.feature_networks), images.generated(draw), "generator")
            for distance, *gaussians in zip(self.distances, generated, self.references(images), strict=True):
                distance.start(*gaussians)

    def references(self, images: MomentImages) -> list[Gaussian]:
        """What the generator's features are compared with, by feature network."""
        networks, found = (
            dict(zip(self.features, self.feature_networks, strict=True)),
            dict[FeatureSettings, Gaussian](),
        )
        for name, batches in {"teacher": images.teacher, "real": images.real}.items():
            chosen = {entry: network for entry, network in networks.items() if entry.reference == name}
            if chosen:
                found |= zip(chosen, images.fit(list(chosen.values()), batches(), name), strict=True)
        for entry in networks.keys() - found.keys():
            reference = open_reference(entry.reference)
            found[entry], _ = reference.measured(networks[entry], 1, self.moment_batch, self.device)
            check_fit(found[entry].count, networks[entry], entry.reference)
        return [found[entry] for entry in networks]

    def classified_images(self) -> ImageData:
        """What classifiers are trained on: the real images of the data module, or the teacher's."""
        real, teacher = self.trainer.datamodule.real, self.open_teacher()  # type: ignore[attr-defined]
        return real or images_of(teacher.directory, teacher.config)

    @property
    def identities(self) -> list[str]:
        """Which feature networks it trains on: class and hash of the weights."""
        return [identity(network) for network in self.feature_networks]

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        if self.csd_weight:
            super().validation_step(batch, batch_idx)
        else:
            self.log_likelihood(batch, self.generate(self.ema, batch, "validation"), self.teacher_sampling)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["features"] = self.identities

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse the moments of other feature networks with an ``ArtifactError``."""
        super().on_load_checkpoint(checkpoint)
        if checkpoint["features"] != self.identities:
            raise ArtifactError(
                f"the checkpoint has moments of {', '.join(checkpoint['features'])}; model.features are now "
                f"{', '.join(self.identities)}: resume with the same, or start again in another directory"
            )

    def artifact(self) -> tuple[dict[str, Any], dict[str, nn.Module]]:
        config = {**self.provenance(), "head": self.head_config, "head_time": self.head_time}
        networks: dict[str, nn.Module] = {"generator": self.ema, "generator_raw": self.generator}
        if self.csd_weight:
            networks["guidance"] = self.guidance
        return {**config, "features": self.identities}, networks
