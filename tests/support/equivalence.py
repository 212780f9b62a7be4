"""The same run in one process and in two."""

from pathlib import Path

import lightning.pytorch as pl
import torch
import yaml

from dd2_lightning.stages.base import full_state_dict
from processes import forked_command, forked_ranks
from runs import any_config

ITERATIONS = 20


SHARDED = {
    "class_path": "lightning.pytorch.strategies.ModelParallelStrategy",
    "init_args": {"data_parallel_size": 2, "tensor_parallel_size": 1, "save_distributed_checkpoint": False},
}
"""FSDP2."""


def config_of(
    root: Path, stage: str, output: Path, processes: int, strategy: str | dict = "ddp", accumulate: int = 2
) -> dict:
    """Twenty iterations with both phases of a stage; two processes split their share into micro-batches."""
    config = any_config(root, stage, output, accumulate=accumulate if processes > 1 else 1)
    if stage == "init":
        config["model"]["init_args"]["head_iterations"] = 5
    config["trainer"] |= {"max_steps": ITERATIONS, "val_check_interval": 10}
    if processes > 1:
        config["trainer"] |= {"devices": processes, "strategy": strategy}
    return config


class SaveWeights(pl.Callback):
    """Every process writes down the weights, EMAs included, that it ends with."""

    def __init__(self, directory: str):
        self.directory = directory

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        torch.save(full_state_dict(pl_module), Path(self.directory) / f"rank{trainer.global_rank}.pt")


def weights_of(
    root: Path,
    stage: str,
    output: Path,
    processes: int,
    strategy: str | dict = "ddp",
    iterations: int = ITERATIONS,
    accumulate: int = 2,
) -> list[dict]:
    """The weights of every process at the end of ``dd2 fit``, which resumes what is there."""
    output.mkdir(exist_ok=True)
    config = config_of(root, stage, output, processes, strategy, accumulate)
    config["trainer"]["max_steps"] = iterations
    config["trainer"]["callbacks"] = [
        {"class_path": "equivalence.SaveWeights", "init_args": {"directory": str(output)}}
    ]
    (output / "run.yaml").write_text(yaml.safe_dump(config))
    line = ("fit", "--config", str(output / "run.yaml"), "--ckpt_path", "auto")
    ranks = forked_ranks(processes, output / "log", *line) if processes > 1 else [forked_command(output / "log", *line)]
    for rank in ranks:
        assert rank.wait(120) == 0, rank.output()[-3000:]
    return [torch.load(output / f"rank{rank}.pt", weights_only=True) for rank in range(processes)]


def deviation(one: dict, other: dict) -> float:
    """Largest absolute difference of two sets of weights."""
    return max((one[key].double() - other[key].double()).abs().nan_to_num().max().item() for key in one)
