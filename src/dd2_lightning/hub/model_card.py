"""The model card of a published directory: filled from its ``config.json`` and from a report of ``dd2 evaluate``."""

import json
from pathlib import Path
from typing import Any

import yaml

from dd2_lightning.errors import ArtifactError
from dd2_lightning.families.registry import FAMILIES
from dd2_lightning.hub.cards import Card, load_card

PAPER = "Distilled Decoding 2 ([arXiv 2510.21003](https://arxiv.org/abs/2510.21003))"
KINDS = {
    "teacher": "An autoregressive image model, a teacher for {paper}.",
    "init": "The AR-diffusion model that stage 1 of {paper} makes of {teacher}; stage 2 starts from it.",
    "csd": "A one-step image generator, distilled from {teacher} by {paper}.",
    "align": "A one-step image generator, distilled from {teacher} by {paper} and aligned (stage 3).",
    "frechet": "A one-step image generator, distilled from {teacher} by {paper} and trained on Fréchet distances.",
    "dd1": "A generator of one or two steps, distilled from {teacher} by Distilled Decoding 1 (arXiv 2412.17153).",
}
"""The first sentence, by stage."""

LOAD_TEACHER = """\
teacher = dd2.load_teacher("{name}")
indices = teacher.sample(torch.arange(4))  # (B, n)
images = teacher.decode(indices)  # (B, channels, H, W) in [0, 1]"""
LOAD_INIT = 'model = dd2.load_init("{name}")'
LOAD_GENERATOR = """\
generator = dd2.load_generator("{name}")
tokens = generator.sample(torch.arange(4))  # (B, n, C), one step
images = generator.decode(tokens)  # (B, channels, H, W) in [0, 1]"""
COMMANDS = {
    "teacher": "dd2 fit --config init_var.yaml --model.teacher {name}",
    "init": "dd2 fit --config csd_var.yaml --model.teacher TEACHER --model.init_from {name}",
}
"""What to do with a directory, by stage; of others images are sampled."""


def find_report(run: Path, weights: str, given: str | Path | None = None) -> Path | None:
    """Directory of the report that measured these weights (their SHA-256); None if there is none in or beside the run.

    A report that is ``given`` and measured other weights is an ``ArtifactError``.
    """
    if given is not None:
        path = Path(given)
        if weights not in measured(path if path.suffix == ".json" else path / "results.json"):
            raise ArtifactError(f"--report {given} did not measure this model: dd2 evaluate makes one that does")
        return path.parent if path.suffix == ".json" else path
    places = (run, run / "report", run.parent / "report")
    return next((place for place in places if weights in measured(place / "results.json")), None)


def measured(path: Path) -> set[str]:
    """SHA-256 of the networks that a report measured; empty if there is no report."""
    try:
        return set(json.loads(path.read_text())["weights"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return set()


def release_of(config: dict[str, Any]) -> tuple[Card | None, dict[str, Any]]:
    """The card of the release that a model comes from, and what is known of its files."""
    origin = config.get("source") or config.get("teacher", {}).get("source") or {}
    cards = (load_card(family.name) for family in FAMILIES.values() if family.published)
    return next((card for card in cards if card.name in str(origin.get("release", ""))), None), origin


def model_card(name: str, config: dict[str, Any], report: Path | None = None, license: str | None = None) -> str:
    """A model card as Markdown, its metadata first, of a model that is loaded by its name: ``user/name``, a directory.

    From ``config.json`` of the exported directory and the directory of a report that measured it. The license is by
    default that of the release it comes from.
    """
    card, origin = release_of(config)
    metadata: dict[str, Any] = {"license": license or (card.licence.lower() if card else None)}
    metadata |= {"library_name": "dd2-lightning", "pipeline_tag": "unconditional-image-generation"}
    metadata["tags"] = ["image-generation", "autoregressive", "distilled-decoding", config["stage"]]
    header = yaml.safe_dump({key: value for key, value in metadata.items() if value}, sort_keys=False)
    sections = [f"---\n{header}---\n# {Path(name).name}", first_sentence(config, card, origin)]
    if report is not None and (report / "samples.png").is_file():
        sections.append("![Samples, side by side with the teacher](samples.png)")
    sections += [usage(name, config), details(config)]
    if report is not None and (report / "table.md").is_file():
        sections.append("## Metrics\n\n" + (report / "table.md").read_text().strip())
    sections += ["## Provenance and licence\n\n" + provenance(config, card, origin, metadata["license"])]
    if config.get("settings"):
        sections.append(f"## Settings\n\n```yaml\n{yaml.safe_dump(config['settings'], sort_keys=False).strip()}\n```")
    return "\n\n".join(sections) + "\n"


def first_sentence(config: dict[str, Any], card: Card | None, origin: dict[str, Any]) -> str:
    """What the model is."""
    teacher = f"{card.name} {origin.get('arch', '')}".strip() if card else f"a teacher of family `{config['family']}`"
    return KINDS[config["stage"]].format(paper=PAPER, teacher=teacher)


def usage(name: str, config: dict[str, Any]) -> str:
    """How to load the model and use it."""
    stage = config["stage"]
    load = {"teacher": LOAD_TEACHER, "init": LOAD_INIT}.get(stage, LOAD_GENERATOR).format(name=name)
    command = COMMANDS.get(stage, "dd2 sample --model {name} --num 16 --output grid.png").format(name=name)
    own = (
        "" if config["family"] in FAMILIES else "\nIts family is a class of its author's, which has to be importable.\n"
    )
    return f"""\
## Use
{own}
```bash
pip install dd2-lightning
{command}
```

```python
import torch
import dd2_lightning as dd2

{load}
```

`revision=` (on the command line `{name}@REVISION`) pins a branch, tag or commit. Files are safetensors, and their
checksums, listed in `config.json`, are verified when they are read."""


def details(config: dict[str, Any]) -> str:
    """A table of what is known of the run."""
    sizes = config.get("architecture") or config["teacher"]["architecture"]
    rows = {
        "stage": config["stage"],
        "family": config["family"],
        "sizes": ", ".join(f"{key} {value}" for key, value in sizes.items()),
        "velocity head": ", ".join(f"{key} {value}" for key, value in config.get("head", {}).items()),
        "head time": config.get("head_time"),
        "trained on the features": ", ".join(config.get("features", [])),
        "iterations": config.get("iterations"),
        "hardware": config.get("hardware"),
        "dd2-lightning": config.get("version"),
        "commit": config.get("commit"),
    }
    lines = [f"| {key} | {value} |" for key, value in rows.items() if value not in (None, "")]
    return "\n".join(["## Model", "", "| | |", "| --- | --- |", *lines])


def provenance(config: dict[str, Any], card: Card | None, origin: dict[str, Any], license: str | None) -> str:
    """Where the weights come from, and under what licence."""
    teacher = config.get("teacher", {})
    lines = [f"Teacher: `{teacher['hub']}`."] if "hub" in teacher else []
    if "sha256" in teacher:
        lines.append(f"SHA-256 of the teacher's weights: `{teacher['sha256']}`.")
    if card is None:
        lines.append("No published weights are known to be in this model.")
    else:
        files = {role: facts for role, facts in origin.items() if isinstance(facts, dict)}
        lines.append(
            f"From the published weights of {card.name}, licence {card.licence}, "
            f"[{card.repository}](https://huggingface.co/{card.repository}):"
        )
        lines += [f"`{facts.get('file')}` (SHA-256 `{facts.get('sha256')}`)." for facts in files.values()]
    lines.append(f"Licence of this model: {license}." if license else "No licence was given for this model.")
    return "  \n".join(lines)
