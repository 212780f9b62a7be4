"""The last lines of every command: what it wrote, and what to do next."""

import json
import shlex
from pathlib import Path
from typing import Any

CURVES = "tensorboard --logdir {output}"
DRAW = "dd2 sample --model {output} --num 30 --output grid.png"
COMPARE = "dd2 evaluate --models {models} --output {output}/report"
PUBLISH = "dd2 push {output} --repo user/name"
INIT = "dd2 fit --config init_{family}.yaml --model.teacher {output}"
CSD = "dd2 fit --config csd_{family}.yaml --model.teacher {teacher} --model.init_from {output}"

NEXT: dict[str, tuple[str, ...]] = {
    "fit teacher": (INIT, CURVES),
    "fit original": ("dd2 fit --config adapt_{family}.yaml --model.teacher {output}", CURVES),
    "fit adapt": (INIT, CURVES),
    "fit init": (CSD, CURVES),
    "fit csd": (CSD.replace("csd_", "align_"), DRAW, CURVES),
    "fit align": (DRAW, COMPARE, PUBLISH),
    "fit frechet": (DRAW, COMPARE, PUBLISH),
    "fit dd1": (DRAW, COMPARE, PUBLISH),
    "validate": ("dd2 predict with the same options draws images",),
    "test": ("dd2 predict with the same options draws images",),
    "predict": ("dd2 fit with the same options and --ckpt_path auto continues the run",),
    "plan": ("dd2 fit with the same options runs it",),
    "cache": ("dd2 fit --config init_var.yaml --data.cache_dir {output} --data.cache_size {num}",),
    "sample grid": ("dd2 sample --model {model} --num 50000 --protocol openai --output samples.npz",),
    "sample npz": ("dd2 quality --samples {output} --reference REFERENCE.npz --output quality.json",),
    "sample directory": ("with --output {output}.npz the images are one file, as dd2 quality reads them",),
    "evaluate": ("dd2 push RUN --repo user/name publishes a run with this table on its model card",),
    "quality": ("figures can be compared where reference, features and protocol are the same",),
    "statistics": ("dd2 quality --samples SAMPLES.npz --reference {output} --output quality.json",),
    "convert var": ("dd2 plan --config paper/var_d16/init.yaml --model.teacher {output}",),
    "convert llamagen": ("dd2 plan --config paper/llamagen_l/adapt.yaml --model.teacher {output}",),
    "convert dd1": (DRAW, COMPARE),
    "bench": ("dd2 plan --config CONFIG --throughput N takes the TFLOP/s that dd2 bench train measures",),
    "configs list": ("dd2 fit --config csd_var.yaml", "dd2 configs copy csd_var.yaml"),
    "configs copy": ("edit it, then name it in --config",),
    "export": (DRAW, PUBLISH),
    "push": ("dd2 sample --model {output} --num 30 --output grid.png",),
    "push --dry-run": ("the same without --dry-run publishes it",),
}
"""What usually comes after a command, by its name and what it made; words in braces are given by the command."""


def finish(command: str, wrote: str = "", **values: Any) -> None:
    """Print what a command wrote, ``what -> where``, and what :data:`NEXT` has for it.

    The ``values`` of words in braces are quoted for the shell; ``models`` is ``output`` as a list.
    """
    if wrote:
        print(wrote)
    values["models"] = f"[{values.get('output')}]"
    quoted = {name: shlex.quote(str(value)) for name, value in values.items()}
    for i, line in enumerate(NEXT.get(command, ())):
        print(f"{'      ' if i else 'next: '}{line.format(**quoted)}")


def finish_run(stage: str, directory: Path, settings: dict[str, Any]) -> None:
    """Print the last lines of a ``fit`` that has finished, of a stage with these settings."""
    config = json.loads((directory / "config.json").read_text())
    original = stage == "teacher" and not config["architecture"].get("continuous_input", True)
    family = config["family"] if config["family"] in ("var", "llamagen") else "var"
    wrote = f"{stage}: {config['iterations']:,} iterations -> {directory}"
    teacher = settings.get("teacher", "")
    finish(f"fit {'original' if original else stage}", wrote, output=directory, family=family, teacher=teacher)
