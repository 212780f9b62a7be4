"""Random numbers as a pure function of *what they are for*.

Nothing in training draws from a global random state. A stream is opened by its key, for instance
``stream(seed, "guidance", iteration, update)``, drawn for the whole global batch and sliced by the
process that needs a part. A resumed run, a run on more processes and a run that accumulates gradients
therefore see the same numbers, and the whole random state of a run is one integer: its iteration.
"""

import zlib

import numpy as np
import torch


def stream(seed: int, *key: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator that depends on ``seed`` and ``key`` only.

    Args:
        seed: the seed of the run, not negative.
        key: what the numbers are for; strings are hashed stably (not with Python's salted ``hash``).
        device: where the numbers will be drawn. Different devices give different numbers.
    """
    words = [zlib.crc32(part.encode()) if isinstance(part, str) else int(part) for part in key]
    # the length too: a seed sequence is padded with zeros, so (..., 0) would be the same stream as (...)
    state = np.random.SeedSequence([int(seed), len(words), *words]).generate_state(1, np.uint64)
    return torch.Generator(device).manual_seed(int(state[0]) & (2**63 - 1))
