"""What all stages share: one iteration is one tick, updates by hand, no silent NaN, a directory at the end."""

from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, NamedTuple

import lightning.pytorch as pl
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer, do_nothing_closure
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from dd2_lightning import __version__
from dd2_lightning.artifacts import (
    Artifact,
    check_family,
    check_hash,
    load_teacher,
    sha256,
    teacher_reference,
    write_artifact,
)
from dd2_lightning.data.batch import Batch
from dd2_lightning.errors import ArtifactError, NonFiniteLossError, check_at_least_one
from dd2_lightning.families.registry import family_of
from dd2_lightning.flow import CodebookFlow, Noised, add_noise
from dd2_lightning.layout import Layout
from dd2_lightning.models.codebook_teacher import CodebookTeacher
from dd2_lightning.models.execution import Execution, shard
from dd2_lightning.stages.schedule import OptimizerSettings

FROZEN = "teacher."


class Update(NamedTuple):
    """One kind of optimizer step of a stage.

    Attributes:
        name: what is updated.
        module: its parameters get gradients.
        loss: from a micro-batch to losses (b, n).
        count: how many of them a run makes.
    """

    name: str
    module: nn.Module
    loss: Callable[[Batch], Tensor]
    count: int


class Stage(pl.LightningModule):
    """A training stage.

    One ``training_step`` is one **iteration**: one batch, one tick of ``trainer.global_step``, whatever number of
    optimizer steps it takes. Checkpoints, logging and resume count iterations.

    Attributes:
        name: the stage's name in checkpoints.
        leaves: what its directory is, for those who read it; usually called like the stage.
        settings: the arguments of the constructor.
        per_position: the last per-token values of each monitored quantity, (n,), for callbacks.
        execution: how its networks are run.
    """

    name: ClassVar[str]
    leaves: ClassVar[str | None] = None

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.settings = SimpleNamespace()
        self.per_position: dict[str, Tensor] = {}
        self.execution = Execution()

    def keep_settings(self, arguments: dict[str, Any]) -> None:
        """Keep what the constructor was given as ``settings``, and as plain hyperparameters for logs and checkpoints.

        Checkpoints are read with ``weights_only=True``, so no object of ours may be in them.
        """
        arguments = {k: v for k, v in arguments.items() if k not in ("self", "__class__", "kwargs")}
        self.settings = SimpleNamespace(**arguments)
        self.save_hyperparameters(plain(arguments))

    def check_at_least_one(self, **settings: int) -> None:
        """Refuse counts below 1, naming the setting."""
        check_at_least_one("model.", **settings)

    # --- networks ------------------------------------------------------------------------------------------------

    @abstractmethod
    def trained(self) -> list[nn.Module]:
        """The networks that are trained, each as it is called."""

    def replicas(self) -> list[nn.Module]:
        """Those that follow them and never get gradients: EMAs."""
        return []

    def prepare_networks(self) -> None:
        """Run the networks as ``execution`` says; share their parameters out, if the strategy is for that."""
        for network in self.trained():
            self.execution.apply(network)
        if self.device_mesh is not None:
            for network in (*self.trained(), *self.replicas()):
                shard(network, self.device_mesh["data_parallel"])
            self.strict_loading = False  # the strategy loads before the teacher can be put back

    # --- updates -------------------------------------------------------------------------------------------------

    def tick_only(self, ticking: LightningOptimizer) -> None:
        """Let ``global_step`` count the coming steps of no optimizer but this one.

        Lightning counts each ``optimizer.step``; it binds its counters anew before every ``training_step``.
        """
        for optimizer in self.trainer.strategy._lightning_optimizers:
            if optimizer is not ticking:
                optimizer._on_before_step = optimizer._on_after_step = do_nothing_closure

    def update(
        self,
        optimizer: LightningOptimizer,
        settings: OptimizerSettings,
        lr: float,
        batch: Batch,
        loss: Callable[[Batch], Tensor],
        name: str,
        ticks: bool = True,
        parts: int | None = None,
    ) -> Tensor:
        """One optimizer step on the mean of per-token losses, accumulated over micro-batches.

        Args:
            optimizer: its parameters get gradients, those of the other optimizers do not.
            settings: gradient clipping.
            lr: learning rate of this step.
            batch: this process's share.
            loss: from a micro-batch to losses (b, n).
            name: of the loss, for logs and errors.
            ticks: whether the step counts in ``global_step``.
            parts: micro-batches; None is the setting ``accumulate``.

        Returns:
            Losses averaged over the batch of all processes, (n,).

        Raises:
            NonFiniteLossError: before anything is changed by the step.
        """
        parts = parts or self.settings.accumulate
        if len(batch) % parts:
            raise ValueError(f"model.accumulate {parts} does not divide the batch of {len(batch)} a process")
        if not ticks:
            counters = optimizer._on_before_step, optimizer._on_after_step
            optimizer._on_before_step = optimizer._on_after_step = do_nothing_closure
        for group in optimizer.param_groups:
            group["lr"] = lr
        total = 0.0
        for i in range(parts):
            with optimizer.toggle_model(sync_grad=i == parts - 1):
                losses = loss(batch.part(i, parts))
                self.manual_backward(losses.mean() / parts)
            total = total + losses.detach().mean(0) / parts
        # of all processes: where one stops, all have to, or they would wait for it
        total = self.trainer.strategy.reduce(total)
        self._check_finite(total, name, batch.iteration)
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        norm = nn.utils.clip_grad_norm_(parameters, settings.clip or float("inf"))
        norm = whole(norm)
        if not torch.isfinite(norm):
            raise NonFiniteLossError(f"the gradient of {name} is {norm.item()} at iteration {batch.iteration}")
        optimizer.step()
        optimizer.zero_grad()
        # under autocast, weights cast for this step must not serve the next one
        torch.clear_autocast_cache()
        if not ticks:
            optimizer._on_before_step, optimizer._on_after_step = counters
        self.record(batch, {f"gradient_norm/{name}": norm, f"lr/{name}": lr})
        self.record(batch, {f"loss/{name}": total.mean()}, prog_bar=True)
        return total

    def record(self, batch: Batch, values: dict[str, Any], prog_bar: bool = False) -> None:
        """Log training values, averaged over the processes, in the iterations that are written out.

        Lightning's own log repeats a value for as long as no newer one comes; phases of a stage have different ones.
        """
        if (batch.iteration + 1) % self.trainer.log_every_n_steps == 0 or self.trainer.fast_dev_run:
            own = [torch.as_tensor(value, dtype=torch.float32, device=self.device) for value in values.values()]
            means = self.trainer.strategy.reduce(torch.stack(own).detach()).tolist()
            metrics = dict(zip(values, means, strict=True))
            if prog_bar:
                self.log_dict(metrics, prog_bar=True, logger=False)
            for logger in self.loggers:
                logger.log_metrics(metrics, batch.iteration)

    def _check_finite(self, losses: Tensor, name: str, iteration: int) -> None:
        bad = ~losses.isfinite()
        if bad.any():
            token = int(bad.nonzero()[0])
            position = int(self.layout.position_of_token()[token])
            raise NonFiniteLossError(
                f"{name} is {losses[token].item()} at iteration {iteration}, position {position} (token {token}). "
                f"The last good checkpoint is kept; a smaller learning rate or a larger t_min may help."
            )

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """The same as validation."""
        self.validation_step(batch, batch_idx)

    # --- artifacts and checkpoints -------------------------------------------------------------------------------

    @abstractmethod
    def artifact(self) -> tuple[dict[str, Any], dict[str, nn.Module]]:
        """Settings and networks that the stage leaves behind."""

    def write_artifact(self, directory: str) -> None:
        """Write what the stage leaves behind into ``directory``; every process has to call this."""
        config, modules = self.artifact()
        states = {name: whole_state(module) for name, module in modules.items()}
        if not self.trainer.is_global_zero:
            return
        provenance = {
            "iterations": self.trainer.global_step,
            "settings": dict(self.hparams),
            "version": __version__,
        }
        write_artifact(directory, self.leaves or self.name, {**config, **provenance}, states)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave the frozen teacher out; name the stage."""
        checkpoint["stage"] = self.name
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if not k.startswith(FROZEN)}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse the checkpoint of another stage; put the frozen teacher back so that loading stays strict.

        Raises:
            ArtifactError: naming both stages.
        """
        found = checkpoint.get("stage")
        if found != self.name:
            raise ArtifactError(
                f"the checkpoint comes from stage {found!r}, this is stage '{self.name}'. "
                f"--ckpt_path resumes a run of the same stage; stages are chained by model.init_from"
            )
        own = {k: v for k, v in self.state_dict().items() if k.startswith(FROZEN)}
        checkpoint["state_dict"] = {**checkpoint.get("state_dict", {}), **own}  # without, the strategy has loaded it


def whole(tensor: Tensor) -> Tensor:
    """The tensor itself, where processes hold only a part of it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_state(module: nn.Module) -> dict[str, Tensor]:
    """A state dict of whole tensors on the CPU; a collective call where they are shared out."""
    return {key: whole(value.detach()).cpu() for key, value in module.state_dict().items()}


def plain(value: Any) -> Any:
    """Settings as JSON can hold them: dataclasses become dictionaries, tuples lists."""
    if hasattr(value, "__dataclass_fields__"):
        return {key: plain(getattr(value, key)) for key in value.__dataclass_fields__}
    if isinstance(value, dict):
        return {key: plain(entry) for key, entry in value.items()}
    return [plain(entry) for entry in value] if isinstance(value, list | tuple) else value


class DistillationStage(Stage):
    """A stage with a frozen teacher.

    Attributes:
        teacher: loaded in ``configure_model`` from ``settings.teacher``.
        learns_from_pairs: whether it reads ``Batch.noise``.
    """

    teacher: CodebookTeacher
    learns_from_pairs: ClassVar[bool] = False

    @property
    def layout(self) -> Layout:
        """Tokens per position."""
        return self.teacher.layout

    @property
    def num_classes(self) -> int:
        """Classes of the teacher."""
        return self.teacher.num_classes

    def configure_model(self) -> None:
        """Open the teacher and what the stage starts from; called before the optimizers are made."""
        if not hasattr(self, "teacher"):
            self.teacher = load_teacher(self.settings.teacher)
            self.teacher_sha256 = sha256(Path(self.settings.teacher) / "teacher.safetensors")
            self.configure_students()
            self.prepare_networks()

    @abstractmethod
    def configure_students(self) -> None:
        """Build the trainable networks."""

    @abstractmethod
    def outline_students(self, head: dict[str, int]) -> None:
        """Build networks of the same shapes from nothing but the teacher; ``head`` is used where no setting says it."""

    @abstractmethod
    def updates(self, iterations: int) -> list[Update]:
        """What a run of so many iterations consists of."""

    def on_train_start(self) -> None:
        """The teacher never leaves evaluation mode."""
        self.teacher.eval()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Name the teacher, whose weights are left out."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["teacher_sha256"] = self.teacher_sha256

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse the checkpoint of a run with another teacher.

        Raises:
            ArtifactError: naming the teacher's file.
        """
        super().on_load_checkpoint(checkpoint)
        if checkpoint["teacher_sha256"] != self.teacher_sha256:
            raise ArtifactError(
                f"{Path(self.settings.teacher) / 'teacher.safetensors'} is not the teacher that the run of this "
                f"checkpoint began with: put that one back, or start the stage again in another directory"
            )

    def open_init(self, *stages: str) -> Artifact:
        """The artifact that ``init_from`` names, made from this very teacher.

        Raises:
            ArtifactError: if it is missing, from another stage, family or teacher.
        """
        artifact = Artifact.open(self.settings.init_from, stages, "model.init_from")
        check_family(artifact, self.teacher)
        teacher = Artifact.open(self.settings.teacher, ("teacher",), "model.teacher")
        check_hash(teacher, artifact.config["teacher"]["sha256"], f"model.init_from {artifact.directory}")
        return artifact

    def distilled(self) -> dict[str, Any]:
        """What every student's ``config.json`` says of its origin."""
        teacher = Artifact.open(self.settings.teacher, ("teacher",), "model.teacher")
        return {
            "family": family_of(self.teacher),
            "teacher": teacher_reference(teacher, self.trainer.default_root_dir),
        }

    def teacher_flow(self, q: Tensor, labels: Tensor) -> CodebookFlow:
        """The teacher's flow as the loss sees it; a constant."""
        with torch.no_grad():
            return self.teacher.flow(q, labels, self.settings.teacher_sampling)

    def noised(self, batch: Batch, q: Tensor, t_min: float, *key: int | str) -> Noised:
        """``draws`` noised versions of every token, with times on [t_min, 1].

        They are uniform, or with ``t_logit_mean`` the logistic function of N(mean, 1), clamped.
        """
        m, (n, C) = self.settings.draws, q.shape[1:]
        if self.settings.t_logit_mean is None:
            t = t_min + (1 - t_min) * batch.rand(*key, "t", shape=(n, m))
        else:
            t = (self.settings.t_logit_mean + batch.randn(*key, "t", shape=(n, m))).sigmoid().clamp(min=t_min)
        return add_noise(q, t, batch.randn(*key, "eps", shape=(n, m, C)))
