"""The list of updates: what a stage declares is what fit performs and a plan counts; settings have their ranges."""

import math
from collections import Counter

import pytest
import torch
from torch import nn

from dd2_lightning.data import DigitsData, PairData, PrefixData
from dd2_lightning.stages import (
    ARDiffusionInit,
    ContinuousInput,
    CSDDistill,
    DD1Distill,
    FrechetAlign,
    PerformanceAlign,
    Stage,
    TeacherTraining,
)
from dd2_lightning.stages.features import FeatureSettings
from dd2_lightning.stages.schedule import OptimizerSettings
from dd2_lightning.stages.updates import EMA, Losses, Update, watched_means
from runs import STAGES, any_config, fails, fit
from teachers import FAMILIES
from watching import watch_losses

RISING = OptimizerSettings(lr=1.0, warmup=1000, lr_start=0.0)
"""Its rate tells the count: a thousandth each."""


def update(**settings) -> Update:
    return Update("network", nn.Linear(1, 1), lambda batch, k: None, RISING, **settings)


@pytest.mark.parametrize("stage", STAGES)
def test_fit_performs_what_is_declared(root, tmp_path, monkeypatch, stage):
    """As often as the list says, in its order, within its iterations."""
    performed, declared = [], {}

    def watch(stage, update, batch, k, losses):
        assert update.is_due(batch.iteration)
        performed.append((batch.iteration, list(declared).index(update.name), k))

    def on_train_start(self):
        declared.update({update.name: update.count(self.trainer.max_steps) for update in self.updates()})

    watch_losses(monkeypatch, watch)
    monkeypatch.setattr(Stage, "on_train_epoch_start", on_train_start)
    model = {"init": {"head_iterations": 2}, "teacher": {"tokenizer_iterations": 2}}.get(stage, {})
    fit(any_config(root, stage, tmp_path / "run", **model), tmp_path)
    assert performed == sorted(performed)
    counts = Counter(list(declared)[number] for _, number, _ in performed)
    assert counts == Counter({name: count for name, count in declared.items() if count})


def test_counts_and_iterations():
    phase = update(repeat=3, start=2, stop=5)
    assert [phase.is_due(i) for i in range(6)] == [False, False, True, True, True, False]
    assert [phase.count(n) for n in (1, 4, 100)] == [0, 6, 9]
    assert update(start=2).count(10) == 8


def test_a_loss_is_logged_under_the_name_of_its_update_or_its_own():
    assert update().label == "network" and update(logged_as="gts").label == "gts"


def test_what_the_learning_rate_counts():
    """The update's own steps from its start, or a number of steps in every iteration, of which it has the last."""
    own = update(repeat=3, start=2)
    assert [1000 * own.learning_rate(i, k, 10) for i, k in ((2, 0), (2, 2), (4, 1))] == pytest.approx([0, 2, 7])
    guidance, generator = update(repeat=5), update(clock=5, start=3)
    assert 1000 * guidance.learning_rate(7, 4, 10) == pytest.approx(39)
    assert generator.learning_rate(7, 0, 10) == guidance.learning_rate(7, 4, 10)
    falling = OptimizerSettings(lr=1.0, decay_from=0.0, lr_end=0.0)
    first = Update("phase", nn.Linear(1, 1), lambda batch, k: None, falling, stop=4)
    assert first.learning_rate(2, 0, 10) == pytest.approx(0.5)  # of its phase, not of the run


def test_watched_means():
    loss, values = torch.zeros(2, 3), torch.arange(12.0).view(4, 3)
    parts = [
        Losses(loss, {"a": values[:2], "b": torch.tensor(1.0)}),
        Losses(loss, {"a": values[2:], "b": torch.tensor(3.0)}),
    ]
    means = watched_means(parts)
    assert torch.equal(means["a"], values.mean(0)) and means["b"] == 2
    weight = torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0]])
    means = watched_means([Losses(loss, {"a": values[2 * i : 2 * i + 2]}, weight) for i in range(2)])
    assert means["a"].tolist() == [4.5, 7.0, 0.0]  # a token that has no weight anywhere is 0
    assert watched_means([Losses(loss, {"a": values[:2]}, weight)])["a"].tolist() == [1.5, 4.0, 0.0]


def test_an_average_with_limit_0_is_a_copy():
    average, network = nn.Linear(2, 2), nn.Linear(2, 2)
    assert EMA(average, network, 0.0).update(7) == 0
    assert torch.equal(average.weight, network.weight)
    assert EMA(average, network, 0.9999).update(0) == 0.1


# --- settings out of range -------------------------------------------------------------------------------------------

TEACHER = {"teacher": "teacher"}
CSD = {**TEACHER, "init_from": "init"}
VAR = {"family": "var", "architecture": FAMILIES["var"]().config}
NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("kind", "required", "name", "values", "wanted"),
    [
        (ARDiffusionInit, TEACHER, "t_min", (0, 1, NAN), "in (0, 1)"),
        (ARDiffusionInit, TEACHER, "t_logit_mean", (INF, NAN), "a finite number"),
        (ARDiffusionInit, TEACHER, "draws", (0,), "at least 1"),
        (ARDiffusionInit, TEACHER, "head_frequencies", (-1,), "0 or more"),
        (ARDiffusionInit, TEACHER, "accumulate", (0,), "at least 1"),
        (CSDDistill, CSD, "head_time", (0, 1.1, NAN), "in (0, 1]"),
        (CSDDistill, CSD, "position_weights", ((-1, 1), (1, INF), (1, NAN)), "0 or more"),
        (CSDDistill, CSD, "position_weights", ((0, 0),), "not all be 0"),
        (CSDDistill, CSD, "alpha", (INF, NAN), "a finite number"),
        (CSDDistill, CSD, "ema_limit", (-0.1, 1, NAN), "in [0, 1)"),
        (CSDDistill, CSD, "t_min_generator", (0, 1), "in (0, 1)"),
        (PerformanceAlign, CSD, "align_guidance_updates", (-1,), "0 or more"),
        (PerformanceAlign, CSD, "guidance_updates", (0,), "at least 1"),
        (FrechetAlign, {**CSD, "features": [FeatureSettings("random")]}, "moment_samples", (0,), "at least 1"),
        (FrechetAlign, {**CSD, "features": [FeatureSettings("random")]}, "csd_weight", (-1, NAN), "0 or more"),
        (ContinuousInput, TEACHER, "label_dropout", (-0.1, 1.1, NAN), "in [0, 1]"),
        (DD1Distill, {**TEACHER, "second": 1, "split": 1}, "distance_weight", (-1, INF, NAN), "0 or more"),
        (TeacherTraining, VAR, "input_swaps", (-0.1, 1.1, NAN), "in [0, 1]"),
        (TeacherTraining, VAR, "codebook_rms", (0, NAN), "positive"),
        (PrefixData, {}, "batch_size", (0,), "at least 1"),
        (PrefixData, {}, "cache_seed", (-1,), "0 or more"),
        (PairData, {}, "steps", (0,), "at least 1"),
        (DigitsData, {}, "held_out", (0, 1797), "in [1, 1796]"),
    ],
)
def test_settings_out_of_range(kind, required, name, values, wanted):
    prefix = "model" if issubclass(kind, Stage) else "data"
    for value in values:
        with pytest.raises(ValueError) as error:
            kind(**{**required, name: value})
        assert f"{prefix}.{name} must" in str(error.value) and wanted in str(error.value)


@pytest.mark.parametrize(
    ("name", "values", "wanted"),
    [
        ("lr", (0, -1, INF, NAN), "positive"),
        ("lr_end", (-1, NAN), "0 or more"),
        ("warmup", (-1,), "0 or more"),
        ("decay_from", (-0.1, 1.1, NAN), "in [0, 1]"),
        ("betas", ((0.9, 1.0), (-0.1, 0.9), (NAN, 0.9)), "in [0, 1)"),
        ("clip", (-1, NAN), "0 or more"),
        ("weight_decay", (-1, INF), "0 or more"),
    ],
)
def test_optimizer_settings_out_of_range(name, values, wanted):
    for value in values:
        with pytest.raises(ValueError) as error:
            ARDiffusionInit("teacher", optimizer=OptimizerSettings(**{name: value}))
        assert f"model.optimizer.{name} must be {wanted}" in str(error.value)


def test_the_command_line_names_setting_and_range(root, tmp_path, capsys):
    for settings, words in (
        ({"head_time": 2.0}, ["model.head_time must be in (0, 1], got 2.0"]),
        ({"alpha": NAN}, ["model.alpha must be a finite number, got nan"]),
        ({"guidance_optimizer": {"lr": -1.0}}, ["model.guidance_optimizer.lr must be positive, got -1.0"]),
    ):
        with fails(capsys, 2, *words):
            fit(any_config(root, "csd", tmp_path / "run", **settings), tmp_path)
