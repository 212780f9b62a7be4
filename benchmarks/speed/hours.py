"""Hours of the paper's runs on three machines as ``dd2 plan`` counts them: ``python -m benchmarks.speed.hours``."""

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

PAPER = {"var_d16": 115.5, "var_d20": 174.4, "var_d24": 96.1, "llamagen_l": 52.6}
"""Hours of DD2 on 8 GPUs, as the paper reports them."""


def count(path: Path) -> dict[str, Any]:
    """Operations of a stage as its config has it, teacher sequences apart, and the samples that fit each machine."""
    config = yaml.safe_load(path.read_text())
    stage, data = build(config, {}, {})
    plan = make_plan(stage, data, config["trainer"], config["release"])
    fits = {name: plan.fits(memory) for name, (_, _, memory) in MACHINES.items()}
    return {
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
        paths = {stage: Path(configs, model, f"{stage}.yaml") for stage in STAGES}
        stages = {stage: count(path) for stage, path in paths.items() if path.is_file()}
        total = sum(entry["training"] + entry["sampling"] for entry in stages.values())
        taken = {
            name: total / (3600 * gpus * ACHIEVED * peak)
            if all(entry["fits"][name] for entry in stages.values())
            else None
            for name, (gpus, peak, _) in MACHINES.items()
        }
        found[model] = {"stages": stages, "hours": taken, "the paper": PAPER[model]}
    rows = [
        [model, *("does not fit" if n is None else f"{n:,.0f}" for n in (*entry["hours"].values(), entry["the paper"]))]
        for model, entry in found.items()
    ]
    print("\n".join(markdown_table(["model", *MACHINES, "the paper"], rows)))
    report = {"achieved": ACHIEVED, "machines": MACHINES, "models": found, "commit": commit()}
    write_atomically(Path(output), to_json(report))


if __name__ == "__main__":
    run_command("benchmarks.speed.hours", hours)
