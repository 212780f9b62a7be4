"""``make`` builds what is missing and nothing else, and resumes what was interrupted."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def plan(runs: Path, target: str) -> str:
    """What ``make target`` would run, with its results in ``runs``."""
    command = ["make", "-n", target, f"RUNS={runs}", f"TEACHER={runs}/teacher"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def stages(text: str) -> list[str]:
    return [stage for stage in ("teacher", "init", "csd", "align") if f"--config configs/{stage}_var.yaml" in text]


def finish(runs: Path, *names: str) -> None:
    for name in names:
        (runs / name).mkdir()
        (runs / name / "config.json").write_text("{}")


def test_everything_is_missing(tmp_path):
    assert stages(plan(tmp_path, "align")) == ["teacher", "init", "csd", "align"]
    assert stages(plan(tmp_path, "init")) == ["teacher", "init"]


def test_only_what_is_missing_is_built(tmp_path):
    finish(tmp_path, "teacher", "init")
    assert stages(plan(tmp_path, "align")) == ["csd", "align"]
    finish(tmp_path, "csd", "align")
    assert stages(plan(tmp_path, "align")) == []
    assert "dd2 evaluate" in plan(tmp_path, "demo")


def test_an_interrupted_stage_is_resumed(tmp_path):
    finish(tmp_path, "teacher", "init")
    checkpoint = tmp_path / "csd" / "checkpoints" / "last.ckpt"
    assert "--ckpt_path" not in plan(tmp_path, "csd")
    checkpoint.parent.mkdir(parents=True)
    checkpoint.touch()
    assert "--ckpt_path last" in plan(tmp_path, "csd")


TARGETS = ["demo", "test", "docs", "teacher", "init", "csd", "align", "evaluate", "lint", "benchmark", "tables"]


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_exists(tmp_path, target):
    plan(tmp_path, target)
