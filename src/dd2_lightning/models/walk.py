"""A pass through a model, position by position, and what is sampled along it.

::

    walk = model.walk(labels)
    for flow in walk:                 # the flow of one position, given everything before it
        walk.append(choose(flow))     # its tokens: indices (B, n_i) or embeddings (B, n_i, C)

A walk keeps the key-value cache of its model, so each position costs one pass over its own tokens.
"""

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

import torch
from torch import Tensor

from dd2_lightning.flow import CodebookFlow, Flow, euler_times, integrate, multistep, shifted_times
from dd2_lightning.layout import Layout
from dd2_lightning.models.codebook import nearest_code
from dd2_lightning.sampling import PAIR_STEPS

AnyFlow = TypeVar("AnyFlow", bound=Flow, covariant=True)


class Walk(Generic[AnyFlow]):
    """One pass through the positions of a batch of sequences, from the inputs ``tokens`` of the first ones, if any.

    ``advance`` goes from the tokens so far to the flow of the next position, and holds the cache; ``prepare`` from
    indices or embeddings to the inputs of the model's backbone.
    """

    def __init__(
        self, layout: Layout, advance: Callable[[Tensor], AnyFlow], prepare: Callable[[Tensor], Tensor], tokens: Tensor
    ):
        self.layout, self.tokens = layout, tokens
        self.position = layout.positions_in(tokens.shape[1])
        self._advance, self._prepare = advance, prepare

    @property
    def span(self) -> slice:
        return self.layout.span(self.position)

    def __iter__(self) -> Iterator[AnyFlow]:
        while self.position < self.layout.num_positions:
            current = self.position
            with torch.no_grad():  # the cache is overwritten in place
                flow = self._advance(self.tokens)
            yield flow
            if self.position == current:
                raise RuntimeError(f"position {current}: append() its tokens before going on")

    def append(self, tokens: Tensor) -> None:
        """Fix the tokens of the current position, indices (B, n_i) or embeddings (B, n_i, C), and go to the next."""
        count = self.layout.counts[self.position]
        if tokens.shape[1] != count:
            raise ValueError(f"position {self.position} has {count} tokens, got {tokens.shape[1]}")
        self.tokens = torch.cat([self.tokens, self._prepare(tokens)], 1)
        self.position += 1


def integrate_walk(walk: Walk[Flow], noise: Tensor, steps: int) -> Tensor:
    """Integrate the flow of every position in order, each conditioned on the tokens made so far.

    With an AR-diffusion model this is its sampler. Noise and result are (B, n, C); the paper uses 10 Euler ``steps``.
    """
    times = euler_times(steps, noise.device)
    for flow in walk:
        walk.append(integrate(flow, noise[:, walk.span], times))
    return walk.tokens


@torch.no_grad()
def noise_to_codes(walk: Walk[CodebookFlow], noise: Tensor, steps: int = PAIR_STEPS) -> Tensor:
    """DD1's deterministic map from noise to data, along the walk of a teacher (arXiv 2412.17153, section 3).

    The code of a token depends on the class, its noise and the noise of earlier positions. Every position is integrated
    by :func:`~dd2_lightning.flow.multistep` and ends on the nearest code of positive probability, which the next read.
    From noise (B, n, C) to indices (B, n), in ``steps`` evaluations of the flow a token.
    """
    codes = []
    for flow in walk:
        times = shifted_times(steps, flow.codebook.square().mean().sqrt().item())
        ends = multistep(flow, noise[:, walk.span], times)
        codes.append(nearest_code(ends, flow.codebook, flow.log_p))
        walk.append(codes[-1])
    return torch.cat(codes, 1)
