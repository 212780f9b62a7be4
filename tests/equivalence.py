"""The same run in one process and in two."""

import os
from pathlib import Path

import torch

from dd2_lightning.callbacks import ExportArtifact
from dd2_lightning.stages.base import full_state_dict
from processes import forked, together
from runs import any_config, fit

ITERATIONS = 20


SHARDED = {
    "class_path": "lightning.pytorch.strategies.ModelParallelStrategy",
    "init_args": {"data_parallel_size": 2, "tensor_parallel_size": 1, "save_distributed_checkpoint": False},
}
"""FSDP2."""


def config_of(root: Path, stage: str, output: Path, processes: int, strategy: str | dict = "ddp") -> dict:
    """Twenty iterations with both phases of a stage; two processes split their share into two micro-batches."""
    settings = {"accumulate": 2 if processes > 1 else 1}
    config = any_config(root, stage, output, **settings)
    if stage == "init":
        config["model"]["init_args"]["head_iterations"] = 5
    config["trainer"] |= {"max_steps": ITERATIONS, "val_check_interval": 10}
    if processes > 1:
        config["trainer"] |= {"devices": processes, "strategy": strategy}
    return config


def fit_and_tell(config: dict, directory: Path) -> None:
    """A run whose processes all write down the weights that they end with."""
    original, rank = ExportArtifact.on_fit_end, os.environ.get("RANK", "0")

    def on_fit_end(self, trainer, stage):
        torch.save(full_state_dict(stage), directory / f"rank{rank}.pt")
        original(self, trainer, stage)

    ExportArtifact.on_fit_end = on_fit_end
    (directory / rank).mkdir(exist_ok=True)
    fit(config, directory / rank, "--ckpt_path", "last")


def weights_of(
    root: Path, stage: str, output: Path, processes: int, strategy: str | dict = "ddp", iterations: int = ITERATIONS
) -> list[dict]:
    """The weights, EMA included, of every process at the end of a run; it resumes what is there."""
    output.mkdir(exist_ok=True)
    config = config_of(root, stage, output, processes, strategy)
    config["trainer"]["max_steps"] = iterations
    if processes == 1:
        status, text = forked(lambda: fit_and_tell(config, output), output / "log")
        assert status == 0, text[-3000:]
    else:
        together(lambda: fit_and_tell(config, output), processes, output / "log")
    return [torch.load(output / f"rank{rank}.pt", weights_only=True) for rank in range(processes)]


def deviation(one: dict, other: dict) -> float:
    """Largest absolute difference of two sets of weights."""
    return max((one[key].double() - other[key].double()).abs().nan_to_num().max().item() for key in one)
