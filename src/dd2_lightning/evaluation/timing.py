"""Time of several things, measured in turn, so that a busy or warming machine treats all of them alike."""

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch


def interleaved(
    functions: Mapping[str, Callable[[], Any]],
    rounds: int,
    device: torch.device | str = "cpu",
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Call every function once a round on a device, which is waited for: name to the seconds of every round.

    One more round, the first, is not counted. The ``clock`` may be that of the processor, which other work disturbs
    less.
    """
    times: dict[str, list[float]] = {name: [] for name in functions}
    wait = partial(torch.cuda.synchronize, device) if torch.device(device).type == "cuda" else lambda: None
    for _ in range(rounds + 1):
        for name, function in functions.items():
            wait()
            start = clock()
            function()
            wait()
            times[name].append(clock() - start)
    return {name: seconds[1:] for name, seconds in times.items()}
