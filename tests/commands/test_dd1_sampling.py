"""Sampling with DD1: one call, two, the teacher between them; directories and ``dd2 sample``."""

import json

import numpy as np
import pytest
import torch

import dd2_lightning as dd2
from dd2_lightning.artifacts import Artifact, teacher_reference, write_artifact, write_teacher
from dd2_lightning.cli import main
from dd2_lightning.errors import ArtifactError
from dd2_lightning.families.registry import family_of
from dd2_lightning.families.table.model import CodebookOnly
from dd2_lightning.models.dd1 import DD1Prediction, joined, trajectory_point
from dd2_lightning.models.dd1_generator import DD1Generator
from dd2_lightning.models.generator import OneStepGenerator
from dd2_lightning.noise import SampleNoise
from dd2_lightning.sampling import Sampling
from helpers import circle
from reference import close
from runs import fails
from teachers import (
    DD1_TEACHERS,
    dd1_generator,
    labels_for,
    llamagen_teacher,
    student_of,
    table_teacher,
    var_teacher,
)

B = 3


@pytest.fixture(params=DD1_TEACHERS)
def teacher(request):
    torch.manual_seed(1)
    return DD1_TEACHERS[request.param]()


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
    generator = dd1_generator(teacher)
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
def test_the_teacher_in_the_middle(teacher, start):
    """Its tokens are the teacher's own after the codes nearest to the draft; calls are counted."""
    generator = dd1_generator(teacher, split=2, second=2)
    layout, labels = teacher.layout, labels_for(teacher, B)
    noise, uniforms = torch.randn(B, layout.length, teacher.token_dim), torch.rand(B, layout.length)
    calls, advances = [], []
    generator.student.register_forward_hook(lambda _module, inputs, _output: calls.append(inputs[2]))
    teacher.backbone.register_forward_hook(lambda *_: advances.append(1))
    tokens = generator.refine(labels, teacher, start, noise=noise, uniforms=uniforms)
    assert calls == [0, 2][start == 0 :] and len(advances) == 2 - start
    one = generator.sample(labels, noise)
    known = layout.offsets[start]
    prefix = teacher.snap(one)[:, :known] if start else None
    whole = teacher.sample(labels, prefix=prefix, uniforms=uniforms)
    middle = teacher.embed(whole)[:, : layout.offsets[2]]
    close(tokens[:, : layout.offsets[2]], middle, 1e-6)
    x = torch.cat([middle, noise[:, layout.offsets[2] :]], 1)
    close(tokens[:, layout.offsets[2] :], generator.student(x, labels, 2).tokens[:, layout.offsets[2] :], 1e-5)


def test_the_teacher_stops_where_it_is_told(teacher):
    labels, uniforms = labels_for(teacher, B), torch.rand(B, teacher.layout.length)
    teacher = teacher.requires_grad_(False)
    whole = teacher.sample(labels, uniforms=uniforms)
    for until in (1, 2, teacher.layout.num_positions):
        part = teacher.sample(labels, uniforms=uniforms, until=until)
        assert torch.equal(part, whole[:, : teacher.layout.offsets[until]])


def test_numbers_of_steps():
    """1 + (m - n) + 1 steps with n positions kept, m + 1 with none: 4-5, 3-5 and 0-5 of the published VAR-d16."""
    torch.manual_seed(1)
    teacher = llamagen_teacher()
    generator = dd1_generator(teacher, split=5, second=5)
    labels, n = labels_for(teacher, B), teacher.layout.length
    noise, uniforms = torch.randn(B, n, teacher.token_dim), torch.rand(B, n)
    for steps in (1, 2):
        expected = generator.sample(labels, noise, steps=steps)
        assert torch.equal(generator.sampler(steps)(labels, noise, uniforms), expected)
    for steps, start in ((3, 4), (4, 3), (5, 2), (6, 0)):
        expected = generator.refine(labels, teacher, start, noise=noise, uniforms=uniforms)
        assert torch.equal(generator.sampler(steps, teacher)(labels, noise, uniforms), expected)
    expected = generator.refine(labels, teacher, 3, 8, Sampling(top_k=2), noise, uniforms=uniforms)
    assert torch.equal(generator.sampler(4, teacher, Sampling(top_k=2), 8)(labels, noise, uniforms), expected)
    for settings, words in (
        ((0,), "steps must be in 1..6"),
        ((7, teacher), "steps must be in 1..6"),
        ((3,), "need a teacher"),
        ((1, None, None, n + 1), f"split must be in 0..{n}"),
    ):
        with pytest.raises(ValueError, match=words):
            generator.sampler(*settings)


def test_what_a_generator_refuses():
    teacher = var_teacher()
    generator = dd1_generator(teacher)
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
    generator = dd1_generator(teacher, split=1, second=2)
    write_dd1(tmp_path, generator, teacher)
    loaded = dd2.load_generator(tmp_path / "dd1")
    assert isinstance(loaded, DD1Generator) and not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    labels, noise = labels_for(teacher, B), torch.randn(B, teacher.layout.length, teacher.token_dim)
    assert torch.equal(loaded.sample(labels, noise, steps=2), generator.sample(labels, noise, steps=2))
    raw = dd2.load_generator(tmp_path / "dd1", "raw")
    assert torch.equal(raw.student.n_d_embed.weight, 2 * generator.student.n_d_embed.weight)


def test_a_directory_that_does_not_fit(tmp_path):
    teacher = var_teacher()
    generator = dd1_generator(teacher)
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
    teacher = var_teacher()
    generator = dd1_generator(teacher)
    write_dd1(tmp_path, generator, teacher)
    labels, n = labels_for(teacher, 4), teacher.layout.length
    noise, uniforms = SampleNoise(7, 0, 4).for_generators(n, teacher.token_dim)
    with_teacher = ("--teacher", str(tmp_path / "teacher"), "--sampling.top_k", "3")
    refined = generator.refine(labels, teacher, 0, None, Sampling(top_k=3), noise, uniforms=uniforms)
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
