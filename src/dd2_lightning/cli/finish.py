"""The last lines of every command: what it wrote, and what to do next."""

import shlex
from typing import Any

DRAW = "dd2 sample --model {output} --num 30 --output grid.png"
COMPARE = "dd2 evaluate --models {models} --output {output}/report"
PUBLISH = "dd2 push {output} --repo user/name"
INIT = "dd2 fit --config init_{family}.yaml --model.teacher {output}"

NEXT: dict[str, tuple[str, ...]] = {
    "fit teacher": (INIT,),
    "fit teacher llamagen": ("dd2 fit --config adapt_llamagen.yaml --model.teacher {output}",),
    "fit adapt": (INIT,),
    "fit init": ("dd2 fit --config csd_{family}.yaml --model.teacher {teacher} --model.init_from {output}",),
    "fit csd": (DRAW, "dd2 fit --config align_{family}.yaml --model.teacher {teacher} --model.init_from {output}"),
    "fit align": (DRAW, COMPARE, PUBLISH),
    "fit dd1": (DRAW, COMPARE),
    "validate": ("dd2 predict with the same options draws images",),
    "test": ("dd2 predict with the same options draws images",),
    "predict": ("dd2 fit --ckpt_path auto with the same options continues the run",),
    "plan": ("dd2 fit with the same options runs it",),
    "cache": ("dd2 fit --config init_{family}.yaml --data.cache_dir {output} --data.cache_size {num}",),
    "sample grid": ("dd2 sample --model {model} --num 10000 --protocol openai --output samples.npz",),
    "sample npz": ("dd2 quality --samples {output} --reference REFERENCE.npz --output quality.json",),
    "sample directory": ("the same with --output {output}.npz is what dd2 quality reads",),
    "evaluate": ("dd2 push RUN --repo user/name publishes a run with this table on its card",),
    "quality": ("docs/published_models.md says which published figures these can be compared with",),
    "statistics": ("dd2 quality --samples SAMPLES.npz --reference {output} --output quality.json",),
    "summary": (),
    "convert teacher": (
        "dd2 plan --config paper/{paper}/csd.yaml --model.teacher {output}",
        "dd2 fit --config paper/{paper}/{first}.yaml --model.teacher {output}",
    ),
    "convert dd1": (DRAW, COMPARE),
    "bench sample": (),
    "bench train": ("dd2 plan --config CONFIG --throughput TFLOPS takes the operations a second above",),
    "bench flow": (),
    "configs list": (
        "dd2 fit --config csd_var.yaml uses one as it is",
        "dd2 configs copy csd_var.yaml makes a copy to edit",
    ),
    "configs copy": ("dd2 fit --config {output}",),
    "export": (DRAW, PUBLISH),
    "push": ("dd2 sample --model {output} --num 30 --output grid.png, on any machine",),
    "push --dry-run": ("the same without --dry-run publishes it",),
}
"""What usually comes after a command, by its name and what it made; words in braces are given by the command."""


def finish(command: str, wrote: str = "", **values: Any) -> None:
    """Print what a command wrote and what to do next.

    Args:
        command: key of :data:`NEXT`.
        wrote: ``what -> where``; nothing where the command has said it, or writes nothing.
        values: of the words in braces, which are quoted for the shell; ``models`` is ``output`` as a list.
    """
    if wrote:
        print(wrote)
    values["models"] = f"[{values.get('output')}]"
    quoted = {name: shlex.quote(str(value)) for name, value in values.items()}
    for i, line in enumerate(NEXT[command]):
        print(f"{'      ' if i else 'next: '}{line.format(**quoted)}")
