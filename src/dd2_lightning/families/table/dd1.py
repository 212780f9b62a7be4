"""A network for DD1 where a family has no released one: for tables and a user's teachers."""

import torch
from torch import Tensor, nn

from dd2_lightning.layout import Layout
from dd2_lightning.models.dd1 import DD1Student
from dd2_lightning.models.layers import AdaLNBlock, AdaptiveNorm, exact_linear, fourier_features


class DD1Causal(DD1Student):
    """A small transformer with fresh weights over any layout; the class also modulates every block.

    ``octaves`` counts the :func:`fourier_features` of tokens and noise.
    """

    def __init__(
        self,
        layout: Layout,
        token_dim: int,
        num_classes: int,
        codes: int,
        width: int = 64,
        depth: int = 2,
        heads: int = 4,
        octaves: int = 0,
    ):
        super().__init__(layout, token_dim, num_classes, width)
        self.octaves = octaves
        self.input = nn.Linear(token_dim * (1 + 2 * octaves), width)
        self.classes = nn.Embedding(num_classes, width)
        self.place = nn.Parameter(torch.randn(len(self.position), width) * 0.02)
        self.blocks = nn.ModuleList(AdaLNBlock(width, heads) for _ in range(depth))
        self.head_nm = AdaptiveNorm(width)
        self.head = nn.Linear(width, codes)

    def features(self, x: Tensor, labels: Tensor, flags: Tensor) -> tuple[Tensor, Tensor]:
        c = self.classes(labels)
        h = torch.cat([c[:, None], self.input(fourier_features(x, self.octaves))], 1) + self.place + flags
        for block in self.blocks:
            h = block(h, c, self.mask)
        return h[:, 1:], c

    def classify(self, h: Tensor, c: Tensor) -> Tensor:
        return exact_linear(self.head, self.head_nm(h, c))
