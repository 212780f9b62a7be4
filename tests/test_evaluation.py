"""Classifier, contenders, comparison, report and pictures, on a toy teacher with pictures."""

import json

import pytest
import torch
from matplotlib.image import imread

from dd2_lightning.artifacts import write_artifact, write_teacher
from dd2_lightning.data.digits import load_digits_images
from dd2_lightning.errors import ArtifactError, DD2Error
from dd2_lightning.evaluation.classifier import load_classifier, train_classifier
from dd2_lightning.evaluation.compare import Judge, Score, check_diversity, compare, finite, ratios, time_contenders
from dd2_lightning.evaluation.contenders import (
    ARDiffusionContender,
    IndependentContender,
    OneStepContender,
    RealData,
    SampleNoise,
    TeacherContender,
)
from dd2_lightning.evaluation.evaluate import evaluate, evaluate_models
from dd2_lightning.evaluation.pictures import mosaic, save_comparison, save_grid
from dd2_lightning.evaluation.report import aggregate, make_report, markdown, write_benchmark
from dd2_lightning.models.generator import OneStepGenerator
from dd2_lightning.models.table import TableTeacher
from dd2_lightning.sampling import Sampling
from helpers import circle
from toys import CLASSES, CODES, TOKENS, toy_student, toy_teacher


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
    load_classifier(directory)
    return directory


@pytest.fixture(scope="module")
def classifier(kept):
    return load_classifier(kept)


# --- comparison with a second teacher sample --------------------------------------------------------------------------


def test_two_teacher_samples_agree_in_diversity(teacher, classifier):
    judge = Judge(teacher, classifier, reference_samples=10_000)
    score = judge.score(TeacherContender(teacher), 5000)
    assert score.diversity == pytest.approx(1, abs=0.05)
    assert score.frechet < 0.02


def test_diversity_is_withdrawn_when_teacher_samples_disagree():
    scores = {"teacher": Score(diversity=1.06), "one-step": Score(diversity=0.9)}
    with pytest.warns(UserWarning, match="factor 1.060"):
        check_diversity(scores)
    assert scores["one-step"].diversity is None
    scores = {"teacher": Score(diversity=0.96), "one-step": Score(diversity=0.9)}
    check_diversity(scores)
    assert scores["one-step"].diversity == 0.9


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
    again = train_classifier()
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
    model = load_classifier(kept)

    def train(seed):
        trained.append(seed)
        return model

    monkeypatch.setattr("dd2_lightning.evaluation.classifier.train_classifier", train)
    load_classifier(kept)
    assert trained == []
    path.write_bytes(whole[:1000])
    load_classifier(kept)
    assert trained == [0] and path.read_bytes() == whole
    load_classifier(kept, seed=1)
    assert trained == [0, 1]
    path.write_bytes(whole)


# --- contenders --------------------------------------------------------------------------------------------------


def test_noise_depends_on_the_global_index_only():
    whole = SampleNoise(3, 0, 700).randn("a", 2)
    for start, count in ((250, 300), (300, 7), (512, 188)):
        assert torch.equal(SampleNoise(3, start, count).randn("a", 2), whole[start : start + count])
    assert not torch.equal(SampleNoise(3, 0, 700).randn("b", 2), whole)
    assert not torch.equal(SampleNoise(4, 0, 700).randn("a", 2), whole)
    assert abs(whole.mean()) < 0.1 and abs(whole.std() - 1) < 0.1
    assert len(whole.unique()) > 1390


def test_samples_do_not_depend_on_the_batch_size(teacher, generator):
    sequences = teacher.sample(torch.arange(1000) % CLASSES)
    images, labels = load_digits_images()
    for contender in (
        TeacherContender(teacher, Sampling(guidance_scale=1.5, top_k=3)),
        OneStepContender(teacher, generator),
        OneStepContender(teacher, generator, snapped=True),
        IndependentContender(teacher, sequences, torch.arange(1000) % CLASSES),
        ARDiffusionContender(teacher, generator.student, euler_steps=2),
        RealData(teacher, images[:200], labels[:200]),
    ):
        sets = []
        for batch_size in (1000, 77):
            drawn = list(contender.batches(300, 1, batch_size))
            sets.append([torch.cat([getattr(b, part) for b in drawn]) for part in ("labels", "images", "indices")])
        torch.testing.assert_close(sets[0][1], sets[1][1], rtol=1e-5, atol=1e-5, msg=contender.name)
        assert torch.equal(sets[0][0], sets[1][0]) and torch.equal(sets[0][2], sets[1][2]), contender.name
        assert len(sets[0][0]) == (300 if contender.sampled else 200)


def test_reference_and_teacher_samples_are_independent(teacher, classifier):
    reference = Judge(teacher, classifier, reference_samples=500).reference.indices
    assert not torch.equal(next(TeacherContender(teacher).batches(500, 0, 500)).indices, reference)


def test_one_step_is_decoded_raw_and_judged_snapped(teacher, generator):
    raw, snapped = (
        next(OneStepContender(teacher, generator, snapped).batches(200, 0, 200)) for snapped in (False, True)
    )
    assert torch.equal(raw.indices, snapped.indices)
    assert torch.equal(snapped.images, teacher.decode(snapped.indices))
    assert not torch.allclose(raw.images, snapped.images, atol=1e-3)


def test_independent_tokens_put_half_their_mass_on_impossible_pairs():
    pair = TableTeacher(torch.eye(2)[None], circle(2))
    labels = torch.zeros(4000, dtype=torch.long)
    contender = IndependentContender(pair, pair.sample(labels), labels)
    sampled = contender.sample(labels, SampleNoise(0, 0, 4000))
    distance, impossible = pair.total_variation(sampled)
    assert impossible == pytest.approx(0.5, abs=0.04)
    assert distance == pytest.approx(0.5, abs=0.04)
    assert sampled.float().mean(0) == pytest.approx([0.5, 0.5], abs=0.04)


def test_independent_tokens_keep_the_marginals_of_each_class(teacher):
    labels = torch.arange(20_000).flip(0) % CLASSES  # not sorted, to test the grouping
    contender = IndependentContender(teacher, teacher.sample(labels), labels)
    wanted = torch.full((5000,), 4)
    sampled = contender.sample(wanted, SampleNoise(0, 0, 5000))
    for position in range(TOKENS):
        others = [axis for axis in range(TOKENS) if axis != position]
        marginal = teacher.joint[4].sum(others)
        drawn = sampled[:, position].bincount(minlength=CODES) / 5000
        torch.testing.assert_close(drawn, marginal, rtol=0, atol=0.05)
    with pytest.raises(ValueError, match="no sequence of class 2"):
        IndependentContender(teacher, torch.zeros(2, TOKENS, dtype=torch.long), torch.tensor([0, 1]))


# --- comparison and report ---------------------------------------------------------------------------------------


def test_ratios():
    scores = {
        "teacher": Score(frechet=0.01, nll=20.0),
        "one-step": Score(frechet=0.03, nll=25.0),
        "independent": Score(frechet=0.21, nll=40.0),
    }
    assert ratios(scores) == pytest.approx({"frechet": 0.1, "nll": 0.25})
    scores["independent"] = Score(frechet=0.01, nll=None)
    assert ratios(scores) == {"frechet": None, "nll": None}
    del scores["one-step"]
    assert ratios(scores) == {"frechet": None, "nll": None}


def test_report_of_a_toy(teacher, generator, kept, classifier, tmp_path, capsys):
    (tmp_path / "classifier.safetensors").write_bytes((kept / "classifier.safetensors").read_bytes())
    report = evaluate_models(
        teacher, generator, tmp_path, generator.student, samples=1200, reference_samples=3000, minimum=100
    )
    assert json.loads((tmp_path / "results.json").read_text()) == report
    assert set(report) == {"contenders", "ratios", "seed", "samples", "hardware", "commit"}
    assert list(report["contenders"]) == [
        "teacher",
        "one-step",
        "one-step snapped",
        "independent",
        "AR-diffusion",
        "real",
    ]
    for name, row in report["contenders"].items():
        assert set(row) == {"frechet", "nll", "accuracy", "diversity", "steps", "seconds_per_image"}
        missing = {key for key, value in row.items() if value is None}
        assert missing == ({"steps", "seconds_per_image"} if name == "real" else set())
    rows = report["contenders"]
    assert rows["teacher"]["steps"] == TOKENS and rows["one-step"]["steps"] == 1
    assert rows["teacher"]["frechet"] < rows["independent"]["frechet"]
    assert rows["teacher"]["nll"] < rows["independent"]["nll"]
    assert rows["one-step"]["nll"] == rows["one-step snapped"]["nll"]
    assert rows["one-step"]["frechet"] != rows["one-step snapped"]["frechet"]
    assert rows["real"]["accuracy"] == classifier.held_out_accuracy
    expected = rows["one-step"]["nll"] - rows["teacher"]["nll"]
    assert report["ratios"]["nll"] == pytest.approx(expected / (rows["independent"]["nll"] - rows["teacher"]["nll"]))
    assert len(report["commit"] or "0" * 40) == 40
    table = (tmp_path / "table.md").read_text()
    assert table.splitlines()[4].startswith("| one-step snapped | 1 |") and "batch size 100" in table
    assert "one-step snapped" in capsys.readouterr().out
    assert imread(tmp_path / "samples.png").shape[1] > 1000


def test_a_report_holds_no_infinity(teacher):
    report = make_report({"teacher": Score(frechet=0.1, nll=finite(float("inf")), steps=3)}, 0, 10)
    assert report["contenders"]["teacher"]["nll"] is None and "| –" in markdown(report)


def test_contenders_need_names_of_their_own(teacher, classifier):
    judge = Judge(teacher, classifier, reference_samples=200)
    with pytest.raises(ValueError, match="different names"):
        compare(judge, [TeacherContender(teacher), TeacherContender(teacher)], 10)


def test_contenders_take_turns_on_the_clock(teacher):
    order = []

    class Watched(TeacherContender):
        def sample(self, labels, noise):
            order.append(self.name)
            return super().sample(labels, noise)

    contenders = [Watched(teacher), Watched(teacher)]
    contenders[1].name = "other"
    seconds = time_contenders(contenders, batch_size=10, rounds=2)
    assert order == ["teacher", "other"] * 3
    assert all(0 < value < 1 for value in seconds.values())


def test_medians_of_several_seeds(tmp_path):
    reports = []
    for seed, value in enumerate((0.3, 0.1, 0.2)):
        scores = {
            "teacher": Score(frechet=0.0, nll=1.0, steps=3),
            "one-step": Score(frechet=value, nll=None, steps=1),
            "independent": Score(frechet=1.0, nll=2.0, steps=1),
        }
        reports.append(make_report(scores, seed, 100))
        (tmp_path / f"{seed}.json").write_text(json.dumps(reports[-1]))
    summary = write_benchmark([tmp_path / f"{seed}.json" for seed in range(3)], tmp_path / "out.json")
    assert json.loads((tmp_path / "out.json").read_text()) == summary
    assert summary["runs"] == reports
    assert summary["median"]["ratios"] == {"frechet": pytest.approx(0.2), "nll": None}
    assert summary["median"]["contenders"]["one-step"]["frechet"] == pytest.approx(0.2)
    del reports[0]["contenders"]["one-step"]
    with pytest.raises(ValueError, match="different contenders"):
        aggregate(reports)
    (tmp_path / "0.json").write_text("{")
    with pytest.raises(ArtifactError, match=r"0\.json is no report"):
        write_benchmark([tmp_path / "0.json"], tmp_path / "out.json")


# --- bad input ---------------------------------------------------------------------------------------------------


def test_an_output_that_cannot_be_written_is_found_first(teacher, generator, tmp_path):
    (tmp_path / "report").write_text("a file in the place of the directory")
    with pytest.raises(ArtifactError, match=r"cannot write .*report"):
        evaluate_models(teacher, generator, tmp_path / "report")


def test_a_teacher_without_pictures_is_refused(tmp_path):
    bare = TableTeacher(torch.ones(1, 2, 2), circle(2))
    with pytest.raises(DD2Error, match="no pictures"):
        evaluate_models(bare, OneStepGenerator(toy_student(bare), bare.tokenizer, 0.4), tmp_path)


def test_paths_are_checked(tmp_path):
    table = TableTeacher(torch.ones(2, 2, 2), circle(2))
    with pytest.raises(ArtifactError, match=r"teacher: .*nowhere does not exist"):
        evaluate(str(tmp_path / "nowhere"), str(tmp_path), str(tmp_path / "report"))
    write_teacher(tmp_path / "teacher", table)
    write_artifact(tmp_path / "csd", "csd", {"family": "table", "teacher": {"path": "../teacher", "sha256": "0"}}, {})
    with pytest.raises(ArtifactError, match=r"not the teacher that .*csd was made from"):
        evaluate(str(tmp_path / "teacher"), str(tmp_path / "csd"), str(tmp_path / "report"))
    with pytest.raises(ValueError, match="--samples must be at least 1"):
        evaluate("a", "b", str(tmp_path / "report"), samples=0)


# --- pictures ----------------------------------------------------------------------------------------------------


def test_grid_holds_every_pixel(tmp_path):
    for channels in (1, 3):
        images = torch.rand(5, channels, 8, 6)
        save_grid(images, tmp_path / "grid.png", columns=3, scale=4)
        pixels = torch.tensor(imread(tmp_path / "grid.png"))
        assert pixels.shape[:2] == (2 * 32 + 2, 3 * 24 + 4)
        fourth = pixels[34:66, :24].reshape(32, 24, -1)
        expected = images[3].permute(1, 2, 0).repeat_interleave(4, 0).repeat_interleave(4, 1)
        torch.testing.assert_close(fourth, expected, rtol=0, atol=1 / 255)
    save_grid(images[:1], tmp_path / "one.png", columns=1)
    assert imread(tmp_path / "one.png").shape == (8, 6, 3)


def test_grid_refuses_what_it_cannot_draw(tmp_path):
    for wrong, message in ((torch.zeros(0, 1, 8, 8), "needs pictures"), (torch.zeros(2, 2, 8, 8), "grey")):
        with pytest.raises(ValueError, match=message):
            save_grid(wrong, tmp_path / "grid.png", columns=2, scale=1)
    with pytest.raises(ValueError, match="at least 1 column"):
        mosaic(torch.zeros(2, 1, 8, 8), 0)
    with pytest.raises(ValueError, match="cannot be filled"):
        save_comparison({"a": torch.zeros(4, 1, 8, 8), "b": torch.zeros(2, 1, 8, 8)}, tmp_path / "a.png", ["0", "1"])
