"""Evaluation on images that are not the digits: their classifier, real images, and features of one's own."""

import json
from types import SimpleNamespace

import pytest
import torch

from dd2_lightning.artifacts import Artifact, teacher_reference, write_artifact, write_teacher
from dd2_lightning.cli import main
from dd2_lightning.data import DigitsData, MnistData
from dd2_lightning.data.named import describe_images, open_images
from dd2_lightning.errors import ArtifactError, DD2Error
from dd2_lightning.evaluation.samplers import TeacherSampler
from dd2_lightning.metrics.classifier import ImageClassifier, images_hash, load_classifier, read_classifier
from dd2_lightning.metrics.features import feature_network
from image_sets import RandomImages
from runs import fails
from teachers import student_of, var_teacher

SIZES = ["--samples", "60", "--reference_samples", "150", "--batch_size", "50", "--device", "cpu"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A teacher of 3x3 images of three classes and a generator, without training; another whose images nobody knows."""
    root = tmp_path_factory.mktemp("runs")
    torch.manual_seed(0)
    teacher = var_teacher()
    images = {"shape": teacher.tokenizer.image_shape, "num_classes": teacher.num_classes}
    head = {"head": {"width": 16, "depth": 2, "frequencies": 0}, "head_time": 0.4}
    data = {"data": {"class_path": "image_sets.RandomImages", "init_args": images}}
    for name, known in (("known", data), ("unknown", {})):
        write_teacher(root / name / "teacher", teacher, **known)
        origin = Artifact.open(root / name / "teacher", ("teacher",), "teacher")
        reference = {"family": "var", "teacher": teacher_reference(origin, root / name / "align")}
        states = {"generator": student_of(teacher).state_dict()}
        write_artifact(root / name / "align", "align", {**reference, **head}, states)
    return root


@pytest.fixture(autouse=True)
def _without_path_lengths(monkeypatch):
    """They take most of the time of an evaluation, and are tested elsewhere."""
    monkeypatch.setattr("dd2_lightning.evaluation.compare.path_length", lambda *_, **__: SimpleNamespace(mean=1.0))


def evaluated(runs, name, output, *arguments):
    main(["evaluate", "--models", f"[{runs / name / 'align'}]", "--output", str(output), *SIZES, *arguments])
    return json.loads((output / "results.json").read_text())


def test_models_alone_are_measured_with_the_classifier_of_their_images(runs, tmp_path):
    report = evaluated(runs, "known", tmp_path)
    kept = runs / "known/teacher/classifier.safetensors"
    classifier, real = read_classifier(kept), report["samplers"]["real"]
    assert real["accuracy"] == classifier.held_out_accuracy and classifier.shape == (1, 3, 3)
    assert real["frechet"] > 0 and report["tokenizer"]["images"] == 100
    written = kept.stat().st_mtime_ns
    assert evaluated(runs, "known", tmp_path)["samplers"]["real"]["frechet"] == real["frechet"]
    assert kept.stat().st_mtime_ns == written


def test_images_that_nobody_knows_are_named_or_left_out(runs, tmp_path, capsys):
    with fails(capsys, 1, "config.json does not say which images", "name them in data"):
        evaluated(runs, "unknown", tmp_path)
    report = evaluated(runs, "unknown", tmp_path, "--features", "pixels")
    assert "real" not in report["samplers"] and "tokenizer" not in report
    data = {"class_path": "image_sets.RandomImages", "init_args": {"shape": [1, 3, 3], "num_classes": 3, "count": 60}}
    assert evaluated(runs, "unknown", tmp_path, "--data", json.dumps(data))["tokenizer"]["images"] == 60


class Projection:
    """Features that take an argument; they read images of one channel."""

    held_out_accuracy = None

    def __init__(self, width: int):
        self.width = width

    def features(self, images):
        if images.shape[1] != 1:
            raise ValueError("one channel")
        return images.flatten(1) @ torch.linspace(-1, 1, images[0].numel() * self.width).view(-1, self.width)

    def logits(self, features):
        return None


class Colours(Projection):
    """Features of RGB images, as Inception's."""

    def features(self, images):
        return images.view(len(images), 3, 64).sum(2)


def test_features_of_ones_own_take_arguments(runs, tmp_path):
    named = {"class_path": f"{__name__}.Projection", "init_args": {"width": 3}}
    report = evaluated(runs, "known", tmp_path, "--features", json.dumps(named))
    assert report["samplers"]["one-step"]["frechet"] is not None
    assert not any("for 3 features" in text for text in report["warnings"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--features", "digits"), ("unknown feature network 'digits'; there are: classifier",)),
        (("--features", f"{__name__}.Projection"), ("Projection' cannot be made", "width")),
        (
            ("--features", json.dumps({"class_path": f"{__name__}.Colours", "init_args": {"width": 3}})),
            ("--features", "does not read images (1, 3, 3)"),
        ),
        (("--data", "DigitsData"), ("10 classes of (1, 8, 8)", "3 classes of (1, 3, 3)")),
        (("--data", "PrefixData"), ("data: PrefixData has no images",)),
        (("--data", "MnistDat"), ("data 'MnistDat' cannot be made",)),
        (("--data", json.dumps({"class_path": "DigitsData", "init_args": {"held_out": 0}})), ("data.held_out",)),
        (("--data", json.dumps({"init_args": {}})), ("data: give the name of a class",)),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_sampled(runs, tmp_path, capsys, monkeypatch, arguments, words):
    monkeypatch.setattr(TeacherSampler, "generate", lambda *_: pytest.fail("sampled"))
    with fails(capsys, 2, *words):
        evaluated(runs, "known", tmp_path, *arguments)


def test_a_class_alone_cannot_be_classified(tmp_path):
    with pytest.raises(DD2Error, match="several classes: take --features inception"):
        load_classifier(tmp_path, RandomImages(num_classes=1))
    with pytest.raises(ValueError, match="needs --data"):
        feature_network("classifier")


def test_a_classifier_belongs_to_its_images(tmp_path):
    first, other = RandomImages(count=60), RandomImages(count=61)
    model = load_classifier(tmp_path, first)
    kept = (tmp_path / "classifier.safetensors").read_bytes()
    load_classifier(tmp_path, first)
    assert (tmp_path / "classifier.safetensors").read_bytes() == kept
    assert torch.equal(read_classifier(tmp_path / "classifier.safetensors").held_out, model.held_out)
    load_classifier(tmp_path, other)
    assert (tmp_path / "classifier.safetensors").read_bytes() != kept
    assert images_hash(first.everything()) != images_hash(other.everything())
    (tmp_path / "classifier.safetensors").write_bytes(kept[:300])
    with pytest.raises(ArtifactError, match="holds no classifier"):
        read_classifier(tmp_path / "classifier.safetensors")


@pytest.mark.parametrize(
    ("shape", "width"), [((1, 8, 8), 32), ((1, 28, 28), 64), ((3, 32, 32), 64), ((3, 64, 48), 128)]
)
def test_a_classifier_fits_images_of_any_size(shape, width):
    model = ImageClassifier(shape, 4)
    images = torch.rand(2, *shape)
    assert model.features(images).shape == (2, model.width) == (2, width) and model(images).shape == (2, 4)


def test_data_of_a_run_come_back_from_their_description():
    assert describe_images(object()) == {}
    described = json.loads(json.dumps(describe_images(MnistData(seed=3, held_out=100))))["data"]
    data = open_images(described)
    assert isinstance(data, MnistData) and data.hparams == {"batch_size": 64, "seed": 3, "held_out": 100}
    assert data.held_out.size == 100 and open_images("DigitsData").everything().size == DigitsData.total
