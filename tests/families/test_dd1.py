"""DD1, the baseline: against the public release, and what its networks may depend on."""

import copy

import pytest
import torch

from dd2_lightning.errors import InputTypeError
from dd2_lightning.families.table.model import DD1Causal
from dd2_lightning.families.var.config import VARConfig
from dd2_lightning.families.var.model import VARTeacher
from dd2_lightning.models import layers
from dd2_lightning.models.dd1 import trajectory_point
from dd2_lightning.models.dd1_generator import DD1Generator
from dd2_lightning.sampling import Sampling
from dd2_lightning.stages.execution import Execution
from reference import close, golden_dd1, under
from teachers import (
    DD1_TEACHERS,
    gru_teacher,
    labels_for,
    randomise,
    var_teacher,
)

TOLERANCE = 1e-5


class Golden:
    """A golden file: the release's inputs and outputs, and our models with its weights."""

    def __init__(self, family: str):
        self.teacher, self.tensors, self.sizes = golden_dd1(family)
        student, weights = self.teacher.dd1_student(), under(self.tensors, "weights")
        assert weights.keys() - student.state_dict().keys() <= {"lvl_1L", "attn_bias_for_masking"}
        student.load_state_dict({key: weights.get(key, value) for key, value in student.state_dict().items()})
        assert {key for key, _ in student.named_parameters()} <= weights.keys()
        sizes = self.sizes
        self.generator = DD1Generator(student, self.teacher.tokenizer, sizes["split_t"], sizes["t_second"])
        self.generator.requires_grad_(False).eval()
        self.noise, self.labels = self.tensors["in/noise"], self.tensors["in/labels"]

    def combined(self, sampling: Sampling, **settings) -> torch.Tensor:
        start = self.sizes["teacher_start"]
        return self.generator.refine(self.labels, self.teacher, start, sampling=sampling, noise=self.noise, **settings)


@pytest.fixture(scope="module", params=["var", "llamagen"])
def released(request):
    return Golden(request.param)


# --- against the release ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["t0", "second", "mixed"])
def test_calls_of_the_release(released, call):
    t = {"t0": 0, "second": released.sizes["t_second"], "mixed": released.tensors["fwd/mixed/t"]}[call]
    name = {"t0": "t0", "second": f"t{released.sizes['t_second']}", "mixed": "mixed"}[call]
    expected = under(released.tensors, f"fwd/{name}")
    x = trajectory_point(released.generator.layout, torch.full_like(released.noise, 0.25), released.noise, t)
    assert torch.equal(x, expected["x_in"])
    tokens, logits = released.generator.student(x, released.labels, t)
    close(tokens, expected["tokens"], TOLERANCE)
    close(logits, expected["logits"], TOLERANCE)


@pytest.mark.parametrize("steps", [1, 2])
def test_samples_of_the_release(released, steps):
    tokens = released.generator.sample(released.labels, released.noise, steps=steps)
    close(tokens, released.tensors[f"step{steps}/sequence"], TOLERANCE)
    decoded = {"var": "f_hat", "llamagen": "latent_BCHW"}[released.sizes["kind"].removeprefix("dd1-")]
    latents = released.teacher.tokenizer.latent_map(tokens)
    close(latents, released.tensors[f"step{steps}/{decoded}"], TOLERANCE)


def test_codes_nearest_to_a_sample_of_the_release(released):
    indices = released.teacher.snap(released.generator.sample(released.labels, released.noise))
    assert torch.equal(indices, released.tensors["combine/quantised_idx"])


def test_the_teacher_in_the_middle_of_llamagen():
    released = Golden("llamagen")
    sampling = Sampling(guidance_scale=released.sizes["teacher_cfg"], top_k=1)
    start, second = released.sizes["teacher_start"], released.sizes["t_second"]
    prefix = released.tensors["combine/quantised_idx"][:, :start]
    drawn = released.teacher.sample(released.labels, sampling, prefix=prefix, until=second)
    assert torch.equal(drawn, released.tensors["combine/teacher_idx"])
    close(released.combined(sampling), released.tensors["combine/sequence"], TOLERANCE)


@pytest.mark.parametrize("slip", [False, True])
def test_the_teacher_in_the_middle_of_var(slip, monkeypatch):
    released = Golden("var")
    teacher, name = released.teacher, "ref" if slip else "masked"
    sampling = Sampling(guidance_scale=released.sizes["teacher_cfg"], top_k=1)
    start, second = released.sizes["teacher_start"], released.sizes["t_second"]
    prefix = released.tensors["combine/quantised_idx"][:, : teacher.layout.offsets[start]]
    if slip:  # the release goes on from given scales without its mask: they see each other, and the scale after them
        attend = layers.attend
        monkeypatch.setattr(
            layers, "attend", lambda *qkv: attend(*qkv[:3], qkv[3] if torch.is_tensor(qkv[3]) else None, *qkv[4:])
        )
    drawn = teacher.sample(released.labels, sampling, prefix=prefix, until=second)
    close(teacher.embed(drawn), released.tensors[f"combine/teacher_sequence_{name}"], TOLERANCE)
    combined = released.combined(sampling)
    close(combined, released.tensors[f"combine/sequence_{name}"], TOLERANCE)
    masked, ref = (released.tensors[f"combine/teacher_sequence_{which}"] for which in ("masked", "ref"))
    assert (masked - ref).abs().max() > 0.1


# --- networks --------------------------------------------------------------------------------------------------------

B = 3


@pytest.fixture(params=DD1_TEACHERS)
def teacher(request):
    torch.manual_seed(1)
    return DD1_TEACHERS[request.param]()


def causal(layout) -> DD1Causal:
    return DD1Causal(layout, 3, 2, 5, width=16, depth=2, heads=2, frequencies=1)


@pytest.mark.parametrize("family", ["table", "var", "llamagen", "scales"])
def test_a_token_depends_on_its_own_noise_and_on_earlier_positions(family):
    """By automatic differentiation; in particular, tokens of one scale do not see each other."""
    torch.manual_seed(2)
    student = causal(var_teacher().layout) if family == "scales" else DD1_TEACHERS[family]().dd1_student()
    student = randomise(student, 0.3).double()
    n, position = student.layout.length, student.layout.position_of_token()
    allowed = (position[:, None] > position) | torch.eye(n, dtype=torch.bool)
    assert (~allowed).any()
    x = torch.randn(1, n, student.token_dim, dtype=torch.float64, requires_grad=True)
    for t in (0, 1):
        for output in student(x, torch.tensor([1]), t):
            values = output[0] @ torch.randn(output.shape[-1], dtype=torch.float64)
            influence = [torch.autograd.grad(value, x, retain_graph=True)[0][0].abs().amax(-1) for value in values]
            influence = torch.stack(influence)
            assert influence[~allowed].max() == 0
            assert influence[allowed].min() > 1e-9


def test_the_class_and_what_is_finished_matter(teacher):
    student = randomise(teacher.dd1_student()).requires_grad_(False)
    x = torch.randn(1, student.layout.length, student.token_dim)
    both = student(x.expand(2, -1, -1), torch.tensor([0, 1]), 0)
    for rows in both:
        assert (rows[0] - rows[1]).abs().amax(-1).min() > 1e-4
    per_row = student(x.expand(2, -1, -1), torch.tensor([0, 0]), torch.tensor([0, 1]))
    for t in (0, 1):
        for own, alone in zip(per_row, student(x, torch.tensor([0]), t), strict=True):
            close(own[t : t + 1], alone, 1e-5)
    marked = student.layout.counts[0]
    for rows in per_row:
        assert (rows[0] - rows[1]).abs().amax(-1)[:marked].min() > 1e-4


@pytest.mark.parametrize("name", ["var", "llamagen", "not adapted"])
def test_students_start_as_their_teachers(name):
    """Everything that exists in the teacher is taken over, and nothing is shared with it."""
    teacher = DD1_TEACHERS[name]()
    student = teacher.dd1_student()
    assert all(parameter.requires_grad for parameter in student.parameters())
    theirs = {**teacher.backbone.state_dict(), **teacher.classifier.state_dict()}
    own = student.state_dict()
    new = {"n_d_embed", "final_layer_conti", "layerwise_n_d_embed", "tok_embeddings"}
    assert {key.split(".")[0] for key in own.keys() - theirs.keys()} <= new
    for key, value in own.items():
        if key.split(".")[0] in new:
            assert key.endswith("bias") or value.std() > 0
        elif key in ("lvl_embed.weight", "pos_1LC"):
            value, expected = value.view(-1, student.width), theirs[key].view(-1, student.width)
            assert torch.equal(torch.cat([value[:1], value[2:]]), expected)
            assert value[1].std() > 0 and not (value[1] == expected).all(-1).any()
        else:
            assert torch.equal(value, theirs[key]) and value.data_ptr() != theirs[key].data_ptr()


def test_a_shared_modulation():
    """VAR-d36 computes it once; the network of DD1 does as its teacher."""
    config = {**var_teacher().config, "shared_adaln": True}
    student = randomise(VARTeacher.from_config(config).dd1_student())
    assert any("shared_ada_lin" in key for key in student.state_dict())
    x = torch.randn(2, student.layout.length, student.token_dim)
    tokens, _ = student(x, torch.tensor([0, 1]), 1)
    assert tokens.isfinite().all() and (tokens[0] - tokens[1]).abs().min() > 0


def test_a_var_without_a_slot_for_the_class():
    config = VARConfig.from_dict({**var_teacher().config, "sides": [2, 3]})
    with pytest.raises(InputTypeError, match="first scale is one token"):
        VARTeacher(config).dd1_student()


def test_a_teacher_of_ones_own():
    with pytest.raises(InputTypeError, match="GRUTeacher has no network for DD1: override dd1_student"):
        gru_teacher().dd1_student()


def test_recomputed_activations_change_nothing(teacher):
    student = randomise(teacher.dd1_student())
    twin = copy.deepcopy(student)
    Execution(activation_checkpointing=True).apply(twin)
    x, labels = torch.randn(B, student.layout.length, student.token_dim), labels_for(teacher, B)
    for network in (student, twin):
        tokens, logits = network(x, labels, 1)
        (tokens.square().sum() + logits.square().sum()).backward()
    for own, other in zip(student.parameters(), twin.parameters(), strict=True):
        close(other.grad, own.grad, 1e-4 * own.grad.abs().max().item())


def test_heads_are_exact_under_autocast(teacher):
    student = randomise(teacher.dd1_student())
    x = torch.randn(B, student.layout.length, student.token_dim)
    with torch.autocast("cpu", torch.bfloat16):
        prediction = student(x, labels_for(teacher, B), 0)
    assert prediction.tokens.dtype == prediction.logits.dtype == torch.float32
