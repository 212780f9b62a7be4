"""LlamaGen's network for DD1, with the state-dict names of the public release ``microsoft/distilled_decoding``."""

import torch
from torch import Tensor, nn

from dd2_lightning.families.llamagen.config import LlamaGenConfig
from dd2_lightning.families.llamagen.layers import LlamaBlock, RMSNorm, rope_table
from dd2_lightning.models.dd1 import DD1Student
from dd2_lightning.models.layers import exact_linear, init_linear


class DD1LlamaGen(DD1Student):
    """LlamaGen's transformer over a linear map of the tokens; the marks of data and noise are added to its input."""

    CONSTANTS = ("freqs_cis", "causal_mask", "k_cache", "v_cache")

    def __init__(self, config: LlamaGenConfig):
        width = config.width
        super().__init__(config.layout, config.token_dim, config.num_classes, width)
        self.cls_embedding = nn.ModuleDict({"embedding_table": nn.Embedding(config.num_classes + 1, width)})
        self.tok_embeddings = nn.Linear(config.token_dim, width)
        self.layers = nn.ModuleList(LlamaBlock(config) for _ in range(config.depth))
        self.norm = RMSNorm(width, config.norm_eps)
        self.output = nn.Linear(width, config.codes, bias=False)
        rope = rope_table(config.grid, width // config.heads, config.rope_base)
        self.rope: Tensor
        self.register_buffer("rope", rope, persistent=False)
        init_linear(self.tok_embeddings)

    def features(self, x: Tensor, labels: Tensor, flags: Tensor) -> tuple[Tensor, Tensor]:
        c = self.cls_embedding["embedding_table"](labels)
        h = torch.cat([c[:, None], self.tok_embeddings(x)], 1) + flags
        for block in self.layers:
            h = block(h, self.rope, self.mask)
        return h[:, 1:], c

    def classify(self, h: Tensor, c: Tensor) -> Tensor:
        return exact_linear(self.output, self.norm(h))
