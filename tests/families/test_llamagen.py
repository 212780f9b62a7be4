"""LlamaGen: against the public release, and what the family adds to the protocol."""

import json

import pytest
import torch
import torch.nn.functional as F

from dd2_lightning.families.llamagen.config import LlamaGenConfig
from dd2_lightning.families.llamagen.layers import rope_table, rotate, swiglu_width
from dd2_lightning.families.llamagen.model import LlamaGenTeacher
from dd2_lightning.families.llamagen.release import from_release
from dd2_lightning.families.llamagen.sampling import LlamaGenSampling
from dd2_lightning.families.var.sampling import VARSampling
from dd2_lightning.models.layers import Cache
from dd2_lightning.models.student import build_student
from dd2_lightning.sampling import Sampling
from reference import close, golden, golden_llamagen, manifest
from teachers import llamagen_teacher

RELEASED = {
    "grid": 16,
    "codes": 16384,
    "token_dim": 8,
    "num_classes": 1000,
    "ch": 128,
    "encoder_ch_mult": [1, 1, 2, 2, 4],
    "decoder_ch_mult": [1, 1, 2, 2, 4],
    "num_res_blocks": 2,
    "z_channels": 256,
}
L = {**RELEASED, "width": 1024, "depth": 24, "heads": 16}
SMALL = llamagen_teacher().config
B = 3


@pytest.fixture(scope="module")
def released():
    return golden_llamagen()


@pytest.fixture
def unadapted():
    return llamagen_teacher(continuous_input=False).requires_grad_(False)


def whole(teacher, tokens, labels):
    """Logits of all tokens at once; the null label is allowed."""
    return teacher.classifier(teacher.backbone(tokens, labels), labels)


# --- against the release ---------------------------------------------------------------------------------------------


def test_logits_of_the_whole_sequence(released):
    teacher, tensors, _ = released
    tokens, labels = tensors["tokens"], tensors["label"]
    logits = teacher.logits(tokens, labels)
    close(logits, tensors["tf_logits_cond"])
    close(whole(teacher, tokens, torch.full_like(labels, 10)), tensors["tf_logits_uncond"])
    close(teacher.logits(tokens, labels, tensors["cfg_scale"].item()), tensors["tf_logits_cfg"], 3e-4)
    close(F.cross_entropy(logits.transpose(1, 2), tokens)[None], tensors["tf_loss_cond"])


def test_logits_along_a_cached_walk(released):
    teacher, tensors, _ = released
    tokens, labels = tensors["tokens"], tensors["label"]
    for wanted, name in ((labels, "kv_logits_cond"), (torch.full_like(labels, 10), "kv_logits_uncond")):
        cache = Cache(teacher.layout.length)
        for i in range(teacher.layout.length):
            features = teacher.backbone(tokens[:, :i], wanted, cache)
            assert features.shape[1] == 1
            close(teacher.classifier(features, wanted)[:, 0], tensors[name][:, i])


def test_blocks_of_the_release(released):
    teacher, tensors, _ = released
    outputs = []
    hooks = [
        block.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
        for block in teacher.backbone.layers
    ]
    teacher.logits(tensors["tokens"], tensors["label"])
    for i, (output, hook) in enumerate(zip(outputs, hooks, strict=True)):
        close(output, tensors[f"tf_block_out_{i}"])
        hook.remove()


@pytest.mark.parametrize(
    ("scale", "interval", "tokens", "logits"),
    [
        (2.0, -1, "greedy_tokens", "greedy_logits_cfg"),
        (None, -1, "greedy_nocfg_tokens", "greedy_nocfg_logits"),
        (1.0, -1, "greedy_nocfg_tokens", "greedy_nocfg_logits"),
        (2.0, 5, "greedy_interval_tokens", "greedy_interval_logits"),
    ],
)
def test_greedy_samples_of_the_release(released, scale, interval, tokens, logits):
    teacher, tensors, _ = released
    labels, expected = tensors["label"], tensors[tokens]
    sampling = LlamaGenSampling(guidance_scale=scale, top_k=1, cfg_interval=interval)
    assert torch.equal(teacher.sample(labels, sampling), expected)
    # up to the constant of a log softmax, the logits met on the way; whole sequence and cached
    untruncated = LlamaGenSampling(guidance_scale=scale, cfg_interval=interval)
    target = tensors[logits].log_softmax(-1)
    close(teacher.flow(expected, labels, untruncated).log_p, target, 3e-4)
    walk = teacher.walk(labels, untruncated)
    for flow in walk:
        close(flow.log_p, target[:, walk.span], 3e-4)
        walk.append(expected[:, walk.span])


def test_the_guided_interval_ends_where_the_releases_does(released):
    teacher, tensors, _ = released
    tokens, labels = tensors["tokens"], tensors["label"]
    guided, cond = tensors["tf_logits_cfg"].log_softmax(-1), tensors["tf_logits_cond"].log_softmax(-1)
    log_p = teacher.flow(tokens, labels, LlamaGenSampling(guidance_scale=2.0, cfg_interval=5)).log_p
    close(log_p[:, :7], guided[:, :7], 3e-4)
    close(log_p[:, 7:], cond[:, 7:])


def test_rotation_of_the_release():
    tensors, sizes = golden("llamagen_tiny")
    table = rope_table(4, sizes["dim"] // sizes["n_head"], sizes["rope_base"])
    close(table, tensors["rope_table"], 1e-6)
    assert (table[0] == 0).all()
    close(rotate(tensors["rope_in"].transpose(1, 2), table).transpose(1, 2), tensors["rope_out"], 1e-6)


@pytest.mark.parametrize("case", [0, 1, 2, 3, 4, "tie"])
def test_truncation_of_the_release(released, case):
    """Temperature, then top-k with ties, then the descending top-p."""
    tensors = released[1]
    if case == "tie":
        logits, sampling, expected = tensors["filter_tie_in"], Sampling(top_k=10), tensors["filter_tie_probs"]
        assert (expected > 0).sum(-1).max() == 11
    else:
        temperature, k, p = tensors[f"filter{case}_temp_topk_topp"].tolist()
        sampling = Sampling(temperature=temperature, top_k=int(k), top_p=p)
        logits, expected = tensors["filter_in"], tensors[f"filter{case}_probs"]
    probabilities = released[0].truncate(logits[None], sampling).softmax(-1)[0]
    assert torch.equal(probabilities == 0, expected == 0)
    close(probabilities, expected, 1e-6)


def test_a_release_is_loaded_without_its_buffers(released):
    teacher = released[0]
    tensors, pixels = golden("llamagen_tiny")[0], golden("llamagen_vq_tiny")[0]
    gpt = {k.removeprefix("weights/gpt/"): v for k, v in tensors.items() if k.startswith("weights/gpt/")}
    vq = {k.removeprefix("weights/vq/"): v for k, v in pixels.items() if k.startswith("weights/vq/")}
    stray = {"freqs_cis": torch.ones(1), "layers.0.attention.kv_cache.k_cache": torch.ones(1)}
    state = from_release({**gpt, **stray, "causal_mask": torch.ones(1)}, vq)
    assert state.keys() == teacher.state_dict().keys()
    assert len(state) == len(gpt) + len(vq) - 1
    assert torch.equal(
        state["tokenizer.decoder.up.0.block.0.conv1.weight"], vq["decoder.conv_blocks.1.res.0.conv1.weight"]
    )


def test_every_key_of_the_released_sizes():
    """LlamaGen-L with VQ-16: nothing missing, nothing unexpected, every shape equal; and VQ-8."""
    state = from_release(manifest("llamagen_L"), manifest("vq_ds16_c2i"))
    with torch.device("meta"):
        teacher = LlamaGenTeacher.from_config(L)
        vq8 = LlamaGenTeacher.from_config({**L, "encoder_ch_mult": [1, 2, 2, 4], "decoder_ch_mult": [1, 2, 2, 4]})
    own = teacher.state_dict()
    assert own.keys() == state.keys()
    assert [key for key in own if own[key].shape != state[key].shape] == []
    transformer = [*teacher.backbone.parameters(), *teacher.classifier.parameters()]
    assert sum(parameter.numel() for parameter in transformer) == 342_910_976
    assert sum(parameter.numel() for parameter in teacher.tokenizer.parameters()) + 65536 == 71_883_403 + 65536
    assert sum(parameter.numel() for parameter in vq8.tokenizer.parameters()) == 70_109_835
    assert teacher.tokenizer.image_shape == (3, 256, 256) and vq8.tokenizer.image_shape == (3, 128, 128)


@pytest.mark.parametrize(
    ("width", "depth", "heads", "hidden", "parameters"),
    [
        (768, 12, 12, 2048, 110_888_448),
        (1280, 36, 20, 3584, 774_699_520),
        (1536, 48, 24, 4096, 1_410_972_672),
        (3200, 24, 32, 8704, 3_096_659_200),
    ],
)
def test_released_sizes(width, depth, heads, hidden, parameters):
    """B, XL, XXL and 3B, whose heads have 100 channels."""
    with torch.device("meta"):
        teacher = LlamaGenTeacher.from_config({**RELEASED, "width": width, "depth": depth, "heads": heads, "grid": 24})
    transformer = [*teacher.backbone.parameters(), *teacher.classifier.parameters()]
    assert sum(parameter.numel() for parameter in transformer) == parameters
    assert swiglu_width(width) == hidden == teacher.backbone.layers[0].feed_forward.w1.out_features
    assert teacher.layout.length == 576


def test_swiglu_width_with_a_multiplier():
    assert swiglu_width(100, 1.3, 1) == 345  # floor of 266, times 1.3, floor again
    assert swiglu_width(100, 1.3, 32) == 352


# --- heads -----------------------------------------------------------------------------------------------------------


def test_grouped_heads_are_full_heads_with_repeated_keys_and_values():
    """Each key-value head serves consecutive query heads."""
    grouped = llamagen_teacher().requires_grad_(False)
    full = llamagen_teacher(kv_heads=None).requires_grad_(False)
    state, d = grouped.state_dict(), 8
    for key, value in state.items():
        if key.endswith("wqkv.weight"):
            q, k, v = value.split([4 * d, 2 * d, 2 * d])
            repeated = [part.unflatten(0, (2, d)).repeat_interleave(2, 0).flatten(0, 1) for part in (k, v)]
            state[key] = torch.cat([q, *repeated])
    full.load_state_dict(state)
    tokens, labels = torch.randn(B, 9, 4), torch.arange(B)
    close(grouped.logits(tokens, labels), full.logits(tokens, labels), 1e-5)
    assert grouped.backbone.layers[0].attention.wqkv.out_features == 64
    cache = Cache(9)
    grouped.backbone(tokens[:, :0], labels, cache)
    assert cache.layers[0].k.shape == (B, 2, 9, d) and cache.layers[0].length == 1


def test_the_class_is_seen_with_a_logit_of_zero():
    """Its key is zero: whatever its query-key weights, the other tokens see it equally; its value matters."""
    teacher = llamagen_teacher(depth=1).requires_grad_(False)
    seen = []
    attention = teacher.backbone.layers[0].attention
    original = F.scaled_dot_product_attention

    def spy(q, k, v, **options):
        seen.append((q, k))
        return original(q, k, v, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "scaled_dot_product_attention", spy)
        attention(torch.randn(1, 9, 32), teacher.backbone.rope, teacher.backbone.mask)
    ((q, k),) = seen
    assert (q[:, :, 0] == 0).all() and (k[:, :, 0] == 0).all()
    assert (q[:, :, 1:].abs().amax(-1) > 0).all()


# --- input -----------------------------------------------------------------------------------------------------------


def test_an_embedding_table_reads_indices_only(unadapted):
    indices, labels = torch.randint(12, (B, 9)), torch.arange(B)
    q = unadapted.embed(indices)
    message = "input is an embedding table; run configs/adapt_llamagen.yaml first"
    calls = [
        lambda: unadapted.logits(q, labels),
        lambda: unadapted.flow(q, labels),
        lambda: unadapted.walk(labels, prefix=q[:, :2]),
        lambda: unadapted.backbone(q, labels),
        lambda: build_student(unadapted, width=16, depth=1),
    ]
    for call in calls:
        with pytest.raises(TypeError, match=message):
            call()
    with pytest.raises(TypeError, match="integer indices"):
        unadapted.logits(torch.zeros(B, 9), labels)
    for dtype in (torch.uint8, torch.int16):
        assert torch.equal(unadapted.logits(indices.to(dtype), labels), unadapted.logits(indices, labels))


def test_an_embedding_table_walks_and_samples(unadapted):
    labels, uniforms = torch.arange(B), torch.rand(B, 9)
    sampling = LlamaGenSampling(guidance_scale=2.0, top_k=5, cfg_interval=3)
    drawn = unadapted.sample(labels, sampling, uniforms=uniforms)
    whole_flow = unadapted.flow(drawn, labels, sampling).log_p
    for start in (0, 4, 8):
        walk = unadapted.walk(labels, sampling, drawn[:, :start])
        for flow in walk:
            close(flow.log_p.exp(), whole_flow[:, walk.span].exp())
            walk.append(drawn[:, walk.span])
    assert torch.equal(unadapted.sample(labels, sampling, prefix=drawn[:, :4], uniforms=uniforms), drawn)
    assert unadapted.decode(drawn).shape == (B, 1, 3, 3)


def test_the_continuous_copy_differs_in_its_input_only(unadapted):
    adapted = unadapted.continuous()
    before, after = unadapted.state_dict(), adapted.state_dict()
    changed = {key for key in before.keys() | after.keys() if "tok_embeddings" in key}
    assert {key for key in after if key in before} == before.keys() - changed
    assert all(torch.equal(before[key], after[key]) for key in before.keys() - changed)
    assert adapted.config == {**unadapted.config, "continuous_input": True}
    assert all(parameter.requires_grad for parameter in adapted.parameters())
    error = adapted.input_error(unadapted)
    table = unadapted.backbone.tok_embeddings.weight
    close(error, (adapted.backbone.tok_embeddings(unadapted.codebook) - table).square().sum(-1))
    assert error.shape == (12,)
    with pytest.raises(TypeError, match="nothing to adapt"):
        adapted.continuous()


def test_a_perfect_input_changes_nothing(unadapted):
    """An MLP that is exactly the table: the two models are the same function of the codes."""
    adapted = unadapted.continuous().requires_grad_(False)
    table = unadapted.backbone.tok_embeddings.weight

    class Lookup(torch.nn.Module):
        def forward(self, q):
            return table[adapted.snap(q)]

    adapted.backbone.tok_embeddings = Lookup()
    assert adapted.input_error(unadapted).max() == 0
    indices, labels = torch.randint(12, (B, 9)), torch.arange(B)
    close(adapted.logits(indices, labels, 2.0), unadapted.logits(indices, labels, 2.0), 1e-5)


def test_the_student_starts_as_the_teacher():
    teacher = llamagen_teacher().requires_grad_(False)
    backbone, q, labels = teacher.student_backbone(), torch.randn(B, 9, 4), torch.arange(B)
    assert torch.equal(backbone(q, labels), teacher.backbone(q, labels))
    assert all(parameter.requires_grad for parameter in backbone.parameters())
    before = teacher.logits(q, labels)
    for parameter in backbone.parameters():
        parameter.data.add_(1.0)
    assert torch.equal(teacher.logits(q, labels), before)


def test_a_fresh_teacher_is_nearly_indifferent_and_trainable():
    for continuous in (False, True):
        teacher = LlamaGenTeacher.from_config({**SMALL, "continuous_input": continuous})
        indices, labels = torch.randint(12, (8, 9)), torch.arange(8) % 3
        loss = F.cross_entropy(teacher.logits(indices, labels).transpose(1, 2), indices)
        torch.testing.assert_close(loss, torch.tensor(12.0).log(), rtol=0.1, atol=0)
        loss.backward()
        idle = [n for n, p in teacher.backbone.named_parameters() if p.grad is None or not p.grad.any()]
        assert idle == []


# --- settings --------------------------------------------------------------------------------------------------------


def test_settings_of_another_family_are_refused():
    teacher, labels = llamagen_teacher(), torch.arange(B)
    with pytest.raises(TypeError, match="VARSampling is for teachers of another family; this one has LlamaGenSampling"):
        teacher.sample(labels, VARSampling())
    with pytest.raises(ValueError, match="cfg_interval must be -1"):
        LlamaGenSampling(cfg_interval=-2)


def test_common_settings_will_do():
    teacher, indices, labels = llamagen_teacher(), torch.randint(12, (B, 9)), torch.arange(B)
    common = teacher.flow(indices, labels, Sampling(guidance_scale=2.0, top_k=5)).log_p
    own = teacher.flow(indices, labels, LlamaGenSampling(guidance_scale=2.0, top_k=5)).log_p
    assert torch.equal(common, own)


def test_sizes_survive_json():
    teacher = llamagen_teacher(ffn_dim_multiplier=1.5, kv_heads=None)
    again = LlamaGenTeacher.from_config(json.loads(json.dumps(teacher.config)))
    assert again.config == teacher.config
    again.load_state_dict(teacher.state_dict())


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("grid", 0, "'grid' must be a positive integer, got 0"),
        ("kv_heads", 3, "'heads' must be a multiple of 'kv_heads', got 4 and 3"),
        ("kv_heads", 1.0, "'kv_heads' must be a positive integer, got 1.0"),
        ("heads", 5, "'width' must be a multiple of 'heads', got 32 and 5"),
        ("heads", 16, "'heads' must have a multiple of 4 channels each, got 2"),
        ("ch", 30, "'ch' must be a multiple of 4"),
        ("decoder_ch_mult", [1, 2], "must have as many levels, got 1 and 2"),
        ("ffn_dim_multiplier", -1, "'ffn_dim_multiplier' must be a positive number"),
        ("continuous_input", 1, "'continuous_input' must be true or false, got 1"),
        ("sides", [1, 2], "unknown key 'sides' for a LlamaGen teacher"),
    ],
)
def test_bad_sizes_are_named(key, value, message):
    with pytest.raises(ValueError, match=message):
        LlamaGenTeacher.from_config({**SMALL, key: value})


def test_missing_sizes_are_named():
    with pytest.raises(ValueError, match="a LlamaGen teacher needs 'grid'"):
        LlamaGenConfig.from_dict({key: value for key, value in SMALL.items() if key != "grid"})
