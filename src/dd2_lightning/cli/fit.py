"""``dd2 fit|validate|test|predict|plan``: train a stage, read the checkpoint of its run, or count what it takes."""

import ast
from pathlib import Path

from dd2_lightning.cli.arguments import UsageError

OPTIONS = {
    "--config": "YAML file of settings, or a name that dd2 configs list shows; of several, later ones override",
    "--model": "the stage, see below",
    "--data": "the data module, see below",
    "--seed_everything": "seed of data, noise and fresh weights",
    "--trainer.default_root_dir": "directory of the run",
    "--trainer.max_steps": "number of iterations",
    "--trainer.val_check_interval": "iterations between validations",
    "--trainer.log_every_n_steps": "iterations between logged losses",
    "--trainer.accelerator": "auto, cpu, gpu",
    "--trainer.devices": "number of processes or GPUs",
    "--trainer.strategy": "how they share a run: ddp",
    "--trainer.precision": "32-true or bf16-mixed",
    "--print_config": "print all settings as they would be used",
    "--help_all": "help with every option of the trainer; takes some seconds",
}
"""The most used options of all training commands."""

CHECKPOINT = {"--ckpt_path": "file of the checkpoint; by default the last one in the directory of the run"}
OPTIONS_OF = {
    "fit": {
        "--ckpt_path": "continue a run: last (of its directory), auto (if there is one), or a file",
        "--checkpoint_every": "iterations between checkpoints (the last one is kept)",
        "--overwrite": "delete the run in the directory and start again",
    },
    "validate": CHECKPOINT,
    "test": CHECKPOINT,
    "predict": {**CHECKPOINT, "--output": "image file; predict.png in the directory of the run by default"},
    "plan": {
        "--release": "published size that stands in for a missing teacher, like var/d16",
        "--memory": "of one GPU, in GB (10⁹ bytes)",
        "--throughput": "what one GPU achieves, in TFLOP/s",
    },
}
"""The other options of each."""

DESCRIPTIONS = {
    "fit": "Train a stage; its directory holds checkpoints, logs and, when it is finished, the artifact.",
    "validate": "Measure a run's checkpoint on held-out teacher sequences; writes nothing.",
    "test": "Measure a run's checkpoint on the test data of the data module; writes nothing.",
    "predict": "Draw one-step images from a run's checkpoint.",
    "plan": "Count parameters, memory and operations of a stage, without running it.",
}


EXAMPLES = {
    "fit": "\n  dd2 fit --config csd_var.yaml --ckpt_path last                  continues a run that was stopped",
    "plan": "\n  dd2 plan --config paper/var_d16/csd.yaml --release var/d16      needs no teacher",
}
"""More of them, by command."""

ORDER = ("TeacherTraining", "ContinuousInput", "ARDiffusionInit", "CSDDistill", "PerformanceAlign", "FrechetAlign")
"""The stages as they follow each other; others come after them."""


def run_stage(name: str, arguments: list[str]) -> None:
    """Run a training command, or print its help, which imports neither torch nor Lightning."""
    if not arguments:
        raise UsageError(f"dd2 {name}", f"a config is missing: dd2 {name} --config configs/csd_var.yaml")
    if arguments in (["-h"], ["--help"]):
        print(help_page(name))
    elif arguments[-1] == "--model.help":
        print(f"{overview('stages')}\n\ndd2 fit --model.help CSDDistill lists the settings of a stage.")
    else:
        from dd2_lightning.cli.training import run

        run(name, ["--help" if argument == "--help_all" else argument for argument in arguments])


def help_page(name: str) -> str:
    """Help of a training command."""
    return f"""\
usage: dd2 {name} --config FILE [--config FILE ...] [--SETTING VALUE ...]

{DESCRIPTIONS[name]}

A config names a stage (model), its data and the trainer; the command line overrides it. Stages run one after the
other: each reads the directories that model.teacher and model.init_from name.

options:
{columns(OPTIONS | OPTIONS_OF[name])}

{overview("stages")}

{overview("data")}

dd2 {name} --model.help CSDDistill and dd2 {name} --data.help PrefixData list the settings of one.

examples:
  dd2 {name} --config csd_var.yaml
  dd2 {name} --config csd_var.yaml --model.draws 4 --data.batch_size 32{EXAMPLES.get(name, "")}"""


def overview(room: str) -> str:
    """The classes of a room that a config may name, with the first line of their docstrings, read from the source."""
    folder = Path(__file__).parents[1] / room
    classes: dict[str, ast.ClassDef] = {}
    for node in ast.parse((folder / "__init__.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and node.module:
            source = (folder / f"{node.module.rpartition('.')[2]}.py").read_text(encoding="utf-8")
            defined = {item.name: item for item in ast.parse(source).body if isinstance(item, ast.ClassDef)}
            classes |= {alias.name: defined[alias.name] for alias in node.names}
    names = sorted(classes, key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))
    rows = {name: (ast.get_docstring(classes[name]) or "").partition("\n")[0] for name in names}
    title = {"stages": "stages (--model):", "data": "data modules (--data):"}[room]
    return f"{title}\n" + columns({name: text for name, text in rows.items() if name not in ("Stage", "Batch")})


def columns(rows: dict[str, str]) -> str:
    """Two columns of text."""
    width = max(map(len, rows))
    return "\n".join(f"  {name:{width}}  {text}" for name, text in rows.items())
