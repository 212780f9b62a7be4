"""VAR's network for DD1, with the state-dict names of the public release ``microsoft/distilled_decoding``.

Unlike the teacher it reads every token by itself, noise and data of all scales alike: there is no accumulated map, no
interpolation and no phi on the way in. The class is a further scale of one token before the others, so that tables of
places and levels have one row more, and tokens of one scale do not see each other.
"""

import math

import torch
from torch import Tensor, nn

from dd2_lightning.errors import InputTypeError
from dd2_lightning.families.var.config import VARConfig
from dd2_lightning.models.dd1 import DD1Student
from dd2_lightning.models.layers import AdaptiveNorm, adaptive, exact_linear, init_linear


class DD1VAR(DD1Student):
    """VAR's transformer with the marks of data and noise added again in every block.

    The class takes the slot of the first scale, which must be one token.
    """

    CONSTANTS = ("lvl_1L", "attn_bias_for_masking", "zero_k_bias")

    def __init__(self, config: VARConfig):
        if config.sides[0] != 1:
            raise InputTypeError(f"DD1 needs a VAR whose first scale is one token, this one has sides {config.sides}")
        width = config.width
        super().__init__(config.layout, config.token_dim, config.num_classes, width)
        self.class_emb = nn.Embedding(config.num_classes + 1, width)
        self.pos_start = nn.Parameter(torch.empty(1, 1, width))
        self.pos_1LC = nn.Parameter(torch.empty(1, len(self.position), width))
        self.lvl_embed = nn.Embedding(len(config.sides) + 1, width)
        self.word_embed = nn.Linear(config.token_dim, width)
        self.shared_ada_lin = adaptive(6 * width, width) if config.shared_adaln else None
        self.blocks = nn.ModuleList(config.block() for _ in range(config.depth))
        self.layerwise_n_d_embed = nn.ModuleList(nn.Linear(width, width) for _ in range(config.depth + 1))
        self.head_nm = AdaptiveNorm(width)
        self.head = nn.Linear(width, config.codes)
        for table in (self.class_emb.weight, self.lvl_embed.weight, self.pos_start, self.pos_1LC):
            nn.init.trunc_normal_(table, std=math.sqrt(1 / (3 * width)))
        init_linear(self.layerwise_n_d_embed)

    def convert_tensor(self, key: str, tensor: Tensor) -> Tensor:
        """Row 0 of places and levels is the class; row 1, which the teacher lacks, stays random."""
        axis = {"lvl_embed.weight": 0, "pos_1LC": 1}.get(key)
        if axis is None:
            return tensor
        first, rest = tensor.tensor_split([1], axis)
        return torch.cat([first, self.state_dict()[key].narrow(axis, 1, 1), rest], axis)

    def features(self, x: Tensor, labels: Tensor, flags: Tensor) -> tuple[Tensor, Tensor]:
        c = cond = self.class_emb(labels)
        h = torch.cat([c[:, None] + self.pos_start, self.word_embed(x)], 1)
        h = h + self.lvl_embed(self.position + 1) + self.pos_1LC + flags
        if self.shared_ada_lin is not None:
            cond = self.shared_ada_lin(c).view(len(c), 1, 6, -1)
        for block, marks in zip(self.blocks, self.layerwise_n_d_embed, strict=False):
            h = block(h, cond, self.mask, None, marks(flags))
        return (h + self.layerwise_n_d_embed[-1](flags))[:, 1:], c

    def classify(self, h: Tensor, c: Tensor) -> Tensor:
        return exact_linear(self.head, self.head_nm(h, c))
