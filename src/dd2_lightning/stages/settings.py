"""Settings of the stages: their ranges, and how they are kept in logs, checkpoints and ``config.json``."""

from typing import Any

from dd2_lightning.errors import check_range
from dd2_lightning.stages.schedule import OptimizerSettings
from dd2_lightning.stages.tokenizer import DiscriminatorSettings

RANGES = {
    "[1, inf)": (
        *("accumulate", "draws", "guidance_updates", "head_depth", "head_width"),
        *("moment_batch", "moment_samples", "tokenizer_batch_size"),
    ),
    "[0, inf)": (
        "align_guidance_updates",
        "commitment_weight",
        "csd_weight",
        "distance_weight",
        "head_iterations",
        "head_frequencies",
        "input_iterations",
        "input_noise",
        "perceptual_weight",
        "position_weights",
        "reconstruction_weight",
        "tokenizer_iterations",
    ),
    "(0, inf)": ("codebook_rms",),
    "(-inf, inf)": ("alpha", "t_logit_mean"),
    "[0, 1]": ("input_swaps", "label_dropout"),
    "[0, 1)": ("ema_limit", "moment_decay"),
    "(0, 1]": ("head_time",),
    "(0, 1)": ("t_min", "t_min_generator", "t_min_guidance"),
}
"""Interval to the settings that must lie in it, whichever stage has them."""


def check_settings(settings: dict[str, Any]) -> None:
    """Refuse settings of a stage that are out of range, with a ``ValueError``: ``model.OPTIMIZER.NAME must be …``."""
    for interval, names in RANGES.items():
        check_range("model.", interval, **{name: settings[name] for name in names if name in settings})
    for name, value in settings.items():
        if isinstance(value, OptimizerSettings | DiscriminatorSettings):
            value.check(f"model.{name}.")
    if not any(settings.get("position_weights", [1])):
        raise ValueError("model.position_weights must not all be 0: nothing would be learned")


def jsonable(value: Any) -> Any:
    """Settings as JSON can hold them: dataclasses become dictionaries, tuples lists."""
    if hasattr(value, "__dataclass_fields__"):
        return {key: jsonable(getattr(value, key)) for key in value.__dataclass_fields__}
    if isinstance(value, dict):
        return {key: jsonable(entry) for key, entry in value.items()}
    return [jsonable(entry) for entry in value] if isinstance(value, list | tuple) else value
