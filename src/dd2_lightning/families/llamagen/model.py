"""The LlamaGen family (arXiv 2406.06525): next-token prediction in raster order, with the names of the public release.

Slot 0 reads the class, slot i reads token i - 1, and slot i predicts token i. The release reads tokens through an
embedding table, that is as indices only. What is distilled is an adapted model, in which an MLP from the codebook's
space takes the table's place (DD2, arXiv 2510.21003, appendix on LlamaGen); see :meth:`LlamaGenTeacher.continuous`.
"""

from dataclasses import replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from dd2_lightning.errors import InputTypeError
from dd2_lightning.families.llamagen.config import LlamaGenConfig
from dd2_lightning.families.llamagen.dd1 import DD1LlamaGen
from dd2_lightning.families.llamagen.layers import LlamaBlock, RMSNorm, rope_table
from dd2_lightning.families.llamagen.sampling import LlamaGenSampling
from dd2_lightning.families.llamagen.tokenizer import SphereVQ
from dd2_lightning.models.backbone import Backbone
from dd2_lightning.models.codebook_teacher import CodebookTeacher
from dd2_lightning.models.layers import Cache, exact_linear, init_linear, init_residual, visibility
from dd2_lightning.sampling import Sampling

NOT_ADAPTED = "this LlamaGen's input is an embedding table; run configs/adapt_llamagen.yaml first"


class LlamaGenBackbone(Backbone):
    """The transformer without its last norm and head. It reads embeddings if ``continuous``, else indices (B, n)."""

    def __init__(self, config: LlamaGenConfig):
        super().__init__()
        width, self.layout = config.width, config.layout
        self.token_dim, self.width, self.num_classes = config.token_dim, width, config.num_classes
        self.continuous = config.continuous_input
        self.cls_embedding = nn.ModuleDict({"embedding_table": nn.Embedding(config.num_classes + 1, width)})
        if self.continuous:
            layers = nn.Linear(config.token_dim, width), nn.SiLU(), nn.Linear(width, width)
            self.tok_embeddings: nn.Module = nn.Sequential(*layers)
        else:
            self.tok_embeddings = nn.Embedding(config.codes, width)
        blocks = [LlamaBlock(config) for _ in range(config.depth)]
        self.layers = nn.ModuleList(blocks)
        cpu = torch.device("cpu")
        self.rope: Tensor
        self.mask: Tensor
        rope = rope_table(config.grid, width // config.heads, config.rope_base)[: self.layout.length]
        self.register_buffer("rope", rope, persistent=False)
        self.register_buffer("mask", visibility(self.layout, slice(0, self.layout.length), cpu), persistent=False)
        for module in (*self.cls_embedding.modules(), self.tok_embeddings):
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
        init_linear(self.layers)
        init_residual([linear for block in blocks for linear in (block.attention.wo, block.feed_forward.w2)])

    def forward(self, tokens: Tensor, labels: Tensor, cache: Cache | None = None) -> Tensor:
        if tokens.is_floating_point() and not self.continuous:
            raise InputTypeError(NOT_ADAPTED)
        start, stop = self.new_positions(tokens, cache)
        x = self.shifted(self.cls_embedding["embedding_table"](labels), self.tok_embeddings, tokens, start, stop)
        mask = self.mask[start:stop, :stop] if start and stop - start > 1 else None  # from the start on it is causal
        for i, block in enumerate(self.layers):
            x = block(x, self.rope[start:stop], mask, cache.layers[i] if cache is not None else None)
        return x


class LlamaGenClassifier(nn.Module):
    """RMS norm and a linear map to the codes, without bias, in float32 or wider."""

    def __init__(self, config: LlamaGenConfig):
        super().__init__()
        self.norm = RMSNorm(config.width, config.norm_eps)
        self.output = nn.Linear(config.width, config.codes, bias=False)
        init_linear(self.output)

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        return exact_linear(self.output, self.norm(features))


class LlamaGenTeacher(CodebookTeacher):
    """A LlamaGen model; its state-dict keys are ``backbone.``, ``classifier.`` or ``tokenizer.`` and the release's."""

    sampling_type = LlamaGenSampling
    backbone: LlamaGenBackbone

    def __init__(self, sizes: LlamaGenConfig):
        tokenizer, classifier = SphereVQ(sizes), LlamaGenClassifier(sizes)  # in this order: it is that of the seeds
        super().__init__(LlamaGenBackbone(sizes), classifier, tokenizer)
        self.sizes, self.config = sizes, sizes.to_dict()

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        return cls(LlamaGenConfig.from_dict(config))

    def prepare(self, tokens: Tensor) -> Tensor:
        if self.backbone.continuous:
            return super().prepare(tokens)
        if not self.are_indices(tokens):
            raise InputTypeError(NOT_ADAPTED)
        return tokens.long()

    def guide(self, cond: Tensor, uncond: Tensor, sampling: Sampling, positions: Tensor) -> Tensor:
        assert isinstance(sampling, LlamaGenSampling)
        guided = super().guide(cond, uncond, sampling, positions)
        if sampling.cfg_interval < 0:
            return guided
        return torch.where((positions <= sampling.cfg_interval + 1)[:, None], guided, cond)

    def continuous(self) -> Self:
        if self.backbone.continuous:
            return super().continuous()
        adapted = type(self)(replace(self.sizes, continuous_input=True)).to(self.codebook)
        table = "backbone.tok_embeddings."
        kept = {key: value for key, value in self.state_dict().items() if not key.startswith(table)}
        adapted.load_state_dict({**adapted.state_dict(), **kept})
        return adapted

    def input_error(self, original: "LlamaGenTeacher") -> Tensor:
        """‖mlp(c_j) - emb(j)‖² of every code j, (V,)."""
        target = original.backbone.tok_embeddings.get_parameter("weight")
        return (self.backbone.tok_embeddings(self.codebook) - target).square().sum(-1)

    def student_backbone(self) -> Backbone:
        if not self.backbone.continuous:
            raise InputTypeError(NOT_ADAPTED)
        return super().student_backbone()

    def dd1_student(self) -> DD1LlamaGen:
        return (
            DD1LlamaGen(self.sizes).to(self.codebook).start_from(self.backbone, self.classifier, but="tok_embeddings.")
        )
