"""The base class of stages that make a generator."""

from abc import abstractmethod

from torch import Tensor

from dd2_lightning.data.batch import Batch
from dd2_lightning.metrics.likelihood import sequence_nll
from dd2_lightning.sampling import Sampling
from dd2_lightning.stages.distillation import DistillationStage


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
