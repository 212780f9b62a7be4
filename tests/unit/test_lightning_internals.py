"""Lightning's private names, against the version that is installed."""

import signal
import sys
import threading
from subprocess import Popen

import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric.strategies.launchers import subprocess_script
from lightning.pytorch.cli import LightningCLI

from dd2_lightning.lightning_internals import (
    _FailureObserver,
    end_launched_processes,
    end_with_failed_process,
    exit_status,
    find_unused_parameters,
    launched_processes,
    set_progress,
    uncounted,
)


class Two(pl.LightningModule):
    """Two optimizers, each of which steps twice an iteration; the last step alone is counted."""

    def __init__(self, count_all: bool):
        super().__init__()
        self.automatic_optimization = False
        self.networks = torch.nn.ModuleList([torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)])
        self.count_all, self.seen = count_all, []

    def configure_optimizers(self):
        return [torch.optim.SGD(network.parameters(), lr=0.1) for network in self.networks]

    def training_step(self, batch, batch_idx):
        first, second = self.optimizers()
        for optimizer in (first, first, second):
            self.step(optimizer, counted=self.count_all)
        self.step(second, counted=True)
        self.seen.append(self.trainer.global_step)

    def step(self, optimizer, counted):
        if counted:
            optimizer.step()
        else:
            with uncounted(optimizer):
                optimizer.step()


@pytest.mark.parametrize(("count_all", "seen"), [(False, [1, 2, 3]), (True, [4, 8, 12])])
def test_uncounted_steps(tmp_path, count_all, seen):
    module = Two(count_all)
    trainer = trainer_of(tmp_path, max_epochs=1)
    trainer.fit(module, torch.utils.data.DataLoader(torch.zeros(3, 1)))
    assert module.seen == seen


def trainer_of(tmp_path, **settings):
    """A small trainer that writes nothing by itself."""
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    return pl.Trainer(accelerator="cpu", default_root_dir=tmp_path, **quiet, **settings)


@pytest.mark.parametrize("iterations", [2, 3])
def test_counters_of_a_checkpoint_between_iterations(tmp_path, iterations):
    """They become those of a checkpoint in ``on_train_batch_end``, whatever has been counted since."""
    saved = {}

    class Save(pl.Callback):
        def on_train_batch_end(self, trainer, *_):
            self.dump(trainer, "inside")

        def on_train_batch_start(self, trainer, *_):
            self.dump(trainer, "between")

        on_train_epoch_end = on_train_batch_start

        def dump(self, trainer, moment):
            if trainer.global_step == iterations and moment not in saved:
                trainer.save_checkpoint(tmp_path / moment)
                saved[moment] = torch.load(tmp_path / moment, weights_only=True)

    trainer = trainer_of(tmp_path, max_steps=3, max_epochs=-1, callbacks=[Save()])
    trainer.fit(Two(count_all=False), torch.utils.data.DataLoader(torch.zeros(3, 1)))
    assert saved["between"]["loops"] != saved["inside"]["loops"]
    set_progress(saved["between"], iterations, is_last=iterations == 3)
    assert saved["between"]["loops"] == saved["inside"]["loops"]


def test_unused_parameters_are_looked_for(tmp_path):
    trainer = trainer_of(tmp_path, strategy="ddp")
    assert "find_unused_parameters" not in trainer.strategy._ddp_kwargs
    find_unused_parameters(trainer.strategy)
    assert trainer.strategy._ddp_kwargs["find_unused_parameters"]
    find_unused_parameters(trainer_of(tmp_path).strategy)


def test_a_run_has_the_status_of_the_process_that_failed(tmp_path):
    """Processes that a launcher has started are found; theirs is the status; those that are left are killed."""
    trainer = trainer_of(tmp_path, strategy="ddp")
    assert launched_processes(trainer) == [] == trainer.strategy.launcher.procs
    waiting = Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    trainer.strategy.launcher.procs = [Popen([sys.executable, "-c", "raise SystemExit(3)"]), waiting]
    with pytest.raises(SystemExit, match="3"), end_with_failed_process(trainer):
        assert issubclass(subprocess_script._ChildProcessObserver, threading.Thread)
        assert subprocess_script._ChildProcessObserver is _FailureObserver
        raise RuntimeError("connection lost")
    assert subprocess_script._ChildProcessObserver is not _FailureObserver
    end_launched_processes(trainer)
    assert waiting.wait() == -signal.SIGKILL and exit_status(-signal.SIGKILL) == 137


@pytest.mark.parametrize("name", ["_run_subcommand", "_parse_ckpt_path", "_set_seed", "_get"])
def test_steps_of_the_command_line(name):
    """``cli/stage_cli.py`` overrides or calls them."""
    assert callable(getattr(LightningCLI, name))
