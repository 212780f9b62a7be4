"""The causal backbone of a teacher or a student."""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

from dd2_lightning.layout import Layout
from dd2_lightning.models.layers import Cache


class Backbone(nn.Module, ABC):
    """A causal network from tokens and a class to one feature per token."""

    layout: Layout  # the order of the tokens
    token_dim: int  # C
    width: int  # d, the width of its features
    num_classes: int  # classes; label ``num_classes`` is the null label of classifier-free guidance

    @abstractmethod
    def forward(self, tokens: Tensor, labels: Tensor, cache: Cache | None = None) -> Tensor:
        """Features of the next tokens, (B, n', d); feature i depends on tokens of earlier positions only.

        The backbone shifts or accumulates its input itself: the tokens of all complete positions so far, (B, k, C), or
        of the sequence, (B, n, C). Positions are all those up to the one that follows; with a cache, which is empty or
        left by a call with fewer positions, only the new ones among them.
        """

    def next_position(self, tokens: Tensor, labels: Tensor, cache: Cache) -> Tensor:
        """Features of the position that follows ``tokens`` only, (B, n_i, d)."""
        features = self(tokens, labels, cache)
        return features[:, -self.layout.counts[cache.positions - 1] :]

    @staticmethod
    def shifted(first: Tensor, embed: Callable[[Tensor], Tensor], tokens: Tensor, start: int, stop: int) -> Tensor:
        """Inputs of slots start..stop-1, (B, stop - start, d), where every position holds one token.

        Slot i reads token i - 1 through ``embed``; slot 0 reads ``first``, (B, d).
        """
        inputs = embed(tokens[:, max(start - 1, 0) : stop - 1])
        return inputs if start else torch.cat([first[:, None], inputs], 1)

    def new_positions(self, tokens: Tensor, cache: Cache | None) -> tuple[int, int]:
        """The half-open range of positions whose features a call has to compute; advances the cache."""
        known = self.layout.positions_in(tokens.shape[1])
        start, stop = cache.positions if cache else 0, min(known + 1, self.layout.num_positions)
        if cache:
            cache.positions = stop
        return start, stop
