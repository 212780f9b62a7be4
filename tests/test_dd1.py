"""DD1, the baseline: against the public release, and what its networks may depend on."""

import copy
import json

import numpy as np
import pytest
import torch

import dd2_lightning as dd2
from dd2_lightning.artifacts import Artifact, teacher_reference, write_artifact, write_teacher
from dd2_lightning.cli import main
from dd2_lightning.errors import ArtifactError, InputTypeError
from dd2_lightning.models.dd1 import DD1Generator, DD1Prediction, joined, trajectory_point
from dd2_lightning.models.dd1_table import DD1Causal
from dd2_lightning.models.execution import Execution
from dd2_lightning.models.families import family_of
from dd2_lightning.models.generator import OneStepGenerator
from dd2_lightning.models.table import CodebookOnly
from dd2_lightning.models.var import VARConfig, VARTeacher
from dd2_lightning.noise import stream
from dd2_lightning.sampling import Sampling
from helpers import circle
from reference import close, golden_dd1, under
from runs import fails
from teachers import (
    gru_teacher,
    labels_for,
    llamagen_teacher,
    randomise,
    student_of,
    table_teacher,
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
def test_the_teacher_in_the_middle_of_var(slip):
    released = Golden("var")
    teacher, name = released.teacher, "ref" if slip else "masked"
    sampling = Sampling(guidance_scale=released.sizes["teacher_cfg"], top_k=1)
    start, second = released.sizes["teacher_start"], released.sizes["t_second"]
    prefix = released.tensors["combine/quantised_idx"][:, : teacher.layout.offsets[start]]
    cache = teacher.unmasked_cache() if slip else None
    drawn = teacher.sample(released.labels, sampling, prefix=prefix, until=second, cache=cache)
    close(teacher.embed(drawn), released.tensors[f"combine/teacher_sequence_{name}"], TOLERANCE)
    combined = released.combined(sampling, unmasked_prefix=slip)
    close(combined, released.tensors[f"combine/sequence_{name}"], TOLERANCE)
    masked, ref = (released.tensors[f"combine/teacher_sequence_{which}"] for which in ("masked", "ref"))
    assert (masked - ref).abs().max() > 0.1


def test_no_other_family_has_the_slip():
    generator, teacher = generator_of(llamagen_teacher())
    with pytest.raises(InputTypeError, match="LlamaGenTeacher never reads a prefix without its mask"):
        generator.refine(labels_for(teacher, 2), teacher, 1, unmasked_prefix=True)


# --- networks --------------------------------------------------------------------------------------------------------

TEACHERS = {
    "table": table_teacher,
    "var": var_teacher,
    "llamagen": llamagen_teacher,
    "not adapted": lambda: llamagen_teacher(continuous_input=False),
}
B = 3


def generator_of(teacher, split=1, second=2) -> tuple[DD1Generator, torch.nn.Module]:
    """A generator whose every parameter says something, and its teacher."""
    student = randomise(teacher.requires_grad_(False).eval().dd1_student())
    return DD1Generator(student, teacher.tokenizer, split, second).requires_grad_(False).eval(), teacher


@pytest.fixture(params=TEACHERS)
def teacher(request):
    torch.manual_seed(1)
    return TEACHERS[request.param]()


def causal(layout) -> DD1Causal:
    return DD1Causal(layout, 3, 2, 5, width=16, depth=2, heads=2, octaves=1)


@pytest.mark.parametrize("family", ["table", "var", "llamagen", "scales"])
def test_a_token_depends_on_its_own_noise_and_on_earlier_positions(family):
    """By automatic differentiation; in particular, tokens of one scale do not see each other."""
    torch.manual_seed(2)
    student = causal(var_teacher().layout) if family == "scales" else TEACHERS[family]().dd1_student()
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
    teacher = TEACHERS[name]()
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


# --- sampling --------------------------------------------------------------------------------------------------------


def test_points_of_the_trajectory_and_joined_sequences():
    """Against a loop over tokens, with another t in each row."""
    layout, codebook = var_teacher().layout, circle(5)
    n, t, split = layout.length, torch.tensor([0, 1, 2, 3]), 2
    q, noise = torch.randn(4, n, 2), torch.randn(4, n, 2)
    prediction = DD1Prediction(torch.randn(4, n, 2), torch.randn(4, n, 5))
    x = trajectory_point(layout, q, noise, t)
    sequence = joined(layout, codebook, x, prediction, t, split)
    for b in range(4):
        for i, k in enumerate(layout.position_of_token().tolist()):
            finished = k < t[b]
            assert torch.equal(x[b, i], q[b, i] if finished else noise[b, i])
            if k >= split:
                expected = x[b, i] if finished else prediction.tokens[b, i]
            elif finished:
                expected = codebook[(codebook - x[b, i]).square().sum(-1).argmin()]
            else:
                expected = codebook[prediction.logits[b, i].argmax()]
            assert torch.equal(sequence[b, i], expected)


def test_gradients_of_joined_sequences():
    """Continuous tokens from the split on, where they are no data, have one; codes have none."""
    layout, codebook = var_teacher().layout, circle(5)
    n, position = layout.length, layout.position_of_token()
    tokens, logits = (torch.randn(1, n, size, requires_grad=True) for size in (2, 5))
    x = torch.randn(1, n, 2)
    for t, split in ((0, 1), (2, 1), (1, 3)):
        joined(layout, codebook, x, DD1Prediction(tokens, logits), t, split).sum().backward()
        assert torch.equal(tokens.grad[0, :, 0] == 1, position >= max(t, split))
        assert logits.grad is None
        tokens.grad = None


def test_two_steps_are_two_calls(teacher):
    generator, _ = generator_of(teacher)
    labels, noise = labels_for(teacher, B), torch.randn(B, teacher.layout.length, teacher.token_dim)
    one, two = (generator.sample(labels, noise, steps=steps) for steps in (1, 2))
    kept = teacher.layout.offsets[generator.second]
    assert torch.equal(two[:, :kept], one[:, :kept]) and not torch.equal(two[:, kept:], one[:, kept:])
    codes = teacher.layout.offsets[generator.split]
    close(one[:, :codes], teacher.embed(teacher.snap(one))[:, :codes], 0)
    assert (one - teacher.embed(teacher.snap(one)))[:, codes:].abs().amax(-1).min() > 0
    alone = generator.sample(labels[1:2], noise[1:2], steps=2)
    close(alone, two[1:2], 1e-5)
    drawn = generator.sample(labels, generator=torch.Generator().manual_seed(3))
    assert torch.equal(drawn, generator.sample(labels, generator=torch.Generator().manual_seed(3)))


@pytest.mark.parametrize("start", [0, 1])
def test_the_teacher_in_the_middle(teacher, start, monkeypatch):
    """Its tokens are the teacher's own after the codes nearest to the draft; calls are counted."""
    generator, _ = generator_of(teacher, split=2, second=2)
    layout, labels = teacher.layout, labels_for(teacher, B)
    noise, chance = torch.randn(B, layout.length, teacher.token_dim), torch.rand(B, layout.length)
    calls = []
    generator.student.register_forward_hook(lambda _module, inputs, _output: calls.append(inputs[2]))
    advances = []
    backbone = teacher.backbone
    backbone.register_forward_hook(lambda *_: advances.append(1))
    tokens = generator.refine(labels, teacher, start, noise=noise, chance=chance)
    assert calls == [0, 2][start == 0 :] and len(advances) == 2 - start
    one = generator.sample(labels, noise)
    known = layout.offsets[start]
    prefix = teacher.snap(one)[:, :known] if start else None
    whole = teacher.sample(labels, prefix=prefix, chance=chance)
    middle = teacher.embed(whole)[:, : layout.offsets[2]]
    close(tokens[:, : layout.offsets[2]], middle, 1e-6)
    x = torch.cat([middle, noise[:, layout.offsets[2] :]], 1)
    close(tokens[:, layout.offsets[2] :], generator.student(x, labels, 2).tokens[:, layout.offsets[2] :], 1e-5)


def test_the_teacher_stops_where_it_is_told(teacher):
    labels, chance = labels_for(teacher, B), torch.rand(B, teacher.layout.length)
    teacher = teacher.requires_grad_(False)
    whole = teacher.sample(labels, chance=chance)
    for until in (1, 2, teacher.layout.num_positions):
        part = teacher.sample(labels, chance=chance, until=until)
        assert torch.equal(part, whole[:, : teacher.layout.offsets[until]])


def test_numbers_of_steps():
    """1 + (m - n) + 1 steps with n positions kept, m + 1 with none: 4-5, 3-5 and 0-5 of the published VAR-d16."""
    torch.manual_seed(1)
    generator, teacher = generator_of(llamagen_teacher(), split=5, second=5)
    labels, n = labels_for(teacher, B), teacher.layout.length
    noise, chance = torch.randn(B, n, teacher.token_dim), torch.rand(B, n)
    for steps in (1, 2):
        expected = generator.sample(labels, noise, steps=steps)
        assert torch.equal(generator.sampler(steps)(labels, noise, chance), expected)
    for steps, start in ((3, 4), (4, 3), (5, 2), (6, 0)):
        expected = generator.refine(labels, teacher, start, noise=noise, chance=chance)
        assert torch.equal(generator.sampler(steps, teacher)(labels, noise, chance), expected)
    expected = generator.refine(labels, teacher, 3, 8, Sampling(top_k=2), noise, chance=chance)
    assert torch.equal(generator.sampler(4, teacher, Sampling(top_k=2), 8)(labels, noise, chance), expected)
    for settings, words in (
        ((0,), "steps must be in 1..6"),
        ((7, teacher), "steps must be in 1..6"),
        ((3,), "need a teacher"),
        ((1, None, None, n + 1), f"split must be in 0..{n}"),
    ):
        with pytest.raises(ValueError, match=words):
            generator.sampler(*settings)


def test_what_a_generator_refuses():
    generator, teacher = generator_of(var_teacher())
    labels, student, tokenizer = labels_for(teacher, B), generator.student, teacher.tokenizer
    for split, second, words in ((4, 1, "split"), (-1, 1, "split"), (1, 0, "second"), (1, 3, "second")):
        with pytest.raises(ValueError, match=f"{words} must be in"):
            DD1Generator(student, tokenizer, split, second)
    for call, words in (
        (lambda: generator.sample(torch.tensor([3])), "label 3 is out of range"),
        (lambda: generator.sample(labels, torch.randn(B, 13, 4)), "noise must be"),
        (lambda: generator.sample(labels, steps=3), "steps must be 1 or 2"),
        (lambda: generator.refine(labels, teacher, 2), "start must be in 0..1"),
        (lambda: generator.refine(labels, table_teacher(), 1), "another layout"),
    ):
        with pytest.raises(ValueError, match=words):
            call()


# --- directories -----------------------------------------------------------------------------------------------------


def write_dd1(root, generator: DD1Generator, teacher) -> None:
    """The directories of a teacher and of a DD1 model, whose raw weights are twice the EMA's."""
    write_teacher(root / "teacher", teacher)
    reference = teacher_reference(Artifact.open(root / "teacher", ("teacher",), "teacher"), root / "dd1")
    config = {"family": family_of(teacher), "split": generator.split, "second": generator.second, "teacher": reference}
    state = generator.student.state_dict()
    raw = {key: 2 * value for key, value in state.items()}
    write_artifact(root / "dd1", "dd1", config, {"generator": state, "generator_raw": raw})


def test_a_directory_of_dd1(teacher, tmp_path):
    generator, _ = generator_of(teacher, split=1, second=2)
    write_dd1(tmp_path, generator, teacher)
    loaded = dd2.load_generator(tmp_path / "dd1")
    assert isinstance(loaded, DD1Generator) and not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    labels, noise = labels_for(teacher, B), torch.randn(B, teacher.layout.length, teacher.token_dim)
    assert torch.equal(loaded.sample(labels, noise, steps=2), generator.sample(labels, noise, steps=2))
    raw = dd2.load_generator(tmp_path / "dd1", "raw")
    assert torch.equal(raw.student.n_d_embed.weight, 2 * generator.student.n_d_embed.weight)


def test_a_directory_that_does_not_fit(tmp_path):
    generator, teacher = generator_of(var_teacher())
    write_dd1(tmp_path, generator, teacher)
    with pytest.raises(ArtifactError, match="family 'var', the teacher is of family 'llamagen'"):
        dd2.load_generator(tmp_path / "dd1", teacher=llamagen_teacher())
    config = json.loads((tmp_path / "dd1/config.json").read_text())
    state = generator.student.state_dict()
    state.pop("n_d_embed.weight")
    write_artifact(tmp_path / "dd1", "dd1", config, {"generator": state})
    with pytest.raises(ArtifactError, match="1 missing: n_d_embed"):
        dd2.load_generator(tmp_path / "dd1")


def sampled(root, *options: str) -> np.ndarray:
    main(["sample", "--model", str(root / "dd1"), "--output", str(root / "x.npz"), "--num", "4", *options])
    return np.load(root / "x.npz")["arr_0"]


def test_the_command(tmp_path, capsys):
    """Pictures are those of the sampler at the command's noise."""
    torch.manual_seed(1)
    generator, teacher = generator_of(var_teacher())
    write_dd1(tmp_path, generator, teacher)
    labels, n = labels_for(teacher, 4), teacher.layout.length
    noise = torch.randn(4, n, teacher.token_dim, generator=stream(7, "sample"))
    chance = torch.rand(4, n, generator=stream(7, "refine"))
    with_teacher = ("--teacher", str(tmp_path / "teacher"), "--sampling.top_k", "3")
    refined = generator.refine(labels, teacher, 0, None, Sampling(top_k=3), noise, chance=chance)
    for options, tokens in (
        (("--steps", "2", "--split", "3"), generator.sample(labels, noise, steps=2, split=3)),
        (("--steps", "3", *with_teacher), refined),
    ):
        expected = (generator.decode(tokens) * 255).round().byte().permute(0, 2, 3, 1)
        assert np.array_equal(sampled(tmp_path, "--seed", "7", *options), expected.numpy())
    with fails(capsys, 2, "need a teacher", "--teacher"):
        sampled(tmp_path, "--steps", "3")


def test_models_of_dd2_have_no_split():
    teacher = table_teacher()
    generator = OneStepGenerator(student_of(teacher), CodebookOnly(teacher.codebook, teacher.layout), 1.0)
    with pytest.raises(ValueError, match="split is for DD1 models"):
        generator.sampler(1, split=2)
