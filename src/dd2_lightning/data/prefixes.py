"""What the distillation stages read: labels, and teacher sequences that are cached or requested of the stage."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, Protocol, cast

import torch
from torch.utils.data import Dataset

from dd2_lightning.data.batch import Batch, SequenceRequest
from dd2_lightning.data.cache import SequenceCache
from dd2_lightning.data.images import ImageBatches, ImageData
from dd2_lightning.data.iterations import EpochOrder, IterationBatches, IterationData
from dd2_lightning.errors import check_at_least_one, check_range
from dd2_lightning.families.registry import AnySampling
from dd2_lightning.noise import stream
from dd2_lightning.sampling import PAIR_STEPS, Sampling


class SequenceSource(Protocol):
    """The stage that a data module serves: it has the teacher."""

    num_classes: int
    accumulate: int

    def open_cache(self, directory: str, num: int, seed: int, request: SequenceRequest) -> SequenceCache:
        """A complete cache of teacher sequences."""


class LabelBatches(IterationBatches):
    """Labels drawn uniformly from ``num_classes``, with the request for the sequences that every batch lacks."""

    def __init__(self, num_classes: int, request: SequenceRequest | None, *slices: int):
        super().__init__(*slices)
        self.num_classes, self.request = num_classes, request

    def __getitem__(self, iteration: int) -> Batch:
        drawn = torch.randint(self.num_classes, (self.size,), generator=stream(self.seed, "labels", iteration))
        return self.batch(iteration, drawn[self.start : self.start + self.local], request=self.request)


class CachedBatches(IterationBatches):
    """An endless, epoch-shuffled pass over cached teacher sequences."""

    def __init__(self, cache: SequenceCache, batch_size: int, seed: int, rank: int, world_size: int):
        super().__init__(batch_size, seed, rank, world_size)
        self.cache, self.order = cache, EpochOrder(len(cache), batch_size, seed)

    def __getitem__(self, iteration: int) -> Batch:
        rows = self.order.rows(iteration, self.start, self.local).numpy()
        tokens, labels = self.cache.read(rows)
        return self.batch(iteration, labels, tokens=tokens, noise=self.cache.noise(rows))


class WithImages(Dataset):
    """Batches with real images beside their labels, which have labels of their own."""

    def __init__(self, batches: IterationBatches, images: ImageBatches):
        self.batches, self.images = batches, images

    def __getitem__(self, iteration: int) -> Batch:
        real = self.images[iteration]
        return replace(self.batches[iteration], images=real.images, image_labels=real.labels)


class PrefixData(IterationData):
    """Labels for every stage, and teacher-sampled sequences for those that read them.

    Args:
        batch_size: samples an iteration, of all processes together.
        sequences: where teacher sequences come from. ``cached``: sampled once into ``cache_dir``; ``online``:
            sampled anew for every batch, on the device; ``none``: labels only.
        sampling: guidance and truncation of the teacher that is *sampled* (the loss has
            ``model.teacher_sampling``).
        cache_dir: directory of the cache; what is missing of it is sampled first (``dd2 cache`` does it in advance).
        cache_size: sequences in the cache.
        cache_seed: of the cached sequences; None is ``seed``. Runs with different seeds can share one cache.
        validation_size: held-out teacher sequences for validation; they are always sampled online, once.
        seed: of labels, order and noise; follows ``seed_everything``.
        real: image data whose training images come along, for stages that learn from real images; of its settings,
            batch size and seed are not used.
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
        real: ImageData | None = None,
    ):
        super().__init__()
        check_at_least_one("data.", batch_size=batch_size, cache_size=cache_size, validation_size=validation_size)
        check_range("data.", "[0, inf)", seed=seed, cache_seed=cache_seed)
        if sequences == "cached" and not cache_dir:
            raise ValueError("data.sequences is 'cached': name a directory in data.cache_dir")
        self.batch_size, self.sequences, self.sampling = batch_size, sequences, sampling or Sampling()
        self.cache_dir, self.cache_size = cache_dir, cache_size
        self.cache_seed = seed if cache_seed is None else cache_seed
        self.validation_size, self.seed, self.real = validation_size, seed, real
        self.pair_steps: int | None = None  # see :class:`SequenceRequest`

    def request(self, purpose: str) -> SequenceRequest:
        """A request for sequences with these settings, from the random numbers of a purpose."""
        return SequenceRequest(purpose, self.sampling, self.pair_steps)

    @property
    def stage(self) -> SequenceSource:
        assert self.trainer is not None
        return cast(SequenceSource, self.trainer.lightning_module)

    def setup(self, stage: str = "fit") -> None:
        if self.real is not None:
            self.real.setup(stage)

    def batches(self, rank: int, world_size: int) -> Dataset:
        """Labels or cached sequences; a cache that is not complete is completed by the stage first."""
        slices = (self.batch_size, self.seed, rank, world_size)
        batches = self._sequences(*slices)
        return batches if self.real is None else WithImages(batches, self.real.batches_of(*slices))

    def _sequences(self, *slices: int) -> IterationBatches:
        if self.sequences == "cached":
            assert self.cache_dir is not None
            cache = self.stage.open_cache(self.cache_dir, self.cache_size, self.cache_seed, self.request("cache"))
            return CachedBatches(cache, *slices)
        request = self.request("online") if self.sequences == "online" else None
        return LabelBatches(self.stage.num_classes, request, *slices)

    def held_out_batches(self) -> Sequence[Batch]:
        """The held-out samples, no more at a time than an update has."""
        batch, trainer = self.held_out_batch(), self.trainer
        assert trainer is not None
        return batch.parts(max(1, self.batch_size // (trainer.world_size * self.stage.accumulate)))

    def held_out_batch(self) -> Batch:
        """A request for teacher sequences, with labels that go round the classes."""
        labels = torch.arange(self.validation_size) % self.stage.num_classes
        return Batch(labels, 0, self.seed, 0, len(labels), request=self.request("held out"))


class PairData(PrefixData):
    """Pairs of noise and the sequence that the teacher's flow makes of it: what DD1 learns from.

    See :func:`~dd2_lightning.models.walk.noise_to_codes`. Fixed pairs overfit where there are few of them.

    Args:
        sequences: where pairs come from. ``cached``: made once into ``cache_dir`` (``dd2 cache --pair_steps`` does it
            in advance); ``online``: made anew for every batch, on the device.
        steps: evaluations of the teacher's flow a token.
        kwargs: as for :class:`PrefixData`.
    """

    def __init__(self, sequences: Literal["cached", "online"] = "online", steps: int = PAIR_STEPS, **kwargs):
        super().__init__(sequences=sequences, **kwargs)
        check_at_least_one("data.", steps=steps)
        self.pair_steps = steps
