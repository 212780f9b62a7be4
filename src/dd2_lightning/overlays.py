"""Overlays: one config file with the settings of every stage, used after the config of any of them.

An overlay is a config of ``dd2 fit`` with two more entries::

    release: var/d16              # the published size it is for; read by ``dd2 plan``
    trainer: {devices: 8}         # plain sections go to every stage
    stages:
      ARDiffusionInit:            # and these to the stage of this class
        model: {init_args: {head_width: 1024}}
      CSDDistill:
        ...

``dd2 fit --config configs/csd_var.yaml --config configs/paper/var_d16.yaml`` takes the section of the class that
``csd_var.yaml`` names in ``model.class_path``. What comes out is a plain config, so that everything else (later
configs, the command line, ``--print_config``) works as always.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml


@dataclass
class Resolved:
    """A command line without overlays.

    Attributes:
        arguments: the same, each overlay replaced by plain configs.
        releases: the published sizes that overlays named, in order.
    """

    arguments: list[str]
    releases: list[str]


def resolve(arguments: list[str]) -> Resolved:
    """Replace every overlay by what it says to the stage that is run.

    Args:
        arguments: of ``dd2 fit`` and its kind.

    Raises:
        ValueError: if there is no telling which stage is run, or an overlay has nothing for it; names file and key.
    """
    words = split_options(arguments)
    configs = {i + 1: read(words[i + 1]) for i in range(len(words) - 1) if words[i] in ("--config", "-c")}
    releases, plain = [], []
    for i, word in enumerate(words):
        content = configs.get(i)
        if content is None or "stages" not in content:
            plain.append(word)
            continue
        own = {key: value for key, value in content.items() if key not in ("release", "stages")}
        section = stage_section(content["stages"], stage_class(words, configs), word)
        parts = [yaml.safe_dump(part, default_flow_style=True, width=float("inf")) for part in (own, section) if part]
        plain += [entry for part in parts for entry in (part.strip(), words[i - 1])][:-1]
        releases += [content["release"]] if "release" in content else []
    return Resolved(plain, releases)


def split_options(arguments: list[str]) -> list[str]:
    """``--config=FILE`` as two words, like ``--config FILE``."""
    words = []
    for argument in arguments:
        option, equals, value = argument.partition("=")
        words += [option, value] if equals and option == "--config" else [argument]
    return words


def read(path: str) -> dict[str, Any] | None:
    """The contents of a config; None where the parser will have something to say about it."""
    try:
        content = yaml.safe_load(Path(path).read_text())
    except (OSError, yaml.YAMLError):
        return None
    return content if isinstance(content, dict) else None


def stage_class(words: list[str], configs: dict[int, dict[str, Any] | None]) -> str | None:
    """Name of the stage's class: the last one that a config or the command line gives."""
    found = None
    for i, word in enumerate(words):
        model = (configs.get(i) or {}).get("model")
        if isinstance(model, dict) and "class_path" in model:
            found = model["class_path"]
        elif word in ("--model", "--model.class_path") and i + 1 < len(words):
            found = words[i + 1]
    return found.rpartition(".")[2] if found else None


def stage_section(stages: dict[str, Any], name: str | None, path: str) -> dict[str, Any]:
    """What an overlay says to a stage.

    Raises:
        ValueError: if it says nothing to it, or there is no stage.
    """
    known = ", ".join(stages)
    if name is None:
        raise ValueError(f"{path} is an overlay for {known}: give the config of a stage before it")
    if name not in stages:
        raise ValueError(f"{path} has no settings for the stage {name}; it has: {known}")
    return stages[name]
