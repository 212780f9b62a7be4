"""The LlamaGen family (arXiv 2406.06525): next-token prediction in raster order, with the names of the public release.

Slot 0 reads the class, slot i reads token i - 1, and slot i predicts token i. The release reads tokens through an
embedding table, that is as indices only. What is distilled is an adapted model, in which an MLP from the codebook's
space takes the table's place (DD2, arXiv 2510.21003, appendix on LlamaGen); see :meth:`LlamaGenTeacher.continuous`.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from dd2_lightning.errors import InputTypeError
from dd2_lightning.models.backbone import Backbone
from dd2_lightning.models.dd1_llamagen import DD1LlamaGen
from dd2_lightning.models.layers import Cache, exact_linear, init_linear, visibility
from dd2_lightning.models.llama import LlamaBlock, RMSNorm, rope_table, swiglu_width
from dd2_lightning.models.llamagen_sizes import LlamaGenConfig
from dd2_lightning.models.sizes import Sized
from dd2_lightning.models.teacher import CodebookTeacher
from dd2_lightning.models.vq import SphereVQ
from dd2_lightning.sampling import Sampling

NOT_ADAPTED = "this LlamaGen's input is an embedding table; run configs/adapt_llamagen.yaml first"


@dataclass(frozen=True)
class LlamaGenSampling(Sampling):
    """How LlamaGen is sampled. A ``guidance_scale`` of 1 is no guidance.

    Attributes:
        cfg_interval: m: guidance for tokens 0..m+1 and none after them, as the release counts; -1 is everywhere.

    Raises:
        ValueError: for an interval below -1, and as :class:`Sampling`.
    """

    cfg_interval: int = -1

    def __post_init__(self):
        super().__post_init__()
        if self.cfg_interval < -1:
            raise ValueError(f"cfg_interval must be -1 (everywhere) or more, got {self.cfg_interval}")


class LlamaGenBackbone(Backbone):
    """The transformer without its last norm and head.

    Tokens are embeddings if ``continuous``, else indices (B, n). Label ``num_classes`` is the null class.

    Args:
        config: sizes.
    """

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
        hidden = swiglu_width(width, config.ffn_dim_multiplier, config.multiple_of)
        self.layers = nn.ModuleList(
            LlamaBlock(width, config.heads, config.kv_heads or config.heads, hidden, config.norm_eps)
            for _ in range(config.depth)
        )
        cpu = torch.device("cpu")
        rope = rope_table(config.grid, width // config.heads, config.rope_base)[: self.layout.length]
        self.register_buffer("rope", rope, persistent=False)
        self.register_buffer("mask", visibility(self.layout, slice(0, self.layout.length), cpu), persistent=False)
        self.initialise()

    def initialise(self) -> None:
        """Weights to train from scratch with: small normal everywhere, residual branches scaled with the depth."""
        nn.init.normal_(self.cls_embedding["embedding_table"].weight, std=0.02)
        if not self.continuous:
            nn.init.normal_(self.tok_embeddings.weight, std=0.02)
        for block in self.layers:
            for module in block.modules():
                if isinstance(module, nn.Linear):
                    init_linear(module)
            for linear in (block.attention.wo, block.feed_forward.w2):
                linear.weight.data.div_(math.sqrt(2 * len(self.layers)))

    def forward(self, tokens: Tensor, labels: Tensor, cache: Cache | None = None) -> Tensor:
        """See :meth:`Backbone.forward`.

        Raises:
            InputTypeError: a ``TypeError``, for embeddings where there is an embedding table.
        """
        if tokens.is_floating_point() and not self.continuous:
            raise InputTypeError(NOT_ADAPTED)
        start, stop = self.new_positions(tokens, cache)
        first = self.cls_embedding["embedding_table"](labels)
        x = self.shifted(first, self.tok_embeddings, tokens, start, stop)
        mask = self.mask[start:stop, :stop] if stop - start > 1 else None
        for i, block in enumerate(self.layers):
            x = block(x, self.rope[start:stop], mask, cache.layer(i) if cache is not None else None)
        return x


class LlamaGenClassifier(nn.Module):
    """RMS norm and a linear map to the codes, without bias.

    Args:
        width: of the features.
        codes: V.
        eps: of the norm.
    """

    def __init__(self, width: int, codes: int, eps: float = 1e-5):
        super().__init__()
        self.norm = RMSNorm(width, eps)
        self.output = nn.Linear(width, codes, bias=False)
        init_linear(self.output)

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        """Features (B, n, width), labels (B,) -> logits (B, n, V), in float32 or wider."""
        return exact_linear(self.output, self.norm(features))


class LlamaGenTeacher(Sized, CodebookTeacher):
    """A LlamaGen model: transformer, classifier and VQ tokenizer.

    Its guidance, truncation and their order are those of :class:`CodebookTeacher`. State-dict keys are
    ``backbone.``, ``classifier.`` and ``tokenizer.`` followed by names of the release, see :func:`from_release`.

    Args:
        config: sizes.
    """

    sampling_type = LlamaGenSampling
    sizes_type = LlamaGenConfig

    def __init__(self, config: LlamaGenConfig):
        tokenizer = SphereVQ(
            config.grid,
            config.codes,
            config.token_dim,
            config.ch,
            config.encoder_ch_mult,
            config.decoder_ch_mult,
            config.num_res_blocks,
            config.z_channels,
            config.image_channels,
            config.code_norm,
            config.pixels,
        )
        classifier = LlamaGenClassifier(config.width, config.codes, config.norm_eps)
        super().__init__(LlamaGenBackbone(config), classifier, tokenizer)
        self.sizes = config

    def prepare(self, tokens: Tensor) -> Tensor:
        """What the backbone reads: embeddings if it is adapted, else indices (B, n).

        Raises:
            InputTypeError: a ``TypeError``, for anything else; embeddings before the adaptation are named as such.
        """
        if self.backbone.continuous:
            return super().prepare(tokens)
        if not self.are_indices(tokens):
            raise InputTypeError(NOT_ADAPTED)
        return tokens.long()

    def guide(self, cond: Tensor, uncond: Tensor, sampling: LlamaGenSampling, positions: Tensor) -> Tensor:
        """See :meth:`CodebookTeacher.guide`; after ``cfg_interval`` the conditional logits themselves."""
        guided = super().guide(cond, uncond, sampling, positions)
        if sampling.cfg_interval < 0:
            return guided
        return torch.where((positions <= sampling.cfg_interval + 1)[:, None], guided, cond)

    def continuous(self) -> "LlamaGenTeacher":
        """A trainable copy with a fresh MLP in the place of the embedding table; all other weights are the same.

        Raises:
            InputTypeError: if it has such an MLP already.
        """
        if self.backbone.continuous:
            return super().continuous()
        adapted = LlamaGenTeacher(replace(self.sizes, continuous_input=True)).to(self.codebook)
        table = "backbone.tok_embeddings."
        kept = {key: value for key, value in self.state_dict().items() if not key.startswith(table)}
        adapted.load_state_dict({**adapted.state_dict(), **kept})
        return adapted

    def input_error(self, original: "LlamaGenTeacher") -> Tensor:
        """‖mlp(c_j) - emb(j)‖² of every code j, (V,)."""
        target = original.backbone.tok_embeddings.weight
        return (self.backbone.tok_embeddings(self.codebook) - target).square().sum(-1)

    def student_backbone(self) -> LlamaGenBackbone:
        """A trainable copy of the adapted teacher's backbone.

        Raises:
            InputTypeError: if the teacher is not adapted.
        """
        if not self.backbone.continuous:
            raise InputTypeError(NOT_ADAPTED)
        return super().student_backbone()

    def dd1_student(self) -> DD1LlamaGen:
        """See :meth:`CodebookTeacher.dd1_student`; whether the teacher is adapted does not matter."""
        return DD1LlamaGen.of(self)


def from_release(transformer: dict[str, Tensor], tokenizer: dict[str, Tensor]) -> dict[str, Tensor]:
    """State dict of a :class:`LlamaGenTeacher` from the two files of a release, unwrapped.

    The transformer keeps its names. In the tokenizer ``conv_blocks`` become the encoder's ``down`` and the decoder's
    ``up``, whose level 0 is the finest (the release numbers the decoder's in the order of their execution).

    Args:
        transformer: ``c2i_*.pt``; caches, mask and rotations that were stored along are left out.
        tokenizer: ``vq_ds*_c2i.pt``; the usage statistics are left out.
    """
    levels = 1 + max((int(key.split(".")[2]) for key in tokenizer if key.startswith("decoder.conv_blocks.")), default=0)
    state = {
        f"tokenizer.{_tokenizer_name(key, levels)}": value
        for key, value in tokenizer.items()
        if key != "quantize.codebook_used"
    }
    for key, value in transformer.items():
        if key in ("freqs_cis", "causal_mask") or ".kv_cache." in key:
            continue
        state[("classifier." if key.startswith(("norm.", "output.")) else "backbone.") + key] = value
    return state


def _tokenizer_name(key: str, levels: int) -> str:
    if ".conv_blocks." not in key and ".mid." not in key:
        return key
    network, group, *rest = key.split(".")
    if group == "mid":
        rest[0] = ("block_1", "attn_1", "block_2")[int(rest[0])]
    elif group == "conv_blocks":
        if network == "decoder":
            rest[0] = str(levels - 1 - int(rest[0]))
        group = "down" if network == "encoder" else "up"
        rest[1] = rest[1].replace("res", "block")
    return ".".join([network, group, *rest])
