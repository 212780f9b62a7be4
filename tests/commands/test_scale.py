"""The study of scale: runs of a fixed time, which continue, and the page that is made of them."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from matplotlib.image import imread

from benchmarks.scale.__main__ import main
from benchmarks.scale.report import spread
from benchmarks.scale.ruler import open_ruler
from benchmarks.scale.runs import Run, TimeBudget
from benchmarks.scale.study import read_study
from dd2_lightning.artifacts import write_teacher
from dd2_lightning.evaluation.samplers import TeacherSampler
from runs import fails
from teachers import var_teacher

CPU, ROOT = torch.device("cpu"), Path(__file__).parents[2]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A study of one setting, a VAR without training, of seconds that fit a test."""
    root = tmp_path_factory.mktemp("study")
    torch.manual_seed(0)
    teacher = var_teacher()
    images = {"shape": teacher.tokenizer.image_shape, "num_classes": teacher.num_classes}
    write_teacher(root / "teacher", teacher, data={"class_path": "image_sets.RandomImages", "init_args": images})
    content = yaml.safe_load((ROOT / "benchmarks/scale/settings.yaml").read_text())
    content |= {"seeds": [0], "seconds": 2.0, "points": 4, "most": 2000}
    content |= {"point_samples": 60, "samples": 120, "reference_samples": 200}
    changes = {stage: {"head_width": 8, "head_iterations": 1} for stage in ("init",)} | {
        "dd1": {"second": 1, "split": 2}
    }
    tiny = {"title": "tiny", "teacher": str(root / "teacher"), "configs": "var", "changes": changes}
    content["settings"] = {"tiny": tiny}
    (root / "study.yaml").write_text(yaml.safe_dump(content))
    return root


def command(study, *arguments, **options):
    named = [f"--{name}={value}" for name, value in options.items()]
    main([*arguments, f"--settings={study / 'study.yaml'}", f"--output={study / 'out'}", *named])


@pytest.fixture(scope="module")
def done(study):
    """The study, run."""
    for method in ("dd2", "dd1"):
        command(study, "run", "tiny", method, "0")
    return study


def content_of(study, method):
    return json.loads((study / f"out/tiny/{method}-seed0.json").read_text())


@pytest.mark.parametrize("method", ["dd2", "dd1"])
def test_a_run_takes_its_time(done, method):
    """Parts begin where those before were to end, whatever they took, but for their last iteration."""
    content, shares = content_of(done, method), read_study(done / "study.yaml").parts(method)
    assert content["complete"] and list(content["parts"]) == list(shares)
    until = 0.0
    seconds = [part["seconds"] for part in content["parts"].values()]
    for i, share in enumerate(shares.values()):
        until += 2.0 * share
        assert sum(seconds[: i + 1]) > 0.99 * until or i == 0
    assert all(part.get("iterations", 1) >= 1 for part in content["parts"].values())
    curve = content["curve"]
    assert [point["samples"] for point in curve[-2:]][-1] == 120 and {point["samples"] for point in curve[:-1]} <= {60}
    assert [point["seconds"] for point in curve] == sorted(point["seconds"] for point in curve)
    assert (content["teacher"]["tokens"], content["teacher"]["codes"]) == (14, 12)
    last, ends = curve[-1], content["teacher"]
    for key in ("frechet", "nll"):
        expected = (last[key] - ends["teacher"][key]) / (ends["independent"][key] - ends["teacher"][key])
        assert last["left"][key] == pytest.approx(expected)


def test_a_finished_run_is_not_done_again(done, capsys):
    before = (done / "out/tiny/dd2-seed0.json").read_bytes()
    command(done, "run", "tiny", "dd2", "0")
    assert (done / "out/tiny/dd2-seed0.json").read_bytes() == before
    capsys.readouterr()
    command(done, "missing")
    assert capsys.readouterr().out == ""
    command(done, "missing", seconds=3)
    assert capsys.readouterr().out == "tiny dd2 0\ntiny dd1 0\n"


def test_a_stopped_run_does_what_is_missing(done, monkeypatch):
    study = read_study(done / "study.yaml")
    job = Run(study, "tiny", "dd2", 0, done / "out", 2.0, str(done / "teacher"), CPU)
    content = job.read()
    kept = {name: content["parts"][name] for name in ("sequences", "init", "csd")}
    job.path.write_text(json.dumps({**content, "parts": kept, "complete": False}))
    assert not job.is_complete
    trained = []
    monkeypatch.setattr("benchmarks.scale.runs.fit", lambda stage, *args, **kwargs: trained.append(stage.name))
    with pytest.raises(RuntimeError):  # nothing was trained
        job.perform()
    assert trained == ["align"]
    assert [point["part"] for point in job.content["curve"]] == [
        p["part"] for p in content["curve"] if p["part"] != "align"
    ]
    job.path.write_text(json.dumps(content))


def test_the_ruler_needs_no_images_to_be_opened_again(done, monkeypatch):
    monkeypatch.setattr("benchmarks.scale.ruler.images_of", lambda *_: pytest.fail("opened"))
    study = read_study(done / "study.yaml")
    setting = study.setting("tiny")
    ruler = open_ruler(study, setting, done / "out/tiny", setting.teacher, CPU)
    found = ruler.measure(TeacherSampler().bind(ruler.teacher, ruler.sampling), 120)
    assert found["left"] == {"frechet": pytest.approx(0, abs=1e-9), "nll": pytest.approx(0, abs=1e-9)}


def test_the_page_and_its_figures(done, tmp_path, capsys):
    command(done, "report", results=tmp_path / "scale.json", document=tmp_path / "docs/scale.md")
    entry = json.loads((tmp_path / "scale.json").read_text())["settings"]["tiny"]
    curves = {method: content_of(done, method)["curve"] for method in ("dd2", "dd1")}
    last = min(map(len, curves.values())) - 1  # on a busy machine a run may miss a point
    left = {method: curve[last]["left"]["nll"] for method, curve in curves.items()}
    assert entry["ratio"]["nll"]["median"] == pytest.approx(left["dd2"] / left["dd1"])
    page = (tmp_path / "docs/scale.md").read_text()
    assert f"{entry['ratio']['nll']['median']:.3f}" in page and "| tiny |" in page and "Stopped" not in page
    for name in ("scale", "scale_curves"):
        assert imread(tmp_path / f"docs/images/{name}.png").shape[1] > 400


def test_iterations_follow_the_clock():
    """The last iteration is the one that would take all of the time at the rate so far."""
    seconds = iter([0.0, 2.0, 2.0, 3.0, 3.0, 4.0, 10.0, 12.0, 12.0])

    trainer, measured, lasts = SimpleNamespace(fit_loop=SimpleNamespace(epoch_loop=SimpleNamespace())), [], []
    budget = TimeBudget(6.0, lambda: next(seconds), [3.5], lambda stage, step, spent: measured.append((step, spent)))
    budget.on_train_start(trainer, None)
    for step in range(1, 5):
        trainer.global_step = step
        budget.on_train_batch_end(trainer, None)
        lasts.append(trainer.fit_loop.epoch_loop.max_steps)
    assert lasts == [3, 4, 4, 4] and budget.spent == 6.0
    assert measured == [(3, 4.0)]  # which took six seconds that do not count


def test_spread():
    assert spread([]) is None and spread([3.0, 1.0, 2.0]) == {"median": 2.0, "range": [1.0, 3.0], "number": 3}


@pytest.mark.parametrize(
    ("status", "words", "arguments", "changed"),
    [
        (2, ("no setting 'tny'", "tiny"), ("run", "tny", "dd2", "0"), {}),
        (2, ("no method 'dd3'",), ("run", "tiny", "dd3", "0"), {}),
        (2, ("shares.dd1",), ("missing",), {"shares": {"dd2": {"csd": 1.0}, "dd1": {"pairs": 0.5}}}),
        (2, ("seconds must be positive",), ("missing",), {"seconds": 0}),
        (1, ("no study of scale",), ("missing",), {"settings": {"a": {"teachr": "x"}}}),
        (1, ("nothing to report",), ("report",), {"seeds": [7]}),
    ],
)
def test_what_cannot_be(study, tmp_path, capsys, status, words, arguments, changed):
    content = yaml.safe_load((study / "study.yaml").read_text()) | changed
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(content))
    with fails(capsys, status, *words):
        main([*arguments, f"--settings={tmp_path / 'study.yaml'}", f"--output={tmp_path / 'out'}"])


def test_a_teacher_of_unknown_images_is_named(study, tmp_path, capsys):
    write_teacher(tmp_path / "teacher", var_teacher())
    with fails(capsys, 1, "config.json does not say which images"):
        main(
            [
                "prepare",
                "tiny",
                f"--settings={study / 'study.yaml'}",
                f"--output={tmp_path}",
                f"--teacher={tmp_path}/teacher",
            ]
        )
