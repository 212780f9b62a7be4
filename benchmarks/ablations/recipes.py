"""Settings of a run as dictionaries: those of ``dd2 fit``'s configs, with all defaults and one thing changed."""

import copy
import hashlib
import json
from typing import Any

from benchmarks.ablations.variants import Variant
from benchmarks.training import Config, config_parser, overridden
from dd2_lightning.errors import DD2Error

Recipe = dict[str, Config]
"""``init``, ``csd`` and ``align``, each a config with its number of ``iterations``."""


def complete(recipe: Recipe) -> Recipe:
    """Every stage with the defaults of the settings that it does not name.

    Raises:
        DD2Error: naming stage and setting, if a stage does not take one.
    """
    parser, result = config_parser(), {}
    for stage, config in recipe.items():
        directories = {"teacher": ""} if stage == "init" else {"teacher": "", "init_from": ""}
        try:
            parsed = parser.parse_object(overridden(config, directories, {})).as_dict()
        except Exception as error:  # jsonargparse has several kinds
            raise DD2Error(f"the recipe of stage '{stage}' cannot be read: {' '.join(str(error).split())}") from error
        result[stage] = {**parsed, "iterations": config["iterations"]}
    return json.loads(json.dumps(result))


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
        csd["iterations"] = multiple_of(every, csd["iterations"] * (K + 1) / (changed + 1))
    if not variant.align:
        del recipe["align"]
        return recipe
    align["iterations"] = multiple_of(every, csd["iterations"] * variant.align)
    csd["iterations"] -= align["iterations"]
    # the guidance network alone is trained in the first half
    settings = arguments(recipe, "align")
    settings["align_guidance_updates"] = settings["guidance_updates"] * (align["iterations"] // 2)
    return recipe


def multiple_of(every: int, iterations: float) -> int:
    """The nearest positive multiple."""
    return max(1, round(iterations / every)) * every


def fingerprint(settings: dict[str, Any]) -> str:
    """Twelve hexadecimal digits that change with any setting."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
