"""Train all runs of the study at once, each a process, for the same time."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from dd2_lightning.provenance import commit, hardware

SETTINGS = Path(__file__).with_name("settings.yaml")
SHARES = {"init": 0.15, "csd": 0.87, "align": 1.0}  # when the stages of DD2 end, as shares of the time
SNAPSHOTS = (0.4, 0.65)
BATCH = 128
GRACE = 35.0  # seconds after the end at which a process that hangs is ended


class Runs:
    """Processes that train below ``root`` until ``seconds`` after now; their logs, and what became of them."""

    def __init__(self, root: Path, seconds: float, device: str):
        self.root, self.seconds, self.device, self.start = root, seconds, device, time.time()
        self.ends: dict[str, dict[str, Any]] = {}

    def call(self, name: str, command: Sequence[str]) -> bool:
        """Run a command with a log of its name; whether it succeeded."""
        start, log = time.time(), self.root / "logs" / f"{name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "STUDY_START": str(self.start)}
        left = self.start + self.seconds + GRACE - start
        with log.open("w") as file:
            try:
                status = subprocess.run(
                    command, stdout=file, stderr=subprocess.STDOUT, timeout=max(left, 0.1), env=environment, check=False
                ).returncode
            except subprocess.TimeoutExpired:
                status = -1
        last = log.read_text().strip().splitlines()[-1:] or [""]
        self.ends[name] = {"status": status, "seconds": time.time() - start, "last": last[0]}
        print(f"{time.time() - self.start:6.1f} s  {name}: status {status}, {last[0][-70:]}", flush=True)
        return status == 0

    def fit(
        self, name: str, directory: Path, config: Path, share: float, *options: Any, snapshots: bool = False
    ) -> bool:
        """Train a stage until a share of the time has passed."""
        times = [share, *(SNAPSHOTS if snapshots else ())]
        clock = ",".join(f"{self.start + part * self.seconds:.2f}" for part in times)
        accelerator = {"cuda": "gpu"}.get(self.device, self.device)
        command = [sys.executable, "-m", "benchmarks.scale.fit", clock, str(directory / "snapshots"), "fit"]
        settings = {
            "--config": config,
            "--trainer.accelerator": accelerator,
            "--trainer.max_steps": 1_000_000,
            "--trainer.limit_val_batches": 0,
            "--trainer.val_check_interval": 500_000,
            "--trainer.log_every_n_steps": 100,
            "--trainer.default_root_dir": directory,
            "--data.batch_size": BATCH,
        }
        words = [str(word) for pair in settings.items() for word in pair]
        return self.call(name, [*command, *words, *map(str, options)])


def stage_config(setting: dict[str, Any], stage: str) -> Path:
    """The config of a stage."""
    return Path("configs", f"{stage}_{setting['configs']}.yaml")


def dd2(runs: Runs, name: str, setting: dict[str, Any], seed: int) -> None:
    """All stages of DD2."""
    root = runs.root / name / f"dd2-seed{seed}"
    common = ["--seed_everything", seed, "--model.teacher", runs.root / name / "teacher"]
    if guidance := setting.get("guidance"):
        common += ["--model.teacher_sampling.guidance_scale", guidance, "--data.sampling.guidance_scale", guidance]
    own = {
        "init": ["--data.cache_dir", root / "cache"],
        "csd": ["--model.init_from", root / "init"],
        "align": ["--model.init_from", root / "csd", "--model.align_guidance_updates", 60],
    }
    if width := setting.get("head_width"):
        own["init"] += ["--model.head_width", width]
    for stage, share in SHARES.items():
        config, options = stage_config(setting, stage), [*common, *own[stage]]
        if not runs.fit(f"{name}-dd2-{seed}-{stage}", root / stage, config, share, *options, snapshots=stage == "csd"):
            return


def dd1(runs: Runs, name: str, setting: dict[str, Any], seed: int) -> None:
    """Pairs, then DD1."""
    root, teacher = runs.root / name / f"dd1-seed{seed}", runs.root / name / "teacher"
    config = stage_config(setting, "dd1")
    sampling = yaml.safe_load(config.read_text())["data"]["init_args"]["sampling"]
    if guidance := setting.get("guidance"):
        sampling["guidance_scale"] = guidance
    pairs = {"--num": setting["pairs"], "--pair_steps": 25, "--batch_size": 5000, "--shard_size": 5000}
    where = {"--teacher": teacher, "--output": root / "pairs", "--seed": seed, "--device": runs.device}
    words = [str(word) for pair in {**where, **pairs, "--sampling": json.dumps(sampling)}.items() for word in pair]
    if runs.call(f"{name}-dd1-{seed}-pairs", [sys.executable, "-m", "dd2_lightning.cli", "cache", *words]):
        options = ["--seed_everything", seed, "--model.teacher", teacher, "--data.cache_dir", root / "pairs"]
        options += ["--data.cache_size", setting["pairs"]]
        options += ["--model.second", setting["second"], "--model.split", setting["split"]]
        options += ["--data.sampling.guidance_scale", sampling["guidance_scale"]]
        runs.fit(f"{name}-dd1-{seed}", root / "dd1", config, 1.0, *options, snapshots=True)


def run_all(
    root: Path = Path("runs/scale"),
    seconds: float = 1800.0,
    seeds: list[int] = [0, 1, 2],  # noqa: B006  (read only)
    names: list[str] | None = None,
    device: str = "cpu",
) -> None:
    """Train every setting and seed with both methods, all at once; ``root/SETTING/teacher`` are the teachers.

    Args:
        root: where the teachers are and the runs go.
        seconds: of every run, from now on.
        seeds: of the distillations.
        names: of the settings; all by default.
        device: cpu or cuda.
    """
    settings = yaml.safe_load(SETTINGS.read_text())
    runs, jobs = Runs(root, seconds, device), list[Callable[[], None]]()
    for seed in seeds:
        for name in names or settings:
            for method in (dd2, dd1):
                jobs.append(partial(method, runs, name, settings[name], seed))
    with ThreadPoolExecutor(len(jobs)) as pool:
        for job in [pool.submit(job) for job in jobs]:
            job.result()
    about = {"seconds": seconds, "at_once": len(jobs), "hardware": hardware(device), "commit": commit()}
    (root / "runs.json").write_text(json.dumps({**about, "runs": dict(sorted(runs.ends.items()))}, indent=1) + "\n")
