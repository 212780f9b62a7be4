"""Hours and memory of the paper's runs as ``dd2 plan`` counts them: ``python -m benchmarks.speed.hours``."""

from pathlib import Path
from typing import Any

import yaml

from benchmarks.command import run_command
from benchmarks.training import build
from dd2_lightning.evaluation.report import markdown_table, to_json
from dd2_lightning.files import write_atomically
from dd2_lightning.planning import make_plan
from dd2_lightning.provenance import commit

STAGES = ("init", "csd", "align")
MACHINES = {"8 A800": (8, 312e12, 80e9), "8 H100": (8, 989e12, 80e9), "one RTX 4090": (1, 165e12, 24e9)}
"""GPUs, their dense peak in bfloat16 in operations a second, their bytes."""

ACHIEVED = 0.4
"""Share of the peak that training is assumed to achieve."""

PAPER = {"var_d16": 115.5, "var_d20": 174.4, "var_d24": 96.1, "llamagen_l": 52.6, "llamagen_xxl": None}
"""Hours of DD2 on 8 GPUs, as the paper reports them; of XXL it reports none."""

SETTINGS_OF = {"llamagen_xxl": ("llamagen_l", "llamagen/XXL")}
"""Sizes without configs of their own: whose settings they take, and the published size."""


def count(path: Path, release: str | None) -> dict[str, Any]:
    """Operations of a stage by its config, teacher sequences apart, the samples that fit each machine, and peaks.

    These are the bytes that updates and phases take of a GPU at the micro-batch of the config.
    """
    config = yaml.safe_load(path.read_text())
    stage, data = build(config, {}, {})
    plan = make_plan(stage, data, config["trainer"], release or config["release"], phases=True)
    fits = {name: plan.fits(memory) for name, (_, _, memory) in MACHINES.items()}
    return {
        "micro_batch": plan.micro_batch,
        "peaks": plan.peaks,
        "training": plan.training_flops,
        "sampling": plan.sampling_flops,
        "gflop": {update.name: update.cost.flops / 1e9 for update in plan.updates},
        "activations": plan.activations,
        "fits": fits,
    }


def hours(output: str, configs: str = "configs/paper") -> None:
    """Count the stages of every model, print the hours, and write both.

    Args:
        output: JSON file.
        configs: directory with a folder of configs for every model.
    """
    found: dict[str, Any] = {}
    for model in PAPER:
        folder, release = SETTINGS_OF.get(model, (model, None))
        paths = {stage: Path(configs, folder, f"{stage}.yaml") for stage in STAGES}
        stages = {stage: count(path, release) for stage, path in paths.items() if path.is_file()}
        total = sum(entry["training"] + entry["sampling"] for entry in stages.values())
        taken = {
            name: total / (3600 * gpus * ACHIEVED * peak)
            if all(entry["fits"][name] for entry in stages.values())
            else None
            for name, (gpus, peak, _) in MACHINES.items()
        }
        found[model] = {"stages": stages, "hours": taken, "the paper": PAPER[model]}
    rows = [
        [model, *("–" if n is None else f"{n:,.0f}" for n in (*entry["hours"].values(), entry["the paper"]))]
        for model, entry in found.items()
    ]
    print("\n".join(markdown_table(["hours (–: does not fit)", *MACHINES, "the paper"], rows)), end="\n\n")
    rows = [[model, *(largest(entry["stages"].get(stage)) for stage in STAGES)] for model, entry in found.items()]
    print("\n".join(markdown_table(["memory of a GPU", *STAGES], rows)))
    report = {"achieved": ACHIEVED, "machines": MACHINES, "models": found, "commit": commit()}
    write_atomically(Path(output), to_json(report))


def largest(stage: dict[str, Any] | None) -> str:
    """The peak of a stage: how much, and in what."""
    if stage is None:
        return "–"
    name = max(stage["peaks"], key=stage["peaks"].get)
    return f"{stage['peaks'][name] / 1e9:.1f} GB, {name}"


if __name__ == "__main__":
    run_command("benchmarks.speed.hours", hours)
