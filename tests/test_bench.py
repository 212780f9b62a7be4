"""``dd2 bench``: what is timed and what is reported, with small networks."""

import json

import pytest
import torch

from dd2_lightning.cli import main
from dd2_lightning.evaluation.timing import interleaved
from dd2_lightning.models.generator import OneStepGenerator
from dd2_lightning.models.teacher import CodebookTeacher
from reference import release_files
from runs import fails


@pytest.fixture
def sizes(tmp_path):
    """Both families at the sizes of the golden files, under the names that the command takes."""
    return [f"{family}/{release_files(tmp_path, family)['sizes.json']}" for family in ("var", "llamagen")]


def bench(output, sizes, *options):
    words = [word for pair in zip(["--models+"] * 2, sizes, strict=True) for word in pair]
    main(["bench", "sample", *words, "--head_width", "16", "--head_depth", "1", "--output", str(output), *options])


def test_the_report(sizes, tmp_path, capsys):
    bench(tmp_path / "report" / "sampling.json", sizes, "--rounds", "2", "--batch_size", "3")
    report = json.loads((tmp_path / "report/sampling.json").read_text())
    assert list(report["models"]) == sizes
    assert {"hardware", "torch", "commit", "sampling"} <= report.keys()
    assert (report["batch_size"], report["rounds"]) == (3, 2)
    printed = capsys.readouterr().out
    for name, steps, tokens in zip(sizes, (4, 16), (30, 16), strict=True):
        entry = report["models"][name]
        assert (entry["steps"], entry["tokens"]) == (steps, tokens)
        assert all(len(taken) == 2 for taken in entry["seconds"].values())
        middle = entry["median_seconds"]
        assert entry["ratio"] == middle["teacher"] / middle["one_step"]
        both = (middle["teacher"] + middle["decoder"]) / (middle["one_step"] + middle["decoder"])
        assert entry["ratio_with_decoder"] == both
        assert f"in {steps} steps" in printed


def test_what_is_timed(sizes, tmp_path, monkeypatch):
    """Teacher, one step and decoder in turn, guided, a whole batch each."""
    calls = []

    def spy(kind, name, size):
        original = getattr(kind, name)

        def called(self, tokens, *rest, **options):
            calls.append((name, kind is CodebookTeacher, len(tokens), *(r.guidance_scale for r in rest if r)))
            return original(self, tokens, *rest, **options)

        monkeypatch.setattr(kind, name, called)

    for kind, name in ((CodebookTeacher, "sample"), (OneStepGenerator, "sample"), (OneStepGenerator, "decode")):
        spy(kind, name, 2)
    bench(tmp_path / "x.json", sizes, "--rounds", "1", "--batch_size", "2", "--sampling.guidance_scale", "1.5")
    one_round = [("sample", True, 2, 1.5), ("sample", False, 2), ("decode", False, 2)]
    assert calls == one_round * 4  # a round to warm up and one that counts, for two models


def test_functions_take_turns():
    order = []
    times = interleaved({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=2)
    assert order == ["a", "b"] * 3
    assert {name: len(taken) for name, taken in times.items()} == {"a": 2, "b": 2}


def test_settings_that_cannot_be(sizes, tmp_path, capsys):
    output = tmp_path / "x.json"
    for words, options in (
        ("--batch_size must be at least 1", ("--batch_size", "0")),
        ("--rounds must be at least 1", ("--rounds", "0")),
        ("no weights of family 'gpt'", ("--models+", "gpt/small")),
        ("no published VAR of size 'd17'", ("--models+", "var/d17")),
    ):
        with fails(capsys, 2, words):
            bench(output, sizes, *options)
    with fails(capsys, 2, "models"):
        main(["bench", "sample", "--output", str(output)])
    assert not output.exists()
    assert torch.get_num_threads() == 1
