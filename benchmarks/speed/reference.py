"""The reference algorithm: the public samplers, passes and decoders step by step, on the weights of our teachers.

VAR's keys and values grow by concatenation, its modulations are computed again at every scale, and its logits are
sorted as a whole. LlamaGen attends to a cache of full length under a mask, token by token. Only the last line differs:
tokens are found by the inverse distribution function, so that they can be compared with ours.
"""

import copy
import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dd2_lightning.families.llamagen.model import LlamaGenTeacher
from dd2_lightning.families.var.model import VARTeacher
from dd2_lightning.models.backbone import Backbone
from dd2_lightning.models.codebook_teacher import CodebookTeacher
from dd2_lightning.models.convnets import ConvAttention, Upsample
from dd2_lightning.models.layers import visibility
from dd2_lightning.models.tokenizer import Tokenizer
from dd2_lightning.sampling import Sampling
from dd2_lightning.stages.execution import blocks_of


def inverse(p: Tensor, uniforms: Tensor) -> Tensor:
    """Tokens (B, n) of probabilities (B, n, V) at uniform numbers (B, n)."""
    cdf = p.double().cumsum(-1)
    return torch.searchsorted(cdf, uniforms.double()[..., None] * cdf[..., -1:], right=True)[..., 0]


def truncated(logits: Tensor, top_k: int, top_p: float, ascending: bool) -> Tensor:
    """Top-k by the k-th largest, then top-p by a sort of all logits, in VAR's or LlamaGen's direction."""
    if top_k:
        logits = logits.masked_fill(logits < logits.topk(top_k, -1).values[..., -1:], -torch.inf)
    if top_p < 1:
        ordered, order = logits.sort(-1, descending=not ascending)
        mass = ordered.softmax(-1).cumsum(-1)
        if ascending:
            cut = mass <= 1 - top_p
            cut[..., -1] = False
        else:
            cut = F.pad(mass > top_p, (1, 0))[..., :-1]
        logits = logits.masked_fill(cut.scatter(-1, order, cut), -torch.inf)
    return logits


def modulated(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Layer norm, scale and shift."""
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift


@torch.no_grad()
def sample_var(teacher: VARTeacher, labels: Tensor, sampling: Sampling, uniforms: Tensor) -> Tensor:
    """Indices (B, n) of VAR under guidance, from uniform numbers (B, n)."""
    net, layout, B = teacher.backbone, teacher.layout, len(labels)
    assert net.shared_ada_lin is None and sampling.guidance_scale is not None
    cond = net.class_emb(torch.cat([labels, torch.full_like(labels, teacher.num_classes)]))
    place = net.lvl_embed(net.level) + net.pos_1LC[0]
    caches: list[tuple[Tensor, Tensor] | None] = [None] * len(net.blocks)
    x, f_hat, drawn = cond[:, None] + net.pos_start, None, []
    for k, count in enumerate(layout.counts):
        x = x + place[layout.span(k)]
        for i, block in enumerate(net.blocks):
            gate1, gate2, scale1, scale2, shift1, shift2 = block.ada_lin(cond).view(2 * B, 1, 6, -1).unbind(2)
            attention = block.attn
            bias = torch.cat([attention.q_bias, attention.zero_k_bias, attention.v_bias])
            qkv = F.linear(modulated(x, scale1, shift1), attention.mat_qkv.weight, bias)
            q, key, v = qkv.view(2 * B, count, 3, attention.heads, -1).permute(2, 0, 3, 1, 4)
            q = F.normalize(q, dim=-1) * attention.scale_mul_1H11.clamp(max=math.log(100)).exp()
            key = F.normalize(key, dim=-1)
            if (known := caches[i]) is not None:
                key, v = torch.cat([known[0], key], 2), torch.cat([known[1], v], 2)
            caches[i] = key, v
            y = F.scaled_dot_product_attention(q, key, v, scale=1.0).transpose(1, 2).reshape(2 * B, count, -1)
            x = x + gate1 * F.linear(y, attention.proj.weight, attention.proj.bias)
            y = F.linear(modulated(x, scale2, shift2), block.ffn.fc1.weight, block.ffn.fc1.bias)
            y = F.gelu(y, approximate="tanh")
            x = x + gate2 * F.linear(y, block.ffn.fc2.weight, block.ffn.fc2.bias)
        head = teacher.classifier
        scale, shift = head.head_nm.ada_lin(cond)[:, None].chunk(2, -1)
        logits = F.linear(modulated(x, scale, shift), head.head.weight, head.head.bias)
        t = sampling.guidance_scale * k / (layout.num_positions - 1)
        logits = (1 + t) * logits[:B] - t * logits[B:]
        p = truncated(logits, sampling.top_k, sampling.top_p, ascending=True).softmax(-1)
        drawn.append(inverse(p, uniforms[:, layout.span(k)]))
        if k + 1 < layout.num_positions:
            f_hat = net.pyramid.accumulate(f_hat, teacher.codebook[drawn[-1]], k)
            x = net.word_embed(net.pyramid.area_down(f_hat, k + 1)).repeat(2, 1, 1)
    return torch.cat(drawn, 1)


def rotated(x: Tensor, table: Tensor) -> Tensor:
    """Adjacent channels of x (B, L, heads, d), rotated by (L, d/2, 2)."""
    a, b = x.float().reshape(*x.shape[:-1], -1, 2).unbind(-1)
    cos, sin = table[None, :, None].unbind(-1)
    return torch.stack([a * cos - b * sin, b * cos + a * sin], -1).flatten(3).type_as(x)


@torch.no_grad()
def sample_llamagen(teacher: LlamaGenTeacher, labels: Tensor, sampling: Sampling, uniforms: Tensor) -> Tensor:
    """Indices (B, n) of LlamaGen under guidance, from uniform numbers (B, n)."""
    net, n, B = teacher.backbone, teacher.layout.length, len(labels)
    slots = -(-(n + 1) // 8) * 8
    visible = torch.ones(slots, slots, dtype=torch.bool, device=labels.device).tril()
    x = net.cls_embedding["embedding_table"](torch.cat([labels, torch.full_like(labels, teacher.num_classes)]))[:, None]
    block = net.layers[0].attention
    shape = (len(net.layers), 2, 2 * B, block.kv_heads, slots, block.head_dim)
    cache, drawn = x.new_zeros(shape), []
    for i in range(n):
        for (keys, values), layer in zip(cache, net.layers, strict=True):
            attention = layer.attention
            qkv = F.linear(layer.attention_norm(x), attention.wqkv.weight).unflatten(-1, (-1, attention.head_dim))
            q, k, v = qkv.split([attention.heads, attention.kv_heads, attention.kv_heads], 2)
            q, k, v = (y.transpose(1, 2) for y in (rotated(q, net.rope[i : i + 1]), rotated(k, net.rope[i : i + 1]), v))
            keys[:, :, i : i + 1], values[:, :, i : i + 1] = k, v
            y = F.scaled_dot_product_attention(
                q,
                keys,
                values,
                attn_mask=visible[None, None, i : i + 1],
                enable_gqa=attention.heads != attention.kv_heads,
            )
            x = x + F.linear(y.transpose(1, 2).reshape(2 * B, 1, -1), attention.wo.weight)
            y, ffn = layer.ffn_norm(x), layer.feed_forward
            x = x + F.linear(F.silu(F.linear(y, ffn.w1.weight)) * F.linear(y, ffn.w3.weight), ffn.w2.weight)
        cond, uncond = F.linear(teacher.classifier.norm(x), teacher.classifier.output.weight).float().chunk(2)
        logits = uncond + sampling.guidance_scale * (cond - uncond)
        p = truncated(logits / max(sampling.temperature, 1e-5), sampling.top_k, sampling.top_p, False).softmax(-1)
        drawn.append(inverse(p, uniforms[:, i : i + 1]))
        x = net.tok_embeddings(teacher.prepare(drawn[-1])).repeat(2, 1, 1)
    return torch.cat(drawn, 1)


def reference_sample(teacher: CodebookTeacher, labels: Tensor, sampling: Sampling, uniforms: Tensor) -> Tensor:
    """The sampler of a teacher's family."""
    if isinstance(teacher, VARTeacher):
        return sample_var(teacher, labels, sampling, uniforms)
    assert isinstance(teacher, LlamaGenTeacher)
    return sample_llamagen(teacher, labels, sampling, uniforms)


def masked(block: nn.Module, mask: Tensor, x: Tensor, condition: Tensor, *_: object) -> Tensor:
    """A transformer block whose attention computes all scores and hides those above the mask."""
    return type(block).forward(block, x, condition, mask)


def reference_backbone(teacher: CodebookTeacher) -> Backbone:
    """A copy of a teacher's backbone that goes over whole sequences with a mask."""
    backbone = copy.deepcopy(teacher.backbone)
    mask = visibility(teacher.layout, slice(0, teacher.layout.length))
    assert mask is not None
    for block in blocks_of(backbone):
        block.forward = partial(masked, block, mask)  # type: ignore[method-assign]
    return backbone


def doubled(layer: Upsample, x: Tensor) -> Tensor:
    """Nearest neighbour, then a 3x3 convolution of the larger map."""
    return layer.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def attended(layer: ConvAttention, x: Tensor) -> Tensor:
    """Attention whose weights are held as a whole."""
    B, C, H, W = x.shape
    y = layer.norm(x)
    maps = layer.qkv(y).chunk(3, 1) if layer.fused else (layer.q(y), layer.k(y), layer.v(y))
    q, k, v = (m.reshape(B, C, H * W) for m in maps)
    weights = (torch.bmm(q.transpose(1, 2), k) * C**-0.5).softmax(-1)
    return x + layer.proj_out(torch.bmm(v, weights.transpose(1, 2)).view(B, C, H, W))


def reference_decoder(tokenizer: Tokenizer) -> Tokenizer:
    """A copy of a tokenizer that decodes as the public ones do."""
    tokenizer = copy.deepcopy(tokenizer)
    for module in tokenizer.modules():
        if isinstance(module, Upsample):
            module.forward = partial(doubled, module)  # type: ignore[method-assign]
        elif isinstance(module, ConvAttention):
            module.forward = partial(attended, module)  # type: ignore[method-assign]
    return tokenizer
