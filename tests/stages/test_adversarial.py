"""The adversarial terms of stage 2."""

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from dd2_lightning.data import Batch, DigitsData
from dd2_lightning.data.images import ImageSet
from dd2_lightning.flow import add_noise
from dd2_lightning.stages import CSDDistill
from dd2_lightning.stages.adversarial import AdversarialSettings
from runs import fails, fit, stage_config
from teachers import randomise

WEIGHTS = AdversarialSettings(generator_weight=0.3, guidance_weight=0.7, start=2)


def stage_of(root, **settings):
    stage = CSDDistill(str(root / "teacher"), str(root / "csd"), draws=3, head_time=0.4, **settings)
    type(stage).starts_from, before = ("csd",), type(stage).starts_from
    stage.load = lambda source: None
    try:
        stage.configure_model()
    finally:
        type(stage).starts_from = before
    randomise(stage.guidance)
    return stage


@pytest.fixture
def batch():
    images = {"images": torch.rand(4, 1, 3, 3), "image_labels": torch.tensor([2, 0, 1, 1])}
    return Batch(torch.tensor([0, 1, 2, 0]), 2, 0, 0, 4, **images)


def test_terms_are_those_of_a_logistic_classifier(var_run, batch):
    """Real tokens have their own prefix and labels, and the noise of the generated ones."""
    stage = stage_of(var_run, adversarial=WEIGHTS)
    randomise(stage.adversary.logit)
    q = torch.randn(4, stage.layout.length, 4)
    noised = stage.noised(batch, q, 0.02, "test")
    flow = stage.guidance.flow(q, batch.labels)

    def logits(tokens, labels):
        x, head = add_noise(tokens, noised.t, noised.eps).x_t, stage.guidance.head
        seen = []
        with head.output.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])):
            head(x, noised.t, stage.guidance.backbone(tokens, labels))
        return stage.adversary.logit(seen[0])[..., 0]

    real = stage.teacher.embed(stage.teacher.encode(batch.images))
    is_real = F.binary_cross_entropy_with_logits(
        logits(real, batch.image_labels), torch.ones(*real.shape[:2], 3), reduction="none"
    )
    fake = logits(q, batch.labels)
    is_fake = F.binary_cross_entropy_with_logits(fake, torch.zeros_like(fake), reduction="none")
    losses = stage.adversary.beside_fcs(torch.full((4, 14), 5.0), flow, noised, stage.teacher, batch)
    torch.testing.assert_close(losses.loss, 5 + 0.7 * (is_real + is_fake).mean(-1))

    with_term = stage.csd_loss(batch, q, "test").loss
    stage.adversary.settings = AdversarialSettings(start=3)
    without = stage.csd_loss(batch, q, "test").loss
    noised = stage.noised(batch, q, stage.t_min_generator, "test")
    fake = logits(q, batch.labels)
    fooled = F.binary_cross_entropy_with_logits(fake, torch.ones_like(fake), reduction="none")
    torch.testing.assert_close(with_term, without + 0.3 * fooled.mean(-1))


def test_the_generators_gradient_raises_its_logits(var_run, batch):
    stage = stage_of(var_run, adversarial=AdversarialSettings())
    randomise(stage.adversary.logit)
    q = torch.randn(4, stage.layout.length, 4, requires_grad=True)

    def mean_logit(q):
        noised = stage.noised(batch, q, 0.05, "test")
        return stage.adversary(stage.guidance.flow(q.detach(), batch.labels), noised).mean(), noised

    before, noised = mean_logit(q)
    loss = F.softplus(-stage.adversary(stage.guidance.flow(q.detach(), batch.labels), noised)).mean()
    (slope,) = torch.autograd.grad(loss, q)
    assert mean_logit(q - 5 * slope / slope.norm())[0] > before


def config_of(root, output, **model):
    config = stage_config(root, "csd", **model)
    config["data"]["init_args"]["real"] = {"class_path": "DigitsData"}
    config["trainer"]["default_root_dir"] = str(output)
    return config


@pytest.fixture
def images(monkeypatch):
    """Real images of the size and number of classes of the teacher."""
    sets = ImageSet(torch.rand(20, 1, 3, 3), torch.arange(20) % 3)
    monkeypatch.setattr(DigitsData, "load", lambda self: (sets, sets))


def test_without_them_a_run_is_what_it_was(var_run, tmp_path, images):
    """Real images that come along change nothing; weights of 0 change nothing but rounding."""
    fit(config_of(var_run, tmp_path / "off"), tmp_path)
    none = {"generator_weight": 0.0, "guidance_weight": 0.0}
    fit(config_of(var_run, tmp_path / "zero", adversarial=none), tmp_path)
    for name in ("generator", "generator_raw", "guidance"):
        expected = load_file(var_run / f"csd/{name}.safetensors")
        off, zero = (load_file(tmp_path / f"{run}/{name}.safetensors") for run in ("off", "zero"))
        assert all(torch.equal(off[key], value) for key, value in expected.items())
        assert all(torch.allclose(zero[key], value, atol=1e-5) for key, value in expected.items())


def test_both_players_learn(var_run, tmp_path, images, capsys):
    fit(config_of(var_run, tmp_path, adversarial={"generator_weight": 0.5, "start": 3}), tmp_path)
    state = torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert state["adversary.logit.weight"].any()
    expected = load_file(var_run / "csd/generator.safetensors")
    found = load_file(tmp_path / "generator.safetensors")
    assert any(not torch.equal(found[key], value) for key, value in expected.items())
    config = config_of(var_run, tmp_path / "none", adversarial={})
    del config["data"]["init_args"]["real"]
    with fails(capsys, 1, "real images beside its labels: set data.real"):
        fit(config, tmp_path)


@pytest.mark.parametrize("name", ["generator_weight", "guidance_weight", "start"])
def test_weights_out_of_range(name):
    with pytest.raises(ValueError, match=f"model.adversarial.{name} must be 0 or more"):
        AdversarialSettings(**{name: -1})
