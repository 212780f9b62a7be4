"""What a tokenizer is trained with besides its own losses, and what the stage says of it."""

import io
import sys

import pytest
import torch
from PIL import Image
from torch import nn

from dd2_lightning.data import Batch, DigitsData
from dd2_lightning.errors import DD2Error
from dd2_lightning.models.codebook import spacing
from dd2_lightning.models.discriminator import PatchDiscriminator, hinge_loss
from dd2_lightning.stages import TeacherTraining
from dd2_lightning.stages.teacher import describe_codes
from dd2_lightning.stages.tokenizer import DiscriminatorSettings, adaptive_weight
from evidence import left_behind
from fake_lpips import install_lpips
from runs import fails, fit, teacher_config

OFF = {"discriminator": None, "tokenizer_batch_size": None}


def stage_with(tmp_path, **settings) -> TeacherTraining:
    arguments = {**teacher_config(tmp_path)["model"]["init_args"], **OFF, **settings}
    for name in ("sampling", "tokenizer_optimizer", "transformer_optimizer"):
        del arguments[name]
    torch.manual_seed(0)
    return TeacherTraining(**arguments)


def batch_of(size=8, iteration=0) -> Batch:
    data = DigitsData(size)
    data.setup()
    return data.batches(0, 1)[iteration]


# --- the discriminator -----------------------------------------------------------------------------------------------


def test_scores_depend_on_their_patch_alone():
    network = PatchDiscriminator(1, 32, width=8, layers=2).double()
    images = torch.randn(3, 1, 32, 32, dtype=torch.double, requires_grad=True)
    scores = network(images)
    torch.testing.assert_close(network(images[1:2]), scores[1:2])
    assert scores.shape == (3, 1, 6, 6)
    plain = PatchDiscriminator(1, 32, width=8, layers=2).double()
    plain.net = nn.Sequential(*(module for module in plain.net if not isinstance(module, nn.GroupNorm)))
    plain(images)[1, 0, 0, 0].backward()
    rows = images.grad.abs().sum((1, 3))
    assert not rows[[0, 2]].any() and not images.grad[1, :, 23:].any() and images.grad[1, :, 22].any()


def test_images_too_small_for_the_layers():
    with pytest.raises(ValueError, match="layers 2 are too many for images of 8x8"):
        PatchDiscriminator(1, 8, layers=2)


def test_hinge_loss_by_hand():
    assert hinge_loss(torch.tensor([2.0, 0.5]), torch.tensor([-3.0, 1.0])).item() == pytest.approx((0.25 + 1) / 2)


def test_adaptive_weight_makes_gradients_equally_long():
    layer = torch.randn(3, 2, requires_grad=True)
    one, other = layer.square().sum(), 7 * layer.sum()
    weight = adaptive_weight(one, other, layer, lambda value: value)
    expected = (2 * layer.detach()).norm() / (7 * torch.ones(3, 2)).norm()
    torch.testing.assert_close(weight, expected, rtol=1e-4, atol=0)
    assert adaptive_weight(one, 0 * other, layer, lambda value: value) == 1e4


def test_before_its_start_a_discriminator_changes_nothing(tmp_path):
    """From then on the tokenizer does what it would not do alone."""
    logs = {}
    for name, settings in {"without": None, "with": {"start": 2, "width": 8, "layers": 1}}.items():
        config = teacher_config(tmp_path, **{**OFF, "discriminator": settings, "tokenizer_iterations": 6})
        config["trainer"]["default_root_dir"] = str(tmp_path / name)
        fit(config, tmp_path)
        logs[name] = left_behind(tmp_path / name)
    alone, against = (logs[name]["log reconstruction"] for name in ("without", "with"))
    assert alone[:3] == against[:3] and alone[3:] != against[3:]  # the term of iteration 2 shows in 3
    assert [step for step, _ in logs["with"]["log loss/discriminator"]] == [2, 3, 4, 5]
    assert [step for step, _ in logs["with"]["log adversarial_weight"]] == [2, 3, 4, 5]


def test_a_discriminator_learns_to_tell(tmp_path):
    stage, batch = stage_with(tmp_path, discriminator=DiscriminatorSettings(width=8, layers=1)), batch_of(32)
    optimizer, losses = torch.optim.Adam(stage.critic.parameters(), 1e-2), []
    for _ in range(30):
        losses.append(stage.discriminator_loss(batch, 0).loss.mean())
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[0] > 0.8 and losses[-1] < 0.2
    assert all(parameter.grad is None for parameter in stage.model.parameters())


@pytest.mark.parametrize("key", ["weight", "start", "width", "layers", "optimizer.lr"])
def test_settings_of_a_discriminator(tmp_path, capsys, key):
    config = teacher_config(tmp_path)
    name, _, inner = key.partition(".")
    config["model"]["init_args"]["discriminator"][name] = {inner: -1} if inner else -1
    with fails(capsys, 2, f"model.discriminator.{key} must be"):
        fit(config, tmp_path)


# --- the perceptual term ---------------------------------------------------------------------------------------------


def test_the_perceptual_term(tmp_path, monkeypatch):
    """Of a distance that is 12 times the squared error of pixels in [0, 1]."""
    weights = str(install_lpips(monkeypatch, tmp_path / "vgg.pt"))
    batch = batch_of()
    plain = stage_with(tmp_path).tokenizer_loss(batch, 0)
    losses = stage_with(tmp_path, perceptual_weight=0.5, lpips_weights=weights).tokenizer_loss(batch, 0)
    expected = 12 * plain.watch["reconstruction"]
    torch.testing.assert_close(losses.watch["perceptual"], expected)
    torch.testing.assert_close(losses.loss, plain.loss + 0.5 * expected)
    assert losses.progress == ("reconstruction", "perplexity", "perceptual")


def test_a_perceptual_term_without_its_package(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"name the file of its weights in model\.lpips_weights"):
        stage_with(tmp_path, perceptual_weight=1.0)
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(DD2Error, match=r"pip install 'dd2-lightning\[lpips\]'"):
        stage_with(tmp_path, perceptual_weight=1.0, lpips_weights="vgg.pt")


# --- batches, logs, codes --------------------------------------------------------------------------------------------


def test_a_thinned_batch_does_not_depend_on_the_processes():
    data = DigitsData(16)
    data.setup()
    whole = data.batches(0, 1)[3].thinned(4)
    parts = [data.batches(rank, 2)[3].thinned(4) for rank in range(2)]
    assert torch.equal(whole.images, data.batches(0, 1)[3].images[::4])
    for value in ("images", "labels"):
        assert torch.equal(torch.cat([getattr(part, value) for part in parts]), getattr(whole, value))
    assert torch.equal(torch.cat([part.rand("x", shape=()) for part in parts]), whole.rand("x", shape=()))


def test_batches_that_the_tokenizer_cannot_share(tmp_path, capsys):
    with fails(capsys, 1, "data.batch_size 16 (16 a process) must be a multiple of the 5 samples"):
        fit(teacher_config(tmp_path, tokenizer_batch_size=5), tmp_path)


def test_spacing_against_all_pairs():
    codes = torch.randn(7, 3)
    expected = [min((codes[i] - codes[j]).norm().item() for j in range(7) if i != j) for i in range(7)]
    torch.testing.assert_close(spacing(codes), torch.tensor(expected))
    line = describe_codes(torch.tensor([[0.0, 0.0], [3.0, 4.0], [3.0, 6.0]]))
    assert "3 codes of 2 numbers, rms 3.42 " in line and "is 2.00 away (2.00 to 4.70 for 9 in 10)" in line


def test_the_stage_logs_reconstructions_and_says_how_codes_lie(tmp_path, capsys):
    fit(teacher_config(tmp_path, **OFF), tmp_path)
    assert "8 codes of 2 numbers, rms 2.00 (noise: 1); the nearest other code is" in capsys.readouterr().out
    found = left_behind(tmp_path / "digits")
    images = {key: value for key, value in found.items() if key.startswith("config/data/")}
    assert images == {
        f"config/data/init_args/{key}": value for key, value in (("batch_size", 16), ("seed", 0), ("held_out", 197))
    }
    assert {"log val/reconstruction", "log val/perplexity"} <= found.keys()
    for _, picture in found["picture reconstructions"]:
        assert Image.open(io.BytesIO(picture)).size == (10 * 9 - 1, 2 * 9 - 1)
    assert [step for step, _ in found["picture reconstructions"]] == [2, 5]
