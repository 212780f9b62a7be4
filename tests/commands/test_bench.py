"""``dd2 bench``: what is timed and what is reported, with small networks."""

import json

import pytest
import torch

from dd2_lightning.cli import main
from dd2_lightning.costs import shapes_only
from dd2_lightning.evaluation.timing import interleaved
from dd2_lightning.families.registry import build_meta, teacher_from_config
from dd2_lightning.flow import codebook_posterior_mean
from dd2_lightning.hub.cards import published
from dd2_lightning.models.codebook_teacher import CodebookTeacher
from dd2_lightning.models.generator import OneStepGenerator
from dd2_lightning.planning import blank_batch, count_update
from dd2_lightning.sampling import Sampling
from dd2_lightning.stages import CSDDistill
from dd2_lightning.timing.flows import stored_posterior_mean, time_flow
from dd2_lightning.timing.training import step_of, time_updates
from reference import release_files
from runs import fails


@pytest.fixture
def sizes(tmp_path):
    """Both families at the sizes of the golden files, under the names that the command takes."""
    return [f"{family}/{release_files(tmp_path, family)['sizes.json']}" for family in ("var", "llamagen")]


HEAD = ("--head_width", "16", "--head_depth", "1")


def command(kind, output, sizes, *options):
    words = [word for pair in zip(["--models+"] * 2, sizes, strict=True) for word in pair]
    main(["bench", kind, *words, "--output", str(output), *options])
    return json.loads(output.read_text())


def bench(output, sizes, *options):
    return command("sample", output, sizes, *HEAD, *options)


def test_the_report(sizes, tmp_path, capsys):
    report = bench(tmp_path / "report" / "sampling.json", sizes, "--rounds", "2", "--batch_size", "3")
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
        assert entry["passes"]["seconds"] == middle["one_step"] / middle["backbone"]
        assert entry["passes"]["flops"] == entry["flops"]["one_step"] / entry["flops"]["backbone"] > 1
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
    counted = one_round[1:2]  # the operations of one step
    assert calls == (one_round * 2 + counted) * 2  # a round to warm up and one that counts, for two models


def test_training(sizes, tmp_path, capsys):
    """Every update of stages 1 and 2, and the operations a second that a plan asks for."""
    report = command("train", tmp_path / "x.json", sizes, *HEAD, "--rounds", "2", "--batch_size", "2", "--draws", "3")
    assert list(report["models"]) == sizes
    assert (report["batch_size"], report["draws"], report["precision"]) == (2, 3, "32-true")
    for entry in report["models"].values():
        assert list(entry) == ["init", "guidance", "generator"]
        assert entry["init"]["parameters"] == entry["guidance"]["parameters"] == entry["generator"]["parameters"]
        for update in entry.values():
            assert len(update["seconds"]) == 2
            assert update["seconds_per_sample"] == sum(update["seconds"]) / 4
            assert update["tflops"] == pytest.approx(update["flops"] / update["seconds_per_sample"] / 1e12)
    assert "TFLOP/s" in capsys.readouterr().out


def test_training_counts_what_a_plan_counts(sizes):
    """A sample's operations are those of the plan, which runs the same losses on shapes."""
    settings = {"teacher": "", "init_from": "", "draws": 3, "teacher_sampling": Sampling(guidance_scale=2.0)}
    head, size = {"width": 16, "depth": 1}, published(sizes[0])
    stage = CSDDistill(**settings)
    stage.teacher = build_meta(*size)
    with torch.device("meta"):
        stage.build({"head": head})
    with shapes_only(stage):
        planned_flops = {u.name: count_update(stage, u, 1, None).cost.flops for u in stage.updates()}
    timed = time_updates(CSDDistill(**settings), teacher_from_config(*size), head, 8, 1, "32-true", "cpu")
    for update, flops in planned_flops.items():
        assert timed[update]["flops"] == pytest.approx(flops, rel=0.01)


def test_an_update_changes_its_network_alone(sizes):
    """What is timed is a step: the weights of the network and its EMA move, those of the others do not."""
    stage = CSDDistill("", "", draws=2)
    stage.teacher = teacher_from_config(*published(sizes[0]))
    stage.build({"head": {"width": 16, "depth": 1}})
    for update in stage.updates():
        before = {name: value.clone() for name, value in stage.state_dict().items()}
        step_of(stage, update, blank_batch(stage, 2), "32-true", "cpu")()
        moved = {name.split(".")[0] for name, value in stage.state_dict().items() if not value.equal(before[name])}
        assert moved == ({update.name, "ema"} if update.ema else {update.name})


def test_the_flow(sizes, tmp_path):
    """Both forms give the same numbers; the fused one holds no weight for every draw and code."""
    report = command("flow", tmp_path / "x.json", sizes, "--rounds", "2", "--batch_size", "2", "--draws", "3")
    kinds = ["fused", "stored", "fused_gradient", "stored_gradient", "single_gradient"]
    for entry in report["models"].values():
        assert list(entry["seconds"]) == list(entry["median_seconds"]) == list(entry["bytes"]) == kinds
        weights = 4 * 2 * entry["tokens"] * 3 * entry["codes"]
        assert entry["bytes"]["stored"] >= weights
    x_t, t, codebook = torch.randn(2, 5, 3, 4), torch.rand(2, 5, 3).clamp(min=0.05), torch.randn(7, 4)
    log_p = torch.randn(2, 5, 7).log_softmax(-1)
    stored = stored_posterior_mean(x_t, t, codebook, log_p)
    torch.testing.assert_close(codebook_posterior_mean(x_t, t, codebook, log_p), stored, rtol=1e-4, atol=1e-4)


def test_memory_of_the_flow():
    """With published numbers of codes the fused flow takes a small part."""
    entry = time_flow("llamagen", published("llamagen/B")[1], batch_size=1, draws=4, rounds=1, device="cpu")
    assert (entry["tokens"], entry["codes"]) == (256, 16384)
    assert entry["bytes"]["stored"] > 20 * entry["bytes"]["fused"]
    assert entry["bytes"]["stored_gradient"] > 5 * entry["bytes"]["fused_gradient"]


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
    with fails(capsys, 2, "precision 8-bit is not counted; these are: 32, 32-true"):
        command("train", output, sizes, "--precision", "8-bit")
    with fails(capsys, 2, "--draws must be at least 1"):
        command("flow", output, sizes, "--draws", "0")
    with fails(capsys, 2, "models"):
        main(["bench", "sample", "--output", str(output)])
    assert not output.exists()
    assert torch.get_num_threads() == 1
