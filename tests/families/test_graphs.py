"""What makes small batches fast on a GPU: captured calls, weights that are cast once, one graph without breaks."""

import pytest
import torch

from dd2_lightning.models.graphs import Replayed, cast_linears
from dd2_lightning.models.layers import Linear
from dd2_lightning.models.student import build_student
from dd2_lightning.sampling import Sampling
from reference import golden_llamagen, golden_var

TEACHERS = {"var": lambda: golden_var("var_tiny")[0], "llamagen": lambda: golden_llamagen()[0]}
GUIDED = Sampling(guidance_scale=2.0, top_k=9, top_p=0.9)


@pytest.fixture(params=TEACHERS)
def teacher(request):
    teacher = TEACHERS[request.param]()
    return teacher if request.param == "var" else teacher.continuous().requires_grad_(False)


def one_step(teacher):
    """A student whose velocity is not zero."""
    student = build_student(teacher, width=16, depth=1).requires_grad_(False)
    for parameter in student.head.parameters():
        parameter.normal_(std=0.1)
    return student


def test_one_step_has_no_graph_break(teacher):
    student, labels = one_step(teacher), torch.arange(2)
    noise = torch.randn(2, teacher.layout.length, teacher.token_dim)
    compiled = torch.compile(student.generate, backend="eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(noise, labels), student.generate(noise, labels))


def test_weights_that_are_cast_once_give_the_numbers_of_autocast(teacher):
    labels, tokens = torch.arange(3), torch.randn(3, teacher.layout.length, teacher.token_dim)
    student = one_step(teacher)

    def computed():
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            return teacher.logits(tokens, labels, 2.0), student.generate(tokens, labels)

    before = computed()
    cast_linears(teacher, torch.bfloat16)
    cast_linears(student, torch.bfloat16)
    assert {m.weight.dtype for m in student.modules() if isinstance(m, Linear)} == {torch.bfloat16}
    for one, other in zip(before, computed(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_elsewhere_a_function_is_called_as_it_is():
    assert Replayed(torch.add)(torch.ones(2), torch.ones(2)).tolist() == [2, 2]


@pytest.mark.gpu
def test_captured_samplers(teacher):
    """Other inputs than those of the capture give what the functions themselves give; every shape has its graph."""
    teacher, student = teacher.cuda(), one_step(teacher).cuda()
    n, C = teacher.layout.length, teacher.token_dim
    sample = Replayed(lambda labels, uniforms: teacher.sample(labels, GUIDED, uniforms=uniforms))
    generate = Replayed(lambda labels, noise: student.generate(noise, labels))
    for batch in (2, 3, 2):
        labels, uniforms = torch.arange(batch, device="cuda"), torch.rand(batch, n, device="cuda")
        noise = torch.randn(batch, n, C, device="cuda")
        with torch.no_grad():
            assert torch.equal(sample(labels, uniforms), teacher.sample(labels, GUIDED, uniforms=uniforms))
            torch.testing.assert_close(generate(labels, noise), student.generate(noise, labels))
    assert len(sample.recordings) == len(generate.recordings) == 2


@pytest.mark.gpu
def test_the_gpu_draws_the_tokens_of_the_cpu(teacher):
    labels, uniforms = torch.arange(4), torch.rand(4, teacher.layout.length)
    expected = teacher.sample(labels, GUIDED, uniforms=uniforms)
    found = teacher.cuda().sample(labels.cuda(), GUIDED, uniforms=uniforms.cuda()).cpu()
    assert (found == expected).double().mean() > 0.95
