"""Our samplers draw the tokens of the reference algorithm; what runs in pieces gives what the whole gives."""

import pytest
import torch

from benchmarks.speed.reference import reference_sample
from dd2_lightning.layout import Layout
from dd2_lightning.models import codebook_teacher, truncation
from dd2_lightning.models.layers import FEW_ROWS, Cache, LayerCache, Linear, attend, visibility
from dd2_lightning.models.truncation import draw, keep_likeliest
from dd2_lightning.sampling import Sampling
from reference import golden_llamagen, golden_var

TEACHERS = {"var": lambda: golden_var("var_tiny")[0], "llamagen": lambda: golden_llamagen()[0]}


@pytest.fixture(params=TEACHERS)
def teacher(request):
    return TEACHERS[request.param]()


@pytest.mark.parametrize("batch", [1, 3, 16])
@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (7, 1.0), (0, 0.8), (7, 0.9)])
def test_tokens_are_those_of_the_reference_algorithm(teacher, batch, top_k, top_p):
    labels, uniforms = torch.arange(batch) % teacher.num_classes, torch.rand(batch, teacher.layout.length)
    sampling = Sampling(guidance_scale=2.0, top_k=top_k, top_p=top_p)
    expected = reference_sample(teacher, labels, sampling, uniforms)
    assert torch.equal(teacher.sample(labels, sampling, uniforms=uniforms), expected)


def test_logits_in_pieces(teacher, monkeypatch):
    """One sequence at a time, or all: distribution, logits and drawn tokens."""
    labels, sampling = torch.arange(5), Sampling(guidance_scale=2.0, top_k=7, top_p=0.9)
    uniforms = torch.rand(5, teacher.layout.length)
    tokens = teacher.sample(labels, sampling, uniforms=uniforms)
    found = []
    for limit in (1, 1 << 24):
        monkeypatch.setattr(codebook_teacher, "LOGITS", limit)
        monkeypatch.setattr(truncation, "LOGITS", limit)
        flow = teacher.flow(tokens, labels, sampling)
        found.append((flow.log_p, teacher.logits(tokens, labels, 2.0), draw(flow, uniforms)))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_the_cache_is_allocated_once():
    layer = LayerCache(5)
    first, second = torch.randn(2, 3, 2, 4), torch.randn(2, 3, 1, 4)
    keys, _ = layer.extend(first, -first)
    again, values = layer.extend(second, -second)
    assert torch.equal(again, torch.cat([first, second], 2)) and torch.equal(values, -again)
    assert again.data_ptr() == keys.data_ptr() and layer.length == 3


def test_modulations_of_a_walk_are_computed_once():
    teacher = golden_var("var_tiny")[0]
    calls, labels, cache = [], torch.arange(2), Cache(teacher.layout.length)
    teacher.backbone.blocks[0].ada_lin.register_forward_hook(lambda *_: calls.append(1))
    q = teacher.embed(torch.zeros(2, teacher.layout.length, dtype=torch.long))
    for position in range(3):
        teacher.backbone(q[:, : teacher.layout.offsets[position]], labels, cache)
    assert len(calls) == 1


@pytest.mark.parametrize("bias", [True, False])
def test_linear_maps_of_few_rows(bias):
    layer = Linear(40, 30, bias)
    for shape in ((40,), (2, 40), (FEW_ROWS, 40), (3, 1, 40), (1, 40), (20, 2, 40)):
        x = torch.randn(shape)
        with torch.no_grad():
            few = layer(x)
        assert few.is_contiguous() and few.shape == (*shape[:-1], 30)
        torch.testing.assert_close(few, layer(x))


def test_attention_by_positions_is_that_under_the_block_causal_mask():
    layout, generator = Layout((1, 4, 9)), torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 2, 2, 14, 4, generator=generator)
    for start in (0, 1):
        first = layout.offsets[start]
        mask = visibility(layout, slice(first, 14))
        expected = attend(q[:, :, first:], k, v, mask, 0.5)
        torch.testing.assert_close(attend(q[:, :, first:], k, v, layout.offsets[start:], 0.5), expected)


def test_equal_logits_stay_or_go_together():
    logits = torch.tensor([2.0, 1.0, 1.0, 1.0, 0.0])
    assert keep_likeliest(logits, 2).isfinite().tolist() == [True, True, True, True, False]
    assert keep_likeliest(logits, 2, 0.6).isfinite().tolist() == [True, False, False, False, False]
    assert keep_likeliest(logits, 0, 0.6).isfinite().tolist() == [True, True, True, True, False]
