"""The base class of all stages: it performs the updates that a stage declares, and writes the stage's artifact."""

import inspect
from abc import abstractmethod
from contextlib import nullcontext
from functools import reduce
from typing import Any, ClassVar

import lightning.pytorch as pl
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from dd2_lightning import __version__
from dd2_lightning.artifacts import write_artifact
from dd2_lightning.data.batch import Batch
from dd2_lightning.errors import ArtifactError, NonFiniteLossError
from dd2_lightning.layout import Layout
from dd2_lightning.lightning_internals import uncounted
from dd2_lightning.provenance import commit, hardware
from dd2_lightning.stages.execution import Execution, shard
from dd2_lightning.stages.settings import check_settings, jsonable
from dd2_lightning.stages.updates import Losses, Update, watched_means

FROZEN = ("teacher.", "feature_networks.")  # prefixes of the state-dict keys that checkpoints leave out


class Stage(pl.LightningModule):
    """A training stage: settings, networks, losses, and the list of its updates, which this class performs.

    One ``training_step`` is one **iteration**: one batch, one tick of ``trainer.global_step``, whatever number of
    optimizer steps it takes, each on ``accumulate`` micro-batches. Checkpoints, logging and resume count iterations.
    """

    name: ClassVar[str]  # in checkpoints
    artifact_kind: ClassVar[str | None] = None  # in ``config.json``; None is ``name``

    def __init__(self, accumulate: int = 1):
        super().__init__()
        self.automatic_optimization = False
        self.accumulate = accumulate
        self.per_position: dict[str, Tensor] = {}  # last values per token, (n,), of what is watched, for callbacks
        self.execution = Execution()

    def save_settings(self, stage: type["Stage"]) -> None:
        """Check the arguments of this class's constructor, and save them as JSON-able hyperparameters.

        They are read from the attributes of the same names; the directory ``teacher`` from ``teacher_path``, the
        network having its name. Checkpoints are read with ``weights_only=True``, so no object of ours may be in them.
        """
        names = [name for name in inspect.signature(stage.__init__).parameters if name not in ("self", "kwargs")]
        settings = {name: getattr(self, "teacher_path" if name == "teacher" else name) for name in names}
        check_settings(settings)
        self.save_hyperparameters(jsonable(settings))

    @property
    @abstractmethod
    def layout(self) -> Layout:
        """Tokens per position."""

    @property
    @abstractmethod
    def num_classes(self) -> int:
        """Classes that it is conditioned on."""

    @abstractmethod
    def updates(self) -> list[Update]:
        """The optimizer steps of an iteration, in order; each has an optimizer of its own."""

    @abstractmethod
    def trained_networks(self) -> list[nn.Module]:
        """The modules that are trained, as they are called in forward passes."""

    def ema_networks(self) -> list[nn.Module]:
        """Their moving averages, which never get gradients."""
        return []

    def draw_images(self, batch: Batch) -> Tensor | None:
        """Draw images (b, channels, H, W) for a batch's labels and random numbers; None where there are none yet."""
        return None

    def draw_teacher_images(self, batch: Batch) -> Tensor | None:
        """Images as :meth:`draw_images` makes them, by the teacher that is distilled; None if there is none."""
        return None

    @abstractmethod
    def artifact(self) -> tuple[dict[str, Any], dict[str, nn.Module]]:
        """Settings and networks of the stage's directory."""

    def prepare_networks(self) -> None:
        """Run the networks as ``execution`` says; shard their parameters, if the strategy is for that."""
        for network in self.trained_networks():
            self.execution.apply(network)
        if self.device_mesh is not None:
            for network in (*self.trained_networks(), *self.ema_networks()):
                shard(network, self.device_mesh["data_parallel"])
            self.strict_loading = False  # the strategy loads before the teacher can be put back

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [update.optimizer.build(update.network) for update in self.updates()]

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        optimizers = self.optimizers()
        optimizers = optimizers if isinstance(optimizers, list) else [optimizers]
        pairs = zip(self.updates(), optimizers, strict=True)
        due = [(update, optimizer) for update, optimizer in pairs if update.is_due(batch.iteration)]
        for update, optimizer in due:
            if update.begin is not None and batch.iteration == update.start:
                update.begin()
            for k in range(update.repeat):
                last = update is due[-1][0] and k == update.repeat - 1
                with nullcontext() if last else uncounted(optimizer):
                    self.perform(update, optimizer, batch, k)
            if update.ema is not None:
                self.record(batch, {"ema_rate": update.ema.update(batch.iteration - update.start)})

    def perform(self, update: Update, optimizer: LightningOptimizer, batch: Batch, k: int) -> None:
        """Take the k-th step of an update in this iteration, on the mean of its loss over tokens and micro-batches.

        A :class:`NonFiniteLossError` is raised before the step changes anything.
        """
        count = self.accumulate if update.accumulate else 1
        batch = batch if update.batch_size is None else batch.thinned(update.batch_size)
        if len(batch) % count:
            raise ValueError(f"model.accumulate {count} does not divide the batch of {len(batch)} a process")
        lr = update.learning_rate(batch.iteration, k, self.trainer.max_steps)
        for group in optimizer.param_groups:
            group["lr"] = lr
        micro_losses = []
        for i in range(count):
            with optimizer.toggle_model(sync_grad=i == count - 1):
                losses = update.loss(batch.micro_batch(i, count), k)
                self.manual_backward(losses.loss.mean() / count)
            micro_losses.append(losses.detach())
        total = reduce(torch.add, [losses.loss.mean(0) / count for losses in micro_losses])
        # averaged over all processes: where one stops, all have to, or they would wait for it
        total = self.trainer.strategy.reduce(total)
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        norm = full_tensor(nn.utils.clip_grad_norm_(parameters, update.optimizer.clip or float("inf")))
        if not (total.isfinite().all() & norm.isfinite()):  # the only time an update waits for the device
            self._check_finite(total, update.label, batch.iteration)
            raise NonFiniteLossError(f"the gradient of {update.label} is {norm.item()} at iteration {batch.iteration}")
        optimizer.step()
        optimizer.zero_grad()
        # under autocast, weights cast for this step must not serve the next one
        torch.clear_autocast_cache()
        self.record(batch, {f"gradient_norm/{update.label}": norm, f"lr/{update.label}": lr})
        self.record(batch, {f"loss/{update.label}": total.mean()}, prog_bar=True)
        self.watch(micro_losses, batch)

    def watch(self, losses: list[Losses], batch: Batch) -> None:
        """Keep the quantities that all micro-batches watch for callbacks, and log those for the progress bar."""
        means = watched_means(losses)
        self.per_position |= {name: mean for name, mean in means.items() if mean.ndim}
        if losses[0].progress:
            self.record(batch, {name: means[name].mean() for name in losses[0].progress}, prog_bar=True)

    def watch_held_out(self, batch: Batch, means: dict[str, Tensor]) -> None:
        """Keep means per token, (n,), of some held-out samples: averaged with those of the samples before them."""
        for name, mean in means.items():
            before = self.per_position[name] * batch.start if batch.start else 0
            self.per_position[name] = (before + mean * len(batch)) / (batch.start + len(batch))

    def record(self, batch: Batch, values: dict[str, Any], prog_bar: bool = False) -> None:
        """Log training values, averaged over the processes, in the iterations that are written out.

        Lightning's own log repeats a value for as long as no newer one comes; phases of a stage have different ones.
        """
        every, once = self.trainer.log_every_n_steps, self.trainer.fast_dev_run  # type: ignore[attr-defined]
        if (batch.iteration + 1) % every == 0 or once:
            local = [torch.as_tensor(value, dtype=torch.float32, device=self.device) for value in values.values()]
            means = self.trainer.strategy.reduce(torch.stack(local).detach()).tolist()
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
        self.validation_step(batch, batch_idx)

    def write_artifact(self, directory: str) -> None:
        """Write the stage's directory; a collective call of all processes."""
        config, modules = self.artifact()
        states = {name: full_state_dict(module) for name, module in modules.items()}
        if not self.trainer.is_global_zero:
            return
        run = {"iterations": self.trainer.global_step, "settings": dict(self.hparams), "version": __version__}
        run |= {"commit": commit(), "hardware": hardware(self.device)}
        write_artifact(directory, self.artifact_kind or self.name, {**config, **run}, states)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["stage"] = self.name
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if not k.startswith(FROZEN)}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse the checkpoint of another stage; put frozen networks back so that loading stays strict."""
        found = checkpoint.get("stage")
        if found != self.name:
            raise ArtifactError(
                f"the checkpoint comes from stage {found!r}, this is stage '{self.name}'. "
                f"--ckpt_path resumes a run of the same stage; stages are chained by model.init_from"
            )
        frozen = {k: v for k, v in self.state_dict().items() if k.startswith(FROZEN)}
        checkpoint["state_dict"] = {**checkpoint.get("state_dict", {}), **frozen}  # without, the strategy has loaded it


def full_tensor(tensor: Tensor) -> Tensor:
    """The tensor itself, gathered from all processes where it is sharded."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def full_state_dict(module: nn.Module) -> dict[str, Tensor]:
    """A state dict of full tensors on the CPU; a collective call where they are sharded."""
    return {key: full_tensor(value.detach()).cpu() for key, value in module.state_dict().items()}
