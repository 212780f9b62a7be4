"""What a run leaves: to compare an interrupted one with one that was not, bit by bit."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

EVERYTHING = {"scalars": 0, "images": 0}


def logs(root: Path) -> dict[str, Any]:
    """Every scalar and picture that TensorBoard shows, with its iteration."""
    board = EventAccumulator(str(root), size_guidance=EVERYTHING).Reload()
    tags = board.Tags()
    shown = {f"log {tag}": [(e.step, e.value) for e in board.Scalars(tag)] for tag in tags["scalars"]}
    return shown | {
        f"picture {tag}": [(e.step, e.encoded_image_string) for e in board.Images(tag)] for tag in tags["images"]
    }


def leaves(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Nested dictionaries and lists, flat."""
    if isinstance(value, dict | list | tuple):
        for key, entry in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(f"{name}/{key}", entry)
    else:
        yield name, value


def left_behind(root: Path) -> dict[str, Any]:
    """Tensors and settings of the artifact, everything in checkpoint and logs but paths and seconds."""
    found: dict[str, Any] = logs(root)
    for path in root.glob("*.safetensors"):
        found |= {f"{path.stem}.{key}": value for key, value in load_file(path).items()}
    found |= dict(leaves("config", json.loads((root / "config.json").read_text())))
    checkpoint = torch.load(root / "checkpoints/last.ckpt", weights_only=True)
    parts = ("global_step", "state_dict", "optimizer_states", "callbacks", "loops", "hyper_parameters")
    found |= dict(leaves("checkpoint", {part: checkpoint[part] for part in parts}))
    differ = "dirpath", "_path", "_seconds"
    return {key: value for key, value in found.items() if not any(part in key for part in differ)}


def unequal(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Names of what is not the same, bit by bit."""

    def same(key: str) -> bool:
        if key not in one or key not in other:
            return False
        a, b = one[key], other[key]
        return torch.equal(a, b) if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) else a == b

    return sorted(key for key in one.keys() | other.keys() if not same(key))


def readable(root: Path) -> bool:
    """Whether every checkpoint file there loads, and an artifact that calls itself complete is."""
    try:
        for path in root.rglob("*.ckpt"):
            torch.load(path, weights_only=True)
        if (root / "config.json").exists():
            json.loads((root / "config.json").read_text())
            return all(load_file(path) for path in root.glob("*.safetensors"))
    except Exception as error:
        print(f"{root}: {error}")
        return False
    return True
