"""Protocols, feature networks by name, references, and files of pictures measured against them."""

import json
import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from dd2_lightning.cli import main
from dd2_lightning.data import DigitsData
from dd2_lightning.data.digits import load_digits_images
from dd2_lightning.errors import ArtifactError, DD2Error
from dd2_lightning.images.files import to_bytes
from dd2_lightning.images.npz import ImageFile, write_images
from dd2_lightning.metrics import features
from dd2_lightning.metrics.classifier import ImageClassifier
from dd2_lightning.metrics.features import feature_network, identity
from dd2_lightning.metrics.frechet import FeatureGaussian
from dd2_lightning.metrics.protocols import PROTOCOLS, protocol_named
from dd2_lightning.metrics.quality import Quality
from dd2_lightning.metrics.references import check_sizes, open_reference, write_statistics
from runs import fails

# --- protocols -------------------------------------------------------------------------------------------------------


def test_openai_takes_every_class_equally_often_in_every_part():
    labels = protocol_named("openai").labels(50_000, 1000)
    assert (labels.bincount() == 50).all()
    for part in labels.split(5000):  # what the evaluator takes an inception score of
        assert (part.bincount() == 5).all()
    assert torch.equal(labels, protocol_named("openai").labels(50_000, 1000, seed=3))
    with pytest.raises(ValueError, match="49999 samples are not the same number of each of 1000"):
        protocol_named("openai").labels(49_999, 1000)


def test_dd1_draws_classes_at_random():
    labels = protocol_named("dd1").labels(50_000, 1000, seed=1)
    counts = labels.bincount(minlength=1000).double()
    assert len(counts) == 1000 and 900 < ((counts - 50) ** 2 / 50).sum() < 1100  # chi², 999 degrees of freedom
    assert torch.equal(labels[:700], protocol_named("dd1").labels(700, 1000, seed=1))
    assert not torch.equal(labels, protocol_named("dd1").labels(50_000, 1000, seed=2))


def test_protocols_have_names():
    assert {name: protocol.name for name, protocol in PROTOCOLS.items()} == {"openai": "openai", "dd1": "dd1"}
    with pytest.raises(ValueError, match="unknown protocol 'fid'; there are: openai, dd1"):
        protocol_named("fid")
    with pytest.raises(ValueError, match="at least 1"):
        protocol_named("dd1").labels(0, 10)


# --- feature networks ------------------------------------------------------------------------------------------------


class Mean(nn.Module):
    """Means of channels and of quarters, as a user might write a network."""

    width = 2
    held_out_accuracy = None

    def features(self, images):
        return torch.stack([images.mean((1, 2, 3)), images[..., :4, :].mean((1, 2, 3))], 1)

    def logits(self, features):
        return None


class Unfinished:
    width = 2


class Extractor(nn.Module):
    """The interface of torch-fidelity's FeatureExtractorInceptionV3."""

    def __init__(self, name, features_list, feature_extractor_weights_path=None, **kwargs):
        super().__init__()
        self.features_list = features_list
        self.project, self.fc = nn.Conv2d(3, 2048, 1, bias=False), nn.Linear(2048, 1008)
        self.load_state_dict(torch.load(feature_extractor_weights_path))

    def forward(self, x):
        assert x.dtype == torch.uint8
        pooled = self.project((x.float() - 128) / 128).tanh().mean((2, 3))
        found = {"2048": pooled, "logits_unbiased": pooled.mm(self.fc.weight.T)}
        return tuple(found[name] for name in self.features_list)


@pytest.fixture
def fidelity(monkeypatch, tmp_path):
    """Torch-fidelity with a tiny network; its weights file."""
    module = ModuleType("torch_fidelity.feature_extractor_inceptionv3")
    module.FeatureExtractorInceptionV3 = Extractor
    monkeypatch.setitem(sys.modules, "torch_fidelity", ModuleType("torch_fidelity"))
    resizing = ModuleType("torch_fidelity.interpolate_compat_tensorflow")
    resizing.interpolate_bilinear_2d_like_tensorflow1x = lambda x, size, align_corners: x
    for stub in (module, resizing):
        monkeypatch.setitem(sys.modules, stub.__name__, stub)
    weights = {
        "project.weight": torch.randn(2048, 3, 1, 1),
        "fc.weight": torch.randn(1008, 2048),
        "fc.bias": torch.ones(1008),
    }
    torch.save(weights, tmp_path / "inception.pth")
    return tmp_path / "inception.pth"


def test_inception_sees_bytes_and_gives_unbiased_logits(fidelity):
    network = feature_network("inception", inception=fidelity)
    pixels = torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8)
    found = features.features_of(network, pixels)
    expected = Extractor("", ["2048", "logits_unbiased"], fidelity)(pixels)
    torch.testing.assert_close(found, expected[0])
    torch.testing.assert_close(network.logits(found), expected[1])
    assert found.shape == (5, network.width) and network.held_out_accuracy is None
    assert not found.requires_grad and not network.training
    with pytest.raises(ValueError, match=r"RGB images \(B, 3, H, W\), got \(5, 1, 8, 8\)"):
        network.features(torch.zeros(5, 1, 8, 8))


def test_inception_has_the_gradient_of_pixels_that_are_not_rounded(fidelity):
    network, images = feature_network("inception", inception=fidelity), torch.rand(5, 3, 8, 8, requires_grad=True)
    found, weights = network.features(images), torch.randn(5, 2048)
    assert torch.equal(found, network.features(images.detach()))
    (slope,) = torch.autograd.grad((weights * found).sum(), images)
    rounded = (to_bytes(images).float() / 255).requires_grad_()
    direct = network.network.project((255 * rounded - 128) / 128).tanh().mean((2, 3))
    torch.testing.assert_close(slope, torch.autograd.grad((weights * direct).sum(), rounded)[0])


def test_every_byte_survives_the_way_to_a_network_and_back():
    pixels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_bytes(pixels.float() / 255), pixels)
    assert to_bytes(torch.tensor([-1.0, 2.0])).tolist() == [0, 255]


def test_inception_that_cannot_be_is_refused(fidelity, monkeypatch, tmp_path):
    with pytest.raises(ValueError, match="needs --inception"):
        feature_network("inception")
    with pytest.raises(ArtifactError, match=r"nowhere\.pth does not exist"):
        feature_network("inception", inception="nowhere.pth")
    torch.save({"project.weight": torch.zeros(2, 2)}, tmp_path / "other.pth")
    with pytest.raises(DD2Error, match=r"other\.pth does not hold torch-fidelity's Inception weights"):
        feature_network("inception", inception=tmp_path / "other.pth")
    torch.save(Mean(), tmp_path / "code.pth")
    with pytest.raises(ArtifactError, match="holds Python objects"):
        feature_network("inception", inception=tmp_path / "code.pth")
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", None)
    with pytest.raises(DD2Error, match=r"dd2-lightning\[eval\]"):
        feature_network("inception", inception=fidelity)


def test_ones_own_network_by_its_name(tmp_path):
    network = feature_network(f"{__name__}.Mean")
    assert isinstance(network, Mean) and not network.training
    for name, words in [
        ("fid", "unknown feature network 'fid'; there are: classifier, inception"),
        ("nowhere.Features", "cannot be made.*nowhere.*PYTHONPATH"),
        (f"{__name__}.Nothing", "cannot be made.*Nothing"),
        (f"{__name__}.Unfinished", "has no held_out_accuracy, features, logits"),
    ]:
        with pytest.raises(ValueError, match=words):
            feature_network(name)


def test_identity_is_of_class_and_weights():
    torch.manual_seed(1)
    first, second = ImageClassifier((1, 8, 8), 10), ImageClassifier((1, 8, 8), 10)
    assert identity(first) == identity(first) != identity(second)
    assert identity(Mean()) != identity(first) and identity(Mean()).startswith(f"{__name__}.Mean")
    assert identity(Unfinished()) == f"{__name__}.Unfinished"


# --- references ------------------------------------------------------------------------------------------------------


def fitted(values):
    fit = FeatureGaussian(values.shape[1])
    fit.update(values)
    return fit.compute()


def pictures(path, count=60, size=8, channels=1, seed=0, **others):
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, size, size, channels), dtype=torch.uint8, generator=generator).numpy()
    write_images(path, pixels.shape, [pixels], **others)
    return torch.from_numpy(pixels).movedim(3, 1)


def test_statistics_come_back_for_their_own_network_only(tmp_path):
    network, path = ImageClassifier((1, 8, 8), 10), tmp_path / "s.safetensors"
    gaussian = fitted(torch.randn(100, 32))
    write_statistics(path, gaussian, network)
    found = open_reference(path)
    found.check_network(network)
    assert found.images is None and found.gaussian.count == 100
    assert torch.equal(found.gaussian.mean, gaussian.mean)
    assert torch.equal(found.gaussian.covariance, gaussian.covariance)
    for other in (ImageClassifier((1, 8, 8), 10), Mean()):
        with pytest.raises(ArtifactError, match=r"s\.safetensors holds statistics of the .*ImageClassifier"):
            open_reference(path).check_network(other)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ArtifactError, match="damaged"):
        open_reference(path)
    save_file({"mean": torch.zeros(3)}, path)
    with pytest.raises(ArtifactError, match="holds no statistics"):
        open_reference(path)
    with pytest.raises(ArtifactError, match="does not exist"):
        open_reference(tmp_path / "nowhere.safetensors")


def test_a_reference_batch_with_pictures_and_statistics(tmp_path, fidelity):
    """FID is to the statistics, precision and recall are to the pictures."""
    network = feature_network("inception", inception=fidelity)
    mean, covariance = np.zeros(2048), np.eye(2048)
    pixels = pictures(tmp_path / "r.npz", channels=3, mu=mean, sigma=covariance, mu_s=np.zeros(3), sigma_s=np.eye(3))
    reference = open_reference(tmp_path / "r.npz")
    gaussian, found = reference.measured(network, 40, batch_size=7)
    assert torch.equal(gaussian.mean, torch.zeros(2048).double()) and gaussian.covariance.trace() == 2048
    torch.testing.assert_close(found, features.features_of(network, pixels)[:40])


def test_statistics_of_an_unknown_network(tmp_path):
    for name, mu, sigma, words in [
        ("a", np.zeros(3), np.eye(3), "3 features, the feature network has 2"),
        ("b", np.zeros(2, int), np.eye(2), "must be floats, they are int64"),
        ("c", np.zeros(2), np.eye(3), r"they are \(2,\) and \(3, 3\)"),
        ("d", np.zeros(()), np.eye(3), r"they are \(\) and \(3, 3\)"),
        ("e", np.full(2, np.nan), np.eye(2), "not finite"),
    ]:
        np.savez(tmp_path / f"{name}.npz", mu=mu, sigma=sigma)
        with pytest.raises(ArtifactError, match=rf"{name}\.npz.*{words}"):
            open_reference(tmp_path / f"{name}.npz").check_network(Mean())
    np.savez(tmp_path / "f.npz", mu=np.zeros(2), sigma=np.eye(2))
    with pytest.warns(UserWarning, match="does not say which network"):
        open_reference(tmp_path / "f.npz").check_network(Mean())


def test_files_that_are_no_pictures(tmp_path):
    path = tmp_path / "x.npz"
    for array, words in [
        (np.zeros((2, 4, 4, 3), np.float32), r"arr_0 is float32 \(2, 4, 4, 3\), images are uint8"),
        (np.zeros((2, 3, 4, 4), np.uint8), r"uint8 \(2, 3, 4, 4\)"),
        (np.zeros((4, 4, 3), np.uint8), r"uint8 \(4, 4, 3\)"),
        (np.zeros((0, 4, 4, 3), np.uint8), r"uint8 \(0, 4, 4, 3\)"),
        (np.asfortranarray(np.zeros((2, 4, 4, 3), np.uint8)), "Fortran"),
    ]:
        np.savez(path, arr_0=array)
        with pytest.raises(ArtifactError, match=rf"x\.npz.*{words}"):
            ImageFile(path)
    np.savez(path, pictures=np.zeros(3))
    with pytest.raises(ArtifactError, match=r"no array arr_0; it holds pictures\.npy"):
        ImageFile(path)
    with pytest.raises(ArtifactError, match="neither images"):
        open_reference(path)
    np.savez(path, mu=np.array([{}], object), sigma=np.eye(2))
    with pytest.raises(ArtifactError, match="damaged"):
        open_reference(path)
    pictures(path)
    for content in (b"", path.read_bytes()[:2000], b"PK\3\4" + bytes(100)):
        path.write_bytes(content)
        with pytest.raises(ArtifactError, match="no npz file, or damaged"):
            ImageFile(path)
    with pytest.raises(ArtifactError, match="does not exist"):
        ImageFile(tmp_path / "nowhere.npz")


def test_sizes_must_agree(tmp_path):
    for name, size, channels in (("a", 8, 1), ("b", 6, 1), ("c", 8, 3)):
        pictures(tmp_path / f"{name}.npz", size=size, channels=channels)
    samples = ImageFile(tmp_path / "a.npz")
    check_sizes(samples, open_reference(tmp_path / "a.npz"))
    for name, size in (("b", "6x6x1"), ("c", "8x8x3")):
        with pytest.raises(ArtifactError, match=rf"a\.npz holds images of 8x8x1, .*{name}\.npz of {size}"):
            check_sizes(samples, open_reference(tmp_path / f"{name}.npz"))


CPU = ("--device", "cpu", "--data", "DigitsData")

# --- commands --------------------------------------------------------------------------------------------------------


@pytest.fixture
def digits(tmp_path):
    """Two halves of the real digits as files, with a protocol in one."""
    images, _ = load_digits_images()
    for name, part in (("a", images[::2]), ("b", images[1::2])):
        pixels = to_bytes(part).permute(0, 2, 3, 1).numpy()
        settings = {"settings": np.array(json.dumps({"protocol": "dd1"}))} if name == "a" else {}
        write_images(tmp_path / f"{name}.npz", pixels.shape, [pixels], **settings)
    return tmp_path


def test_a_file_measured_against_pictures_and_against_their_statistics(digits, capsys):
    common = ["--samples", str(digits / "a.npz"), "--output", str(digits / "out.json"), *CPU]
    main(["quality", *common, "--reference", str(digits / "b.npz")])
    results = json.loads((digits / "out.json").read_text())
    network = feature_network("classifier", digits, data=DigitsData())
    halves = [
        torch.cat([features.features_of(network, p) for p in ImageFile(digits / f"{n}.npz").batches(99)]) for n in "ab"
    ]
    expected = Quality.of(halves[1])
    expected.update(halves[0], network.logits(halves[0]))
    for key, value in vars(expected.compute()).items():
        assert results[key] == pytest.approx(value, rel=1e-4), key
    assert results["precision"] > 0.8 and results["frechet"] < 0.1
    assert results["protocol"] == "dd1" and results["samples"] == 899 and results["features"] == identity(network)
    assert "dd1" in capsys.readouterr().out
    main(
        [
            "statistics",
            *CPU,
            "--images",
            str(digits / "b.npz"),
            "--output",
            str(digits / "s.safetensors"),
        ]
    )
    main(["quality", *common, "--reference", str(digits / "s.safetensors")])
    alone = json.loads((digits / "out.json").read_text())
    assert alone["frechet"] == pytest.approx(results["frechet"], rel=1e-6)
    assert alone["inception_score"] == results["inception_score"]
    assert alone["kid"] is alone["precision"] is alone["recall"] is None


def test_few_samples_are_warned_of(digits, capsys):
    pictures(digits / "few.npz", count=20)
    main(
        [
            *("quality", *CPU, "--samples", str(digits / "few.npz"), "--reference", str(digits / "b.npz")),
            *("--output", str(digits / "few.json"), "--protocol", "openai"),
        ]
    )
    results = json.loads((digits / "few.json").read_text())
    assert results["protocol"] == "openai" and results["manifold_samples"] == 20  # as many as there are
    printed = capsys.readouterr().out
    for message in (
        "20 samples for 32 features: the covariance is singular",
        "20 samples, protocol openai takes 50,000",
    ):
        assert printed.count(message) == 1 and sum(text.startswith(message) for text in results["warnings"]) == 1


def test_what_cannot_be_measured(digits, capsys):
    network = f"{__name__}.Mean"
    write_statistics(digits / "s.safetensors", fitted(torch.randn(100, 2)), Mean())
    for status, words, args in [
        (2, ("was drawn by dd1 protocol, not by --protocol openai",), ("--protocol", "openai")),
        (2, ("unknown protocol 'fid'",), ("--protocol", "fid")),
        (2, ("--manifold_samples must be at least 1",), ("--manifold_samples", "0")),
        (2, ("unknown feature network 'fid'",), ("--features", "fid")),
        (2, ("needs --inception",), ("--features", "inception")),
        (1, ("nowhere.npz does not exist",), ("--reference", "nowhere.npz")),
        (1, ("s.safetensors", "test_protocols.Mean"), ("--reference", str(digits / "s.safetensors"))),
    ]:
        with fails(capsys, status, *words):
            main(
                [
                    *(
                        "quality",
                        *CPU,
                        "--samples",
                        str(digits / "a.npz"),
                        "--reference",
                        str(digits / "b.npz"),
                    ),
                    *("--output", str(digits / "out.json"), *args),
                ]
            )
    with fails(capsys, 2, ".safetensors"):
        main(
            [
                *("statistics", "--images", str(digits / "a.npz"), "--output", str(digits / "s.npz")),
                *("--features", network),
            ]
        )
    assert not (digits / "out.json").exists() and not (digits / "s.npz").exists()
