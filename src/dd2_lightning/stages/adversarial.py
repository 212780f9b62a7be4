"""The adversarial terms of stage 2: generated tokens against real ones, told apart by the guidance network."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dd2_lightning.data.batch import Batch
from dd2_lightning.errors import check_range
from dd2_lightning.flow import HeadFlow, Noised, add_noise
from dd2_lightning.losses import CSDLoss
from dd2_lightning.models.head import VelocityHead
from dd2_lightning.models.student import Student
from dd2_lightning.models.teacher import Teacher
from dd2_lightning.stages.updates import Losses


@dataclass(frozen=True)
class AdversarialSettings:
    """Weights of the adversarial terms, by default those of DMD2 (arXiv:2405.14867) on ImageNet.

    Attributes:
        generator_weight: of the generator's term beside L_CSD.
        guidance_weight: of the discriminator's beside L_FCS.
        start: first iteration in which the generator has its term; the discriminator has it from the beginning.
    """

    generator_weight: float = 3e-3
    guidance_weight: float = 1e-2
    start: int = 0

    def __post_init__(self):
        weights = {"generator_weight": self.generator_weight, "guidance_weight": self.guidance_weight}
        check_range("model.adversarial.", "[0, inf)", **weights, start=self.start)


class NoAdversary:
    """No adversarial terms: losses stay as they are."""

    def players(self, guidance: Student) -> nn.Module:
        """What a guidance update trains."""
        return guidance

    def children(self) -> Iterator[nn.Module]:
        """Its networks."""
        return iter(())

    def beside_fcs(self, fcs: Tensor, flow: HeadFlow, noised: Noised, teacher: Teacher, batch: Batch) -> Losses:
        """L_FCS (B, n) and the discriminator's loss at generated tokens, where the guidance network has this flow."""
        return Losses(fcs, {"fcs": fcs})

    def beside_csd(self, csd: CSDLoss, flow: HeadFlow, noised: Noised, batch: Batch) -> CSDLoss:
        """L_CSD and the generator's loss, likewise."""
        return csd


class Adversary(nn.Module, NoAdversary):
    r"""A discriminator of noised tokens on what the last layer of the guidance network reads (as in SiDA and DMD2).

    One logit l per token and noise draw, of real tokens with their own prefix and of generated ones with theirs, noised
    alike:

    .. math:: L_\psi = \mathrm{softplus}(l_{fake}) + \mathrm{softplus}(-l_{real}), \qquad
              L_\theta = \mathrm{softplus}(-l_{fake}).

    It starts at l = 0, where the generator's term has no gradient.
    """

    def __init__(self, guidance: Student, settings: AdversarialSettings):
        super().__init__()
        self.settings, self.logit = settings, nn.Linear(guidance.head.output.in_features, 1)
        nn.init.zeros_(self.logit.weight)
        nn.init.zeros_(self.logit.bias)
        self.flow = guidance.flow

    def forward(self, flow: HeadFlow, noised: Noised) -> Tensor:
        """Logits that noised tokens are real, (B, n, m), in float32."""
        head = cast(VelocityHead, flow.head)
        return self.logit(head.hidden(noised.x_t, noised.t, flow.features))[..., 0].float()

    def players(self, guidance: Student) -> nn.Module:
        return nn.ModuleList([guidance, self])

    def beside_fcs(self, fcs: Tensor, flow: HeadFlow, noised: Noised, teacher: Teacher, batch: Batch) -> Losses:
        labels, images = batch.required("image_labels"), batch.required("images")
        with torch.no_grad():
            real = teacher.embed(teacher.encode(images))
        real_logits = self(self.flow(real, labels), add_noise(real, noised.t, noised.eps))
        loss = (F.softplus(self(flow, noised)) + F.softplus(-real_logits)).mean(-1)
        total = fcs + self.settings.guidance_weight * loss
        return Losses(total, {"fcs": fcs, "discriminator": loss}, progress=("discriminator",))

    def beside_csd(self, csd: CSDLoss, flow: HeadFlow, noised: Noised, batch: Batch) -> CSDLoss:
        if batch.iteration < self.settings.start:
            return csd
        loss = F.softplus(-self(flow, noised)).mean(-1)
        return csd._replace(loss=csd.loss + self.settings.generator_weight * loss)


def adversary_of(settings: AdversarialSettings | None, guidance: Student) -> NoAdversary:
    """The adversarial terms of these settings; None has none."""
    return NoAdversary() if settings is None else Adversary(guidance, settings)
