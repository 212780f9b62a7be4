"""``make`` builds what is missing and nothing else, and resumes what was interrupted."""

import os
import subprocess
import time
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]


STAGES = {"var": ["teacher", "init", "csd", "align"], "llamagen": ["teacher", "adapt", "init", "csd", "align"]}
LAST = {"var": "teacher", "llamagen": "adapt"}


def plan(runs: Path, target: str, family: str = "var") -> str:
    """What ``make target`` would run, with its results in ``runs``."""
    command = ["make", "-n", target, f"FAMILY={family}", f"RUNS={runs}", f"TEACHER={runs}/{LAST[family]}"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def stages(text: str, family: str) -> list[str]:
    return [stage for stage in STAGES[family] if f"--config configs/{stage}_{family}.yaml" in text]


def finish(runs: Path, *names: str) -> None:
    for name in names:
        (runs / name).mkdir()
        (runs / name / "config.json").write_text("{}")


@pytest.mark.parametrize("family", STAGES)
def test_everything_is_missing(tmp_path, family):
    assert stages(plan(tmp_path, "align", family), family) == STAGES[family]
    assert stages(plan(tmp_path, "init", family), family) == STAGES[family][:-2]
    assert stages(plan(tmp_path, "teacher", family), family) == ["teacher"]


@pytest.mark.parametrize("family", STAGES)
def test_only_what_is_missing_is_built(tmp_path, family):
    finish(tmp_path, *STAGES[family][:-2])
    assert stages(plan(tmp_path, "align", family), family) == ["csd", "align"]
    finish(tmp_path, "csd", "align")
    assert stages(plan(tmp_path, "align", family), family) == []
    assert "dd2 evaluate" in plan(tmp_path, "demo", family)


@pytest.mark.parametrize("family", STAGES)
def test_what_is_distilled_is_the_last_teacher(tmp_path, family):
    """And the stages that make it build on each other in the same place, with the defaults too."""
    text = plan(tmp_path, "align", family)
    assert text.count(f"--model.teacher {tmp_path}/{LAST[family]}") >= 3
    assert f"--trainer.default_root_dir {tmp_path}/teacher" in text
    command = ["make", "-n", "align", f"FAMILY={family}", f"RUNS={tmp_path}"]
    text = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert f"--model.teacher runs/{family}/{LAST[family]}" in text


def test_the_adaptation_reads_the_original(tmp_path):
    text = plan(tmp_path, "adapt", "llamagen")
    assert stages(text, "llamagen") == ["teacher", "adapt"]
    assert f"--model.teacher {tmp_path}/teacher" in text


def test_an_interrupted_stage_is_resumed(tmp_path):
    """And a fresh one starts: --ckpt_path auto; the run itself is in test_user_machine."""
    finish(tmp_path, "teacher", "init")
    assert "--ckpt_path auto" in next(line for line in plan(tmp_path, "csd").splitlines() if "dd2 fit" in line)


def test_a_copied_run_is_not_trained_again(tmp_path):
    """Its files are as old as the copy, in any order."""
    for age, name in enumerate(["teacher", "init", "csd", "align"]):
        finish(tmp_path, name)
        os.utime(tmp_path / name / "config.json", (time.time() - 100 * age,) * 2)
    assert stages(plan(tmp_path, "demo"), "var") == []


@pytest.mark.parametrize("family", STAGES)
def test_the_baseline_needs_a_teacher_only(tmp_path, family):
    text = plan(tmp_path, "dd1", family)
    assert stages(text, family) == STAGES[family][:-3] and f"--config configs/dd1_{family}.yaml" in text
    assert f"--model.teacher {tmp_path}/{LAST[family]}" in text
    finish(tmp_path, *STAGES[family][:-3])
    text = plan(tmp_path, "dd1", family)
    assert stages(text, family) == [] and "--ckpt_path auto" in text


@pytest.mark.parametrize("family", STAGES)
def test_stage_4_starts_from_stage_3(tmp_path, family):
    text = plan(tmp_path, "frechet", family)
    assert stages(text, family) == STAGES[family] and f"--config configs/frechet_{family}.yaml" in text
    assert f"--model.init_from {tmp_path}/align" in text


def test_a_dd1_run_that_is_there_comes_into_the_table(tmp_path):
    finish(tmp_path, *STAGES["var"])
    report = tmp_path / "report" / "results.json"
    report.parent.mkdir()
    report.write_text("{}")
    assert "dd2 evaluate" not in plan(tmp_path, "evaluate")
    finish(tmp_path, "dd1")
    os.utime(tmp_path / "dd1" / "config.json", (time.time() + 10,) * 2)
    text = plan(tmp_path, "evaluate")
    assert f"--teacher {tmp_path}/teacher --runs {tmp_path} " in text and f"--output {report}" in text


def test_few_sequences_are_few_for_both_methods(tmp_path):
    finish(tmp_path, "teacher", "adapt")
    text = plan(tmp_path, "scarce0", "llamagen")
    entries = yaml.safe_load((ROOT / "configs" / "scarce.yaml").read_text())["samplers"]
    models = [entry["model"] for entry in entries if entry["kind"] == "dd1"]
    runs = {line for line in text.replace("\\\n", " ").splitlines() if "dd2 fit" in line}
    assert len(runs) == 3 + len(models)
    for line in runs:
        assert "--seed_everything 0" in line and f"--model.teacher {tmp_path}/adapt" in line
        assert ("--data.cache_size 1000" in line) == ("init_llamagen" in line or "dd1_llamagen" in line)
    for model in models:
        budget = f"--trainer.max_steps {model.removeprefix('dd1-')}"
        assert any(f"scarce/seed0/{model} " in line and budget in line for line in runs)
    assert "evaluate --config configs/evaluate_llamagen.yaml --config configs/scarce.yaml" in text


@pytest.mark.parametrize("family", STAGES)
def test_other_images_are_a_variable(tmp_path, family):
    """Configs, runs and results are named by them; the budgets are theirs."""
    command = ["make", "-n", "mnist", f"FAMILY={family}", "BENCH_SEEDS=7"]
    text = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.replace("\\\n", " ")
    trained = [line for line in text.splitlines() if "dd2 fit" in line]
    assert trained and {
        f"configs/{stage}_mnist_{family}.yaml" for stage in ["teacher", *STAGES[family][-3:], "dd1"]
    } == {word for line in trained for word in line.split() if word.endswith(".yaml")}
    for line in trained:
        assert f"--trainer.default_root_dir runs/mnist_{family}/" in line and "runs/var" not in line
        teacher = "configs/teacher_" in line
        assert teacher != ("/seed7/" in line and "--trainer.max_steps" in line)
    assert f"--output benchmarks/mnist_{family}.json" in text


def test_tables_of_every_length_are_made():
    """In a clone, too, where what was measured elsewhere lies in benchmarks."""
    command = ["make", "--dry-run", "--always-make", "growing"]
    text = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for n in range(2, 7):
        assert f"--output runs/growing/{n}.json --tokens {n} " in text


def test_ablations_run_stage_1_first_and_several_at_a_time():
    command = ["make", "--dry-run", "ablations", "PROCESSES=3"]
    text = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    lines = [line for line in text.splitlines() if "benchmarks.ablations" in line]
    assert ["missing init |" in lines[0], "missing csd |" in lines[1], lines[2].endswith(" report")] == [True] * 3
    assert all("-P 3 " in line for line in lines[:2])


TARGETS = ["demo", "test", "docs", "teacher", "init", "csd", "align", "frechet", "dd1", "evaluate", "lint", "benchmark"]
TARGETS += ["frechet_benchmark", "mnist", "scale", "tables", "growing", "scarce", "ablations", "reliability"]


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_exists(tmp_path, target):
    plan(tmp_path, target)
