"""The VAR family (arXiv 2404.02905): next-scale prediction, with the state-dict names of the public release.

Tokens of a scale are predicted in parallel from the accumulated map of the scales before it
(:mod:`dd2_lightning.families.var.pyramid`), so nothing is shifted: slot l of scale k reads pixel l of that map,
averaged down to scale k, and predicts token l. The class vector is both the first slot and the condition of every
adaptive layer norm.
"""

import math
from typing import Any, Self

import torch
from torch import Tensor, nn

from dd2_lightning.families.var.config import VARConfig
from dd2_lightning.families.var.dd1 import DD1VAR
from dd2_lightning.families.var.pyramid import ScalePyramid
from dd2_lightning.families.var.sampling import VARSampling
from dd2_lightning.families.var.tokenizer import MultiScaleVQ
from dd2_lightning.flow import CodebookFlow
from dd2_lightning.models.backbone import Backbone
from dd2_lightning.models.codebook_teacher import CodebookTeacher
from dd2_lightning.models.layers import (
    AdaptiveNorm,
    Cache,
    adaptive,
    exact_linear,
    init_linear,
    init_residual,
)
from dd2_lightning.models.truncation import keep_likeliest
from dd2_lightning.sampling import Sampling


class VARBackbone(Backbone):
    """The transformer without its head.

    The pyramid is a frozen copy of the tokenizer's, in buffers that nothing unfreezes by accident; see
    :meth:`VARTeacher.adopt_tokenizer`. A cache's ``state`` is the accumulated map, (B, C, H, H).
    """

    def __init__(self, config: VARConfig):
        super().__init__()
        width, self.layout = config.width, config.layout
        self.token_dim, self.width, self.num_classes = config.token_dim, width, config.num_classes
        self.class_emb = nn.Embedding(config.num_classes + 1, width)
        self.pos_start = nn.Parameter(torch.empty(1, self.layout.counts[0], width))
        self.pos_1LC = nn.Parameter(torch.empty(1, self.layout.length, width))
        self.lvl_embed = nn.Embedding(len(config.sides), width)
        self.word_embed = nn.Linear(config.token_dim, width)
        self.shared_ada_lin = adaptive(6 * width, width) if config.shared_adaln else None
        blocks = [config.block() for _ in range(config.depth)]
        self.blocks = nn.ModuleList(blocks)
        self.pyramid = ScalePyramid(config.sides, config.token_dim, config.num_phi, frozen=True)
        cpu = torch.device("cpu")  # so that it can be built on "meta" too
        self.level: Tensor
        self.register_buffer("level", self.layout.position_of_token(cpu), persistent=False)
        init_linear(self)
        for table in (self.class_emb.weight, self.lvl_embed.weight, self.pos_start, self.pos_1LC):
            nn.init.trunc_normal_(table, std=math.sqrt(1 / (3 * width)))
        init_residual([linear for block in blocks for linear in (block.attn.proj, block.ffn.fc2)])

    def inputs(self, tokens: Tensor, cond: Tensor, start: int, stop: int, cache: Cache | None) -> Tensor:
        """Embed the inputs of positions start..stop-1, without place, (B, n', width), and advance the map."""
        inputs = [cond[:, None] + self.pos_start] if start == 0 else []
        f_hat = cache.state if cache else None
        maps = []
        for k in range(max(start, 1), stop):
            f_hat = self.pyramid.accumulate(f_hat, tokens[:, self.layout.span(k - 1)], k - 1)
            maps.append(self.pyramid.area_down(f_hat, k))
        if cache:
            cache.state = f_hat
        if maps:
            inputs.append(self.word_embed(torch.cat(maps, 1).to(self.word_embed.weight.dtype)))
        return torch.cat(inputs, 1)

    def forward(self, tokens: Tensor, labels: Tensor, cache: Cache | None = None) -> Tensor:
        start, stop = self.new_positions(tokens, cache)
        new = slice(self.layout.offsets[start], self.layout.offsets[stop])
        cond = self.class_emb(labels)
        place = self.lvl_embed(self.level[new]) + self.pos_1LC[0, new]
        x = self.inputs(tokens, cond, start, stop, cache) + place
        if self.shared_ada_lin is not None:
            cond = self.shared_ada_lin(cond).view(len(cond), 1, 6, -1)
        visible = self.layout.offsets[start : stop + 1] if stop - start > 1 else None
        for i, block in enumerate(self.blocks):
            x = block(x, cond, visible, cache.layers[i] if cache is not None else None)
        return x


class VARClassifier(nn.Module):
    """Adaptive layer norm and a linear map to the codes, in float32 or wider; the backbone owns ``class_emb``."""

    def __init__(self, width: int, codes: int, class_emb: nn.Embedding):
        super().__init__()
        self.head_nm = AdaptiveNorm(width)
        self.head = nn.Linear(width, codes)
        self._classes = (class_emb,)  # a tuple hides the module: one owner, one key in the state dict
        init_linear(self)

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        return exact_linear(self.head, self.head_nm(features, self._classes[0](labels)))


class VARTeacher(CodebookTeacher):
    """A VAR model; its state-dict keys are ``backbone.``, ``classifier.`` or ``tokenizer.`` and the release's."""

    sampling_type = VARSampling
    backbone: VARBackbone
    tokenizer: MultiScaleVQ

    def __init__(self, sizes: VARConfig):
        backbone = VARBackbone(sizes)
        tokenizer = MultiScaleVQ(sizes)
        super().__init__(backbone, VARClassifier(sizes.width, sizes.codes, backbone.class_emb), tokenizer)
        self.sizes, self.config = sizes, sizes.to_dict()
        self.adopt_tokenizer()

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        return cls(VARConfig.from_dict(config))

    def adopt_tokenizer(self) -> None:
        self.backbone.pyramid.load_state_dict(self.tokenizer.pyramid.state_dict())

    def dd1_student(self) -> DD1VAR:
        return DD1VAR(self.sizes).to(self.codebook).start_from(self.backbone, self.classifier, but="pyramid.")

    def guide(self, cond: Tensor, uncond: Tensor, sampling: Sampling, positions: Tensor) -> Tensor:
        """(1 + t_k) cond - t_k uncond with t_k = scale · k / (K - 1): none at the first scale, all at the last."""
        assert sampling.guidance_scale is not None
        t = (sampling.guidance_scale * positions / (self.layout.num_positions - 1)).to(cond.dtype)[:, None]
        return (1 + t) * cond - t * uncond

    def truncate(self, logits: Tensor, sampling: Sampling) -> Tensor:
        """Temperature, top-k with ties, then VAR's top-p: the tail of mass at most 1 - p is cut."""
        return keep_likeliest(logits / sampling.temperature, sampling.top_k, sampling.top_p, torch.ge)

    def choose(
        self, flow: CodebookFlow, sampling: Sampling, uniforms: Tensor, position: int, rng: torch.Generator | None
    ) -> Tensor:
        assert isinstance(sampling, VARSampling)
        if not sampling.more_smooth:
            return super().choose(flow, sampling, uniforms, position, rng)
        gumbel = -torch.empty_like(flow.log_p).exponential_(generator=rng).log()
        return smooth_weights(flow.log_p, gumbel, position / (self.layout.num_positions - 1)) @ self.codebook


def smooth_weights(logits: Tensor, gumbel: Tensor, ratio: float) -> Tensor:
    """Weights (..., V) of the codes in a soft token of ``more_smooth``, from logits and Gumbel noise g (..., V).

    softmax( ((1 + r) logits + g) / τ ) with τ = max(0.27 (1 - 0.95 r), 0.005) and r = k / (K - 1) at scale k.
    """
    return ((logits * (1 + ratio) + gumbel) / max(0.27 * (1 - 0.95 * ratio), 0.005)).softmax(-1)
