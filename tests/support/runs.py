"""Tiny runs of the stages, through the command line's own entry."""

from pathlib import Path

import pytest
import torch
import yaml

from dd2_lightning.artifacts import write_teacher
from dd2_lightning.cli import main
from dd2_lightning.families.llamagen.model import LlamaGenTeacher
from dd2_lightning.families.table.model import TableTeacher
from dd2_lightning.models.codebook_teacher import CodebookTeacher
from teachers import llamagen_teacher

STAGES = ("teacher", "adapt", "init", "csd", "align", "dd1")
ADAM = {"lr": 1e-3, "betas": [0.0, 0.95]}


def two_sequences(width: int = 16, gap: float = 1.0) -> TableTeacher:
    """Half of the mass on (0, 0), half on (1, 1)."""
    joint = torch.zeros(2, 2, 2)
    joint[:, 0, 0] = joint[:, 1, 1] = 0.5
    codebook = torch.tensor([[-gap, 0.0], [gap, 0.0]])
    return TableTeacher(joint, codebook, {"width": width, "depth": 1, "heads": 2})


def make_teacher(root: Path, **kwargs) -> Path:
    """A teacher's directory."""
    write_teacher(root / "teacher", two_sequences(**kwargs))
    return root / "teacher"


def stage_config(root: Path, stage: str, **model) -> dict:
    """Configuration of a tiny run of one stage; ``model`` overrides its settings."""
    settings = {
        "init": {"head_width": 16, "head_depth": 1, "draws": 2, "optimizer": ADAM},
        "csd": {
            "init_from": str(root / "init"),
            "guidance_updates": 2,
            "draws": 2,
            "head_time": 0.4,
            "guidance_optimizer": ADAM,
            "generator_optimizer": ADAM,
        },
        "dd1": {"second": 1, "split": 1, "optimizer": ADAM},
    }
    settings["align"] = {**settings["csd"], "init_from": str(root / "csd"), "align_guidance_updates": 6}
    settings["frechet"] = {
        "init_from": str(root / "csd"),
        "features": [{"network": "random"}, {"network": "pixels", "weight": 0.5}],
        "moment_samples": 80,
        "moment_batch": 16,
        "generator_optimizer": ADAM,
    }
    names = {"init": "ARDiffusionInit", "csd": "CSDDistill", "align": "PerformanceAlign", "dd1": "DD1Distill"}
    names["frechet"] = "FrechetAlign"
    sequences = "online" if stage in ("init", "dd1") else "none"
    return {
        "model": {
            "class_path": names[stage],
            "init_args": {"teacher": str(root / "teacher"), **settings[stage], **model},
        },
        "data": {
            "class_path": "PairData" if stage == "dd1" else "PrefixData",
            "init_args": {"batch_size": 8, "sequences": sequences, "validation_size": 8},
        },
        "trainer": {
            "default_root_dir": str(root / stage),
            "max_steps": 6,
            "val_check_interval": 3,
            "log_every_n_steps": 1,
            "accelerator": "cpu",
            "enable_progress_bar": False,
        },
        "checkpoint_every": 2,
    }


def original() -> LlamaGenTeacher:
    """A LlamaGen that reads indices; its random weights make what follows a token far from uniform."""
    torch.manual_seed(3)
    teacher = llamagen_teacher(continuous_input=False)
    with torch.no_grad():
        teacher.backbone.tok_embeddings.weight.mul_(5)
        for name, parameter in teacher.named_parameters():
            if "norm" in name and not name.startswith("tokenizer."):
                parameter.fill_(1.0)
    return teacher


def adapt_config(root: Path, name: str = "adapt", teacher: str = "teacher", data: dict | None = None, **model) -> dict:
    """Configuration of a tiny run of stage 0."""
    config = stage_config(root, "init")
    settings = {
        "teacher": str(root / teacher),
        "input_iterations": 4,
        "targets": "teacher",
        "input_optimizer": {"lr": 1e-2},
        "optimizer": {"lr": 1e-3},
    }
    config["model"] = {"class_path": "ContinuousInput", "init_args": {**settings, **model}}
    config["data"]["init_args"] |= {"batch_size": 16, **(data or {})}
    config["trainer"] |= {"default_root_dir": str(root / name), "max_steps": 8, "val_check_interval": 4}
    return config


def teacher_config(root: Path, **model) -> dict:
    """Configuration of a tiny run of the stage that trains a teacher, on the digits."""
    config = yaml.safe_load((Path(__file__).parents[2] / "configs/teacher_var.yaml").read_text())
    settings = config["model"]["init_args"]
    settings["architecture"] |= {"width": 16, "depth": 1, "heads": 2, "codes": 8}
    # norms over one channel would leave biases before them no gradient but rounding, and Adam makes steps of that
    settings["architecture"]["ch"] = 64
    discriminator = {"start": 1, "width": 8, "layers": 1}
    settings |= {"tokenizer_iterations": 3, "tokenizer_batch_size": 8, "discriminator": discriminator, **model}
    config["data"]["init_args"]["batch_size"] = 16
    base = stage_config(root, "init")
    config["trainer"] = {**base["trainer"], "default_root_dir": str(root / "digits")}
    return {**config, "checkpoint_every": base["checkpoint_every"]}


def any_config(root: Path, stage: str, output: Path, **model) -> dict:
    """Configuration of a tiny run of any stage into ``output``; it starts from what :func:`prepare_all` made."""
    if stage == "teacher":
        config = teacher_config(root, **model)
    elif stage == "adapt":
        config = adapt_config(root, teacher="original", **model)
    else:
        config = stage_config(root, stage, **model)
    config["trainer"]["default_root_dir"] = str(output)
    return config


def prepare_all(root: Path) -> None:
    """What the runs of all stages start from."""
    write_teacher(root / "original", original())
    run_chain(root, "init", "csd")


def fit(config: dict, root: Path, *args: str) -> None:
    """``dd2 fit --config … args``."""
    path = root / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    main(["fit", "--config", str(path), *args])


def run_chain(root: Path, *stages: str, teacher: CodebookTeacher | None = None) -> None:
    """A teacher, by default :func:`two_sequences`, and the given stages, in order."""
    write_teacher(root / "teacher", teacher or two_sequences())
    for stage in stages:
        fit(stage_config(root, stage), root)


def fails(capsys: pytest.CaptureFixture, status: int, *words: str):
    """Context: the command ends with this status and names these words on stderr."""
    return _Fails(capsys, status, words)


class _Fails:
    def __init__(self, capsys, status, words):
        self.capsys, self.status, self.words = capsys, status, words

    def __enter__(self):
        self.capsys.readouterr()

    def __exit__(self, kind, error, trace):
        assert kind is SystemExit, f"expected an exit with status {self.status}, got {error!r}"
        message = " ".join(self.capsys.readouterr().err.split())
        assert error.code == self.status, (error.code, message)
        for word in self.words:
            assert word in message, message
        return True
