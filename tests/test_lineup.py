"""The line-up of an evaluation: what a config lists becomes contenders, and what it says when that cannot be."""

import json
import shutil

import pytest
import torch
import yaml

from dd2_lightning.artifacts import Artifact, teacher_reference, write_artifact, write_teacher
from dd2_lightning.cli import main
from dd2_lightning.errors import ArtifactError
from dd2_lightning.evaluation.contenders import SnappedContender
from dd2_lightning.evaluation.lineup import KINDS, Models, line_up, read_entries, standard_line_up
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
    write_teacher(root / "teacher", teacher)
    origin = Artifact.open(root / "teacher", ("teacher",), "teacher")
    settings = {"teacher_sampling": {"guidance_scale": 2.0}}
    student, dd1 = student_of(teacher).state_dict(), randomise(teacher.dd1_student()).state_dict()
    head = {"head": {"width": 16, "depth": 2, "octaves": 0}}
    for stage, extra, states in (
        ("init", head, {"student": student}),
        ("align", {**head, "head_time": 0.4, "settings": settings}, {"generator": student}),
        ("dd1", {"split": 2, "second": 1}, {"generator": dd1}),
    ):
        reference = {"family": "var", "teacher": teacher_reference(origin, root / stage)}
        write_artifact(root / stage, stage, {**reference, **extra}, states)
    return root


def lined_up(runs, *contenders, teacher="teacher"):
    entries = read_entries([TEACHER, *contenders])
    return line_up(entries, Models(runs / teacher, runs, Sampling(guidance_scale=2.0)))


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


def test_every_kind_becomes_a_contender(runs):
    contenders = lined_up(runs, *EVERY)
    assert [(contender.name, contender.steps) for contender in contenders] == [
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
    assert {contender.kind for contender in contenders} == set(KINDS)
    assert contenders[4].euler_steps == 3 and contenders[9].sampling.guidance_scale == 2.0


def test_a_directory_is_opened_once_and_snapping_shares_the_sampler(runs):
    _, raw, snapped, refined, *_ = lined_up(runs, *EVERY)
    assert isinstance(snapped, SnappedContender) and snapped.source is raw
    assert refined.networks[0] is raw.networks[0]


def test_names_can_be_given(runs):
    named = [{**EVERY[0], "name": "ours"}, {**EVERY[1], "name": "rounded"}]
    assert [contender.name for contender in lined_up(runs, *named)] == ["teacher", "ours", "rounded"]
    assert [contender.name for contender in lined_up(runs, named[0], EVERY[1])] == ["teacher", "ours", "ours snapped"]


def test_what_is_optional_may_be_missing(runs, tmp_path, capsys):
    (tmp_path / "unfinished").mkdir()
    absent = [{**EVERY[0], "model": str(tmp_path / name), "optional": True} for name in ("nowhere", "unfinished")]
    assert len(lined_up(runs, *absent, {**EVERY[0], "optional": True})) == 2
    text = capsys.readouterr().out
    assert f"contenders[1] (one_step) is left out: {tmp_path / 'nowhere'} is not finished" in text
    assert "contenders[2] (one_step) is left out" in text and "contenders[3]" not in text


def test_models_alone_make_a_line_up(runs):
    entries = standard_line_up([str(runs / name) for name in ("init", "align", "dd1")])
    names = [contender.name for contender in line_up(read_entries(entries), Models(runs / "teacher"))]
    assert names[1:-2] == ["AR-diffusion", "one-step", "one-step snapped", "DD1 1-step", "DD1 2-step"]
    assert (names[0], *names[-2:]) == ("teacher", "independent", "real")
    with pytest.raises(ArtifactError, match=r"--models: .*teacher comes from stage 'teacher', needed: init or csd"):
        standard_line_up([str(runs / "teacher")])


def test_models_alone_are_compared_with_the_teacher_that_they_were_distilled_from(runs):
    """Guidance and truncation are the first model's that says so; a model of DD1 does not."""
    models = Models(runs / "teacher", runs)
    models.sample_as_distilled(["dd1", "align"])
    assert models.sampling.guidance_scale == 2.0
    models.sample_as_distilled(["dd1"])
    assert models.sampling == models.teacher.sampling_type()


def test_another_guidance_than_the_distilled_one_is_said(runs):
    with pytest.warns(UserWarning, match="align was distilled with guidance_scale 2.0.*evaluated with 1.5"):
        line_up(read_entries([TEACHER, EVERY[0]]), Models(runs / "teacher", runs, Sampling(guidance_scale=1.5)))


# --- bad input ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"kind": "two_step"}, r"contenders\[1\].kind must be one of teacher, one_step, .*, got 'two_step'"),
        ({"model": "align"}, r"contenders\[1\].kind must be one of .*, got None"),
        (
            {"kind": "one_step", "modle": "align"},
            r"contenders\[1\] \(one_step\): unknown key 'modle'; there are: .*model",
        ),
        ({"kind": "skip", "skipped": 1, "snapped": True}, r"contenders\[1\] \(skip\): unknown key 'snapped'"),
        ({"kind": "one_step"}, r"contenders\[1\] \(one_step\): .*required: model"),
        (
            {"kind": "refined", "model": "align", "steps": "two"},
            r"contenders\[1\] \(refined\): .*\"steps\": .*int.*two",
        ),
        ({"kind": "one_step", "model": 3}, r"contenders\[1\] \(one_step\): .*\"model\""),
        (TEACHER, "one of kind teacher is what the others are compared with, got 2"),
    ],
)
def test_entries_that_cannot_be_are_refused_before_anything_is_opened(entry, message):
    with pytest.raises(ValueError, match=message) as error:
        read_entries([TEACHER, entry])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"kind": "refined", "model": "align", "steps": 5}, r"\(refined\): steps must be in 1..4"),
        ({"kind": "skip", "skipped": 4}, r"\(skip\): skipped must be in 0..3"),
        ({"kind": "ar_diffusion", "model": "init", "euler_steps": 0}, r"\(ar_diffusion\): euler_steps must be"),
        ({"kind": "dd1", "model": "dd1"}, r"\(dd1\): give steps \(1 or 2\) or start"),
        ({"kind": "dd1", "model": "dd1", "start": 1}, r"\(dd1\): start must be in 0..0"),
        ({"kind": "one_step", "model": "align", "name": "teacher"}, r"the name 'teacher' is that of contenders\[0\]"),
    ],
)
def test_settings_that_the_teacher_does_not_allow(runs, entry, message):
    with pytest.raises(ValueError, match=rf"contenders\[1\] {message}" if message.startswith(r"\(") else message):
        lined_up(runs, entry)


def test_the_same_contender_twice_is_refused(runs):
    with pytest.raises(ValueError, match=r"contenders\[2\] \(one_step\): it is listed already, as contenders\[1\]"):
        lined_up(runs, EVERY[0], {**EVERY[0], "name": "again"})


def test_directories_that_will_not_do(runs, tmp_path):
    for entry, message in (
        ({"kind": "one_step", "model": "nowhere"}, r"contenders\[1\] \(one_step\): model: .*nowhere does not exist"),
        ({"kind": "one_step", "model": "init"}, r"model: .*init comes from stage 'init', needed: csd or align"),
        ({"kind": "dd1", "model": "align"}, r"\(dd1\): model: .*align comes from stage 'align', needed: dd1"),
    ):
        with pytest.raises(ArtifactError, match=message):
            lined_up(runs, entry)
    with pytest.raises(ArtifactError, match=r"teacher: .*nowhere does not exist"):
        lined_up(runs, teacher="nowhere")
    shutil.copytree(runs / "align", tmp_path / "align")
    config = json.loads((tmp_path / "align/config.json").read_text())
    config["teacher"]["sha256"] = "0"
    (tmp_path / "align/config.json").write_text(json.dumps(config))
    with pytest.raises(
        ArtifactError, match=r"contenders\[1\] \(one_step\): .*is not the teacher that .*align was made"
    ):
        lined_up(runs, {"kind": "one_step", "model": str(tmp_path / "align")})


def test_the_command_says_it_in_a_line(runs, tmp_path, capsys):
    config = tmp_path / "evaluate.yaml"
    settings = {"teacher": str(runs / "teacher"), "runs": str(runs), "output": str(tmp_path / "report")}
    one_step = ["contenders[1] (one_step)", "unknown key 'modle'"]
    for status, words, given, arguments in (
        (2, one_step, [TEACHER, {"kind": "one_step", "modle": "align"}], ()),
        (1, ["contenders[1] (one_step): model:", "nowhere does not"], [TEACHER, {**EVERY[0], "model": "nowhere"}], ()),
        (2, ["contenders[1] (skip)", "0..3"], [TEACHER, {"kind": "skip", "skipped": 4}], ()),
        (2, ["give --config with a teacher and contenders"], [], ()),
        (2, ["--samples must be at least 1"], [TEACHER], ("--samples", "0")),
        (1, ["--models", "nowhere does not exist"], [TEACHER], ("--models", "[nowhere]")),
    ):
        config.write_text(yaml.safe_dump({**settings, "contenders": given}))
        with fails(capsys, status, *words):
            main(["evaluate", "--config", str(config), *arguments])
    assert not (tmp_path / "report" / "results.json").exists()
