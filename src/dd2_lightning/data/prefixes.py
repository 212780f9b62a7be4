"""The DataModule that the distillation stages share: labels, and sequences sampled from the teacher."""

from dataclasses import replace
from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch.utils.data import DataLoader, Dataset

from dd2_lightning.data.batch import Batch, EpochOrder, iteration_loader, share
from dd2_lightning.data.build import complete
from dd2_lightning.data.cache import SequenceCache, describe, sample_codes
from dd2_lightning.errors import check_at_least_one
from dd2_lightning.families.registry import AnySampling
from dd2_lightning.models.codebook_teacher import CodebookTeacher
from dd2_lightning.models.walk import PAIR_STEPS, noise_to_codes
from dd2_lightning.noise import stream
from dd2_lightning.sampling import Sampling


class LabelBatches(Dataset):
    """Batch i of labels drawn uniformly, as a pure function of (seed, i)."""

    def __init__(self, num_classes: int, batch_size: int, seed: int, rank: int, world_size: int):
        self.num_classes, self.size, self.seed = num_classes, batch_size, seed
        self.start, self.local = share(batch_size, rank, world_size)

    def __getitem__(self, iteration: int) -> Batch:
        drawn = torch.randint(self.num_classes, (self.size,), generator=stream(self.seed, "labels", iteration))
        return Batch(drawn[self.start : self.start + self.local], iteration, self.seed, self.start, self.size)


class CachedBatches(Dataset):
    """Batch i of an endless, epoch-shuffled pass over cached teacher sequences, as a pure function of (seed, i)."""

    def __init__(self, cache: SequenceCache, batch_size: int, seed: int, rank: int, world_size: int):
        self.cache, self.size, self.seed = cache, batch_size, seed
        self.start, self.local = share(batch_size, rank, world_size)
        self.order = EpochOrder(len(cache), batch_size, seed)

    def __getitem__(self, iteration: int) -> Batch:
        rows = self.order.rows(iteration, self.start, self.local).numpy()
        tokens, labels = self.cache.read(rows)
        noise = self.cache.noise(rows)
        return Batch(labels, iteration, self.seed, self.start, self.size, tokens=tokens, noise=noise)


class PrefixData(LightningDataModule):
    """Labels for every stage, and teacher-sampled sequences for those that read them.

    Args:
        batch_size: samples an iteration, of all processes together.
        sequences: where teacher sequences come from. ``cached``: sampled once into ``cache_dir``; ``online``:
            sampled anew for every batch, on the device; ``none``: labels only.
        sampling: guidance and truncation of the teacher that is *sampled* (the loss has its own,
            ``model.teacher_sampling``).
        cache_dir: directory of the cache; what is missing of it is sampled first (``dd2 cache`` does it in advance).
        cache_size: sequences in the cache.
        cache_seed: of the cached sequences; None is ``seed``. Runs with different seeds can share one cache.
        validation_size: held-out teacher sequences for validation; they are always sampled online, once.
        seed: of labels, order and noise; follows ``seed_everything``.

    Raises:
        ValueError: for sizes below 1, or ``cached`` without ``cache_dir``.
    """

    def __init__(
        self,
        batch_size: int = 64,
        sequences: Literal["cached", "online", "none"] = "none",
        sampling: AnySampling | None = None,
        cache_dir: str | None = None,
        cache_size: int = 20_000,
        cache_seed: int | None = None,
        validation_size: int = 500,
        seed: int = 0,
    ):
        super().__init__()
        if min(batch_size, cache_size, validation_size) < 1:
            raise ValueError("data.batch_size, data.cache_size and data.validation_size must be at least 1")
        if sequences == "cached" and not cache_dir:
            raise ValueError("data.sequences is 'cached': name a directory in data.cache_dir")
        self.batch_size, self.sequences, self.sampling = batch_size, sequences, sampling or Sampling()
        self.cache_dir, self.cache_size = cache_dir, cache_size
        self.cache_seed = seed if cache_seed is None else cache_seed
        self.validation_size, self.seed = validation_size, seed
        self._held_out: Batch | None = None

    def train_dataloader(self) -> DataLoader:
        """One item an iteration. Samples the cache first, if it is wanted and missing."""
        trainer = self.trainer
        where = (self.batch_size, self.seed, trainer.global_rank, trainer.world_size)
        if self.sequences == "cached":
            return iteration_loader(CachedBatches(self._open_cache(trainer.lightning_module), *where), trainer)
        return iteration_loader(LabelBatches(trainer.lightning_module.teacher.num_classes, *where), trainer)

    def _open_cache(self, module: LightningModule) -> SequenceCache:
        description = self.describe(module.settings.teacher, module.teacher)
        if self.trainer.is_global_zero:
            complete(self.cache_dir, description, module.teacher, self.sampling)
        self.trainer.strategy.barrier("cache")
        return SequenceCache(self.cache_dir, description)

    def describe(self, path: str, teacher: CodebookTeacher) -> dict[str, Any]:
        """What the manifest of the cache must say."""
        return describe(path, teacher, self.sampling, self.cache_size, self.cache_seed)

    def val_dataloader(self) -> DataLoader:
        """One batch of held-out teacher sequences with labels that go round the classes."""
        labels = torch.arange(self.validation_size) % self.trainer.lightning_module.teacher.num_classes
        return DataLoader([Batch(labels, 0, self.seed, 0, len(labels))], batch_size=None)

    def test_dataloader(self) -> DataLoader:
        """The same as for validation."""
        return self.val_dataloader()

    def predict_dataloader(self) -> DataLoader:
        """The same as for validation."""
        return self.val_dataloader()

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Sample the teacher where its sequences are not there yet, on the device."""
        teacher = self.trainer.lightning_module.teacher
        if not self.trainer.training:
            if self._held_out is None:
                self._held_out = self.sample(teacher, batch, "held out")
            return self._held_out
        return self.sample(teacher, batch, "online") if self.sequences == "online" else batch

    def sample(self, teacher: CodebookTeacher, batch: Batch, purpose: str) -> Batch:
        """The batch with teacher sequences of its labels."""
        uniforms = batch.rand(purpose, shape=(teacher.layout.length,))
        return replace(batch, tokens=sample_codes(teacher, batch.labels, self.sampling, uniforms=uniforms))


class PairData(PrefixData):
    """Pairs of noise and the sequence that the teacher's flow makes of it: what DD1 learns from.

    See :func:`~dd2_lightning.models.walk.noise_to_codes`. Fixed pairs overfit where there are few of them.

    Args:
        sequences: where pairs come from. ``cached``: made once into ``cache_dir`` (``dd2 cache --pair_steps`` does it
            in advance); ``online``: made anew for every batch, on the device.
        steps: evaluations of the teacher's flow a token.
        kwargs: as for :class:`PrefixData`.

    Raises:
        ValueError: as :class:`PrefixData`, and for ``steps`` below 1.
    """

    def __init__(self, sequences: Literal["cached", "online"] = "online", steps: int = PAIR_STEPS, **kwargs):
        super().__init__(sequences=sequences, **kwargs)
        check_at_least_one("data.", steps=steps)
        self.steps = steps

    def describe(self, path: str, teacher: CodebookTeacher) -> dict[str, Any]:
        """What the manifest of the cache must say."""
        return describe(path, teacher, self.sampling, self.cache_size, self.cache_seed, self.steps)

    def sample(self, teacher: CodebookTeacher, batch: Batch, purpose: str) -> Batch:
        """The batch with pairs of its labels."""
        noise = batch.randn(purpose, shape=(teacher.layout.length, teacher.token_dim))
        codes = noise_to_codes(teacher.walk(batch.labels, self.sampling), noise, self.steps)
        return replace(batch, tokens=codes, noise=noise)
