"""What the distillation stages read: labels, and teacher sequences that are cached or requested of the stage."""

from typing import Literal

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset

from dd2_lightning.data.batch import Batch, EpochOrder, SequenceRequest, iteration_loader, share
from dd2_lightning.data.cache import SequenceCache
from dd2_lightning.errors import check_at_least_one, check_range
from dd2_lightning.families.registry import AnySampling
from dd2_lightning.models.walk import PAIR_STEPS
from dd2_lightning.noise import stream
from dd2_lightning.sampling import Sampling


class LabelBatches(Dataset):
    """Batch i of labels drawn uniformly, as a pure function of (seed, i).

    Args:
        num_classes: number of classes.
        batch_size: samples of the global batch.
        seed: of the labels.
        rank: of this process.
        world_size: number of processes.
        request: the sequences that every batch lacks.
    """

    def __init__(
        self,
        num_classes: int,
        batch_size: int,
        seed: int,
        rank: int,
        world_size: int,
        request: SequenceRequest | None = None,
    ):
        self.num_classes, self.size, self.seed, self.request = num_classes, batch_size, seed, request
        self.start, self.local = share(batch_size, rank, world_size)

    def __getitem__(self, iteration: int) -> Batch:
        drawn = torch.randint(self.num_classes, (self.size,), generator=stream(self.seed, "labels", iteration))
        labels = drawn[self.start : self.start + self.local]
        return Batch(labels, iteration, self.seed, self.start, self.size, request=self.request)


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

    Attributes:
        pair_steps: for DD1's pairs, evaluations of the teacher's flow a token; None for sequences without noise.

    Raises:
        ValueError: for a setting out of range, naming it and its range, or ``cached`` without ``cache_dir``.
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
        check_at_least_one("data.", batch_size=batch_size, cache_size=cache_size, validation_size=validation_size)
        check_range("data.", "[0, inf)", seed=seed, cache_seed=cache_seed)
        if sequences == "cached" and not cache_dir:
            raise ValueError("data.sequences is 'cached': name a directory in data.cache_dir")
        self.batch_size, self.sequences, self.sampling = batch_size, sequences, sampling or Sampling()
        self.cache_dir, self.cache_size = cache_dir, cache_size
        self.cache_seed = seed if cache_seed is None else cache_seed
        self.validation_size, self.seed = validation_size, seed
        self.pair_steps: int | None = None

    def request(self, purpose: str) -> SequenceRequest:
        """Sequences as these settings want them, from the random numbers of this purpose."""
        return SequenceRequest(purpose, self.sampling, self.pair_steps)

    def train_dataloader(self) -> DataLoader:
        """One item an iteration. The stage samples the cache first, if it is wanted and missing."""
        trainer, stage = self.trainer, self.trainer.lightning_module
        processes = (self.batch_size, self.seed, trainer.global_rank, trainer.world_size)
        if self.sequences == "cached":
            cache = stage.open_cache(self.cache_dir, self.cache_size, self.cache_seed, self.request("cache"))
            return iteration_loader(CachedBatches(cache, *processes), trainer)
        request = self.request("online") if self.sequences == "online" else None
        return iteration_loader(LabelBatches(stage.num_classes, *processes, request), trainer)

    def val_dataloader(self) -> DataLoader:
        """One batch of held-out teacher sequences with labels that go round the classes."""
        labels = torch.arange(self.validation_size) % self.trainer.lightning_module.num_classes
        batch = Batch(labels, 0, self.seed, 0, len(labels), request=self.request("held out"))
        return DataLoader([batch], batch_size=None)

    test_dataloader = predict_dataloader = val_dataloader


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
        self.pair_steps = steps
