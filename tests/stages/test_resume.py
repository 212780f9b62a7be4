"""A run that is killed anywhere and resumed leaves what one leaves that was not."""

import json
import signal
import time
from types import SimpleNamespace

import pytest
import torch

from dd2_lightning.callbacks.logs import wait_for_own_second
from dd2_lightning.stages import Stage
from evidence import left_behind, logs, readable, unequal
from faults import die_at
from processes import forked
from runs import STAGES, any_config, fit


@pytest.mark.parametrize("stage", STAGES)
def test_killed_inside_an_iteration(root, tmp_path, stage):
    """Checkpoints and validations after 2 and 4 iterations; SIGKILL in the third, then SIGTERM in the fifth."""
    config = any_config(root, stage, tmp_path / "whole")
    config["trainer"]["val_check_interval"] = 2
    fit(config, tmp_path)
    config["trainer"]["default_root_dir"] = str(tmp_path / "parts")
    for iteration, how, status, saved in ((2, signal.SIGKILL, -9, 2), (4, signal.SIGTERM, 143, 5)):

        def killed(iteration=iteration, how=how):
            die_at(iteration, how)
            fit(config, tmp_path, "--ckpt_path", "auto")

        ended, output = forked(killed, tmp_path / "log")
        assert ended == status, output
        checkpoint = torch.load(tmp_path / "parts/checkpoints/last.ckpt", weights_only=True)
        assert checkpoint["global_step"] == saved
        assert readable(tmp_path / "parts") and not (tmp_path / "parts/config.json").exists()
    assert "--ckpt_path last continues" in output
    fit(config, tmp_path, "--ckpt_path", "auto")
    assert unequal(left_behind(tmp_path / "whole"), left_behind(tmp_path / "parts")) == []


def test_seconds_are_summed_over_resumes(root, tmp_path):
    config, times = any_config(root, "csd", tmp_path / "run"), []
    for iterations in (3, 6):
        config["trainer"]["max_steps"] = iterations
        started = time.process_time()
        fit(config, tmp_path, "--ckpt_path", "auto")
        spent = time.process_time() - started
        found = json.loads((tmp_path / "run/time.json").read_text())
        assert found["iterations"] == iterations
        before = times[-1]["processor_seconds"] if times else 0
        assert before < found["processor_seconds"] < before + spent
        assert found["wall_seconds"] > (times[-1]["wall_seconds"] if times else 0)
        times.append(found)
    shown = [value for _, value in logs(tmp_path / "run")["log time/processor_seconds"]]
    assert len(shown) == 6 and shown == sorted(shown) and shown[2] <= times[0]["processor_seconds"] <= shown[3]


def test_killed_before_the_artifact_is_written(root, tmp_path, monkeypatch):
    """The last checkpoint leaves nothing to train; the artifact is written all the same, and nothing trained again."""
    config = any_config(root, "csd", tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(Stage, "write_artifact", lambda self, directory: signal.raise_signal(signal.SIGKILL))
        assert forked(lambda: fit(config, tmp_path), tmp_path / "log")[0] == -9
    assert not (tmp_path / "run/config.json").exists()
    monkeypatch.setattr(Stage, "training_step", lambda self, batch, batch_idx: pytest.fail("it is trained again"))
    fit(config, tmp_path, "--ckpt_path", "auto")
    assert (tmp_path / "run/config.json").exists()


def test_what_was_half_written_is_removed(root, tmp_path, monkeypatch):
    config = any_config(root, "csd", tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr("dd2_lightning.files.os.replace", lambda *_: signal.raise_signal(signal.SIGKILL))
        assert forked(lambda: fit(config, tmp_path), tmp_path / "log")[0] == -9
    fit(config, tmp_path, "--ckpt_path", "auto")
    assert not list((tmp_path / "run").rglob("*.part"))


def test_a_log_comes_after_those_that_are_there(tmp_path, monkeypatch):
    clock = [1_000_000_000.5]
    times = SimpleNamespace(time=lambda: clock[0], sleep=lambda seconds: clock.append(clock.pop() + seconds))
    monkeypatch.setattr("dd2_lightning.callbacks.logs.time", times)
    now = int(clock[0])
    for second in (now - 1, now, now + 1):
        (tmp_path / f"events.out.tfevents.{second:010d}.host.1.0").touch()
    wait_for_own_second(tmp_path)
    assert int(clock[0]) == now + 2


def test_a_run_that_starts_again_leaves_no_logs_of_the_one_before(root, tmp_path):
    config = any_config(root, "csd", tmp_path / "run")
    for arguments in ((), ("--overwrite",)):
        fit(config, tmp_path, *arguments)
    assert len(list((tmp_path / "run").glob("events.*"))) == 1
    found = left_behind(tmp_path / "run")
    assert [step for step, _ in found["log loss/generator"]] == [0, 1, 2, 3, 4, 5]


def test_there_is_one_checkpoint_file(root, tmp_path):
    config = any_config(root, "csd", tmp_path / "run")
    config["checkpoint_every"] = 4
    fit(config, tmp_path)
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == ["last.ckpt"]
    assert torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["global_step"] == 6
