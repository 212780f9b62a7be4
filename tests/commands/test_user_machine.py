"""The real command on a user's machine: how it is launched, stopped, started twice, and what it leaves alone."""

import json
import os
import pty
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from dd2_lightning.cli import main
from processes import DD2, dd2, environment, forked_command, forked_ranks, free_port, started
from runs import any_config, fails, stage_config

pytestmark = pytest.mark.slow
MODULE = (sys.executable, "-m", "dd2_lightning")
FINISHED = ("config.json", "generator.safetensors")


def write(root: Path, output: Path, stage: str = "csd", data: dict | None = None, **trainer) -> str:
    """A config file of a tiny run; its name."""
    config = any_config(root, stage, output)
    config["trainer"] |= {"accelerator": "auto", **trainer}
    config["trainer"].pop("enable_progress_bar")
    config["data"] |= data or {}
    path = output.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(config))
    return str(path)


def tree(root: Path) -> dict[str, bytes]:
    """Names and contents of all files."""
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.mark.parametrize(
    ("program", "devices"),
    [(MODULE, 2), ((sys.executable, "-m", "dd2_lightning.cli"), 1)],
    ids=["python -m dd2_lightning", "python -m dd2_lightning.cli"],
)
def test_every_way_to_launch(root, tmp_path, program, devices):
    """The script itself and torchrun are launched below."""
    config = write(root, tmp_path / "run", devices=devices)
    (tmp_path / "elsewhere").mkdir()
    ended = dd2("fit", "--config", config, program=program, cwd=tmp_path / "elsewhere")
    assert ended.returncode == 0, ended.stderr
    assert all((tmp_path / "run" / name).is_file() for name in FINISHED)


@pytest.mark.parametrize(
    ("data", "status", "message"),
    [("FailsInSecondProcess", 7, ""), ("RefusesInSecondProcess", 1, "the second process finds no data")],
)
def test_a_process_that_fails_ends_all_with_its_status(root, tmp_path, data, status, message):
    config = write(root, tmp_path / "run", data={"class_path": f"broken_data.{data}"}, devices=2)
    ended = dd2("fit", "--config", config)
    assert ended.returncode == status and message in ended.stderr and "Traceback" not in ended.stderr


def test_all_processes_that_fail_alike_say_it_once(root, tmp_path):
    config = write(root, tmp_path / "run", devices=2)
    ended = dd2("fit", "--config", config, "--model.teacher", "nowhere")
    assert ended.returncode == 1 and ended.stderr.count("nowhere does not exist") == 1
    assert "Traceback" not in ended.stderr and not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def finished(root, tmp_path_factory):
    """A run of the command under a umask: its config, its directory, and how it ended."""
    output = tmp_path_factory.mktemp("finished") / "run"
    config = write(root, output)
    return config, output, dd2("fit", "--config", config, umask=0o027)


def test_output_that_is_no_terminal_gets_lines_and_no_advertisement(finished):
    ended = finished[-1]
    assert ended.returncode == 0, ended.stderr
    text = ended.stdout + ended.stderr
    assert "csd 6/6, " in ended.stderr and "/s" in ended.stderr
    assert not any(word in text for word in ("💡", "litlogger", "GPU available", "Seed set", "warning", "\x1b"))


def test_files_have_the_permissions_of_the_umask(finished):
    modes = {stat.S_IMODE(path.stat().st_mode) for path in finished[1].rglob("*") if path.is_file()}
    assert modes == {0o640}


def test_a_finished_run_is_not_overwritten(finished, tmp_path, capsys):
    """In this process: what is launched, and how, is tested above."""
    shutil.copytree(finished[1], tmp_path / "run")
    config = ["--config", finished[0], "--trainer.default_root_dir", str(tmp_path / "run")]
    before = tree(tmp_path / "run")
    with fails(capsys, 1, "--ckpt_path last", "default_root_dir", "--overwrite"):
        main(["fit", *config])
    main(["fit", *config, "--trainer.fast_dev_run", "true"])
    for command in ("validate", "test"):
        main([command, *config])
        assert "checkpoint: " in capsys.readouterr().out
    assert tree(tmp_path / "run") == before
    main(["fit", *config, "--overwrite", "--trainer.max_steps", "2"])
    assert json.loads((tmp_path / "run/config.json").read_text())["iterations"] == 2


def test_an_unfinished_run_is_not_overwritten_either(root, tmp_path, capsys):
    config = write(root, tmp_path / "run")
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    (tmp_path / "run/checkpoints/last.ckpt").touch()
    with fails(capsys, 1, "an unfinished run"):
        main(["fit", "--config", config])


def test_two_runs_do_not_share_a_directory(root, tmp_path, capsys):
    config = write(root, tmp_path / "run", max_steps=100_000)
    first = forked_command(tmp_path / "log", "fit", "--config", config)
    try:
        wait_for(tmp_path / "run/config.yaml")
        with fails(capsys, 1, f"is being written by process {first.pid} on "):
            main(["fit", "--config", config])
    finally:
        first.send(signal.SIGKILL)
        first.wait()
    # a lock that a killed process leaves is none
    assert (tmp_path / "run/.lock").exists()
    main(["fit", "--config", config, "--trainer.max_steps", "2", "--ckpt_path", "auto"])
    assert not (tmp_path / "run/.lock").exists()


def wait_for(path: Path, seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < until, f"{path} did not come"
        time.sleep(0.05)


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("devices", [1, 2])
def test_a_signal_saves_and_is_resumed(root, tmp_path, signum, status, devices):
    """SIGINT as a terminal sends it, to all processes; SIGTERM to the first one only."""
    config = write(root, tmp_path / "run", max_steps=100_000, devices=devices)
    line = ["fit", "--config", config]
    process = started(*line) if devices > 1 else forked_command(tmp_path / "log", *line)
    wait_for(tmp_path / "run/checkpoints/last.ckpt")
    if signum == signal.SIGINT:
        os.killpg(process.pid, signum)
    else:
        os.kill(process.pid, signum)
    if devices > 1:
        text = process.communicate(timeout=120)[1]
        ended = process.returncode
    else:
        ended, text = process.wait(120), process.output()
    assert ended == status and "--ckpt_path last continues" in text and "Traceback" not in text, text
    saved = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["global_step"]
    assert saved > 0
    resumed = forked_ranks(
        devices, tmp_path / "rank", *line, "--ckpt_path", "last", "--trainer.max_steps", str(saved + 2)
    )
    for rank in resumed:
        assert rank.wait(120) == 0, rank.output()
    assert f"csd {saved + 2:,}/{saved + 2:,}, " in resumed[0].output()  # it counts on


def test_predict_says_where_its_images_are(var_run, tmp_path, capsys):
    """Of a teacher with images."""
    shutil.copytree(var_run, tmp_path / "run")
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(stage_config(tmp_path / "run", "csd")))
    before = tree(tmp_path / "run/csd")
    main(["predict", "--config", str(config)])
    assert str(tmp_path / "run/csd/predict.png") in capsys.readouterr().out
    after = tree(tmp_path / "run/csd")
    assert after.pop("predict.png").startswith(b"\x89PNG") and after == before


def test_a_terminal_gets_one_line(root, tmp_path):
    """At 80 columns nothing is wider than the terminal."""
    config = write(root, tmp_path / "run")
    master, slave = pty.openpty()
    variables = environment(TERM="xterm", COLUMNS="80", LINES="24")
    process = subprocess.Popen([DD2, "fit", "--config", config], stdout=slave, stderr=slave, stdin=slave, env=variables)
    os.close(slave)
    output = b""
    while True:
        try:
            output += os.read(master, 65536)
        except OSError:
            break
    assert process.wait() == 0
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output.decode())
    rows = [row for row in re.split(r"[\r\n]+", text) if "csd " in row]
    assert any("6/6, " in row and "/s" in row for row in rows) and max(map(len, rows)) <= 80


def test_two_machines_of_torchrun(root, tmp_path):
    """Two agents, as docs/scaling.md starts them."""
    config = write(root, tmp_path / "run", devices=1, num_nodes=2)
    run = (sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "1")
    meet = ("--rdzv_backend", "c10d", "--rdzv_id", "csd", "--rdzv_endpoint", f"127.0.0.1:{free_port()}")
    line = (*run, *meet, str(DD2), "fit", "--config", config)
    machines = [subprocess.Popen(line, env=environment(), stderr=subprocess.PIPE, text=True) for _ in range(2)]
    texts = [machine.communicate(timeout=120)[1] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], texts
    assert (tmp_path / "run/config.json").is_file()


def test_tasks_of_slurm(root, tmp_path):
    """Two processes with the variables that srun gives them."""
    config = write(root, tmp_path / "run", devices=2, num_nodes=1)
    common = {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_NNODES": "1", "SLURM_NODEID": "0"}
    common |= {
        "SLURM_JOB_ID": "1",
        "SLURM_JOB_NAME": "csd",
        "SLURM_NODELIST": "localhost",
        "MASTER_PORT": str(free_port()),
    }
    common |= {"MASTER_ADDR": "127.0.0.1"}
    tasks = []
    for rank in ("0", "1"):
        variables = environment(**common, SLURM_PROCID=rank, SLURM_LOCALID=rank)
        tasks.append(started("fit", "--config", config, "--ckpt_path", "auto", env=variables))
    texts = [task.communicate(timeout=120)[1] for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0], texts
    assert (tmp_path / "run/config.json").is_file()
