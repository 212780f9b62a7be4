"""The order of a token sequence: how many tokens each autoregressive *position* holds.

LlamaGen has 256 positions of one token; VAR has 10 positions (its scales) of 1, 4, 9, ... 256 tokens. Tokens of one
position are conditionally independent given the earlier positions. The algorithms know nothing else of the order.
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """Tokens per position, at least one: ``Layout((1, 4, 9))`` or ``Layout((1,) * 256)``."""

    counts: tuple[int, ...]

    def __post_init__(self):
        object.__setattr__(self, "counts", tuple(int(count) for count in self.counts))
        if not self.counts or min(self.counts) < 1:
            raise ValueError(f"every position of a layout needs at least one token, got {self.counts}")

    @property
    def num_positions(self) -> int:
        """N, the number of autoregressive steps of the teacher."""
        return len(self.counts)

    @property
    def length(self) -> int:
        """n, the number of tokens of a sequence."""
        return self.offsets[-1]

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """Index of the first token of each position, and n at the end: ``(0, 1, 5, 14)``."""
        return tuple(accumulate(self.counts, initial=0))

    def span(self, position: int) -> slice:
        """The tokens of one position."""
        return slice(self.offsets[position], self.offsets[position + 1])

    def positions_in(self, num_tokens: int) -> int:
        """How many positions ``num_tokens`` tokens are; a ``ValueError`` if the last one would be incomplete."""
        if num_tokens not in self.offsets:
            raise ValueError(f"{num_tokens} tokens end inside a position; positions end at {self.offsets[1:]}")
        return self.offsets.index(num_tokens)

    def position_of_token(self, device: torch.device | None = None) -> Tensor:
        """Position number of every token, (n,)."""
        counts = torch.tensor(self.counts, device=device)
        return torch.arange(self.num_positions, device=device).repeat_interleave(counts, output_size=self.length)

    def mean_per_position(self, values: Tensor) -> Tensor:
        """Average (..., n) over the tokens of each position: (..., N)."""
        return torch.stack([tokens.mean(-1) for tokens in values.split(self.counts, -1)], -1)
