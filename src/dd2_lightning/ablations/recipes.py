"""Settings of a run as plain data: those of ``dd2 fit``'s configs, complete, with one thing changed."""

import copy
import hashlib
import json
import warnings
from typing import Any

from jsonargparse import ArgumentParser

from dd2_lightning.ablations.variants import Variant
from dd2_lightning.data import PrefixData
from dd2_lightning.errors import DD2Error
from dd2_lightning.stages import Stage

Recipe = dict[str, dict[str, Any]]
"""``init``, ``csd``, ``align``: each ``{"model", "data", "iterations"}``, the first two as in a config."""


def parser() -> ArgumentParser:
    """What reads models and data, as ``dd2 fit`` does."""
    own = ArgumentParser(exit_on_error=False)
    own.add_subclass_arguments(Stage, "model")
    own.add_subclass_arguments(PrefixData, "data")
    return own


def complete(recipe: Recipe) -> Recipe:
    """Every stage with the defaults of all settings that it does not name.

    Raises:
        DD2Error: naming stage and setting, if a stage does not take one.
    """
    reader, result = parser(), {}
    for stage, config in recipe.items():
        placeholders = {"teacher": ""} if stage == "init" else {"teacher": "", "init_from": ""}
        model = {**config["model"], "init_args": {**config["model"]["init_args"], **placeholders}}
        try:
            parsed = reader.parse_object({"model": model, "data": config["data"]}).as_dict()
        except Exception as error:  # jsonargparse has several kinds
            raise DD2Error(f"the recipe of stage '{stage}' cannot be read: {' '.join(str(error).split())}") from error
        result[stage] = {**parsed, "iterations": config["iterations"]}
    return json.loads(json.dumps(result))


def build(config: dict[str, Any], data: dict[str, Any], **arguments: str) -> tuple[Stage, PrefixData]:
    """Stage and data of a complete config.

    Args:
        config: of one stage.
        data: settings of the data that belong to this run.
        arguments: settings of the model that do.
    """
    model = {**config["model"], "init_args": {**config["model"]["init_args"], **arguments}}
    content = {**config["data"], "init_args": {**config["data"]["init_args"], **data}}
    reader = parser()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*was deprecated in v4")  # as Lightning calls it
        made = reader.instantiate_classes(reader.parse_object({"model": model, "data": content}))
    return made.model, made.data


def arguments(recipe: Recipe, stage: str) -> dict[str, Any]:
    """Settings of a stage's model."""
    return recipe[stage]["model"]["init_args"]


def varied(recipe: Recipe, variant: Variant, every: int) -> Recipe:
    """The recipe of a variant.

    A warm-up is counted in guidance updates; where K changes, it is kept at as many iterations.

    Args:
        recipe: the baseline's, complete, with a stage ``align``.
        variant: what changes.
        every: numbers of iterations are multiples of it.

    Raises:
        KeyError: for a setting that the stage does not have.
    """
    recipe = copy.deepcopy(recipe)
    csd, align = recipe["csd"], recipe["align"]
    K = arguments(recipe, "csd")["guidance_updates"]
    for path, value in variant.changes.items():
        stage, *keys, last = path.split(".")
        target = arguments(recipe, stage)
        for key in keys:
            target = target[key]
        if last not in target:
            raise KeyError(path)
        target[last] = value
    changed = arguments(recipe, "csd")["guidance_updates"]
    for network in ("guidance", "generator"):
        optimizer = arguments(recipe, "csd")[f"{network}_optimizer"]
        optimizer["warmup"] = round(optimizer["warmup"] * changed / K)
    if variant.same_time:
        csd["iterations"] = whole(csd["iterations"] * (K + 1) / (changed + 1), every)
    align["iterations"] = whole(csd["iterations"] * variant.align, every) if variant.align else 0
    csd["iterations"] -= align["iterations"]
    if not align["iterations"]:
        del recipe["align"]
        return recipe
    # half of it with the guidance network alone
    settings = arguments(recipe, "align")
    settings["align_guidance_updates"] = settings["guidance_updates"] * (align["iterations"] // 2)
    return recipe


def whole(iterations: float, every: int) -> int:
    """The nearest positive multiple."""
    return max(1, round(iterations / every)) * every


def fingerprint(settings: dict[str, Any]) -> str:
    """Twelve hexadecimal digits that change with any setting."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
