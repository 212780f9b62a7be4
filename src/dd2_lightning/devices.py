"""The device and the precision that a command computes in."""

from contextlib import AbstractContextManager, nullcontext

import torch

PRECISIONS = {"32": torch.float32, "bf16": torch.bfloat16}  # values of ``--precision``


def resolve_device(name: str = "auto") -> torch.device:
    """Return the device of this name; ``auto`` is cuda where there is one, else cpu.

    mps, which has no float64 as tokens and metrics need it, is used where it is named only.
    """
    available = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    present = [kind for kind, count in available.items() if count]
    if name == "auto":
        return torch.device("cuda" if available["cuda"] else "cpu")
    kind, _, index = name.partition(":")
    if kind not in present or (index and not (index.isdecimal() and int(index) < available[kind])):
        raise ValueError(f"--device {name} is not here; available: auto, {', '.join(present)}")
    return torch.device(name)


def check_precision(device: torch.device, precision: str | int) -> None:
    """Refuse, with a ValueError, a precision that is not known or that the device does not have."""
    if str(precision) not in PRECISIONS:
        raise ValueError(f"--precision must be one of {', '.join(PRECISIONS)}, got {precision}")
    try:
        with autocast(device, precision):
            torch.ones(2, 2, device=device) @ torch.ones(2, 2, device=device)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"--precision {precision} does not work on {device}: {reason}") from error


def autocast(device: torch.device, precision: str | int = "32") -> AbstractContextManager:
    """Context in which networks compute in this precision; weights stay in float32.

    The mathematics of flows and the look-up of codes leave autocast by themselves, here as in training.
    """
    dtype = PRECISIONS[str(precision)]
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)
