"""VAR: against the public release, and what the family adds to the protocol."""

import copy
import json

import pytest
import torch

from dd2_lightning.families.var.config import VARConfig
from dd2_lightning.families.var.model import (
    VARBackbone,
    VARClassifier,
    VARTeacher,
    smooth_weights,
)
from dd2_lightning.families.var.release import from_release
from dd2_lightning.families.var.sampling import VARSampling
from dd2_lightning.models.layers import Cache
from dd2_lightning.models.student import build_student
from dd2_lightning.sampling import Sampling
from reference import close, golden, golden_var

SMALL = {
    "sides": [1, 2, 3],
    "codes": 6,
    "token_dim": 2,
    "num_classes": 3,
    "width": 16,
    "depth": 2,
    "heads": 2,
    "ch": 32,
    "ch_mult": [1],
    "num_res_blocks": 1,
    "image_channels": 1,
}
RELEASED = {**SMALL, "sides": [1, 2, 3, 4, 5, 6, 8, 10, 13, 16], "codes": 4096, "token_dim": 32, "num_classes": 1000}
NAMES = ["var_tiny", "var_tiny_shared_aln", "var_tiny_no_l2norm"]
B = 2


def small(**sizes) -> VARTeacher:
    """A teacher of 14 tokens in 3 scales, no parameter of which is zero."""
    teacher = VARTeacher.from_config({**SMALL, **sizes})
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.normal_(std=0.3)
    teacher.adopt_tokenizer()
    return teacher.eval()


def whole(teacher: VARTeacher, indices: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Logits of all tokens at once; the null label is allowed."""
    return teacher.classifier(teacher.backbone(teacher.embed(indices), labels), labels)


@pytest.fixture(params=NAMES)
def released(request):
    return golden_var(request.param)


# --- against the release ---------------------------------------------------------------------------------------------


def test_logits_of_the_whole_sequence(released):
    teacher, tensors = released
    indices, labels = tensors["idx"], tensors["label"]
    close(teacher.logits(indices, labels), tensors["tf_logits_cond"])
    null = torch.full_like(labels, teacher.num_classes)
    close(whole(teacher, indices, null), tensors["tf_logits_uncond"])
    guided = teacher.logits(tensors["ar_idx"], labels, tensors["cfg_scale"].item())
    close(guided, tensors["ar_logits_cfg"], 3e-4)


def test_blocks_of_the_release(released):
    teacher, tensors = released
    outputs = []
    for block in teacher.backbone.blocks:
        block.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    teacher.logits(tensors["idx"], tensors["label"])
    for i, output in enumerate(outputs):
        close(output, tensors[f"tf_block_out_{i}"])


def test_greedy_samples_of_the_release(released):
    teacher, tensors = released
    sampling = Sampling(guidance_scale=tensors["cfg_scale"].item(), top_k=1)
    assert torch.equal(teacher.sample(tensors["label"], sampling), tensors["ar_idx"])


def test_guidance_grows_with_the_scale():
    teacher, tensors = golden_var("var_tiny")
    scale, positions = tensors["cfg_scale"].item(), teacher.layout.position_of_token()
    sampling = VARSampling(guidance_scale=scale)
    cond, uncond = tensors["tf_logits_cond"], tensors["tf_logits_uncond"]
    close(teacher.guide(cond, uncond, sampling, positions), tensors["tf_logits_cfg"], 3e-4)
    close(teacher.logits(tensors["idx"], tensors["label"], scale), tensors["tf_logits_cfg"], 3e-4)
    t = tensors["cfg_t_per_token"]
    assert t[0] == 0
    assert t[-1] == scale
    zero = torch.zeros(1, len(t), 1)
    close(teacher.guide(zero, zero - 1, sampling, positions)[0, :, 0], t, 1e-6)


def test_logits_along_a_cached_walk():
    """Conditional and unconditional, one scale at a time; the cache's map is the release's."""
    teacher, tensors = golden_var("var_tiny")
    labels, q = tensors["label"], teacher.embed(tensors["ar_idx"])
    for wanted, name in ((labels, "ar_logits_cond"), (torch.full_like(labels, 10), "ar_logits_uncond")):
        cache = Cache(teacher.layout.length)
        for k in range(teacher.layout.num_positions):
            span = teacher.layout.span(k)
            features = teacher.backbone(q[:, : span.start], wanted, cache)
            close(teacher.classifier(features, wanted), tensors[name][:, span])
            if k:
                close(cache.state, tensors["ar_fhat_per_scale"][:, k - 1])


def test_what_the_transformer_reads():
    teacher, tensors = golden_var("var_tiny")
    backbone, q = teacher.backbone, teacher.embed(tensors["ar_idx"])
    c = backbone.class_emb(tensors["label"])
    x = backbone.inputs(q, c, 0, 4, None)
    close(x[:, 1:], backbone.word_embed(tensors["ar_tf_input"]))
    close(x[:, :1], c[:, None] + backbone.pos_start)


@pytest.mark.parametrize("case", range(5))
def test_truncation_of_the_release(case):
    """Top-k keeps ties, top-p cuts the ascending tail."""
    tensors, _ = golden("var_sampling")
    k, p = tensors[f"filter{case}_topk_topp"].tolist()
    probabilities = small().truncate(tensors[f"filter{case}_in"], Sampling(top_k=int(k), top_p=p or 1.0)).softmax(-1)
    expected = tensors[f"filter{case}_probs"]
    assert torch.equal(probabilities == 0, expected == 0)
    close(probabilities, expected, 1e-6)


@pytest.mark.parametrize("case", range(3))
def test_soft_tokens_of_the_release(case):
    """More_smooth, at the release's own Gumbel noise."""
    tensors, _ = golden("var_sampling")
    ratio = tensors[f"smooth{case}_ratio_tau"][0].item()
    weights = smooth_weights(tensors["logits"], tensors[f"smooth{case}_gumbel"], ratio)
    close(weights @ tensors["smooth_embedding"], tensors[f"smooth{case}_h"], 1e-5)


def test_smooth_samples_harden_along_the_scales():
    """They are means of the codes that truncation leaves, and with one code left that code."""
    teacher, labels = small().requires_grad_(False), torch.tensor([0, 1])
    sampling = VARSampling(guidance_scale=1.0, more_smooth=True)
    drawn = [teacher.sample(labels, sampling, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert drawn[0].shape == (B, 14, 2)
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    assert teacher.decode(drawn[0]).isfinite().all()
    lower, upper = teacher.codebook.amin(0), teacher.codebook.amax(0)
    assert (drawn[0] > lower - 1e-5).all() and (drawn[0] < upper + 1e-5).all()
    greedy = teacher.sample(labels, VARSampling(guidance_scale=1.0, top_k=1, more_smooth=True))
    codes = teacher.sample(labels, Sampling(guidance_scale=1.0, top_k=1))
    close(greedy, teacher.embed(codes), 1e-6)
    prefix = codes[:, :5]
    assert torch.equal(teacher.sample(labels, sampling, prefix=prefix)[:, :5], teacher.embed(prefix))


def test_truncation_keeps_one_token():
    logits = torch.tensor([[[0.0, 1.0, 2.0]]])
    kept = small().truncate(logits, Sampling(top_p=1e-6, temperature=0.5))
    assert kept.isfinite().tolist() == [[[False, False, True]]]
    assert kept[0, 0, 2] == 4


@pytest.mark.parametrize(
    ("width", "depth", "heads", "shared", "sides", "parameters"),
    [
        (1024, 16, 16, False, RELEASED["sides"], 310_283_520),
        (1280, 20, 20, False, RELEASED["sides"], 600_917_136),
        (2304, 36, 36, True, [1, 2, 3, 4, 6, 9, 13, 18, 24, 32], 2_353_893_904),
    ],
)
def test_released_sizes(width, depth, heads, shared, sides, parameters):
    """Parameters of VAR-d16, d20 and d36; phi, being frozen, is not among them."""
    sizes = {**RELEASED, "width": width, "depth": depth, "heads": heads, "shared_adaln": shared, "sides": sides}
    config = VARConfig.from_dict(sizes)
    with torch.device("meta"):
        backbone = VARBackbone(config)
        classifier = VARClassifier(width, config.codes, backbone.class_emb)
    assert sum(p.numel() for p in [*backbone.parameters(), *classifier.parameters()]) == parameters


def test_a_release_is_loaded_without_its_constants():
    tensors, _ = golden("var_tiny")
    var = {k.removeprefix("weights/var/"): v for k, v in tensors.items() if k.startswith("weights/var/")}
    vae = {k.removeprefix("weights/vae/"): v for k, v in tensors.items() if k.startswith("weights/vae/")}
    state = from_release(var, vae)
    assert {"lvl_1L", "attn_bias_for_masking"} <= var.keys()
    assert len(state) == len(var) - 2 + len(vae) - 1 + 8  # phi twice: in the tokenizer and in the backbone
    assert torch.equal(state["backbone.pyramid.qresi_ls.3.bias"], vae["quantize.quant_resi.qresi_ls.3.bias"])


# --- protocol --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("prefix", [0, 1, 2])
def test_walks_agree_with_the_whole_sequence(shared, prefix):
    """Teacher and student, with embeddings off the codebook, from any number of known scales."""
    teacher = small(shared_adaln=shared).requires_grad_(False)
    labels, layout = torch.tensor([0, 2]), teacher.layout
    q = torch.randn(B, layout.length, teacher.token_dim)
    known = q[:, : layout.offsets[prefix]]
    sampling = Sampling(guidance_scale=2.0, top_k=4)
    student = build_student(teacher, width=16, depth=1)
    for parameter in student.head.parameters():
        parameter.data.normal_(std=0.2)
    x_t, t = torch.randn(B, layout.length, 2, teacher.token_dim), torch.full((B, layout.length, 2), 0.5)
    for whole_flow, walk in (
        (teacher.flow(q, labels, sampling), teacher.walk(labels, sampling, known)),
        (student.flow(q, labels), student.walk(labels, known)),
    ):
        v = whole_flow.velocity(x_t, t)
        for flow in walk:
            close(flow.velocity(x_t[:, walk.span], t[:, walk.span]), v[:, walk.span])
            walk.append(q[:, walk.span])
        assert walk.position == layout.num_positions


@pytest.mark.parametrize("shared", [False, True])
def test_features_see_earlier_scales_only(shared):
    """By automatic differentiation: no influence of tokens at the own scale or later, some of every earlier one."""
    backbone = small(shared_adaln=shared).backbone.double()
    position = backbone.layout.position_of_token()
    q = torch.randn(1, backbone.layout.length, 2, dtype=torch.float64, requires_grad=True)
    features = backbone(q, torch.tensor([1]))
    for i, feature in enumerate(features[0] @ torch.randn(backbone.width, dtype=torch.float64)):
        if i == 0:
            assert torch.autograd.grad(feature, q, retain_graph=True, allow_unused=True)[0].abs().max() == 0
            continue
        influence = torch.autograd.grad(feature, q, retain_graph=True)[0][0].abs().amax(-1)
        assert influence[position >= position[i]].max() == 0
        if position[i] > 0:
            assert influence[position < position[i]].min() > 1e-8


def test_a_partial_sequence_gives_the_next_scale_too():
    teacher = small().requires_grad_(False)
    q, labels = torch.randn(B, 14, 2), torch.tensor([0, 1])
    features = teacher.backbone(q, labels)
    for length, expected in ((0, 1), (1, 5), (5, 14), (14, 14)):
        part = teacher.backbone(q[:, :length], labels)
        assert part.shape[1] == expected
        close(part, features[:, :expected], 1e-5)


def test_the_student_starts_as_the_teacher_and_goes_its_own_way():
    teacher = small().requires_grad_(False)
    backbone = teacher.student_backbone()
    q, labels = torch.randn(B, 14, 2), torch.tensor([0, 1])
    assert torch.equal(backbone(q, labels), teacher.backbone(q, labels))
    assert all(parameter.requires_grad for parameter in backbone.parameters())
    assert not any("pyramid" in name for name, _ in backbone.named_parameters())
    assert any("pyramid" in name for name in backbone.state_dict())
    before = teacher.logits(q, labels)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(1.0)
    assert torch.equal(teacher.logits(q, labels), before)


def test_a_copied_teacher_uses_its_own_class_vectors():
    """The classifier borrows them from the backbone, and owns no second copy in the state dict."""
    teacher = small().requires_grad_(False)
    twin, q, labels = copy.deepcopy(teacher), torch.randn(B, 14, 2), torch.tensor([0, 1])
    before = teacher.logits(q, labels)
    twin.backbone.class_emb.weight.zero_()
    features = teacher.backbone(q, labels)
    assert torch.equal(teacher.logits(q, labels), before)
    assert not torch.equal(twin.classifier(features, labels), teacher.classifier(features, labels))
    assert [key for key in teacher.state_dict() if "class_emb" in key] == ["backbone.class_emb.weight"]


def test_the_backbone_follows_its_tokenizer():
    teacher = small().requires_grad_(False)
    for phi in teacher.tokenizer.pyramid.qresi_ls:
        phi.bias.normal_()
    teacher.tokenizer.rescale_codebook(3.0)
    q = torch.randn(B, 14, 2)
    assert not torch.allclose(teacher.backbone.pyramid(q), teacher.tokenizer.pyramid(q))
    teacher.adopt_tokenizer()
    assert torch.equal(teacher.backbone.pyramid(q), teacher.tokenizer.pyramid(q))


def test_labels_are_never_dropped():
    teacher = small().train()
    indices, labels = torch.randint(6, (64, 14)), torch.zeros(64, dtype=torch.long)
    assert torch.equal(whole(teacher, indices, labels), whole(teacher, indices, labels))
    same = whole(teacher, indices[:1].expand(64, -1), labels)
    close(same, same[:1].expand_as(same), 1e-5)


def test_a_fresh_teacher_is_nearly_indifferent_and_trainable():
    teacher = VARTeacher.from_config(SMALL)
    indices, labels = torch.randint(6, (8, 14)), torch.arange(8) % 3
    loss = torch.nn.functional.cross_entropy(teacher.logits(indices, labels).transpose(1, 2), indices)
    torch.testing.assert_close(loss, torch.tensor(6.0).log(), rtol=0.1, atol=0)
    loss.backward()
    idle = [n for n, p in teacher.backbone.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == []


# --- sizes -----------------------------------------------------------------------------------------------------------


def test_sizes_survive_json():
    teacher = small(l2_norm=False, mlp_ratio=2)
    again = VARTeacher.from_config(json.loads(json.dumps(teacher.config)))
    assert again.config == teacher.config
    again.load_state_dict(teacher.state_dict())


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("sides", [1, 1, 2], "'sides' must grow"),
        ("sides", 3, "'sides' must be a list of positive integers, got 3"),
        ("ch_mult", [], "'ch_mult' must be a list"),
        ("codes", 0, "'codes' must be a positive integer, got 0"),
        ("depth", 2.0, "'depth' must be a positive integer, got 2.0"),
        ("heads", 3, "'width' must be a multiple of 'heads', got 16 and 3"),
        ("ch", 30, "'ch' must be a multiple of 4"),
        ("l2_norm", "yes", "'l2_norm' must be true or false, got 'yes'"),
        ("mlp_ratio", -1, "'mlp_ratio' must be a positive number"),
        ("widht", 16, "unknown key 'widht'"),
    ],
)
def test_bad_sizes_are_named(key, value, message):
    with pytest.raises(ValueError, match=message):
        VARTeacher.from_config({**SMALL, key: value})


def test_missing_sizes_are_named():
    with pytest.raises(ValueError, match="a VAR teacher needs 'width'"):
        VARTeacher.from_config({key: value for key, value in SMALL.items() if key != "width"})
