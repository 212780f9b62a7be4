"""The samplers of a config: what becomes of each entry, and what is said of entries that cannot be."""

import json
import shutil

import pytest
import torch
import yaml

from dd2_lightning.artifacts import Artifact, teacher_reference, write_artifact, write_teacher
from dd2_lightning.cli import main
from dd2_lightning.cli.evaluate import evaluate
from dd2_lightning.errors import ArtifactError
from dd2_lightning.evaluation.config import KINDS, Models, open_samplers, read_samplers, standard_samplers
from dd2_lightning.evaluation.samplers import OneStepSampler
from dd2_lightning.sampling import Sampling
from runs import fails
from teachers import randomise, student_of, var_teacher

TEACHER = {"kind": "teacher"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Directories of a teacher of three positions and of every stage after it, without training."""
    root = tmp_path_factory.mktemp("runs")
    torch.manual_seed(0)
    teacher = var_teacher()
    shape = teacher.tokenizer.image_shape
    images = {"shape": shape, "num_classes": teacher.num_classes}
    data = {"class_path": "image_sets.RandomImages", "init_args": images}
    write_teacher(root / "teacher", teacher, data=data)
    origin = Artifact.open(root / "teacher", ("teacher",), "teacher")
    settings = {"teacher_sampling": {"guidance_scale": 2.0}}
    student, dd1 = student_of(teacher).state_dict(), randomise(teacher.dd1_student()).state_dict()
    head = {"head": {"width": 16, "depth": 2, "frequencies": 0}}
    for stage, extra, states in (
        ("init", head, {"student": student}),
        ("align", {**head, "head_time": 0.4, "settings": settings}, {"generator": student}),
        ("dd1", {"split": 2, "second": 1}, {"generator": dd1}),
    ):
        reference = {"family": "var", "teacher": teacher_reference(origin, root / stage)}
        write_artifact(root / stage, stage, {**reference, **extra}, states)
    return root


def opened(runs, *samplers, teacher="teacher"):
    entries = read_samplers([TEACHER, *samplers])
    return open_samplers(entries, Models(runs / teacher, runs, Sampling(guidance_scale=2.0)))


EVERY = [
    {"kind": "one_step", "model": "align"},
    {"kind": "one_step", "model": "align", "snapped": True},
    {"kind": "refined", "model": "align", "steps": 3},
    {"kind": "ar_diffusion", "model": "init", "euler_steps": 3},
    {"kind": "dd1", "model": "dd1", "steps": 1},
    {"kind": "dd1", "model": "dd1", "steps": 2, "snapped": True},
    {"kind": "dd1", "model": "dd1", "start": 0},
    {"kind": "independent"},
    {"kind": "skip", "skipped": 1},
    {"kind": "real", "name": "digits"},
]


def test_every_kind_becomes_a_sampler(runs):
    samplers = opened(runs, *EVERY)
    assert [(sampler.name, sampler.passes) for sampler in samplers] == [
        ("teacher", 3),
        ("one-step", 1),
        ("one-step snapped", 1),
        ("refined 3-step", 3),
        ("AR-diffusion", 3),
        ("DD1 1-step", 1),
        ("DD1 2-step snapped", 2),
        ("DD1 0-1", 2),
        ("independent", 1),
        ("skip-1", 2),
        ("digits", None),
    ]
    assert {sampler.kind for sampler in samplers} == set(KINDS)
    assert samplers[4].euler_steps == 3 and samplers[9].sampling.guidance_scale == 2.0


def test_a_directory_is_opened_once_and_snapping_shares_the_sampler(runs):
    _, raw, snapped, refined, *_ = opened(runs, *EVERY)
    assert isinstance(snapped, OneStepSampler) and snapped.key == raw.key != refined.key
    assert snapped.networks[0] is raw.networks[0]
    assert refined.networks[0] is raw.networks[0]


def test_names_can_be_given(runs):
    named = [{**EVERY[0], "name": "ours"}, {**EVERY[1], "name": "rounded"}]
    assert [sampler.name for sampler in opened(runs, *named)] == ["teacher", "ours", "rounded"]
    assert [sampler.name for sampler in opened(runs, named[0], EVERY[1])] == ["teacher", "ours", "ours snapped"]


def test_what_is_optional_may_be_missing(runs, tmp_path, capsys):
    (tmp_path / "unfinished").mkdir()
    absent = [{**EVERY[0], "model": str(tmp_path / name), "optional": True} for name in ("nowhere", "unfinished")]
    assert len(opened(runs, *absent, {**EVERY[0], "optional": True})) == 2
    text = capsys.readouterr().out
    assert f"samplers[1] (one_step) is left out: {tmp_path / 'nowhere'} is not finished" in text
    assert "samplers[2] (one_step) is left out" in text and "samplers[3]" not in text


def test_models_alone_make_samplers(runs):
    entries = standard_samplers([str(runs / name) for name in ("init", "align", "dd1")], real=True)
    names = [sampler.name for sampler in open_samplers(read_samplers(entries), Models(runs / "teacher"))]
    assert names[1:-2] == ["AR-diffusion", "one-step", "one-step snapped", "DD1 1-step", "DD1 2-step"]
    assert (names[0], *names[-2:]) == ("teacher", "independent", "real")
    with pytest.raises(ArtifactError, match=r"--models: .*teacher comes from stage 'teacher', needed: init or csd"):
        standard_samplers([str(runs / "teacher")], real=False)


def test_models_alone_are_compared_with_the_teacher_that_they_were_distilled_from(runs):
    """Guidance and truncation are the first model's that says so; a model of DD1 does not."""
    models = Models(runs / "teacher", runs)
    models.sample_as_distilled(["dd1", "align"])
    assert models.sampling.guidance_scale == 2.0
    models.sample_as_distilled(["dd1"])
    assert models.sampling == models.teacher.sampling_type()


def test_another_guidance_than_the_distilled_one_is_said(runs):
    with pytest.warns(UserWarning, match="align was distilled with guidance_scale 2.0.*evaluated with 1.5"):
        open_samplers(read_samplers([TEACHER, EVERY[0]]), Models(runs / "teacher", runs, Sampling(guidance_scale=1.5)))


# --- bad input ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"kind": "two_step"}, r"samplers\[1\].kind must be one of teacher, one_step, .*, got 'two_step'"),
        ({"model": "align"}, r"samplers\[1\].kind must be one of .*, got None"),
        (
            {"kind": "one_step", "modle": "align"},
            r"samplers\[1\] \(one_step\): unknown key 'modle'; there are: .*model",
        ),
        ({"kind": "skip", "skipped": 1, "snapped": True}, r"samplers\[1\] \(skip\): unknown key 'snapped'"),
        ({"kind": "one_step"}, r"samplers\[1\] \(one_step\): .*required: model"),
        (
            {"kind": "refined", "model": "align", "steps": "two"},
            r"samplers\[1\] \(refined\): .*\"steps\": .*int.*two",
        ),
        ({"kind": "one_step", "model": 3}, r"samplers\[1\] \(one_step\): .*\"model\""),
        (TEACHER, "one of kind teacher is what the others are compared with, got 2"),
    ],
)
def test_entries_that_cannot_be_are_refused_before_anything_is_opened(entry, message):
    with pytest.raises(ValueError, match=message) as error:
        read_samplers([TEACHER, entry])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"kind": "refined", "model": "align", "steps": 5}, r"\(refined\): steps must be in 1..4"),
        ({"kind": "skip", "skipped": 4}, r"\(skip\): skipped must be in 0..3"),
        ({"kind": "ar_diffusion", "model": "init", "euler_steps": 0}, r"\(ar_diffusion\): euler_steps must be"),
        ({"kind": "dd1", "model": "dd1"}, r"\(dd1\): give steps \(1 or 2\) or start"),
        ({"kind": "dd1", "model": "dd1", "start": 1}, r"\(dd1\): start must be in 0..0"),
        ({"kind": "one_step", "model": "align", "name": "teacher"}, r"the name 'teacher' is that of samplers\[0\]"),
    ],
)
def test_settings_that_the_teacher_does_not_allow(runs, entry, message):
    with pytest.raises(ValueError, match=rf"samplers\[1\] {message}" if message.startswith(r"\(") else message):
        opened(runs, entry)


def test_the_same_sampler_twice_is_refused(runs):
    with pytest.raises(ValueError, match=r"samplers\[2\] \(one_step\): it is listed already, as samplers\[1\]"):
        opened(runs, EVERY[0], {**EVERY[0], "name": "again"})


def test_directories_that_will_not_do(runs, tmp_path):
    for entry, message in (
        ({"kind": "one_step", "model": "nowhere"}, r"samplers\[1\] \(one_step\): model: .*nowhere does not exist"),
        ({"kind": "one_step", "model": "init"}, r"model: .*init comes from stage 'init', needed: csd or align"),
        ({"kind": "dd1", "model": "align"}, r"\(dd1\): model: .*align comes from stage 'align', needed: dd1"),
    ):
        with pytest.raises(ArtifactError, match=message):
            opened(runs, entry)
    with pytest.raises(ArtifactError, match=r"teacher: .*nowhere does not exist"):
        opened(runs, teacher="nowhere")
    shutil.copytree(runs / "align", tmp_path / "align")
    config = json.loads((tmp_path / "align/config.json").read_text())
    config["teacher"]["sha256"] = "0"
    (tmp_path / "align/config.json").write_text(json.dumps(config))
    with pytest.raises(ArtifactError, match=r"samplers\[1\] \(one_step\): .*is not the teacher that .*align was made"):
        opened(runs, {"kind": "one_step", "model": str(tmp_path / "align")})


def test_the_command_says_it_in_a_line(runs, tmp_path, capsys):
    config = tmp_path / "evaluate.yaml"
    settings = {"teacher": str(runs / "teacher"), "runs": str(runs), "output": str(tmp_path / "report")}
    one_step = ["samplers[1] (one_step)", "unknown key 'modle'"]
    for status, words, given, arguments in (
        (2, one_step, [TEACHER, {"kind": "one_step", "modle": "align"}], ()),
        (1, ["samplers[1] (one_step): model:", "nowhere does not"], [TEACHER, {**EVERY[0], "model": "nowhere"}], ()),
        (2, ["samplers[1] (skip)", "0..3"], [TEACHER, {"kind": "skip", "skipped": 4}], ()),
        (2, ["give --config with a teacher and samplers"], [], ()),
        (2, ["--samples must be at least 1"], [TEACHER], ("--samples", "0")),
        (1, ["--models", "nowhere does not exist"], [TEACHER], ("--models", "[nowhere]")),
    ):
        config.write_text(yaml.safe_dump({**settings, "samplers": given}))
        with fails(capsys, status, *words):
            main(["evaluate", "--config", str(config), *arguments])
    assert not (tmp_path / "report" / "results.json").exists()


def test_a_sampler_that_cannot_be_is_named(runs, tmp_path):
    entries = [TEACHER, {"kind": "skip", "skipped": 4}]
    with pytest.raises(ValueError, match=r"samplers\[1\] \(skip\): skipped must be in 0..3"):
        evaluate(str(tmp_path), entries, teacher=str(runs / "teacher"), device="cpu")
