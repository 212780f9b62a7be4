"""The losses: against loops, and against what theory says of their minima and gradients.

The theory is checked where everything is known: a generator q = μ + σ ε in one dimension, whose optimal guidance
network is the posterior mean of a Gaussian, and a codebook teacher. Expectations are Gauss-Hermite sums in float64,
which converge exponentially, so identities hold to 1e-8 without any sampling error.
"""

import itertools
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from dd2_lightning.flow import CodebookFlow, add_noise, denoised_from_velocity, velocity_from_denoised
from dd2_lightning.layout import Layout
from dd2_lightning.losses import csd_weight, dmd_loss, fcs_loss, gts_loss, position_weight, sid_loss
from teachers import labels_for, random_indices, student_of, table_teacher

B, n, m, C = 2, 3, 4, 5


@dataclass
class DenoiserFlow:
    """The flow whose clean token is a function of (x_t, t)."""

    clean: object

    def denoise(self, x_t, t):
        return self.clean(x_t, t[..., None])

    def velocity(self, x_t, t):
        return velocity_from_denoised(self.denoise(x_t, t), x_t, t)


def linear_flow(channels=C):
    """x̂0 = tanh(x W) + t b with parameters W and b, and these parameters."""
    W, b = torch.randn(channels, channels, requires_grad=True), torch.randn(channels, requires_grad=True)
    return DenoiserFlow(lambda x, t: (x @ W).tanh() + t * b), (W, b)


@pytest.fixture
def noised():
    q = torch.randn(B, n, C, requires_grad=True)
    return add_noise(q, torch.rand(B, n, m) * 0.9 + 0.1, torch.randn(B, n, m, C))


# --- against loops ---------------------------------------------------------------------------------------------------


def looped(summand):
    """Sum over channels and mean over draws of ``summand(b, i, j, c)``, (B, n)."""
    values = torch.zeros(B, n)
    for b, i, j, c in itertools.product(range(B), range(n), range(m), range(C)):
        values[b, i] += summand((b, i, j, c)).item() / m
    return values


def test_gts_loss_is_a_squared_difference_of_velocities(noised):
    student, teacher = linear_flow()[0], linear_flow()[0]
    ours, target = student.velocity(noised.x_t, noised.t), teacher.velocity(noised.x_t, noised.t)
    expected = looped(lambda at: (ours[at] - target[at]) ** 2)
    torch.testing.assert_close(gts_loss(student, teacher, noised), expected)


def test_fcs_loss_regresses_on_noise_minus_token(noised):
    guidance = linear_flow()[0]
    v = guidance.velocity(noised.x_t, noised.t)
    expected = looped(lambda at: (v[at] - (noised.eps[at] - noised.q[at[0], at[1], at[3]])) ** 2)
    torch.testing.assert_close(fcs_loss(guidance, noised), expected)


def loop_weight(x0, q, normaliser, at):
    b, i, j, _ = at
    if normaliser == "none":
        return 1.0
    difference = (x0 - q[:, :, None]).abs()
    return 1 / max({"sample": difference[b].mean(), "token": difference[b, i, j].mean()}[normaliser].item(), 1e-2)


@pytest.mark.parametrize("normaliser", ["sample", "token", "none"])
@pytest.mark.parametrize("alpha", [0.5, 1.0, 1.2])
def test_sid_loss(noised, normaliser, alpha):
    teacher, guidance = linear_flow()[0], linear_flow()[0]
    real, fake = teacher.denoise(noised.x_t, noised.t), guidance.denoise(noised.x_t, noised.t)
    delta, q = real - fake, noised.q

    def summand(at):
        inner = (1 - alpha) * delta[at] ** 2 + delta[at] * (fake[at] - q[at[0], at[1], at[3]])
        return inner * loop_weight(real, q, normaliser, at)

    result = sid_loss(teacher, guidance, noised, alpha, normaliser)
    torch.testing.assert_close(result.loss, looped(summand))
    torch.testing.assert_close(result.gap, looped(lambda at: delta[at] ** 2))
    assert not result.gap.requires_grad


def test_sid_loss_is_by_default_the_papers(noised):
    teacher, guidance = linear_flow()[0], linear_flow()[0]
    expected = sid_loss(teacher, guidance, noised, alpha=1.0, normaliser="sample").loss
    assert torch.equal(sid_loss(teacher, guidance, noised).loss, expected)


@pytest.mark.parametrize("normaliser", ["sample", "token", "none"])
def test_dmd_loss_has_the_gradient_it_is_named_for(noised, normaliser):
    teacher, guidance = linear_flow()[0], linear_flow()[0]
    real, fake = teacher.denoise(noised.x_t, noised.t), guidance.denoise(noised.x_t, noised.t)
    result = dmd_loss(teacher, guidance, noised, normaliser)
    expected = torch.zeros(B, n, C)
    for b, i, j, c in itertools.product(range(B), range(n), range(m), range(C)):
        weight = loop_weight(real, noised.q, normaliser, (b, i, j, c))
        expected[b, i, c] += (weight * (fake - real)[b, i, j, c] / m).item()
    torch.testing.assert_close(torch.autograd.grad(result.loss.sum(), noised.q)[0], expected)
    torch.testing.assert_close(result.gap, looped(lambda at: (real - fake)[at] ** 2))
    assert not result.gap.requires_grad


# --- weights ---------------------------------------------------------------------------------------------------------


def test_weights_are_bounded_where_teacher_and_generator_agree():
    q = torch.randn(B, n, 1, C)
    for normaliser in ("sample", "token"):
        weight = csd_weight(q.expand(B, n, m, C), q, normaliser)
        assert weight.shape == {"sample": (B, 1, 1, 1), "token": (B, n, m, 1)}[normaliser]
        torch.testing.assert_close(weight, torch.full_like(weight, 100.0))
    assert csd_weight(q, q, "none").tolist() == [1]


def test_weight_of_one_sample_is_its_own():
    """A batch-mate that is far off must not quieten a sample."""
    x0, q = torch.randn(B, n, m, C), torch.randn(B, n, 1, C)
    far = torch.cat([x0[:1], 100 * x0[1:]])
    assert torch.equal(csd_weight(far, q, "sample")[0], csd_weight(x0, q, "sample")[0])
    assert csd_weight(far, q, "sample")[1] < csd_weight(x0, q, "sample")[1]


@pytest.mark.parametrize("normaliser", ["sample", "token"])
def test_no_gradient_flows_through_the_weight(normaliser):
    """With one draw a token, the weighted gradient is the unweighted one times a constant per sample or token."""
    teacher, guidance = linear_flow()[0], linear_flow()[0]
    q = torch.randn(B, n, C, requires_grad=True)
    noised = add_noise(q, torch.rand(B, n, 1) * 0.9 + 0.1, torch.randn(B, n, 1, C))
    weight = csd_weight(teacher.denoise(noised.x_t, noised.t), q[:, :, None], normaliser)[:, :, 0]
    assert not weight.requires_grad

    def gradient(kind):
        return torch.autograd.grad(sid_loss(teacher, guidance, noised, 1.0, kind).loss.sum(), q, retain_graph=True)[0]

    torch.testing.assert_close(gradient(normaliser), weight * gradient("none"))


def test_position_weight_is_linear_over_positions():
    weight = position_weight(Layout((1, 4, 9)), 3, 1)
    assert weight.tolist() == [3.0] + [2.0] * 4 + [1.0] * 9
    torch.testing.assert_close(position_weight(Layout((1,) * 5), 1, 3), torch.tensor([1, 1.5, 2, 2.5, 3]))
    assert position_weight(Layout((4,)), 3, 1).tolist() == [3.0] * 4  # one position: no slope to speak of


# --- minima ----------------------------------------------------------------------------------------------------------


def test_gts_vanishes_for_the_same_flow_and_for_no_other(noised):
    codebook = torch.randn(7, C)
    log_p = torch.randn(B, n, 7).log_softmax(-1)
    teacher = CodebookFlow(codebook, log_p)
    assert (gts_loss(CodebookFlow(codebook, log_p), teacher, noised) == 0).all()
    other = log_p.clone()
    other[:, 1] = other[:, 1].roll(1, -1)
    loss = gts_loss(CodebookFlow(codebook, other), teacher, noised)
    assert (loss[:, [0, 2]] == 0).all()
    assert (loss[:, 1] > 0).all()


def gauss(nodes=160):
    """Nodes and weights of an expectation over N(0, 1), float64."""
    x, weight = np.polynomial.hermite_e.hermegauss(nodes)
    return torch.from_numpy(x), torch.from_numpy(weight / weight.sum())


CODES = torch.tensor([[-1.3], [0.2], [1.1]], dtype=torch.float64)
P = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)


def codebook_flow(tokens):
    return CodebookFlow(CODES, P.log().expand(tokens, 1, 3))


def pairs_at(q, eps, t):
    """Every (q, ε) as one token with one draw at time ``t``: tokens on the batch axis."""
    return add_noise(q.view(-1, 1, 1), torch.full((q.numel(), 1, 1), t, dtype=q.dtype), eps.view(-1, 1, 1, 1))


@pytest.mark.parametrize("t", [0.3, 0.6, 1.0])
def test_fcs_is_least_at_the_conditional_expectation(t):
    """No direction leads down from E[ε - q | x_t]; along cos(k x + t) the loss has slope 0 and rises on both sides."""
    eps, weight = gauss()
    q, eps = CODES.repeat_interleave(len(eps)), eps.repeat(3)
    weight = P.repeat_interleave(len(weight)) * weight.repeat(3)
    noised, exact = pairs_at(q, eps, t), codebook_flow(len(q))
    step = torch.zeros(4, dtype=torch.float64, requires_grad=True)

    class Moved(DenoiserFlow):
        def velocity(self, x_t, t):
            waves = torch.stack([(k * x_t + t[..., None]).cos() for k in range(1, 5)], -1)
            return self.clean.velocity(x_t, t) + waves @ step

    def slope(flow):
        return torch.autograd.grad(weight @ fcs_loss(Moved(flow), noised)[:, 0], step)[0]

    assert slope(exact).abs().max() < 1e-7
    assert slope(CodebookFlow(CODES, P.flip(0).log().expand(len(q), 1, 3))).abs().max() > 1e-2


# --- the gradient of the generator -----------------------------------------------------------------------------------


def gaussian_flow(mu, sigma):
    """The optimal guidance network of q = μ + σ ε: the posterior mean of a Gaussian."""

    def clean(x, t):
        return mu + (1 - t) * sigma**2 / ((1 - t) ** 2 * sigma**2 + t**2) * (x - (1 - t) * mu)

    return DenoiserFlow(clean)


def solvable(t):
    """Parameters (μ, σ), their noised generator tokens at every quadrature node, and the nodes' weights."""
    theta = torch.tensor([0.4, 0.7], dtype=torch.float64, requires_grad=True)
    x, w = gauss()
    first, second = torch.meshgrid(x, x, indexing="ij")
    return theta, pairs_at(theta[0] + theta[1] * first.flatten(), second.flatten(), t), torch.outer(w, w).flatten()


def test_the_solvable_guidance_network_is_optimal():
    """Otherwise the tests below would be of something else."""
    theta, noised, weight = solvable(0.5)
    moved = theta.detach().clone().requires_grad_()
    loss = weight @ fcs_loss(gaussian_flow(*moved), noised)[:, 0]
    assert torch.autograd.grad(loss, moved)[0].abs().max() < 1e-10


@pytest.mark.parametrize("t", [0.3, 0.5, 0.8])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, 1.2])
def test_sid_value_at_the_optimal_guidance_network(alpha, t):
    """(1-α) D: no progress is to be read from it."""
    theta, noised, weight = solvable(t)
    result = sid_loss(codebook_flow(len(weight)), gaussian_flow(*theta.detach()), noised, alpha, "none")
    gap = weight @ result.gap[:, 0]
    assert gap > 1e-3
    assert (weight @ result.loss[:, 0]).item() == pytest.approx((1 - alpha) * gap.item(), abs=1e-8)


@pytest.mark.parametrize("t", [0.3, 0.5, 0.8])
def test_sid_gradient_is_that_of_the_score_gap(t):
    """At α = ½: half of ∇D, where D's guidance network is optimal again after every change of the generator.

    The loss sees that network with stopped parameters, and differentiates both flows in x_t.
    """
    theta, noised, weight = solvable(t)
    teacher = codebook_flow(len(weight))

    def gradient(value):
        return torch.autograd.grad(weight @ value, theta, retain_graph=True)[0]

    optimal = gaussian_flow(*theta)
    D = (teacher.denoise(noised.x_t, noised.t) - optimal.denoise(noised.x_t, noised.t)).square()[:, 0, 0, 0]
    loss = sid_loss(teacher, gaussian_flow(*theta.detach()), noised, 0.5, "none").loss[:, 0]
    assert gradient(D).abs().min() > 1e-4
    torch.testing.assert_close(gradient(loss), gradient(D) / 2, rtol=1e-6, atol=1e-8)


def kl_of_noised(theta, t):
    """KL(N((1-t) μ, (1-t)² σ² + t²) ‖ p_t) by a sum over a fine grid."""
    x = torch.linspace(-12, 12, 20_001, dtype=torch.float64)
    mu, variance = (1 - t) * theta[0], (1 - t) ** 2 * theta[1] ** 2 + t**2
    log_q = -((x - mu) ** 2) / (2 * variance) - variance.log() / 2
    log_p = torch.logsumexp(P.log()[:, None] - (x - (1 - t) * CODES) ** 2 / (2 * t**2), 0) - np.log(t)
    density = log_q.exp() / (2 * np.pi) ** 0.5
    return (density * (log_q - log_p)).sum() * (x[1] - x[0])


@pytest.mark.parametrize("t", [0.3, 0.5, 0.8])
def test_dmd_gradient_is_that_of_the_kl_divergence(t):
    theta, noised, weight = solvable(t)
    loss = dmd_loss(codebook_flow(len(weight)), gaussian_flow(*theta.detach()), noised, "none").loss[:, 0]
    ours = torch.autograd.grad(weight @ loss, theta)[0]
    kl = kl_of_noised(theta, t)
    assert kl > 1e-4
    expected = (t / (1 - t)) ** 2 * torch.autograd.grad(kl, theta)[0]
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-8)


# --- what gradients reach, and what they do not -----------------------------------------------------------------------


@pytest.fixture
def models():
    """A teacher, a guidance network, generator tokens and their labels."""
    teacher = table_teacher().requires_grad_(False)
    q = teacher.embed(random_indices(teacher, B)) + 0.1 * torch.randn(B, 3, 2)
    return teacher, student_of(teacher), q.requires_grad_(), labels_for(teacher, B)


def noise_for(q):
    return add_noise(q, torch.rand(B, 3, m) * 0.5 + 0.4, torch.randn(B, 3, m, 2))


@pytest.mark.parametrize("loss", [sid_loss, dmd_loss])
def test_with_detached_prefixes_a_token_answers_for_itself(models, loss):
    """∂ loss_i / ∂ q_k = 0 for k ≠ i, and the guidance network learns nothing from the generator's step."""
    teacher, guidance, q, labels = models
    guidance.requires_grad_(False)
    flows = teacher.flow(q.detach(), labels), guidance.flow(q.detach(), labels)
    values = loss(*flows, noise_for(q), normaliser="none").loss
    for i in range(3):
        gradient = torch.autograd.grad(values[:, i].sum(), q, retain_graph=True)[0]
        others = [k for k in range(3) if k != i]
        assert (gradient[:, i].norm(dim=-1) > 0).all()
        assert (gradient[:, others] == 0).all()
    values.sum().backward()
    assert all(parameter.grad is None for parameter in guidance.parameters())


def test_sid_differentiates_both_flows_and_dmd_neither(models):
    teacher, guidance, q, labels = models
    parameters = list(guidance.head.parameters())
    for loss, reached in ((sid_loss, True), (dmd_loss, False)):
        flows = teacher.flow(q.detach(), labels), guidance.flow(q.detach(), labels)
        gradients = torch.autograd.grad(loss(*flows, noise_for(q)).loss.sum(), parameters, allow_unused=True)
        assert all((gradient is not None) == reached for gradient in gradients)


def test_gts_and_fcs_train_the_network_and_nothing_else(models):
    teacher, student, q, labels = models
    logits = torch.randn(B, 3, 4, requires_grad=True)
    noised = noise_for(q.detach())
    target = CodebookFlow(teacher.codebook, logits.log_softmax(-1))
    gts_loss(student.flow(q.detach(), labels), target, noised).sum().backward()
    assert logits.grad is None
    fcs_loss(student.flow(q.detach(), labels), noised).sum().backward()
    assert q.grad is None
    assert all(parameter.grad.norm() > 0 for parameter in student.head.parameters())


def test_losses_under_bfloat16_are_float32(models):
    """Networks may run in bfloat16; the arithmetic of flows and losses does not."""
    teacher, guidance, q, labels = models
    noised = noise_for(q)
    with torch.autocast("cpu", torch.bfloat16):
        teacher_flow, flow = teacher.flow(q.detach(), labels), guidance.flow(q.detach(), labels)
        losses = [
            gts_loss(flow, teacher_flow, noised),
            fcs_loss(flow, noised),
            *sid_loss(teacher_flow, flow, noised),
            *dmd_loss(teacher_flow, flow, noised),
        ]
    assert all(loss.dtype == torch.float32 and loss.shape == (B, 3) for loss in losses)
    torch.testing.assert_close(
        flow.denoise(noised.x_t, noised.t),
        denoised_from_velocity(flow.velocity(noised.x_t, noised.t), noised.x_t, noised.t),
    )
