"""The closed-form teacher flow against the density it is the flow of."""

import math

import pytest
import torch

from dd2_lightning.flow import (
    CHUNKS,
    T_FLOOR,
    CodebookFlow,
    HeadFlow,
    add_noise,
    codebook_posterior_mean,
    denoised_from_velocity,
    euler_times,
    integrate,
    velocity_from_denoised,
)
from helpers import circle, reference_flow, reference_score, relative_error
from memory import needs_proc, output_of

# B, n, m, C, V: from the smallest there is to VAR's codebook
SIZES = [(1, 1, 1, 1, 2), (2, 3, 1, 2, 8), (3, 2, 5, 7, 33), (2, 4, 4, 32, 4096)]
LARGEST = SIZES[-1]


def problem(size, cut=0.0):
    """A codebook (V, C) and log p (B, n, V), in which a fraction ``cut`` of the tokens is forbidden."""
    B, n, _, C, V = size
    logits = 2 * torch.randn(B, n, V)
    logits[..., 1:] = logits[..., 1:].masked_fill(torch.rand(B, n, V - 1) < cut, -torch.inf)
    return torch.randn(V, C), logits.log_softmax(-1)


def drawn_from_p_t(codebook, log_p, t):
    """Points x_t of the very distribution the flow is about, (B, n, m, C)."""
    B, n, m = t.shape
    index = torch.multinomial(log_p.exp().flatten(0, 1), m, replacement=True).view(B, n, m)
    eps = torch.randn(B, n, m, codebook.shape[1])
    return (1 - t[..., None]) * codebook[index] + t[..., None] * eps


def midway(codebook, t):
    """Points midway between two codes, where the posterior is most sensitive to rounding."""
    pair = torch.stack([torch.randperm(len(codebook))[:2] for _ in range(t.numel())]).view(*t.shape, 2)
    return (1 - t[..., None]) * codebook[pair].mean(-2)


def times(size, low=0.02, high=0.999):
    """From ``low`` to ``high``, the ends included, (B, n, m)."""
    B, n, m, _, _ = size
    return torch.linspace(low, high, max(B * n * m, 2))[: B * n * m].view(B, n, m)


def flow_errors(x, t, codebook, log_p, pulls=False):
    """Worst relative errors of velocity and clean token.

    Clean tokens near 0 are judged by the size of a token, and velocities by that of ε - q; with ``pulls`` by that of
    q/t, the pull of a single code: midway between two codes v is the small difference of two of those.
    """
    flow = CodebookFlow(codebook, log_p)
    v, x0 = reference_flow(x.double(), t, codebook, log_p)
    token = codebook.double().norm(dim=-1).mean().item()
    scale = token / t.min().item() if pulls else math.sqrt(token**2 + codebook.shape[1])
    return relative_error(flow.velocity(x, t), v, scale), relative_error(flow.denoise(x, t), x0, token)


def vjp_error(x, t, codebook, log_p):
    """Worst relative error of gᵀ ∂v/∂x; where the true one is about 0 it is judged by the size of g."""
    g = torch.randn_like(x)
    ours, exact = x.clone().requires_grad_(), x.double().requires_grad_()
    (found,) = torch.autograd.grad(CodebookFlow(codebook, log_p).velocity(ours, t), ours, g)
    v, _ = reference_flow(exact, t, codebook, log_p, differentiable=True)
    return relative_error(found, torch.autograd.grad(v, exact, g.double())[0], g.norm(dim=-1).mean().item())


@pytest.mark.parametrize("cut", [0.0, 0.7])
@pytest.mark.parametrize("size", SIZES)
def test_equals_the_score_on_points_of_p_t(size, cut):
    codebook, log_p = problem(size, cut)
    t = times(size)
    assert max(flow_errors(drawn_from_p_t(codebook, log_p, t), t, codebook, log_p)) <= 1e-5


@pytest.mark.parametrize("t, tolerance", [(0.02, 1e-2), (0.1, 1e-2), (0.3, 1e-4), (0.6, 1e-4), (0.9, 1e-4)])
@pytest.mark.parametrize("size", SIZES[1:])
def test_equals_the_score_midway_between_codes(size, t, tolerance):
    codebook, log_p = problem(size)
    t = torch.full(size[:3], t)
    pulls = t.min() < 0.1
    assert max(flow_errors(midway(codebook, t), t, codebook, log_p, pulls)) <= tolerance


@pytest.mark.parametrize("t, tolerance", [(t, 1e-5) for t in (0.02, 0.1, 0.3, 0.6, 0.9, 0.999)])
@pytest.mark.parametrize("size", SIZES)
def test_gradients_on_points_of_p_t(size, t, tolerance):
    codebook, log_p = problem(size)
    t = torch.full(size[:3], t)
    assert vjp_error(drawn_from_p_t(codebook, log_p, t), t, codebook, log_p) <= tolerance


@pytest.mark.parametrize("t, tolerance", [(0.02, 1e-2), (0.1, 1e-2), (0.3, 1e-4), (0.6, 1e-4), (0.9, 1e-4)])
@pytest.mark.parametrize("size", SIZES[1:])
def test_gradients_midway_between_codes(size, t, tolerance):
    codebook, log_p = problem(size)
    t = torch.full(size[:3], t)
    assert vjp_error(midway(codebook, t), t, codebook, log_p) <= tolerance


@pytest.mark.parametrize("chunk", [1, 1 << 17])
def test_gradients_of_codes_and_probabilities(monkeypatch, chunk):
    """Against automatic differentiation of the weights themselves; however many rows go through at a time."""
    monkeypatch.setitem(CHUNKS, "cpu", chunk)
    size = SIZES[1]
    codebook, log_p = (part.double() for part in problem(size))
    t = times(size, low=0.2).double()
    x = drawn_from_p_t(codebook, log_p, t)

    def explicit(x, codebook, log_p):
        distance = (x[..., None, :] - (1 - t)[..., None, None] * codebook).square().sum(-1)
        return (log_p[:, :, None] - distance / (2 * t[..., None] ** 2)).softmax(-1) @ codebook

    g, found = torch.randn_like(x), []
    for formula in (explicit, lambda x, codebook, log_p: codebook_posterior_mean(x, t, codebook, log_p)):
        inputs = [value.clone().requires_grad_() for value in (x, codebook, log_p)]
        found.append(torch.autograd.grad(formula(*inputs), inputs, g))
    for expected, gradient in zip(*found, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.gpu
def test_the_gpu_agrees():
    size = SIZES[2]
    codebook, log_p = problem(size, cut=0.3)
    t = times(size)
    x, found = drawn_from_p_t(codebook, log_p, t), []
    for device in ("cpu", "cuda"):
        points = x.to(device).requires_grad_()
        x0 = codebook_posterior_mean(points, t.to(device), codebook.to(device), log_p.to(device))
        found.append([value.cpu() for value in (x0, *torch.autograd.grad(x0.square().sum(), points))])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_float64_in_gives_float64():
    """To its own precision, which no float32 step on the way would leave."""
    size = SIZES[2]
    codebook, log_p = (part.double() for part in problem(size))
    t = times(size).double()
    x = drawn_from_p_t(codebook, log_p, t)
    assert CodebookFlow(codebook, log_p).velocity(x, t).dtype == torch.float64
    assert max(flow_errors(x, t, codebook, log_p)) <= 1e-12


def test_weights_are_the_probabilities_at_t_one():
    """The noise alone says nothing about the token."""
    for size in SIZES:
        codebook, log_p = problem(size, cut=0.3)
        x, t = torch.randn(size[:4]), torch.ones(size[:3])
        mean = (log_p.double().exp() @ codebook.double())[:, :, None].expand(x.shape)
        assert relative_error(codebook_posterior_mean(x, t, codebook, log_p), mean, 1.0) <= 1e-5


def test_log_p_need_not_be_normalised():
    size = SIZES[2]
    codebook, log_p = problem(size)
    t = times(size, low=0.2)
    x = drawn_from_p_t(codebook, log_p, t)
    shifted = codebook_posterior_mean(x, t, codebook, log_p + 3 * torch.randn(*size[:2], 1))
    torch.testing.assert_close(shifted, codebook_posterior_mean(x, t, codebook, log_p), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("t", [0.0, T_FLOOR, 0.02, 0.5, 1.0])
def test_cut_tokens_have_exactly_no_weight(t):
    """Moving a forbidden code anywhere changes no bit, forward or backward, even for points that lie on it."""
    size = (2, 3, 4, 5, 40)
    codebook, log_p = problem(size)
    log_p[..., 10:] = -torch.inf
    t = torch.full(size[:3], t)
    x = codebook[torch.randint(10, 40, size[:3])]
    g = torch.randn_like(x)

    def run(moved):
        points, codes = x.clone().requires_grad_(), torch.cat([codebook[:10], moved]).requires_grad_()
        x0 = codebook_posterior_mean(points, t, codes, log_p)
        return x0, *torch.autograd.grad(x0, (points, codes), g)

    here, there = run(codebook[10:]), run(50 * torch.randn(30, 5))
    for one, other in zip(here, there, strict=True):
        assert one.isfinite().all()
        assert torch.equal(one, other)
    assert (here[2][10:] == 0).all()


@pytest.mark.parametrize("t", [0.0, 0.02, 0.5, 1.0])
def test_a_row_with_one_allowed_token_knows_its_answer(t):
    size = (2, 3, 4, 5, 40)
    codebook, log_p = problem(size)
    only = torch.randint(40, (2, 3, 1))
    log_p = torch.full_like(log_p, -torch.inf).scatter(-1, only, 0)
    x, t = torch.randn(size[:4], requires_grad=True), torch.full(size[:3], t)
    x0 = codebook_posterior_mean(x, t, codebook, log_p)
    torch.testing.assert_close(x0, codebook[only].expand_as(x0), rtol=1e-6, atol=1e-6)
    # the exact Jacobian is 0; the softmax's last bit reaches it times (1-t)/t², a million at the floor
    gain = 1 / t.clamp(min=T_FLOOR).min().item() ** 2
    assert torch.autograd.grad(x0.sum(), x)[0].abs().max() <= 1e-5 * gain


def test_times_below_the_floor_count_as_the_floor():
    size = SIZES[2]
    codebook, log_p = problem(size)
    x = torch.randn(size[:4])
    floor = CodebookFlow(codebook, log_p).velocity(x, torch.full(size[:3], T_FLOOR))
    assert torch.equal(CodebookFlow(codebook, log_p).velocity(x, torch.zeros(size[:3])), floor)


def test_conversions_agree():
    """Score, noise and velocity of the flow are three views of one clean token (float64, so to rounding)."""
    size = SIZES[2]
    codebook, log_p = (part.double() for part in problem(size))
    t = times(size).double()
    x = drawn_from_p_t(codebook, log_p, t)
    flow = CodebookFlow(codebook, log_p)
    x0, v = flow.denoise(x, t), flow.velocity(x, t)
    time = t[..., None]
    s, eps = ((1 - time) * x0 - x) / time**2, (x - (1 - time) * x0) / time
    assert relative_error(s, reference_score(x, t, codebook, log_p), 1.0) <= 1e-11
    torch.testing.assert_close(denoised_from_velocity(v, x, t), x0)
    torch.testing.assert_close(velocity_from_denoised(x0, x, t), v)
    torch.testing.assert_close(eps, -time * s)
    torch.testing.assert_close((1 - time) * x0 + time * eps, x)  # the noising, undone
    torch.testing.assert_close(eps - x0, v)


def test_noising():
    """Each draw of a token has its own time and noise; a known pair has velocity ε - q and score -ε/t."""
    q, t, eps = torch.randn(2, 3, 5), torch.rand(2, 3, 4), torch.randn(2, 3, 4, 5)
    noised = add_noise(q, t, eps)
    for b, i, j in [(0, 0, 0), (1, 2, 3), (0, 1, 2)]:
        expected = (1 - t[b, i, j]) * q[b, i] + t[b, i, j] * eps[b, i, j]
        torch.testing.assert_close(noised.x_t[b, i, j], expected)
    clean = q[:, :, None].expand_as(eps)
    torch.testing.assert_close(velocity_from_denoised(clean, noised.x_t, t), eps - clean, rtol=1e-3, atol=1e-3)


def test_bfloat16_under_autocast_computes_in_float32():
    """Logits grow as 1/t²: whatever arrives in bfloat16 is widened before any arithmetic."""
    size = SIZES[2]
    codebook, log_p = problem(size)
    t = times(size).bfloat16()
    x = drawn_from_p_t(codebook, log_p, t.float()).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        v = CodebookFlow(codebook, log_p).velocity(x, t)
    assert v.dtype == torch.float32
    assert torch.equal(v, CodebookFlow(codebook, log_p).velocity(x.float(), t.float()))


def test_a_learned_flow_answers_in_float32():
    """x_t - t v is a difference of near-equal numbers at small t, so a bfloat16 head is widened first."""
    head, x, t = torch.nn.Linear(3, 3), torch.randn(2, 3, 4, 3), torch.rand(2, 3, 4)
    flow = HeadFlow(lambda x_t, t, features: head(x_t), torch.zeros(2, 3, 1))
    with torch.autocast("cpu", torch.bfloat16):
        v, x0 = flow.velocity(x, t), flow.denoise(x, t)
        assert head(x).dtype == torch.bfloat16
    assert v.dtype == x0.dtype == torch.float32
    torch.testing.assert_close(x0, x - t[..., None] * v)
    assert HeadFlow(lambda x_t, t, features: x_t, torch.zeros(2, 3, 1)).velocity(x.bfloat16(), t).dtype == torch.float32


MEMORY = """
import torch
from dd2_lightning.timing.flows import stored_posterior_mean as stored
from dd2_lightning.flow import CodebookFlow
from memory import peak

def fused(x, t, codebook, log_p):
    return CodebookFlow(codebook, log_p).denoise(x, t)

def backward(x, *rest):
    x0 = fused(x.requires_grad_(), *rest)
    torch.autograd.grad(x0, x, torch.ones_like(x0))

def inputs(B, n, m, C, V):  # filled in place: nothing here may reach a higher peak than what stays
    x, codebook, log_p = (torch.empty(*shape).normal_() for shape in ((B, n, m, C), (V, C), (B, n, V)))
    return x, torch.empty(B, n, m).uniform_(0.02, 1), codebook, log_p

torch.set_num_threads(1)
calls = (fused, backward, stored)
for call in calls:  # loads the kernels
    call(*inputs(1, 2, 4, 32, 4096))
big = inputs(4, 680, 4, 32, 4096)
before = peak()
for call in calls:  # a peak never falls, so the hungriest comes last
    call(*big)
    print(peak() - before)
"""


@needs_proc
def test_memory():
    """2,720 contexts x 4 draws x 4,096 codes x 32 channels: neither (rows, V) weights nor a codebook a row."""
    forward, backward, stored = map(float, output_of(MEMORY).split())
    assert forward <= 64
    assert backward <= 64
    assert stored > 64  # the check can fail: one array of weights is 178 MB


def test_integration_lands_on_codes_at_the_right_frequencies():
    """On the line the map from noise to data is monotone, so each code receives its own quantiles of N(0, 1)."""
    p = torch.tensor([0.1, 0.45, 0.15, 0.3])
    codebook = torch.tensor([[-1.5], [-0.2], [0.6], [2.0]])
    eps = torch.linspace(-3, 3, 1201)
    ends = integrate(CodebookFlow(codebook, p.log().expand(1, 1201, 4)), eps[None, :, None], euler_times(1000))[0]
    edges = math.sqrt(2) * torch.erfinv(2 * p.cumsum(0)[:-1] - 1)
    clear = (eps[:, None] - edges).abs().min(-1).values > 0.02  # Euler moves the edges a little
    expected = codebook[torch.searchsorted(edges, eps)]
    torch.testing.assert_close(ends[clear], expected[clear], rtol=0, atol=1e-3)
    assert clear.float().mean() > 0.95


def test_integration_of_random_noise_in_the_plane():
    p = torch.tensor([0.3, 0.05, 0.1, 0.2, 0.05, 0.1, 0.15, 0.05])
    codebook, N = circle(8), 8192
    ends = integrate(CodebookFlow(codebook, p.log().expand(1, N, 8)), torch.randn(1, N, 2), euler_times(200))[0]
    distance, index = torch.cdist(ends, codebook).min(-1)
    assert (distance < 1e-2).float().mean() > 0.99  # the last step goes to x̂0, which is a code but at an edge
    frequency = torch.bincount(index, minlength=8) / N
    assert (frequency - p).abs().max() < 4 * (0.25 / N) ** 0.5


def test_one_euler_step_is_the_denoiser():
    """From t = 1 to 0 in one step: the mean of the tokens, which is why one step needs a generator."""
    size = SIZES[2]
    codebook, log_p = problem(size)
    eps = torch.randn(size[0], size[1], size[3])
    flow = CodebookFlow(codebook, log_p)
    end = integrate(flow, eps, euler_times(1))
    torch.testing.assert_close(end, flow.denoise(eps[:, :, None], torch.ones(*size[:2], 1))[:, :, 0])
    torch.testing.assert_close(end, log_p.exp() @ codebook, rtol=1e-4, atol=1e-5)
