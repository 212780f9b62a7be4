"""Images that moments of features are fitted to, each process having its share."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import cast

import torch
from torch import Tensor

from dd2_lightning.data import PrefixData
from dd2_lightning.errors import DD2Error
from dd2_lightning.metrics.features import FeatureNetwork
from dd2_lightning.metrics.frechet import Gaussian
from dd2_lightning.noise import SampleNoise
from dd2_lightning.progress import tracked
from dd2_lightning.stages.distillation import DistillationStage
from dd2_lightning.stages.features import fit_features


class MomentImages:
    """Images (b, channels, H, W) of a generator, of the teacher, and real ones.

    Samples are functions of the run's seed and their number i, and have class i mod classes; there are ``samples`` of
    the generator and of the teacher, whatever the batch size.
    """

    def __init__(self, stage: DistillationStage, samples: int, batch_size: int):
        self.stage, self.trainer, self.samples, self.batch_size = stage, stage.trainer, samples, batch_size
        self.data = cast(PrefixData, self.trainer.datamodule)  # type: ignore[attr-defined]

    def generated(self, draw: Callable[[Tensor, Tensor], Tensor]) -> Iterator[Tensor]:
        """Images of a generator, ``draw(noise (b, n, C), labels (b,)) -> tokens``."""
        shape = self.stage.layout.length, self.stage.teacher.token_dim
        return self._sampled(lambda labels, noise: draw(noise.randn("moments", *shape), labels), "generator")

    def teacher(self) -> Iterator[Tensor]:
        """Images of the teacher, with the data module's sampling settings."""
        sample, n = partial(self.stage.teacher.sample, sampling=self.data.sampling), self.stage.layout.length
        return self._sampled(lambda labels, noise: sample(labels, uniforms=noise.rand("teacher moments", n)), "teacher")

    def real(self) -> Iterator[Tensor]:
        """The real images that the data module has to learn from; a ``DD2Error`` if it has none."""
        if self.data.real is None:
            raise DD2Error("model.features: reference real needs data.real, as in {class_path: DigitsData}")
        images = self.data.real.train
        for rows in self._shares(images.size, "real images"):
            yield images.pixels(rows).to(self.stage.device)

    def fit(self, networks: list[FeatureNetwork], batches: Iterator[Tensor], name: str) -> list[Gaussian]:
        """Fits to the features of some of these images over all processes, by feature network."""
        reduce = partial(self.trainer.strategy.reduce, reduce_op="sum")
        with self.trainer.precision_plugin.train_step_context():
            return fit_features(networks, batches, reduce, name)

    def _shares(self, total: int, name: str) -> Iterator[slice]:
        """Batches of ``total`` images that fall to this process, with progress."""
        size, world = self.batch_size, self.trainer.world_size
        starts = range(size * self.trainer.global_rank, total, size * world)
        batches = (slice(start, min(start + size, total)) for start in starts)
        return (
            tracked(batches, f"moments: {name}", total, size=size * world) if self.trainer.is_global_zero else batches
        )

    @torch.no_grad()
    def _sampled(self, draw: Callable[[Tensor, SampleNoise], Tensor], name: str) -> Iterator[Tensor]:
        stage = self.stage
        for rows in self._shares(self.samples, name):
            noise = SampleNoise(self.data.seed, rows.start, rows.stop - rows.start, stage.device)
            labels = torch.arange(rows.start, rows.stop, device=stage.device) % stage.num_classes
            yield stage.teacher.decode(draw(labels, noise))
