"""Stage 0: the adapted teacher is the original one, but for what it reads."""

import json
import warnings

import pytest
import torch
from safetensors.torch import load_file

from dd2_lightning.artifacts import load_teacher, write_teacher
from dd2_lightning.data.batch import Batch
from dd2_lightning.files import sha256
from dd2_lightning.stages.adapt import TOLERANCE
from dd2_lightning.stages.teacher import cross_entropy, swapped, with_noise
from runs import adapt_config, fails, fit, original, stage_config
from teachers import var_teacher


@pytest.fixture(scope="module")
def adapted(tmp_path_factory):
    """The directory of an adaptation that was given what it needs."""
    root = tmp_path_factory.mktemp("adapted")
    write_teacher(root / "teacher", original(), data={"class_path": "DigitsData"})
    optimizers = {
        "input_optimizer": {"lr": 1e-2, "decay_from": 0.3},
        "optimizer": {"lr": 1e-3, "decay_from": 0.0},
    }
    config = adapt_config(root, data={"validation_size": 300}, input_iterations=400, ema_limit=0.9, **optimizers)
    config["trainer"] |= {"max_steps": 500, "val_check_interval": 500, "log_every_n_steps": 100}
    config["checkpoint_every"] = 500
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "the adapted teacher")
        fit(config, root)
    return root


def test_nothing_is_lost(adapted):
    """Held-out cross-entropy, on fresh sequences, within 0.5% of the original's, with and without its label."""
    before, after = load_teacher(adapted / "teacher"), load_teacher(adapted / "adapt")
    labels = torch.arange(600) % 3
    indices = before.sample(labels, generator=torch.Generator().manual_seed(7))
    for given in (labels, torch.full_like(labels, 3)):
        original, found = (
            cross_entropy(model, model.prepare(indices), given, indices).mean() for model in (before, after)
        )
        assert found < (1 + TOLERANCE) * original
        # it was worth learning: without its tokens the model does much worse
        blind = cross_entropy(before, torch.zeros_like(indices), given, indices).mean()
        assert blind > 1.1 * original
    recorded = json.loads((adapted / "adapt" / "config.json").read_text())["cross_entropy_ratio"]
    assert 0.99 < recorded < 1 + TOLERANCE


def test_what_it_leaves_is_a_teacher(adapted):
    teacher = load_teacher(adapted / "adapt")
    config = json.loads((adapted / "adapt" / "config.json").read_text())
    assert config["stage"] == "teacher" and config["family"] == "llamagen"
    assert config["original"]["sha256"] == sha256(adapted / "teacher" / "teacher.safetensors")
    assert config["data"] == {"class_path": "DigitsData"}  # of the images that the original was trained on
    assert config["architecture"] == {**original().config, "continuous_input": True, **_lists(original().config)}
    tokens = teacher.embed(torch.randint(12, (2, 9))) + 0.1 * torch.randn(2, 9, 4)
    assert teacher.logits(tokens, torch.tensor([0, 1])).isfinite().all()
    before, after = load_file(adapted / "teacher/teacher.safetensors"), load_file(adapted / "adapt/teacher.safetensors")
    assert all(torch.equal(value, after[key]) for key, value in before.items() if key.startswith("tokenizer."))


def _lists(config):
    return {key: value for key, value in config.items() if isinstance(value, list)}


def test_later_stages_take_it(adapted, tmp_path, capsys):
    config = stage_config(adapted, "init", teacher=str(adapted / "adapt"))
    config["trainer"]["default_root_dir"] = str(tmp_path)
    fit(config, tmp_path)
    assert (tmp_path / "student.safetensors").exists()
    config = stage_config(adapted, "init")
    config["trainer"]["default_root_dir"] = str(tmp_path / "unadapted")
    with fails(capsys, 1, "input is an embedding table; run configs/adapt_llamagen.yaml first"):
        fit(config, tmp_path)


def test_the_first_phase_changes_the_input_only(adapted, tmp_path, capsys):
    config = adapt_config(adapted, input_iterations=8)
    config["trainer"]["default_root_dir"] = str(tmp_path)
    fit(config, tmp_path)
    assert "times the original's, 1.005 is the goal" in capsys.readouterr().err
    before, after = load_file(adapted / "teacher/teacher.safetensors"), load_file(tmp_path / "teacher.safetensors")
    assert all(torch.equal(before[key], after[key]) for key in before.keys() & after.keys())
    untrained, trained = original().continuous(), load_teacher(tmp_path)
    assert trained.input_error(original()).mean() < untrained.input_error(original()).mean()


@pytest.mark.parametrize("targets", ["codes", "teacher"])
def test_both_targets_train_the_whole_transformer(adapted, tmp_path, targets):
    config = adapt_config(adapted, targets=targets, input_iterations=0)
    config["trainer"]["default_root_dir"] = str(tmp_path)
    fit(config, tmp_path)
    before, after = load_file(adapted / "teacher/teacher.safetensors"), load_file(tmp_path / "teacher.safetensors")
    moved = [key for key in before.keys() & after.keys() if not torch.equal(before[key], after[key])]
    assert len(moved) == len([key for key in before if not key.startswith("tokenizer.")]) - 1


def test_soft_targets_have_the_gradient_of_the_codes_on_average():
    """At tokens drawn from the teacher, the expected cross-entropy of the codes is that of its probabilities."""
    before = original().requires_grad_(False)
    after, labels = before.continuous(), torch.zeros(4000, dtype=torch.long)
    indices = before.sample(labels, generator=torch.Generator().manual_seed(0))
    probabilities = before.predict(before.prepare(indices), labels).softmax(-1)
    read = after.prepare(indices)
    hard, soft = (cross_entropy(after, read, labels, target).mean(0) for target in (indices, probabilities))
    torch.testing.assert_close(hard, soft, rtol=0.06, atol=0)
    assert not torch.equal(hard, soft)


# --- what a transformer is trained to read ---------------------------------------------------------------------------


def test_swapped_codes_and_noise_belong_to_their_samples():
    """A share of the codes is replaced, the same ones whether a batch is whole or in parts; indices take no noise."""
    indices = torch.arange(4000).view(500, 8) % 12
    batch = Batch(torch.zeros(500, dtype=torch.long), 3, 0, 0, 500)
    assert torch.equal(swapped(indices, 12, batch, 0.0), indices)
    some = swapped(indices, 12, batch, 0.3)
    assert (some != indices).float().mean().item() == pytest.approx(0.3 * 11 / 12, abs=0.03)
    assert torch.bincount(swapped(indices, 12, batch, 1.0).flatten(), minlength=12).min() > 4000 / 12 * 0.75
    parts = [swapped(indices[250 * i : 250 * (i + 1)], 12, batch.micro_batch(i, 2), 0.3) for i in range(2)]
    assert torch.equal(torch.cat(parts), some)
    assert torch.equal(with_noise(indices, batch, 1.0), indices)
    q = torch.zeros(500, 8, 4)
    assert with_noise(q, batch, 0.1).std().item() == pytest.approx(0.1, abs=0.01)
    noisy = [with_noise(q[:250], batch.micro_batch(i, 2), 0.1) for i in range(2)]
    assert torch.equal(torch.cat(noisy), with_noise(q, batch, 0.1))


# --- bad input -------------------------------------------------------------------------------------------------------


def test_a_teacher_that_reads_embeddings_is_refused(adapted, tmp_path, capsys):
    config = adapt_config(adapted, teacher=str(adapted / "adapt"))
    config["trainer"]["default_root_dir"] = str(tmp_path)
    with fails(capsys, 1, "reads embeddings as it is: there is nothing to adapt"):
        fit(config, tmp_path)
    write_teacher(tmp_path / "teacher", var_teacher())
    config["model"]["init_args"]["teacher"] = str(tmp_path / "teacher")
    with fails(capsys, 1, "there is nothing to adapt"):
        fit(config, tmp_path)


def test_sequences_are_needed(adapted, tmp_path, capsys):
    config = adapt_config(adapted, data={"sequences": "none"}, input_iterations=0)
    config["trainer"]["default_root_dir"] = str(tmp_path)
    with fails(capsys, 1, "set data.sequences to cached or online"):
        fit(config, tmp_path)


def test_soft_tokens_are_no_sequences(adapted, tmp_path, capsys):
    write_teacher(tmp_path / "teacher", var_teacher())
    config = stage_config(tmp_path, "init")
    config["data"]["init_args"]["sampling"] = {"guidance_scale": 1.0, "more_smooth": True}
    with fails(capsys, 1, "makes soft tokens"):
        fit(config, tmp_path)


def test_settings_of_one_family_reach_the_teacher(adapted, tmp_path, capsys):
    """A config may set what its family adds, and the command line too; another family's is refused."""
    config = stage_config(adapted, "init", teacher=str(adapted / "adapt"))
    config["trainer"]["default_root_dir"] = str(tmp_path / "run")
    config["model"]["init_args"]["teacher_sampling"] = {"guidance_scale": 2.0, "cfg_interval": 3}
    fit(config, tmp_path, "--data.sampling.guidance_scale", "2.0", "--data.sampling.cfg_interval", "2")
    settings = json.loads((tmp_path / "run" / "config.json").read_text())["settings"]
    assert settings["teacher_sampling"]["cfg_interval"] == 3
    config["trainer"]["default_root_dir"] = str(tmp_path / "another")
    config["model"]["init_args"]["teacher_sampling"] = {"guidance_scale": 2.0, "more_smooth": True}
    with fails(capsys, 1, "VARSampling is for teachers of another family"):
        fit(config, tmp_path)
