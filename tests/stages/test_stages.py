"""The stages: what an iteration is, what it updates, what it leaves behind."""

import json
import shutil

import pytest
import torch
from lightning.pytorch import Callback
from safetensors.torch import load_file
from torch.optim.optimizer import register_optimizer_step_post_hook

from dd2_lightning.artifacts import load_generator, load_init, load_teacher
from dd2_lightning.cli.training import FitCLI
from dd2_lightning.stages import CSDDistill
from dd2_lightning.stages.schedule import OptimizerSettings, ema_rate, update_ema
from faults import poisoned
from runs import fails, fit, stage_config
from watching import watch_losses


@pytest.fixture(scope="module")
def chain(root):
    """Teacher and stages 1, 2, 3, run once."""
    fit(stage_config(root, "align"), root)
    return root


class Recorder(Callback):
    """Counts batches and keeps copies of the networks after each."""

    def __init__(self):
        self.batches, self.steps, self.states = 0, [], []

    def on_train_batch_end(self, trainer, module, *_):
        self.batches += 1
        self.steps.append(trainer.global_step)
        networks = {name: getattr(module, name) for name in ("generator", "guidance", "ema")}
        self.states.append({k: {n: p.clone() for n, p in v.named_parameters()} for k, v in networks.items()})


@pytest.fixture
def recorder(monkeypatch):
    """A recorder that is part of every run."""
    callback = Recorder()
    original = FitCLI.instantiate_trainer

    def with_recorder(self, **kwargs):
        trainer = original(self, **kwargs)
        trainer.callbacks.append(callback)
        return trainer

    monkeypatch.setattr(FitCLI, "instantiate_trainer", with_recorder)
    return callback


def moved(before: dict, after: dict) -> bool:
    return any(not torch.equal(before[name], after[name]) for name in before)


def test_an_iteration_is_one_batch_and_one_tick_whatever_k(chain, tmp_path, recorder):
    config = stage_config(chain, "csd", guidance_updates=5)
    config["trainer"] |= {"default_root_dir": str(tmp_path), "max_steps": 12}
    fit(config, tmp_path)
    assert recorder.batches == 12
    assert recorder.steps == list(range(1, 13))


def test_guidance_is_updated_k_times_before_the_generator(chain, tmp_path, monkeypatch):
    calls = []
    watch_losses(
        monkeypatch, lambda stage, update, batch, k, _: calls.append((update.name, k, stage.trainer.global_step))
    )
    config = stage_config(chain, "csd", guidance_updates=3)
    config["trainer"] |= {"default_root_dir": str(tmp_path), "max_steps": 2}
    fit(config, tmp_path)
    once = [("guidance", 0), ("guidance", 1), ("guidance", 2), ("generator", 0)]
    assert calls == [(*step, 0) for step in once] + [(*step, 1) for step in once]


def test_alignment_starts_from_the_ema_and_first_trains_guidance_only(chain, tmp_path, recorder):
    config = stage_config(chain, "align", align_guidance_updates=5)
    config["trainer"] |= {"default_root_dir": str(tmp_path), "max_steps": 5}
    fit(config, tmp_path)
    ema = load_file(chain / "csd" / "generator.safetensors")
    states = recorder.states  # 5 guidance updates at K = 2 are 3 whole iterations
    for state in states[:3]:
        assert all(torch.equal(value, ema[name]) for name, value in state["generator"].items())
    assert moved(states[0]["guidance"], states[1]["guidance"])
    assert moved(states[2]["generator"], states[3]["generator"])
    assert recorder.steps == [1, 2, 3, 4, 5]
    # the EMA count restarts: its first rate is 1/10
    first = {n: 0.1 * ema[n] + 0.9 * p for n, p in states[3]["generator"].items()}
    assert all(torch.allclose(first[n], p, atol=1e-7) for n, p in states[3]["ema"].items())


def test_ema_rate_is_the_papers():
    assert [ema_rate(0), ema_rate(90)] == [0.1, 0.91]
    assert ema_rate(10**9) == 0.9999


def test_ema_averages_parameters_and_copies_buffers():
    ema, network = torch.nn.BatchNorm1d(3), torch.nn.BatchNorm1d(3)
    network.weight.data.fill_(3.0)
    network.running_mean.fill_(7.0)
    update_ema(ema, network, 0.75)
    assert torch.allclose(ema.weight, torch.full((3,), 1.5))
    assert torch.equal(ema.running_mean, network.running_mean)


def test_learning_rate_rises_holds_and_falls():
    settings = OptimizerSettings(lr=1.0, warmup=10, lr_start=0.0, decay_from=0.5, lr_end=0.0)
    rates = [settings.rate(i, 100) for i in (0, 5, 10, 50, 75, 100)]
    assert rates == pytest.approx([0, 0.5, 1, 1, 0.5, 0])


def test_both_learning_rates_run_on_the_guidance_count(chain, tmp_path):
    rates = []
    adam = {"lr": 1.0, "warmup": 100, "lr_start": 0.0}
    config = stage_config(chain, "csd", guidance_optimizer=adam, generator_optimizer=adam)
    config["trainer"] |= {"default_root_dir": str(tmp_path), "max_steps": 2}
    hook = register_optimizer_step_post_hook(lambda optimizer, *_: rates.append(optimizer.param_groups[0]["lr"]))
    try:
        fit(config, tmp_path)
    finally:
        hook.remove()
    assert rates == pytest.approx([0, 0.01, 0.01, 0.02, 0.03, 0.03])


def test_artifacts_say_where_they_come_from(chain):
    config = json.loads((chain / "align" / "config.json").read_text())
    assert config["stage"] == "align" and config["family"] == "table" and config["iterations"] == 6
    assert config["teacher"]["path"] == "../teacher"
    assert config["head_time"] == 0.4  # inherited from the csd stage
    assert config["settings"]["align_guidance_updates"] == 6


def test_generator_and_init_load_and_sample(chain):
    generator = load_generator(chain / "csd")
    labels = torch.tensor([0, 1, 1])
    tokens = generator.sample(labels, generator=torch.Generator().manual_seed(0))
    assert tokens.shape == (3, 2, 2)
    again = generator.sample(labels, generator=torch.Generator().manual_seed(0))
    assert torch.equal(tokens, again)
    raw = load_generator(chain / "csd", weights="raw")
    assert not torch.equal(
        raw.sample(labels, noise=torch.ones(3, 2, 2)), generator.sample(labels, noise=torch.ones(3, 2, 2))
    )
    assert not any(p.requires_grad for p in load_init(chain / "init").parameters())


def test_an_artifact_of_version_0_1_loads(chain, tmp_path):
    """Which called the frequencies of the head's Fourier features octaves."""
    shutil.copytree(chain, tmp_path / "old")
    config = tmp_path / "old/csd/config.json"
    assert '"frequencies"' in config.read_text()
    config.write_text(config.read_text().replace('"frequencies"', '"octaves"'))
    noise, labels = torch.randn(4, 2, 2), torch.zeros(4, dtype=torch.long)
    found, expected = (load_generator(root / "csd").sample(labels, noise) for root in (tmp_path / "old", chain))
    assert torch.equal(found, expected)


def test_checkpoints_hold_no_teacher_and_load_safely(chain):
    checkpoint = torch.load(chain / "csd" / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["stage"] == "csd" and checkpoint["global_step"] == 6
    names = {key.split(".")[0] for key in checkpoint["state_dict"]}
    assert names == {"generator", "guidance", "ema"}


def test_accumulation_changes_nothing(chain, tmp_path):
    config = stage_config(chain, "csd", accumulate=4)
    config["trainer"] |= {"default_root_dir": str(tmp_path)}
    fit(config, tmp_path)
    expected = load_file(chain / "csd" / "generator_raw.safetensors")
    found = load_file(tmp_path / "generator_raw.safetensors")
    # the per-sample weight is taken within a sample, so only rounding differs
    assert all(torch.allclose(found[name], value, atol=1e-4) for name, value in expected.items())


def test_head_only_phase_leaves_the_backbone_alone(chain, tmp_path):
    fresh = load_teacher(chain / "teacher")
    config = stage_config(chain, "init", head_iterations=6)
    config["trainer"] |= {"default_root_dir": str(tmp_path)}
    fit(config, tmp_path)
    fit(
        {**config, "trainer": {**config["trainer"], "max_steps": 1}},
        tmp_path,
        "--trainer.default_root_dir",
        str(tmp_path / "short"),
    )
    long, short = (load_file(path / "student.safetensors") for path in (tmp_path, tmp_path / "short"))
    assert all(torch.equal(long[k], short[k]) for k in long if k.startswith("backbone."))
    assert any(not torch.equal(long[k], short[k]) for k in long if k.startswith("head."))
    assert fresh.num_classes == 2


def test_a_nan_names_loss_position_and_iteration_and_keeps_the_checkpoint(chain, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(CSDDistill, "generator_loss", poisoned(CSDDistill.generator_loss))
    config = stage_config(chain, "csd")
    config["trainer"] |= {"default_root_dir": str(tmp_path)}
    with fails(capsys, 1, "generator is nan at iteration 4, position 1"):
        fit(config, tmp_path)
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 4
    assert not (tmp_path / "config.json").exists()


def test_teacher_is_not_sampled_where_labels_suffice(chain, tmp_path, monkeypatch):
    from dd2_lightning.families.table.model import TableTeacher

    sampled = []
    original = TableTeacher.sample
    monkeypatch.setattr(TableTeacher, "sample", lambda self, *a, **k: sampled.append(1) or original(self, *a, **k))
    config = stage_config(chain, "csd")
    config["trainer"] |= {"default_root_dir": str(tmp_path), "limit_val_batches": 0}
    fit(config, tmp_path)
    assert not sampled


@pytest.mark.parametrize("initialise", ["both", "generator", "guidance", "none"])
def test_what_starts_from_stage_1(chain, initialise):
    """A network that does not has the same sizes, and a head that is the zero velocity."""
    stage = CSDDistill(str(chain / "teacher"), str(chain / "init"), initialise=initialise)
    stage.configure_model()
    trained = load_init(chain / "init").state_dict()
    for name in ("generator", "guidance"):
        own = getattr(stage, name).state_dict()
        assert own.keys() == trained.keys()
        if initialise in ("both", name):
            assert all(torch.equal(own[key], trained[key]) for key in trained)
        else:
            assert not own["head.output.weight"].any() and trained["head.output.weight"].any()
    assert all(torch.equal(a, b) for a, b in zip(stage.ema.parameters(), stage.generator.parameters(), strict=True))


def test_stage_3_starts_from_both_networks(chain, tmp_path, capsys):
    with fails(capsys, 2, "model.initialise is for CSDDistill"):
        fit(stage_config(chain, "align", initialise="none"), tmp_path)
