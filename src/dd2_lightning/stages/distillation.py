"""The base classes of stages with a frozen teacher, and of those among them that make a generator."""

from abc import abstractmethod
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from dd2_lightning.artifacts import Artifact, check_family, check_hash, load_teacher, teacher_reference
from dd2_lightning.data.batch import Batch, SequenceRequest
from dd2_lightning.data.cache import SequenceCache
from dd2_lightning.errors import ArtifactError
from dd2_lightning.families.registry import family_of
from dd2_lightning.files import sha256
from dd2_lightning.flow import CodebookFlow, Noised, add_noise
from dd2_lightning.layout import Layout
from dd2_lightning.metrics.likelihood import sequence_nll
from dd2_lightning.models.codebook_teacher import CodebookTeacher
from dd2_lightning.models.walk import noise_to_codes
from dd2_lightning.sampling import Sampling
from dd2_lightning.stages.base import Stage
from dd2_lightning.stages.sequences import complete, complete_cache, describe_cache


class DistillationStage(Stage):
    """A stage with a frozen teacher, which is read from a directory."""

    teacher: CodebookTeacher  # loaded in ``configure_model`` from ``teacher_path``
    init_from: str
    starts_from: ClassVar[tuple[str, ...]] = ()  # stages whose directory ``init_from`` may name
    learns_from_pairs: ClassVar[bool] = False  # whether it reads ``Batch.noise``
    teacher_sampling: Sampling
    draws: int
    t_logit_mean: float | None

    def __init__(self, teacher: str, accumulate: int):
        super().__init__(accumulate)
        self.teacher_path = teacher
        self._held_out: dict[int, Batch] = {}

    @property
    def layout(self) -> Layout:
        return self.teacher.layout

    @property
    def num_classes(self) -> int:
        return self.teacher.num_classes

    def configure_model(self) -> None:
        if hasattr(self, "teacher"):
            return
        self.teacher = load_teacher(self.teacher_path)
        self.teacher_sha256 = sha256(self.open_teacher().file("teacher"))
        if self.starts_from:
            source = self.open_init()
            self.build(source.config)
            self.load(source)
        else:
            self.build({})
        self.prepare_networks()

    def build(self, source: dict[str, Any]) -> None:
        """Make the trained networks and their moving averages from the teacher, which may be on the meta device.

        ``source`` holds the settings of the stage that this one starts from, ``head`` the sizes of its velocity head.
        """
        raise NotImplementedError

    def load(self, source: Artifact) -> None:
        """Fill the networks from the directory that ``init_from`` names."""

    def open_init(self) -> Artifact:
        """The artifact that ``init_from`` names; refuses one of another stage, family or teacher."""
        artifact = Artifact.open(self.init_from, self.starts_from, "model.init_from")
        check_family(artifact, self.teacher)
        check_hash(self.open_teacher(), artifact.config["teacher"]["sha256"], f"model.init_from {artifact.directory}")
        return artifact

    def open_teacher(self) -> Artifact:
        return Artifact.open(self.teacher_path, ("teacher",), "model.teacher")

    def provenance(self) -> dict[str, Any]:
        """Family and teacher, for ``config.json``."""
        reference = teacher_reference(self.open_teacher(), self.trainer.default_root_dir)
        return {"family": family_of(self.teacher), "teacher": reference}

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Sample the teacher sequences that a batch lacks, on the device; held-out ones only once."""
        if batch.request is None:
            return batch
        if self.trainer.training:
            return complete(batch, self.teacher, self.accumulate)
        if batch.start not in self._held_out:
            self._held_out[batch.start] = complete(batch, self.teacher)
        return self._held_out[batch.start]

    def open_cache(self, directory: str, num: int, seed: int, request: SequenceRequest) -> SequenceCache:
        """A cache of ``num`` teacher sequences, checked, its missing shards sampled by the first process."""
        description = describe_cache(self.teacher_path, self.teacher, request.sampling, num, seed, request.pair_steps)
        if self.trainer.is_global_zero:
            complete_cache(directory, description, self.teacher, request.sampling)
        self.trainer.strategy.barrier("cache")
        return SequenceCache(directory, description)

    def teacher_flow(self, q: Tensor, labels: Tensor) -> CodebookFlow:
        """The teacher's flow at tokens (b, n, C), with ``teacher_sampling``; a constant."""
        with torch.no_grad():
            return self.teacher.flow(q, labels, self.teacher_sampling)

    def image_noise(self, batch: Batch) -> Tensor:
        """The noise of a batch's images, (b, n, C)."""
        return batch.randn("pictures", "noise", shape=(self.layout.length, self.teacher.token_dim))

    def draw_teacher_images(self, batch: Batch) -> Tensor | None:
        """What the teacher's flow makes of the noise of :meth:`draw_images` (DD1's map)."""
        if not self.teacher.tokenizer.has_images:
            return None
        codes = noise_to_codes(self.teacher.walk(batch.labels, self.image_sampling), self.image_noise(batch))
        return self.teacher.decode(codes)

    @cached_property
    def image_sampling(self) -> Sampling:
        """Guidance and truncation of the teacher whose images are the target."""
        return self.teacher_sampling

    def noised(self, batch: Batch, q: Tensor, t_min: float, *key: int | str) -> Noised:
        """Noise every token of (b, n, C) ``draws`` times, at flow times on [t_min, 1].

        They are uniform, or with ``t_logit_mean`` the logistic function of N(mean, 1), clamped.
        """
        m, (n, C) = self.draws, q.shape[1:]
        if self.t_logit_mean is None:
            t = t_min + (1 - t_min) * batch.rand(*key, "t", shape=(n, m))
        else:
            t = (self.t_logit_mean + batch.randn(*key, "t", shape=(n, m))).sigmoid().clamp(min=t_min)
        return add_noise(q, t, batch.randn(*key, "eps", shape=(n, m, C)))

    def on_train_start(self) -> None:
        self.teacher.eval()  # Lightning sets all modules to training mode

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["teacher_sha256"] = self.teacher_sha256

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse the checkpoint of a run with another teacher."""
        super().on_load_checkpoint(checkpoint)
        if checkpoint["teacher_sha256"] != self.teacher_sha256:
            raise ArtifactError(
                f"{Path(self.teacher_path) / 'teacher.safetensors'} is not the teacher that the run of this "
                f"checkpoint began with: put that one back, or start the stage again in another directory"
            )


class GeneratorStage(DistillationStage):
    """A stage that makes a generator, whose EMA is sampled, shown and scored."""

    @abstractmethod
    def draw(self, noise: Tensor, labels: Tensor) -> Tensor:
        """One-step tokens of the EMA, (b, n, C), from noise (b, n, C)."""

    def log_likelihood(self, batch: Batch, one_step: Tensor, sampling: Sampling) -> None:
        """Log the teacher's likelihood of one-step tokens (b, n, C), snapped, and of the batch's teacher sequences."""
        for name, indices in (("one_step", self.teacher.snap(one_step)), ("teacher", batch.required("tokens"))):
            nll = sequence_nll(self.teacher, indices, batch.labels, sampling).mean()
            self.log(f"val/nll_{name}", nll, prog_bar=name == "one_step", batch_size=len(batch), sync_dist=True)

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor | None:
        return self.draw_images(batch)

    def draw_images(self, batch: Batch) -> Tensor | None:
        if not self.teacher.tokenizer.has_images:
            return None
        return self.teacher.decode(self.draw(self.image_noise(batch), batch.labels))
