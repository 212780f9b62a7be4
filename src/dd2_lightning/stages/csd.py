"""Stage 2: Conditional Score Distillation (section 4.2, eqs. 4, 5 and 12 of the paper)."""

import copy
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from dd2_lightning.artifacts import Artifact
from dd2_lightning.data.batch import Batch
from dd2_lightning.families.registry import AnySampling
from dd2_lightning.losses import CSDLoss, Normaliser, dmd_loss, fcs_loss, position_weight, sid_loss
from dd2_lightning.models.student import Student, build_student
from dd2_lightning.sampling import Sampling
from dd2_lightning.stages.adversarial import AdversarialSettings, adversary_of
from dd2_lightning.stages.distillation import GeneratorStage
from dd2_lightning.stages.schedule import OptimizerSettings
from dd2_lightning.stages.updates import EMA, Losses, Update


class CSDDistill(GeneratorStage):
    """Distil the teacher into a one-step generator.

    An iteration is K guidance updates (L_FCS, each on fresh samples), one generator update (L_CSD), one EMA update.

    Args:
        teacher: directory of the teacher.
        init_from: directory of a finished init stage; generator and guidance network start from it.
        teacher_sampling: guidance and truncation of the teacher *inside the loss*.
        guidance_updates: K, guidance updates a generator update.
        form: of L_CSD, ``sid`` or ``dmd``.
        alpha: α of the SiD form.
        normaliser: mean over which the weight ω is taken.
        position_weights: weight of the first and of the last position, linear between.
        head_time: t_g, the time the generator's head is called at; 1 is the paper's.
        draws: m, noise draws a token.
        t_min_guidance: smallest flow time in L_FCS.
        t_min_generator: smallest flow time in L_CSD.
        t_logit_mean: None draws flow times uniformly; a number m draws the logistic function of N(m, 1).
        guidance_optimizer: Adam of ψ. Both schedules count *guidance updates*.
        generator_optimizer: Adam of θ.
        ema_limit: largest EMA rate; the rate after i generator updates is min(limit, (i+1)/(i+10)).
        accumulate: micro-batches an update is split into.
        initialise: which networks start from stage 1, the others (ablations) from the teacher with a fresh head.
        adversarial: weights of a discriminator's terms, which learn from ``data.real``; None has none.
    """

    name = "csd"
    starts_from: ClassVar[tuple[str, ...]] = ("init",)

    def __init__(
        self,
        teacher: str,
        init_from: str,
        teacher_sampling: AnySampling = Sampling(),
        guidance_updates: int = 5,
        form: Literal["sid", "dmd"] = "sid",
        alpha: float = 1.0,
        normaliser: Normaliser = "sample",
        position_weights: tuple[float, float] = (1.0, 1.0),
        head_time: float = 1.0,
        draws: int = 4,
        t_min_guidance: float = 0.02,
        t_min_generator: float = 0.05,
        t_logit_mean: float | None = None,
        guidance_optimizer: OptimizerSettings = OptimizerSettings(),
        generator_optimizer: OptimizerSettings = OptimizerSettings(),
        ema_limit: float = 0.9999,
        accumulate: int = 1,
        initialise: Literal["both", "generator", "guidance", "none"] = "both",
        adversarial: AdversarialSettings | None = None,
    ):
        super().__init__(teacher, accumulate)
        self.init_from, self.initialise, self.adversarial = init_from, initialise, adversarial
        self.teacher_sampling, self.guidance_updates, self.head_time = teacher_sampling, guidance_updates, head_time
        self.form, self.alpha, self.normaliser, self.position_weights = form, alpha, normaliser, position_weights
        self.draws, self.t_logit_mean, self.ema_limit = draws, t_logit_mean, ema_limit
        self.t_min_guidance, self.t_min_generator = t_min_guidance, t_min_generator
        self.guidance_optimizer, self.generator_optimizer = guidance_optimizer, generator_optimizer
        self.save_settings(CSDDistill)

    def build(self, source: dict[str, Any]) -> None:
        self.head_config = source["head"]
        self.generator, self.guidance = (build_student(self.teacher, **self.head_config) for _ in range(2))
        self.ema = copy.deepcopy(self.generator).requires_grad_(False)
        self.adversary = adversary_of(self.adversarial, self.guidance)

    def load(self, source: Artifact) -> None:
        for name in ("generator", "guidance"):
            if self.initialise in ("both", name):
                source.load_into(getattr(self, name), "student")
        self.ema.load_state_dict(self.generator.state_dict())

    def trained_networks(self) -> list[nn.Module]:
        return [*self.generator.children(), *self.guidance.children(), *self.adversary.children()]

    def ema_networks(self) -> list[nn.Module]:
        return list(self.ema.children())

    def generate(self, student: Student, batch: Batch, *key: int | str) -> Tensor:
        """Generator tokens q = G(ε), (b, n, C), from the noise of a key."""
        noise = batch.randn(*key, "noise", shape=(self.layout.length, self.teacher.token_dim))
        return student.generate(noise, batch.labels, self.head_time)

    def draw(self, noise: Tensor, labels: Tensor) -> Tensor:
        return self.ema.generate(noise, labels, self.head_time)

    def updates(self) -> list[Update]:
        ema, K = EMA(self.ema, self.generator, self.ema_limit), self.guidance_updates
        return [
            Update(
                "guidance", self.adversary.players(self.guidance), self.guidance_loss, self.guidance_optimizer, repeat=K
            ),
            Update("generator", self.generator, self.generator_loss, self.generator_optimizer, ema=ema, clock=K),
        ]

    def guidance_loss(self, batch: Batch, k: int) -> Losses:
        """L_FCS per token on fresh generator samples (eq. 4)."""
        with torch.no_grad():
            q = self.generate(self.generator, batch, "guidance", k)
        noised = self.noised(batch, q, self.t_min_guidance, "guidance", k)
        flow = self.guidance.flow(q, batch.labels)
        return self.adversary.beside_fcs(fcs_loss(flow, noised), flow, noised, self.teacher, batch)

    def generator_loss(self, batch: Batch, k: int) -> Losses:
        """Weighted L_CSD per token at fresh generator samples that carry gradients (eqs. 5 and 12)."""
        csd = self.csd_loss(batch, self.generate(self.generator, batch, "generator"), "generator")
        weight = position_weight(self.layout, *self.position_weights, device=batch.labels.device)
        return Losses(weight * csd.loss, {"score_gap": csd.gap}, progress=("score_gap",))

    def csd_loss(self, batch: Batch, q: Tensor, *key: int | str) -> CSDLoss:
        """L_CSD per token at generator samples q, whose prefixes enter both backbones as constants."""
        noised, prefix = self.noised(batch, q, self.t_min_generator, *key), q.detach()
        with torch.no_grad():
            guidance = self.guidance.flow(prefix, batch.labels)
        given = self.teacher_flow(prefix, batch.labels), guidance, noised
        csd = dmd_loss(*given, self.normaliser) if self.form == "dmd" else sid_loss(*given, self.alpha, self.normaliser)
        return self.adversary.beside_csd(csd, guidance, noised, batch)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        samples = self.generate(self.generator, batch, "validation")
        for name, q in (("generator", samples), ("teacher", self.teacher.embed(batch.required("tokens")))):
            gap = self.csd_loss(batch, q, "validation").gap
            self.log(f"val/score_gap_{name}", gap.mean(), batch_size=len(batch), sync_dist=True)
            self.watch_held_out(batch, {f"val_score_gap_{name}": gap.mean(0)})
        self.log_likelihood(batch, self.generate(self.ema, batch, "validation"), self.teacher_sampling)

    def artifact(self) -> tuple[dict[str, Any], dict[str, nn.Module]]:
        config = {**self.provenance(), "head": self.head_config, "head_time": self.head_time}
        return config, {"generator": self.ema, "generator_raw": self.generator, "guidance": self.guidance}
