"""Stage 2: Conditional Score Distillation (section 4.2, eqs. 4, 5 and 12 of the paper)."""

import copy
from typing import Any, Literal

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn

from dd2_lightning.artifacts import load_student
from dd2_lightning.data.batch import Batch
from dd2_lightning.families.registry import AnySampling
from dd2_lightning.losses import CSDLoss, Normaliser, dmd_loss, fcs_loss, position_weight, sid_loss
from dd2_lightning.models.student import Student, build_student
from dd2_lightning.sampling import Sampling
from dd2_lightning.stages.base import Update
from dd2_lightning.stages.generator import GeneratorStage
from dd2_lightning.stages.schedule import OptimizerSettings, ema_rate, update_ema


class CSDDistill(GeneratorStage):
    """Distil the teacher into a one-step generator.

    An iteration is K guidance updates (L_FCS, each on fresh generator samples), then one generator update (L_CSD)
    and one EMA update.

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
        initialise: which networks start from stage 1. Another one, for an ablation, starts as a fresh student: the
            teacher's backbone and a fresh head.

    Raises:
        ValueError: for ``guidance_updates``, ``draws`` or ``accumulate`` below 1.
    """

    name = "csd"

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
    ):
        super().__init__()
        self.keep_settings(locals())
        self.check_at_least_one(guidance_updates=guidance_updates, draws=draws, accumulate=accumulate)

    # --- networks ------------------------------------------------------------------------------------------------

    def configure_students(self) -> None:
        """Generator, its EMA, and guidance network."""
        self.adopt(*self.start())

    def outline_students(self, head: dict[str, int]) -> None:
        """The same networks with a head of these sizes."""
        if self.settings.head_time is None:
            self.settings.head_time = 1.0
        self.adopt(build_student(self.teacher, **head), build_student(self.teacher, **head), head)

    def adopt(self, generator: Student, guidance: Student, head: dict[str, int]) -> None:
        """Take these networks, and a copy of the generator as its EMA."""
        self.generator, self.guidance, self.head_config = generator, guidance, head
        self.ema = copy.deepcopy(self.generator).requires_grad_(False)

    def start(self) -> tuple[Student, Student, dict[str, int]]:
        """Generator and guidance network to start from, and the size of their heads."""
        init = self.open_init("init")

        def student(network: str) -> Student:
            if self.settings.initialise in ("both", network):
                return load_student(init, self.teacher)
            return build_student(self.teacher, **init.config["head"])

        return student("generator"), student("guidance"), init.config["head"]

    def trained(self) -> list[nn.Module]:
        """Backbones and heads of both students."""
        return [part for student in (self.generator, self.guidance) for part in (student.backbone, student.head)]

    def replicas(self) -> list[nn.Module]:
        """Backbone and head of the EMA."""
        return [self.ema.backbone, self.ema.head]

    def configure_optimizers(self):
        """Adam of ψ, Adam of θ."""
        settings = self.settings
        return [
            settings.guidance_optimizer.build(self.guidance),
            settings.generator_optimizer.build(self.generator),
        ]

    def generate(self, student: Student, batch: Batch, *key: int | str) -> Tensor:
        """Generator tokens q = G(ε), (b, n, C), from the noise of this purpose."""
        noise = batch.randn(*key, "noise", shape=(self.layout.length, self.teacher.token_dim))
        return student.generate(noise, batch.labels, self.settings.head_time)

    def draw(self, noise: Tensor, labels: Tensor) -> Tensor:
        """See :meth:`GeneratorStage.draw`."""
        return self.ema.generate(noise, labels, self.settings.head_time)

    # --- losses --------------------------------------------------------------------------------------------------

    def guidance_loss(self, batch: Batch, update: int) -> Tensor:
        """L_FCS per token, (b, n), on fresh generator samples."""
        with torch.no_grad():
            q = self.generate(self.generator, batch, "guidance", update)
        noised = self.noised(batch, q, self.settings.t_min_guidance, "guidance", update)
        return fcs_loss(self.guidance.flow(q, batch.labels), noised)

    def generator_loss(self, batch: Batch, q: Tensor, *key: int | str) -> CSDLoss:
        """L_CSD per token at generator samples q, whose prefixes enter both backbones as constants."""
        settings, prefix = self.settings, q.detach()
        noised = self.noised(batch, q, settings.t_min_generator, *key)
        teacher = self.teacher_flow(prefix, batch.labels)
        with torch.no_grad():
            guidance = self.guidance.flow(prefix, batch.labels)
        if settings.form == "dmd":
            return dmd_loss(teacher, guidance, noised, settings.normaliser)
        return sid_loss(teacher, guidance, noised, settings.alpha, settings.normaliser)

    def generator_objective(self, batch: Batch) -> CSDLoss:
        """L_CSD per token, (b, n), at fresh generator samples that carry gradients."""
        return self.generator_loss(batch, self.generate(self.generator, batch, "generator"), "generator")

    def updates(self, iterations: int) -> list[Update]:
        """Guidance updates, and generator updates where the iteration has one."""
        alternating = sum(self.trains_generator(iteration) for iteration in range(iterations))
        guidance = iterations * self.settings.guidance_updates
        return [
            Update("guidance", self.guidance, lambda part: self.guidance_loss(part, 0), guidance),
            Update("generator", self.generator, lambda part: self.generator_objective(part).loss, alternating),
        ]

    # --- steps ---------------------------------------------------------------------------------------------------

    def trains_generator(self, iteration: int) -> bool:
        """Whether this iteration ends with a generator update."""
        return True

    def ema_count(self, iteration: int) -> int:
        """Generator updates before this iteration, as the EMA rate counts them."""
        return iteration

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """One iteration: K guidance updates, one generator update, one EMA update."""
        guidance, generator = self.optimizers()
        alternates = self.trains_generator(batch.iteration)
        self.tick_only(generator if alternates else guidance)
        for k in range(self.settings.guidance_updates):
            last = k == self.settings.guidance_updates - 1
            self.update_guidance(guidance, batch, k, ticks=last and not alternates)
        if alternates:
            self.update_generator(generator, batch)

    def rate(self, settings: OptimizerSettings, iteration: int, update: int) -> float:
        """Learning rate at a guidance-update count."""
        K = self.settings.guidance_updates
        return settings.rate(iteration * K + update, self.trainer.max_steps * K)

    def update_guidance(self, optimizer: LightningOptimizer, batch: Batch, k: int, ticks: bool) -> None:
        """Guidance update number k of an iteration."""
        settings = self.settings.guidance_optimizer
        lr = self.rate(settings, batch.iteration, k)
        losses = self.update(
            optimizer, settings, lr, batch, lambda part: self.guidance_loss(part, k), "guidance", ticks
        )
        self.per_position["fcs"] = losses

    def update_generator(self, optimizer: LightningOptimizer, batch: Batch) -> None:
        """The generator update of an iteration, and the EMA's."""
        settings, gaps = self.settings.generator_optimizer, []
        weight = position_weight(self.layout, *self.settings.position_weights, device=self.device)

        def loss(part: Batch) -> Tensor:
            csd = self.generator_objective(part)
            gaps.append(csd.gap.mean(0))
            return weight * csd.loss

        lr = self.rate(settings, batch.iteration, self.settings.guidance_updates - 1)
        self.update(optimizer, settings, lr, batch, loss, "generator")
        rate = ema_rate(self.ema_count(batch.iteration), self.settings.ema_limit)
        update_ema(self.ema, self.generator, rate)
        gap = torch.stack(gaps).mean(0)
        self.per_position["score_gap"] = gap
        self.record(batch, {"score_gap": gap.mean()}, prog_bar=True)
        self.record(batch, {"ema_rate": rate})

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Score gap at generator samples and at teacher sequences; likelihood of EMA samples."""
        samples = self.generate(self.generator, batch, "validation")
        teacher_tokens = self.teacher.embed(batch.tokens)
        for name, q in (("generator", samples), ("teacher", teacher_tokens)):
            gap = self.generator_loss(batch, q, "validation").gap
            self.log(f"val/score_gap_{name}", gap.mean(), batch_size=len(batch), sync_dist=True)
            self.per_position[f"val_score_gap_{name}"] = gap.mean(0)
        one_step = self.generate(self.ema, batch, "validation")
        self.log_likelihood(batch, one_step, self.settings.teacher_sampling)

    def artifact(self) -> tuple[dict[str, Any], dict[str, nn.Module]]:
        """Generator (EMA and raw) and guidance network."""
        config = {**self.distilled(), "head": self.head_config, "head_time": self.settings.head_time}
        networks = {"generator": self.ema, "generator_raw": self.generator, "guidance": self.guidance}
        return config, networks
