"""Stage 4: the Fréchet distance of features as a loss."""

import json
import signal
from contextlib import nullcontext

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import nn

from dd2_lightning.artifacts import load_generator, load_teacher
from dd2_lightning.cli import main
from dd2_lightning.data import DigitsData
from dd2_lightning.data.images import ImageSet
from dd2_lightning.metrics.features import identity
from dd2_lightning.metrics.frechet import FeatureGaussian, RunningFrechet, frechet_distance
from dd2_lightning.metrics.references import write_statistics
from dd2_lightning.metrics.simple import PixelFeatures, RandomFeatures
from dd2_lightning.metrics.warning import SampleWarning
from dd2_lightning.noise import SampleNoise
from dd2_lightning.stages import FrechetAlign
from equivalence import deviation, weights_of
from evidence import left_behind, unequal
from faults import die_at
from processes import forked
from runs import fails, fit, stage_config


@pytest.fixture(scope="module")
def run(var_run):
    """A finished run of six iterations."""
    fit(config_of(var_run, var_run / "frechet"), var_run)
    return var_run


def config_of(root, output, **model):
    config = stage_config(root, "frechet", **model)
    config["trainer"]["default_root_dir"] = str(output)
    return config


def gaussian_of(images, network):
    fit = FeatureGaussian(network.width)
    fit.update(network.features(images))
    return fit.compute()


class Stopped(Exception):
    pass


@pytest.fixture
def started(monkeypatch):
    """Run a config up to its first step: the stage, with its moments filled."""

    def start(config, root):
        seen = []

        def stop(self, batch, index):
            seen.append(self)
            raise Stopped

        monkeypatch.setattr(FrechetAlign, "training_step", stop)
        with pytest.raises(Stopped):
            fit(config, root)
        return seen[0]

    return start


def test_moments_are_those_of_the_generator_and_the_teacher(run, tmp_path, started):
    stage = started(config_of(run, tmp_path), tmp_path)
    labels, noise = torch.arange(80) % 3, SampleNoise(0, 0, 80)
    teacher, n, C = stage.teacher, stage.layout.length, stage.teacher.token_dim
    with torch.no_grad():
        tokens = stage.generator.generate(noise.randn("moments", n, C), labels, stage.head_time)
    indices = teacher.sample(labels, stage.trainer.datamodule.sampling, uniforms=noise.rand("teacher moments", n))
    for network, distance in zip((RandomFeatures(), PixelFeatures()), stage.distances, strict=True):
        f = network.features(teacher.decode(tokens)).double()
        assert torch.allclose(distance.mean, f.mean(0), atol=1e-6)
        assert torch.allclose(distance.products, f.T @ f / 80, atol=1e-5)
        reference = gaussian_of(teacher.decode(indices), network)
        assert torch.allclose(distance.reference_mean, reference.mean, atol=1e-6)
        assert torch.allclose(distance.reference_root @ distance.reference_root, reference.covariance, atol=1e-5)
        assert distance.count == 80


def test_real_images_are_a_reference(run, tmp_path, started, monkeypatch):
    """All training images of the image data, and no other."""
    images = torch.rand(90, 1, 3, 3)
    sets = ImageSet(images[:70], torch.arange(70) % 3), ImageSet(images[70:], torch.arange(20) % 3)
    monkeypatch.setattr(DigitsData, "load", lambda self: sets)
    config = config_of(run, tmp_path, features=[{"network": "random", "reference": "real"}])
    config["data"]["init_args"]["real"] = {"class_path": "DigitsData"}
    (distance,) = started(config, tmp_path).distances
    assert torch.allclose(distance.reference_mean, gaussian_of(images[:70], RandomFeatures()).mean, atol=1e-6)


def test_a_file_of_statistics_is_a_reference(run, tmp_path, started):
    gaussian, path = gaussian_of(torch.rand(70, 1, 3, 3), RandomFeatures()), tmp_path / "s.safetensors"
    write_statistics(path, gaussian, RandomFeatures())
    config = config_of(run, tmp_path / "run", features=[{"network": "random", "reference": str(path)}])
    (distance,) = started(config, tmp_path).distances
    assert torch.allclose(distance.reference_mean, gaussian.mean)


def test_the_distance_falls(run, tmp_path):
    """That of the artifact's images, of noise that was not trained on, to a large sample of the teacher."""
    config = config_of(run, tmp_path, features=[{"network": "random"}], moment_decay=0.8, moment_samples=200)
    config["model"]["init_args"]["generator_optimizer"] = {"lr": 3e-3, "betas": [0.9, 0.95]}
    config["data"]["init_args"]["batch_size"] = 32
    config["trainer"] |= {"max_steps": 25, "val_check_interval": 25}
    fit(config, tmp_path)
    network, labels, noise = RandomFeatures(), torch.arange(600) % 3, SampleNoise(1, 0, 600)
    teacher = load_teacher(run / "teacher")
    n, C = teacher.layout.length, teacher.token_dim
    reference = gaussian_of(teacher.decode(teacher.sample(labels, uniforms=noise.rand("teacher", n))), network)
    distances = []
    for path in (run / "csd", tmp_path):
        generator = load_generator(path, teacher=teacher)
        images = generator.decode(generator.sample(labels, noise.randn("generator", n, C)))
        distances.append(frechet_distance(gaussian_of(images, network), reference))
    assert distances[1] < 0.5 * distances[0]


def test_the_artifact_is_a_generator_and_names_its_features(run):
    config = json.loads((run / "frechet/config.json").read_text())
    assert config["stage"] == "frechet" and config["head_time"] == 0.4
    assert config["features"] == [identity(RandomFeatures()), identity(PixelFeatures())]
    assert not (run / "frechet/guidance.safetensors").exists()
    assert load_generator(run / "frechet").sample(torch.tensor([0, 1])).shape == (2, 14, 4)
    raw, ema = (load_file(run / f"frechet/{name}.safetensors") for name in ("generator_raw", "generator"))
    assert any(not torch.equal(raw[key], ema[key]) for key in raw)


def test_csd_goes_on_beside_it(run, tmp_path):
    fit(config_of(run, tmp_path, csd_weight=0.1), tmp_path)
    before, after = (load_file(path / "guidance.safetensors") for path in (run / "csd", tmp_path))
    assert any(not torch.equal(before[key], after[key]) for key in before)


def test_a_killed_run_resumes_bit_for_bit(run, tmp_path):
    parts = run / "frechet parts"
    config = config_of(run, parts)

    def killed():
        die_at(3, signal.SIGKILL)
        fit(config, tmp_path)

    assert forked(killed, tmp_path / "log")[0] == -9
    names = {key.split(".")[0] for key in torch.load(parts / "checkpoints/last.ckpt", weights_only=True)["state_dict"]}
    assert names == {"generator", "ema", "distances"}
    fit(config, tmp_path, "--ckpt_path", "auto")
    assert unequal(left_behind(run / "frechet"), left_behind(parts)) == []


def test_two_processes_equal_one(run, tmp_path):
    """Features of both are gathered with their gradients, and the moments are those of both."""
    (alone,) = weights_of(run, "frechet", tmp_path / "one", 1, iterations=2)
    first, second = weights_of(run, "frechet", tmp_path / "two", 2, iterations=2, accumulate=1)
    assert all(torch.equal(value, second[key]) for key, value in first.items())
    assert deviation(alone, first) < 1e-5
    start = load_file(run / "csd/generator.safetensors")
    assert max((alone[f"generator.{key}"] - value).abs().max() for key, value in start.items()) > 5e-4


def test_it_is_planned(run, tmp_path, capsys):
    """Counted on shapes, with the real images of the adversarial terms; feature networks are not opened."""
    features = [{"network": "inception", "weights": "nowhere.pth"}]
    config = config_of(run, tmp_path, features=features, csd_weight=1.0, adversarial={})
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(config))
    main(["plan", "--config", str(tmp_path / "plan.yaml")])
    table = capsys.readouterr().out.split("activations/sample")[1]
    assert "guidance" in table and "generator" in table


class Untouched(nn.Module):
    """A feature network without a gradient, like one that rounds to bytes; its width is that of the statistics."""

    width, held_out_accuracy = 64, None

    def features(self, images):
        return RandomFeatures().features(images.detach())

    def logits(self, features):
        return None


class Broken(Untouched):
    def features(self, images):
        return RandomFeatures().features(images) / 0


@pytest.mark.parametrize(
    ("entry", "settings", "status", "words"),
    [
        ({"network": "fid"}, {}, 1, "model.features: unknown feature network 'fid'"),
        ({"network": "inception"}, {}, 2, "inception needs its weights file"),
        ({"network": "random", "weight": 0}, {}, 2, "model.features.weight must be positive"),
        ({"network": "random"}, {"moment_samples": 64}, 1, "64 images of the generator for 64 features"),
        ({"network": "random"}, {"moment_decay": 1.0}, 2, "model.moment_decay must be in [0, 1)"),
        ({"network": "random"}, {"adversarial": {}}, 2, "set model.csd_weight above 0"),
        ({"network": "random", "reference": "real"}, {}, 1, "reference real needs data.real"),
        ({"network": "random", "reference": "few.safetensors"}, {}, 1, "60 images of the few.safetensors"),
        ({"network": "random", "reference": "pixels.safetensors"}, {}, 1, "statistics of the feature network"),
        ({"network": "random", "reference": "nan.safetensors"}, {}, 1, "statistics are not finite"),
        ({"network": "random", "reference": "nowhere.npz"}, {}, 1, "nowhere.npz does not exist"),
        ({"network": f"{__name__}.Untouched"}, {}, 1, "Untouched has no gradient in its images"),
        ({"network": f"{__name__}.Broken"}, {}, 1, "features of Broken are not finite at images of the generator"),
    ],
)
def test_what_cannot_be_is_one_line(run, tmp_path, monkeypatch, capsys, entry, settings, status, words):
    monkeypatch.chdir(tmp_path)
    images = torch.rand(80, 1, 3, 3)
    for name, rows, network in (("few", 60, RandomFeatures()), ("pixels", 80, PixelFeatures())):
        with pytest.warns(SampleWarning) if rows <= network.width else nullcontext():
            write_statistics(f"{name}.safetensors", gaussian_of(images[:rows], network), network)
    gaussian = gaussian_of(images, RandomFeatures())
    gaussian.mean[3] = torch.nan
    write_statistics("nan.safetensors", gaussian, RandomFeatures())
    with fails(capsys, status, words):
        fit(config_of(run, tmp_path / "run", features=[entry], **settings), tmp_path)
    assert not (tmp_path / "run/config.json").exists() and not (tmp_path / "run/checkpoints/last.ckpt").exists()


def test_a_teacher_without_decoder_is_refused(root, tmp_path, capsys):
    with fails(capsys, 1, "a codebook but no encoder and decoder"):
        fit(config_of(root, tmp_path), tmp_path)


def test_moments_that_are_not_finite_cost_nothing(run, tmp_path, capsys, monkeypatch):
    """The last good checkpoint stays; other feature networks do not take its moments."""
    original = RunningFrechet.forward

    def forward(self, features):
        self.products += torch.nan if self.calls == 6 else 0  # two networks: the fourth iteration
        self.calls += 1
        return original(self, features)

    monkeypatch.setattr(RunningFrechet, "calls", 0, raising=False)
    monkeypatch.setattr(RunningFrechet, "forward", forward)
    config = config_of(run, tmp_path, features=[{"network": "random"}])
    with fails(capsys, 1, "features of the generator's images, or their moments, are not finite: RandomFeatures"):
        config["trainer"]["max_steps"] = 10
        fit(config, tmp_path)
    assert torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 6
    config["model"]["init_args"]["features"] = [{"network": "pixels"}]
    with fails(capsys, 1, "the checkpoint has moments of dd2_lightning.metrics.simple.RandomFeatures"):
        fit(config, tmp_path, "--ckpt_path", "last")
