"""Random numbers as a pure function of *what they are for*.

Nothing in training draws from a global random state. A stream is opened by its key, for instance
``stream(seed, "guidance", iteration, update)``, drawn for the global batch and sliced by the process that needs some
rows. A resumed run, one on more processes and one that accumulates gradients therefore see the same numbers, and the
random state of a run is one integer: its iteration. Samples of generators draw theirs from :class:`SampleNoise`.
"""

import zlib
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

BLOCK = 256  # random numbers are drawn for this many samples at once, whatever the batch; a seed means this too


def stream(seed: int, *key: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """Open a random source that depends only on ``seed``, not negative, and ``key``: what the numbers are for.

    Strings are hashed stably (not with Python's salted ``hash``). Different devices give different numbers.
    """
    words = [zlib.crc32(word.encode()) if isinstance(word, str) else int(word) for word in key]
    # the length too: a seed sequence is padded with zeros, so (..., 0) would be the same stream as (...)
    state = np.random.SeedSequence([int(seed), len(words), *words]).generate_state(1, np.uint64)
    return torch.Generator(device).manual_seed(int(state[0]) & (2**63 - 1))


class SampleNoise:
    """The random numbers of samples ``start`` to ``start + count``, by their global index.

    They are used on ``device``, but drawn on the CPU, so that every device sees the same.
    """

    def __init__(self, seed: int, start: int, count: int, device: torch.device | str = "cpu"):
        self.seed, self.start, self.count, self.device = seed, start, count, device
        self._drawn: dict[tuple, Tensor] = {}

    def randn(self, key: str, *shape: int) -> Tensor:
        """Standard normal ``(count, *shape)``, for the purpose that ``key`` names."""
        return self._draw(torch.randn, key, shape)

    def rand(self, key: str, *shape: int) -> Tensor:
        """Uniform on [0, 1), ``(count, *shape)``."""
        return self._draw(torch.rand, key, shape)

    def for_generators(self, n: int, C: int) -> tuple[Tensor, Tensor]:
        """Noise of a generator, (count, n, C), and the uniform numbers (count, n) that a teacher is sampled with."""
        return self.randn("generator", n, C), self.rand("teacher", n)

    def _draw(self, function: Callable[..., Tensor], key: str, shape: tuple[int, ...]) -> Tensor:
        purpose = (function, key, shape)
        if purpose not in self._drawn:
            first, skipped = divmod(self.start, BLOCK)
            blocks = range(first, (self.start + self.count - 1) // BLOCK + 1)
            streams = [stream(self.seed, "evaluation", key, block) for block in blocks]
            drawn = torch.cat([function((BLOCK, *shape), generator=rng) for rng in streams])
            self._drawn[purpose] = drawn[skipped : skipped + self.count].to(self.device)
        return self._drawn[purpose]
