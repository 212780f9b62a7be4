"""Runs of stage 2 on the digits, one as it should be and some that are wrong on purpose, and their curves.

``python -m benchmarks.healthy_runs`` writes ``docs/images/healthy_*.png`` and ``benchmarks/healthy_runs.json``. Every
figure is read from the event files of the runs, as TensorBoard shows them. Runs that are finished are not done again.
"""

import io
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from benchmarks.command import run_command
from dd2_lightning.files import write_atomically
from dd2_lightning.images.figures import blank_figure, write_figure

RUNS = {
    "healthy": {},
    "from scratch": {"head_time": 1.0, "initialise": "guidance"},
    "lagging guidance": {"guidance_optimizer.lr": 5e-5},
    "K too small": {"guidance_optimizer.lr": 1e-3, "generator_optimizer.lr": 1e-3},
    "rates too high": {"guidance_optimizer.lr": 2e-2, "generator_optimizer.lr": 1e-2},
}
"""Settings of the model that differ from configs/csd_var.yaml."""

CURVES = {
    "score_gap": "score gap",
    "loss/guidance": "guidance loss L_FCS",
    "val/nll_one_step": "NLL of one-step samples, nats",
}
COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7")
"""One a run, of Okabe and Ito."""


def fit(output: Path, *options: str) -> float:
    """``dd2 fit`` into a directory; its processor seconds, also where it stops at a loss that is not a number."""
    command = [sys.executable, "-m", "dd2_lightning.cli", "fit", *options]
    common = ["--trainer.default_root_dir", str(output), "--ckpt_path", "auto", "--trainer.accelerator", "cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with open(output.with_suffix(".log"), "a") as log:
        process = subprocess.Popen([*command, *common], stdout=log, stderr=log, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status) and "nan" not in output.with_suffix(".log").read_text():
        raise ValueError(f"{output} failed, see {output.with_suffix('.log')}")
    return usage.ru_utime + usage.ru_stime


def curve(board: EventAccumulator, tag: str) -> tuple[list[int], list[float]]:
    """Iterations and values of a tag."""
    events = board.Scalars(tag)
    return [event.step for event in events], [event.value for event in events]


def draw_curves(boards: dict[str, EventAccumulator], path: Path) -> None:
    """One panel a quantity, one line a run."""
    figure = blank_figure(11, 3.4, dpi=100)
    panels = figure.subplots(1, len(CURVES))
    for ax, (tag, title) in zip(panels, CURVES.items(), strict=True):
        for (name, board), colour in zip(boards.items(), COLOURS, strict=True):
            ax.plot(*curve(board, tag), color=colour, lw=2 if name == "healthy" else 1.2, label=name)
        ax.set(title=title, xlabel="iteration", yscale="log")
        ax.spines[["top", "right"]].set_visible(False)
    _, teacher = curve(boards["healthy"], "val/nll_teacher")
    panels[-1].axhline(teacher[-1], color="#999999", ls="--", label="teacher")
    panels[-1].legend(fontsize=8, frameon=False)
    figure.tight_layout()
    write_figure(figure, path)


def draw_grids(boards: dict[str, EventAccumulator], path: Path) -> None:
    """The last sample grid of every run, the first of that from scratch; on the right the teacher's of that noise."""
    figure = blank_figure(8, 1.75 * len(boards), dpi=100)
    for ax, (name, board) in zip(figure.subplots(len(boards), 1), boards.items(), strict=True):
        event = board.Images("samples")[0 if name == "from scratch" else -1]
        image = Image.open(io.BytesIO(event.encoded_image_string))
        ax.imshow(np.array(image.convert("L")), cmap="gray")
        ax.set_axis_off()
        ax.set_title(f"{name}, iteration {event.step + 1}", fontsize=10)
    figure.tight_layout()
    write_figure(figure, path)
    Image.open(path).convert("L").quantize(32).save(path, optimize=True)


def save_heat_map(board: EventAccumulator, tag: str, path: Path) -> None:
    """A heat map as it is in the event file."""
    write_atomically(path, board.Images(tag)[-1].encoded_image_string)


def healthy_runs(
    teacher: str = "runs/var/teacher",
    work: str = "runs/healthy",
    init_iterations: int = 250,
    iterations: int = 200,
    batch_size: int = 32,
    processes: int = 2,
    images: str = "docs/images",
    output: str = "benchmarks/healthy_runs.json",
) -> None:
    """Run a healthy stage 2 and four that are not, and draw what TensorBoard shows of them.

    Args:
        teacher: directory of the digits' VAR, see configs/teacher_var.yaml.
        work: where the runs go.
        init_iterations: iterations of stage 1, from which all of them start.
        iterations: iterations of stage 2.
        batch_size: of both.
        processes: runs at once.
        images: directory of the figures.
        output: JSON file of the curves.
    """
    root = Path(work)
    root.mkdir(parents=True, exist_ok=True)
    common = ["--model.teacher", teacher, "--data.validation_size", "100", "--trainer.log_every_n_steps", "5"]
    common += ["--data.batch_size", str(batch_size)]
    every = max(1, iterations // 10)
    seconds: dict[str, Any] = {}
    if Path(output).is_file():
        seconds = json.loads(Path(output).read_text())["processor_seconds"]
    if not (root / "init/config.json").exists():
        cache = ["--data.cache_dir", str(root / "cache"), "--data.cache_size", "2000"]
        steps = ["--trainer.max_steps", str(init_iterations), "--trainer.val_check_interval", str(init_iterations)]
        seconds["init"] = fit(root / "init", "--config", "configs/init_var.yaml", *common, *cache, *steps)

    def run(name: str) -> None:
        directory = root / name.replace(" ", "_")
        changes = [part for key, value in RUNS[name].items() for part in (f"--model.{key}", str(value))]
        steps = ["--trainer.max_steps", str(iterations), "--trainer.val_check_interval", str(every)]
        start = ["--config", "configs/csd_var.yaml", "--model.init_from", str(root / "init")]
        if not (directory / "config.json").exists():
            seconds[name] = fit(directory, *start, *common, *steps, *changes)

    begin = time.monotonic()
    with ThreadPoolExecutor(processes) as pool:
        list(pool.map(run, RUNS))
    print(f"{time.monotonic() - begin:.0f} s, processor time {seconds}", file=sys.stderr)
    boards = {name: EventAccumulator(str(root / name.replace(" ", "_")), {"images": 0}).Reload() for name in RUNS}
    folder = Path(images)
    draw_curves(boards, folder / "healthy_curves.png")
    draw_grids(boards, folder / "healthy_grids.png")
    save_heat_map(boards["healthy"], "score_gap_per_token", folder / "healthy_heat_map.png")
    tags = [*CURVES, "val/nll_teacher", "val/score_gap_generator", "val/score_gap_teacher", "gradient_norm/generator"]
    measured = {name: {tag: curve(board, tag) for tag in tags} for name, board in boards.items()}
    settings = {"iterations": iterations, "init_iterations": init_iterations, "batch_size": batch_size, "changes": RUNS}
    content = json.dumps({**settings, "processor_seconds": seconds, "runs": measured})
    write_atomically(Path(output), content.encode())


if __name__ == "__main__":
    run_command("benchmarks.healthy_runs", healthy_runs)
