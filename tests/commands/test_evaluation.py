"""Classifier, comparison, report and pictures, on a toy teacher with pictures."""

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from rich.console import Console
from scipy.linalg import sqrtm

from dd2_lightning.cli.summary import summary
from dd2_lightning.data import DigitsData
from dd2_lightning.data.digits import load_digits_images
from dd2_lightning.errors import ArtifactError, DD2Error
from dd2_lightning.evaluation.baselines import IndependentSampler, RealImages, SkipSampler
from dd2_lightning.evaluation.compare import Evaluator, Score, check_diversity, compare, finite, time_samplers
from dd2_lightning.evaluation.evaluate import evaluate_samplers
from dd2_lightning.evaluation.reconstruction import measure_reconstruction
from dd2_lightning.evaluation.report import aggregate, gap_closed, make_report, markdown, print_table, ratios
from dd2_lightning.evaluation.samplers import (
    ARDiffusionSampler,
    OneStepSampler,
    RefinedSampler,
    TeacherSampler,
)
from dd2_lightning.families.table.model import TableTeacher
from dd2_lightning.metrics.classifier import load_classifier, train_classifier
from dd2_lightning.metrics.features import identity
from dd2_lightning.metrics.path_length import feature_distance, path_length
from dd2_lightning.metrics.warning import collect_warnings
from dd2_lightning.models.generator import OneStepGenerator
from helpers import circle
from image_sets import RandomImages
from toys import TOKENS, toy_student, toy_teacher


@pytest.fixture(scope="module")
def teacher():
    return toy_teacher()


@pytest.fixture(scope="module")
def generator(teacher):
    return OneStepGenerator(toy_student(teacher), teacher.tokenizer, 0.4).eval()


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A directory with a trained classifier."""
    directory = tmp_path_factory.mktemp("report")
    load_classifier(directory, DigitsData())
    return directory


@pytest.fixture(scope="module")
def classifier(kept):
    return load_classifier(kept, DigitsData())


# --- comparison with a second teacher sample --------------------------------------------------------------------------


def test_two_teacher_samples_agree_in_diversity(teacher, classifier):
    evaluator = Evaluator(teacher, classifier, reference_samples=10_000)
    score = evaluator.score(TeacherSampler().bind(teacher), 5000)
    assert score.diversity == pytest.approx(1, abs=0.05)
    assert score.frechet < 0.02


def test_diversity_is_withdrawn_when_teacher_samples_disagree():
    scores = {"teacher": Score("teacher", diversity=1.06), "one-step": Score("one_step", diversity=0.9)}
    with pytest.warns(UserWarning, match="factor 1.060"):
        check_diversity(scores)
    assert scores["one-step"].diversity is None
    scores = {"teacher": Score("teacher", diversity=0.96), "one-step": Score("one_step", diversity=0.9)}
    check_diversity(scores)
    assert scores["one-step"].diversity == 0.9


def test_path_length_is_for_what_is_smooth_in_its_noise(teacher, generator, classifier):
    def pictures(labels, noise):
        return teacher.decode(generator.sample(labels, noise))

    evaluator = Evaluator(
        teacher, classifier, reference_samples=50, manifold_samples=0, batch_size=20, paths=50, seed=3
    )
    one_step = OneStepSampler(model=generator).bind(teacher)
    expected = path_length(pictures, (TOKENS, 2), 10, feature_distance(classifier), 50, seed=3, batch_size=20).mean
    assert evaluator.score(one_step, 40).path_length == expected > 0
    assert evaluator.score(OneStepSampler(model=generator, snapped=True).bind(teacher), 40).path_length is None
    assert evaluator.score(TeacherSampler().bind(teacher), 40).path_length is None


# --- classifier --------------------------------------------------------------------------------------------------


def test_digits_are_the_bundled_ones():
    images, labels = load_digits_images()
    assert images.shape == (1797, 1, 8, 8) and images.dtype == torch.float32
    assert images.min() == 0 and images.max() == 1
    assert labels.dtype == torch.long and labels.bincount().min() > 170


def test_missing_scikit_learn_names_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sklearn.datasets", None)
    with pytest.raises(DD2Error, match=r"dd2-lightning\[demo\]"):
        load_digits_images()


def test_classifier_is_accurate_and_the_same_every_time(classifier, kept):
    assert classifier.held_out_accuracy >= 0.96
    torch.manual_seed(99)  # must not matter
    again = train_classifier(DigitsData().everything(), 10)
    for key, value in classifier.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key
    images, labels = load_digits_images()
    assert (classifier(images).argmax(1) == labels).float().mean() > 0.98
    assert classifier.features(images).shape == (1797, 32)
    with pytest.raises(ValueError, match="1, 8, 8"):
        classifier.features(torch.zeros(2, 3, 8, 8))


def test_kept_classifier_is_read_and_a_damaged_one_replaced(kept, monkeypatch):
    path = kept / "classifier.safetensors"
    whole, trained = path.read_bytes(), []
    model = load_classifier(kept, DigitsData())

    def train(images, classes, seed):
        trained.append(seed)
        return model

    monkeypatch.setattr("dd2_lightning.metrics.classifier.train_classifier", train)
    load_classifier(kept, DigitsData())
    assert trained == []
    path.write_bytes(whole[:1000])
    load_classifier(kept, DigitsData())
    assert trained == [0] and path.read_bytes() == whole
    load_classifier(kept, DigitsData(), seed=1)
    assert trained == [0, 1]
    path.write_bytes(whole)


# --- comparison and report ---------------------------------------------------------------------------------------


def test_ratios():
    scores = {
        "whatever it is called": Score("one_step", frechet=0.03, nll=25.0),
        "one-step snapped": Score("one_step", frechet=0.5, nll=25.0),
        "teacher": Score("teacher", frechet=0.01, nll=20.0),
        "independent": Score("independent", frechet=0.21, nll=40.0),
    }
    rows = {name: asdict(score) for name, score in scores.items()}
    assert ratios(rows) == pytest.approx({"frechet": 0.1, "nll": 0.25})
    rows["independent"] |= {"frechet": 0.01, "nll": None}
    assert ratios(rows) == {"frechet": None, "nll": None}
    del rows["independent"]
    assert ratios(rows) == {"frechet": None, "nll": None}


def test_what_was_trained_on_is_no_headline(teacher, generator, classifier):
    """The row says so, a warning too, and nothing is derived from its distance; its likelihood counts."""
    evaluator = Evaluator(teacher, classifier, reference_samples=200, manifold_samples=0, paths=0, progress=False)
    for trained_on in ((), ("another network",), (identity(classifier),)):
        seen = OneStepGenerator(generator.student, teacher.tokenizer, 0.4)
        seen.trained_on = trained_on
        sampler = OneStepSampler(name="one-step", model=seen).bind(teacher)
        with collect_warnings() as messages:
            score = evaluator.score(sampler, 100)
        assert score.trained_on == any("one-step was trained on these features" in message for message in messages)
        assert score.trained_on == (trained_on == (identity(classifier),))
    rows = {name: asdict(Score(name, frechet=d, nll=d, steps=1)) for name, d in (("teacher", 1), ("independent", 5))}
    rows |= {"one-step": asdict(Score("one_step", frechet=2.0, nll=2.0, steps=1, trained_on=True))}
    assert ratios(rows) == {"frechet": None, "nll": 0.25}
    rows["dd1"] = asdict(Score("dd1", frechet=5.0, nll=5.0, steps=1))
    assert gap_closed(rows) == {"frechet": None, "nll": 0.75}


def test_the_gap_to_the_teacher_that_is_closed():
    """By the first one-step model, against the best DD1 in one step, for each metric."""
    rows = {
        "teacher": asdict(Score("teacher", frechet=0.01, nll=20.0, steps=16)),
        "one-step": asdict(Score("one_step", frechet=0.02, nll=29.0, steps=1)),
        "one-step snapped": asdict(Score("one_step", snapped=True, frechet=0.0, nll=29.0, steps=1)),
        "stage 4": asdict(Score("one_step", frechet=0.01, nll=20.0, steps=1)),
        "a": asdict(Score("dd1", frechet=0.05, nll=32.0, steps=1)),
        "b": asdict(Score("dd1", frechet=0.09, nll=26.0, steps=1)),
        "two steps": asdict(Score("dd1", frechet=0.01, nll=20.0, steps=2)),
    }
    assert gap_closed(rows) == pytest.approx({"frechet": 0.75, "nll": -0.5})
    report = {"samplers": rows, "ratios": {"frechet": None, "nll": None}, "closed": gap_closed(rows)}
    report |= {"seed": 0, "samples": 10, "hardware": "a machine", "commit": None}
    assert "DD2's closes Fréchet 0.750, NLL -0.500" in markdown(report)
    assert "closes Fréchet 0.750 (0.750 to 0.750)" in markdown(aggregate([report, report, report]))
    rows["b"]["nll"] = None
    assert gap_closed(rows)["nll"] is None
    del rows["a"], rows["b"], rows["two steps"]
    assert gap_closed(rows) == {"frechet": None, "nll": None}


def every_kind(teacher, generator):
    one_step, real = OneStepSampler(model=generator).bind(teacher), RealImages()
    real.data = DigitsData()
    return [
        TeacherSampler().bind(teacher),
        one_step,
        OneStepSampler(model=generator, snapped=True).bind(teacher),
        RefinedSampler(model=generator, steps=2).bind(teacher),
        ARDiffusionSampler(model=generator.student).bind(teacher),
        IndependentSampler().bind(teacher),
        SkipSampler(skipped=1).bind(teacher),
        real.bind(teacher),
    ]


PINNED = {"frechet", "nll", "accuracy", "diversity", "steps", "seconds_per_image"}


def test_report_of_a_toy(teacher, generator, classifier, tmp_path, capsys):
    samplers = every_kind(teacher, generator)
    report = evaluate_samplers(samplers, classifier, tmp_path, samples=1200, reference_samples=3000, minimum=100)
    assert json.loads((tmp_path / "results.json").read_text()) == report
    extra = {"ratios", "closed", "seed", "samples", "hardware", "commit", "warnings", "tokenizer", "weights"}
    assert set(report) == {"samplers", *extra}
    rows = report["samplers"]
    assert list(rows) == [sampler.name for sampler in samplers]
    for name, row in rows.items():
        assert set(row) >= PINNED
        missing = {key for key, value in row.items() if value is None}
        no_network = {"parameters"} if name in ("independent", "real") else set()
        no_path = set() if name == "one-step" else {"path_length"}
        assert missing == no_network | no_path | ({"steps", "seconds_per_image"} if name == "real" else set())
    assert rows["teacher"]["steps"] == TOKENS and rows["one-step"]["steps"] == 1
    assert rows["teacher"]["frechet"] < rows["skip-1"]["frechet"] < rows["independent"]["frechet"]
    assert rows["teacher"]["nll"] < rows["skip-1"]["nll"] < rows["independent"]["nll"]
    assert rows["teacher"]["precision"] > 0.8 and rows["teacher"]["recall"] > 0.8
    assert rows["teacher"]["kid"] < rows["independent"]["kid"]
    assert 1 <= rows["teacher"]["inception_score"] <= 10
    assert rows["one-step"]["nll"] == rows["one-step snapped"]["nll"]
    assert rows["one-step"]["frechet"] != rows["one-step snapped"]["frechet"]
    assert rows["one-step snapped"]["snapped"] and not rows["one-step"]["snapped"]
    assert rows["real"]["accuracy"] == classifier.held_out_accuracy
    expected = rows["one-step"]["nll"] - rows["teacher"]["nll"]
    assert report["ratios"]["nll"] == pytest.approx(expected / (rows["independent"]["nll"] - rows["teacher"]["nll"]))
    assert report["tokenizer"]["frechet"] > 0 and "The tokenizer alone" in (tmp_path / "table.md").read_text()
    assert len(report["commit"] or "0" * 40) == 40
    table = (tmp_path / "table.md").read_text()
    assert table.splitlines()[4].startswith("| one-step snapped | 1 |") and "batch size 100" in table
    assert "one-step snapped" in capsys.readouterr().out
    for name in ("samples", "steps"):
        assert imread(tmp_path / f"{name}.png").shape[1] > 1000


def test_what_a_tokenizer_keeps(teacher, classifier, capsys):
    """Against numpy: the signal-to-noise ratio image by image, the distance of two sets of features."""
    data = RandomImages(count=60)
    found = measure_reconstruction(teacher, classifier, data, batch_size=7)
    images = data.everything().pixels()
    drawn = teacher.decode(teacher.encode(images))
    errors = (data.held_out.pixels() - teacher.decode(teacher.encode(data.held_out.pixels()))).square().mean((1, 2, 3))
    assert found["psnr"] == pytest.approx((-10 * errors.log10()).mean().item(), rel=1e-4)
    features = [classifier.features(part).double().detach().numpy() for part in (images, drawn)]
    covariances = [np.cov(part.T) for part in features]
    root = sqrtm(covariances[0] @ covariances[1]).real
    shift = features[0].mean(0) - features[1].mean(0)
    expected = (shift**2).sum() + np.trace(covariances[0] + covariances[1] - 2 * root)
    assert found["frechet"] == pytest.approx(expected, rel=1e-3) and found["images"] == 60
    rows = {"teacher": Score("teacher", seconds_per_image=1.0)}
    report = {**make_report(rows, 0, 10), "tokenizer": {"psnr": 21.26, "frechet": 0.5, "images": 1797}}
    assert "PSNR 21.3 dB of held-out images, Fréchet 0.5000 of 1,797 real images" in markdown(report)
    assert "tokenizer alone" not in markdown(make_report(rows, 0, 10))


class Quarters:
    """Features that classify nothing."""

    width, held_out_accuracy = 2, None

    def features(self, images):
        return torch.stack([images[..., :4, :].mean((1, 2, 3)), images[..., 4:, :].mean((1, 2, 3))], 1)

    def logits(self, features):
        return None


def test_features_that_do_not_classify(teacher, generator, tmp_path):
    samplers = [
        TeacherSampler().bind(teacher),
        OneStepSampler(model=generator).bind(teacher),
        IndependentSampler().bind(teacher),
    ]
    sizes = {"samples": 600, "reference_samples": 1000, "minimum": 50}
    rows = evaluate_samplers(samplers, Quarters(), tmp_path, **sizes)["samplers"]
    for row in rows.values():
        assert row["accuracy"] is row["inception_score"] is None
        assert row["frechet"] is not None and row["nll"] is not None and row["diversity"] is not None


def full_report(seed=0, **changed):
    """A report with every column as wide as it gets."""
    numbers = {"frechet": 157.51234, "inception_score": 278.71, "precision": 0.85, "recall": 0.41, "nll": 1234.56}
    numbers |= {"accuracy": 1.0, "diversity": 1.362, "seconds_per_image": 0.0123456, "parameters": 329_500_000}
    scores = {
        name: Score(kind, steps=256, **{**numbers, **changed})
        for name, kind in (("teacher", "teacher"), ("one-step", "one_step"), ("DD1 2-step snapped", "dd1"))
    }
    return make_report(scores, seed, 50_000)


def printed(report, width):
    with open("/dev/null", "w") as sink:
        console = Console(file=sink, record=True, width=width)
        print_table(report, console)
    lines = console.export_text().splitlines()
    assert all(len(line) <= width for line in lines)
    assert "…" not in "".join(lines[:6])
    return lines


def test_the_table_fits_a_terminal_of_100_columns():
    report = full_report()
    lines = printed(report, 100)
    for title in ("steps", "Fréchet", "IS", "prec.", "recall", "NLL", "acc.", "div.", "ms/image", "speed-up", "params"):
        assert title in lines[0] and f" {title} " in markdown(report).splitlines()[0]
    assert lines[4].split()[:3] == ["DD1", "2-step", "snapped"] and lines[4].split()[-1] == "329.5M"
    narrow = printed(report, 80)[0].split()
    assert narrow == ["sampler", "steps", "Fréchet", "prec.", "recall", "NLL", "acc.", "div.", "speed-up"]


def test_a_warning_is_one_line_of_any_terminal():
    report = full_report()
    report["warnings"] = ["samples are too few " * 10 + "to tell"]
    with open("/dev/null", "w") as sink:
        console = Console(file=sink, record=True, width=60)
        print_table(report, console)
    (line,) = (line for line in console.export_text().splitlines() if "too few" in line)
    assert line.startswith("Warning: samples") and line.endswith("to tell")


def test_a_column_without_a_number_is_left_out():
    head = markdown(full_report(inception_score=None, recall=None)).splitlines()[0]
    assert " IS " not in head and " recall " not in head and " prec. " in head


def test_a_report_holds_no_infinity(teacher):
    scores = {
        "teacher": Score("teacher", frechet=0.1, nll=finite(float("inf")), steps=3),
        "one-step": Score("one_step", frechet=0.1, nll=4.0, steps=1),
    }
    report = make_report(scores, 0, 10)
    assert report["samplers"]["teacher"]["nll"] is None
    assert markdown(report).splitlines()[2] == "| teacher | 3 | 0.1000 | – |"


def test_samplers_need_names_of_their_own(teacher, classifier):
    evaluator = Evaluator(teacher, classifier, reference_samples=200)
    with pytest.raises(ValueError, match="different names"):
        compare(evaluator, [TeacherSampler().bind(teacher), TeacherSampler().bind(teacher)], 10)


def test_samplers_take_turns_on_the_clock(teacher):
    order = []

    class Watched(TeacherSampler):
        def sample(self, labels, noise):
            order.append(self.name)
            return super().sample(labels, noise)

    samplers = [Watched().bind(teacher), Watched().bind(teacher)]
    samplers[1].name = "other"
    seconds = time_samplers(samplers, batch_size=10, rounds=2)
    assert order == ["teacher", "other"] * 3
    assert all(0 < value < 1 for value in seconds.values())


def test_medians_and_ranges_of_several_seeds(tmp_path, capsys):
    reports = []
    for seed, value in enumerate((0.3, 0.1, 0.2)):
        scores = {
            "teacher": Score("teacher", frechet=0.0, nll=1.0, steps=3, parameters=10),
            "one-step": Score("one_step", frechet=value, nll=None, steps=1, parameters=10),
            "independent": Score("independent", frechet=1.0, nll=2.0, steps=1),
        }
        reports.append(make_report(scores, seed, 100))
        (tmp_path / f"{seed}.json").write_text(json.dumps(reports[-1]))
    combined = summary([tmp_path / f"{seed}.json" for seed in range(3)], tmp_path / "out.json")
    assert json.loads((tmp_path / "out.json").read_text()) == combined
    assert combined["runs"] == reports
    assert combined["median"]["ratios"] == {"frechet": pytest.approx(0.2), "nll": None}
    assert combined["range"]["ratios"] == {"frechet": pytest.approx([0.1, 0.3]), "nll": None}
    middle, ends = (combined[part]["samplers"]["one-step"] for part in ("median", "range"))
    assert middle["frechet"] == pytest.approx(0.2) and ends["frechet"] == pytest.approx([0.1, 0.3])
    assert middle["kind"] == "one_step" and middle["snapped"] is False and middle["parameters"] == 10
    table = (tmp_path / "out.md").read_text()
    assert "| one-step | 1 | 0.2000 |" in table
    assert "Fréchet 0.200 (0.100 to 0.300), NLL –" in table and "seed 0, 1, 2" in table
    assert "0.2000" in capsys.readouterr().out
    del reports[0]["samplers"]["one-step"]
    with pytest.raises(ValueError, match="different samplers"):
        aggregate(reports)


def test_a_file_that_is_no_report_is_named(tmp_path):
    old = {"samplers": {"teacher": {"frechet": 0.1}}, "ratios": {}}
    former = {**old, "contenders": old["samplers"]}
    del former["samplers"]
    for text, message in (
        ("{", "Expecting"),
        ("[]", "list"),
        (json.dumps(old), "teacher has no kind"),
        (json.dumps(former), "'samplers'"),
    ):
        (tmp_path / "0.json").write_text(text)
        with pytest.raises(ArtifactError, match=rf"0\.json is no report of this version \(.*{message}"):
            summary([tmp_path / "0.json"], tmp_path / "out.json")


# --- bad input ---------------------------------------------------------------------------------------------------


def test_an_output_that_cannot_be_written_is_found_first(teacher, classifier, tmp_path):
    (tmp_path / "report").write_text("a file in the place of the directory")
    with pytest.raises(ArtifactError, match=r"cannot write .*report"):
        evaluate_samplers([TeacherSampler().bind(teacher)], classifier, tmp_path / "report")


def test_a_teacher_without_pictures_is_refused(classifier, tmp_path):
    bare = TableTeacher(torch.ones(1, 2, 2), circle(2))
    with pytest.raises(DD2Error, match="no images"):
        evaluate_samplers([TeacherSampler().bind(bare)], classifier, tmp_path)


# --- what the command says before and while it measures --------------------------------------------------------------


def test_missing_matplotlib_is_said_before_anything_is_sampled(teacher, classifier, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    sampler = TeacherSampler().bind(teacher)
    monkeypatch.setattr(type(sampler), "sample", lambda *_: pytest.fail("sampled"))
    with pytest.raises(DD2Error, match=r"matplotlib: pip install 'dd2-lightning\[demo\]'"):
        evaluate_samplers([sampler], classifier, tmp_path / "report")
    assert not (tmp_path / "report").exists()


def test_too_few_samples_are_in_the_report_and_below_the_table(teacher, generator, classifier, tmp_path, capsys):
    samplers = [TeacherSampler().bind(teacher), OneStepSampler(model=generator).bind(teacher)]
    report = evaluate_samplers(samplers, classifier, tmp_path, samples=30, reference_samples=200, messages=["before"])
    output = capsys.readouterr()
    assert [message[:27] for message in report["warnings"]] == ["before", "30 samples for 32 features:"]
    table = (tmp_path / "table.md").read_text()
    for message in report["warnings"]:
        assert f"Warning: {message}" in table and message[:20] in output.out
    assert "evaluate: one-step 30/30 images" in output.err and "evaluate: reference 200/200 images" in output.err
    enough = evaluate_samplers(samplers, classifier, tmp_path, samples=100, reference_samples=200)
    assert enough["warnings"] == []


def test_results_are_written_last(teacher, classifier, tmp_path, monkeypatch):
    """A report whose figures cannot be drawn has no ``results.json``, which make waits for."""

    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr("dd2_lightning.evaluation.evaluate.save_curves", fail)
    with pytest.raises(OSError, match="disk full"):
        evaluate_samplers([TeacherSampler().bind(teacher)], classifier, tmp_path, samples=40, reference_samples=50)
    assert not (tmp_path / "results.json").exists()


def test_bf16_moves_samples_not_metrics(teacher, generator, classifier, tmp_path):
    samplers = [TeacherSampler().bind(teacher), OneStepSampler(model=generator).bind(teacher)]
    sizes = {"samples": 400, "reference_samples": 1000}
    exact, rounded = (
        evaluate_samplers(samplers, classifier, tmp_path / name, precision=name, **sizes)["samplers"]["one-step"]
        for name in ("32", "bf16")
    )
    assert exact["frechet"] != rounded["frechet"] == pytest.approx(exact["frechet"], rel=0.2)
    assert exact["path_length"] == rounded["path_length"]
