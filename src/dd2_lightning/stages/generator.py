"""What the stages that leave a generator share: its EMA is drawn from, looked at and judged."""

from abc import abstractmethod

from torch import Tensor

from dd2_lightning.data.batch import Batch
from dd2_lightning.metrics.likelihood import sequence_nll
from dd2_lightning.sampling import Sampling
from dd2_lightning.stages.base import DistillationStage


class GeneratorStage(DistillationStage):
    """A stage that leaves a generator."""

    @abstractmethod
    def draw(self, noise: Tensor, labels: Tensor) -> Tensor:
        """One-step tokens of the EMA, (b, n, C), from noise (b, n, C)."""

    def log_likelihood(self, batch: Batch, one_step: Tensor, sampling: Sampling) -> None:
        """Log that of one-step tokens (b, n, C), snapped, and of the batch's teacher sequences."""
        for name, indices in (("one_step", self.teacher.snap(one_step)), ("teacher", batch.tokens)):
            nll = sequence_nll(self.teacher, indices, batch.labels, sampling).mean()
            self.log(f"val/nll_{name}", nll, prog_bar=name == "one_step", batch_size=len(batch), sync_dist=True)

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """One-step pictures of the EMA, (b, channels, H, W)."""
        return self.pictures(batch)

    def pictures(self, batch: Batch) -> Tensor | None:
        """One-step pictures at the noise of this batch, for grids; None for a teacher without pictures."""
        if not self.teacher.tokenizer.has_images:
            return None
        noise = batch.randn("pictures", "noise", shape=(self.layout.length, self.teacher.token_dim))
        return self.teacher.decode(self.draw(noise, batch.labels))
