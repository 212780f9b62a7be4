r"""The losses of DD2 (arXiv 2510.21003), one function each, on any :class:`~dd2_lightning.flow.Flow`; and DD1's.

All of them return one value per token, (B, n), summed over channels and averaged over the m noise draws: the caller
logs them per position before taking the mean. Networks predict velocities; scores are compared as posterior means
:math:`\hat x_0`, with the score gap :math:`\delta = \hat x_0^\Phi - \hat x_0^\psi`.
"""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dd2_lightning.flow import Flow, Noised
from dd2_lightning.layout import Layout

Normaliser = Literal["sample", "token", "none"]


def _per_token(squared: Tensor) -> Tensor:
    """Sum over C and average over m: (B, n, m, C) -> (B, n)."""
    return squared.sum(-1).mean(-1)


def gts_loss(student: Flow, teacher: Flow, noised: Noised) -> Tensor:
    r"""Ground-Truth-Score loss of the AR-diffusion model (eq. 6), on noised teacher tokens.

    .. math:: L_{GTS} = \| v_\Psi(q_i^t, t \mid q_{<i}) - v_\Phi(q_i^t, t \mid q_{<i}) \|^2
    """
    with torch.no_grad():
        target = teacher.velocity(noised.x_t, noised.t)
    return _per_token((student.velocity(noised.x_t, noised.t) - target).square())


def fcs_loss(guidance: Flow, noised: Noised) -> Tensor:
    r"""Fine-tuned-Conditional-Score loss of the guidance network (eq. 4), on noised generator tokens.

    .. math:: L_{FCS} = \tfrac1m \sum_j \| v_\psi(q_i^{t_j}, t_j \mid q_{<i}) - (\varepsilon_j - q_i) \|^2

    On noised *teacher* tokens the same expression is the diffusion loss, the ablation of eq. 6.
    """
    target = noised.eps - noised.q[:, :, None]
    return _per_token((guidance.velocity(noised.x_t, noised.t) - target).square())


class CSDLoss(NamedTuple):
    """Conditional Score Distillation, per token."""

    # what to differentiate, (B, n), weighted. Its *value* means nothing: at the optimal guidance network it is (1-α)
    # times the gap, hence 0 at α = 1.
    loss: Tensor
    gap: Tensor  # the score gap ‖δ_i‖², (B, n), unweighted: what to watch


def sid_loss(
    teacher: Flow, guidance: Flow, noised: Noised, alpha: float = 1.0, normaliser: Normaliser = "sample"
) -> CSDLoss:
    r"""L_CSD of the generator in its SiD form (eqs. 5 and 12), in posterior means.

    .. math:: \omega \big[ (1-\alpha) \|\delta_i\|^2 + \langle \delta_i, \hat x_0^\psi - q_i \rangle \big]

    The gradient reaches q_i directly and through q_i^t in both flows; the caller makes constants of the prefixes behind
    the flows and of the guidance network's weights.
    """
    x0_teacher = teacher.denoise(noised.x_t, noised.t)
    x0_guidance = guidance.denoise(noised.x_t, noised.t)
    q = noised.q[:, :, None]
    delta = x0_teacher - x0_guidance
    weight = csd_weight(x0_teacher, q, normaliser)
    gap = delta.square()
    return CSDLoss(_per_token(weight * ((1 - alpha) * gap + delta * (x0_guidance - q))), _per_token(gap.detach()))


def dmd_loss(teacher: Flow, guidance: Flow, noised: Noised, normaliser: Normaliser = "sample") -> CSDLoss:
    r"""L_CSD in its DMD form: the gradient on q_i is :math:`\omega (\hat x_0^\psi - \hat x_0^\Phi)`.

    Written as a regression to a stopped target, so neither flow is differentiated. The gradient is
    :math:`(t/(1-t))^2` times that of the KL divergence between the noised conditionals.
    """
    q = noised.q[:, :, None]
    with torch.no_grad():
        x0_teacher = teacher.denoise(noised.x_t, noised.t)
        delta = x0_teacher - guidance.denoise(noised.x_t, noised.t)
        target = q + csd_weight(x0_teacher, q, normaliser) * delta
    return CSDLoss(_per_token((q - target).square() / 2), _per_token(delta.square()))


def csd_weight(x0_teacher: Tensor, q: Tensor, normaliser: Normaliser, floor: float = 1e-2) -> Tensor:
    r"""The stopped weight :math:`\omega = 1 / \max(\mathrm{mean}|\hat x_0^\Phi - q|, \mathrm{floor})`.

    The mean is over one *sample* (the paper's default, ω is (B, 1, 1, 1)), or over one *token* and draw (B, n, m, 1);
    with *none* ω is 1. The floor keeps it finite where teacher (B, n, m, C) and generator (B, n, 1, C) agree.
    """
    if normaliser == "none":
        return x0_teacher.new_ones(1)
    over = {"sample": (1, 2, 3), "token": (3,)}[normaliser]
    return 1 / (x0_teacher - q).detach().abs().mean(over, keepdim=True).clamp(min=floor)


class DD1Loss(NamedTuple):
    """DD1's loss, per token."""

    loss: Tensor  # what to differentiate, (B, n)
    cross_entropy: Tensor  # of tokens that are still noise, (B, n); 0 at finished ones
    hit: Tensor  # 1 at tokens that are still noise and whose most likely code is right, (B, n)
    unfinished: Tensor  # 1 at tokens that are still noise, (B, n)


def dd1_loss(logits: Tensor, codes: Tensor, unfinished: Tensor, distance: Tensor, weight: float) -> DD1Loss:
    r"""Loss of DD1 (arXiv 2412.17153) at a point of the trajectory: which code noise ends on, and how it looks.

    .. math:: L = u_i\, (-\log \mathrm{softmax}(l_i)_{k_i}) + \lambda\, d_i

    The public code has no training; that both terms are there follows from its two heads and its options. Logits l are
    (B, n, V); codes k, (B, n), where the teacher's flow ends; u, (B, n), is 1 at tokens that are noise and 0 at data;
    the distance d of the sequence, or its image, from the end is (B, n) or (B, 1); the weight λ is ours.
    """
    cross_entropy = unfinished * F.cross_entropy(logits.transpose(1, 2), codes, reduction="none")
    hit = unfinished * (logits.argmax(-1) == codes)
    return DD1Loss(cross_entropy + weight * distance, cross_entropy.detach(), hit, unfinished)


def position_weight(layout: Layout, first: float, last: float, device: torch.device | None = None) -> Tensor:
    """Linear from ``first`` at position 0 to ``last`` at position N-1, per token (n,); not normalised.

    3 -> 1 is the paper's best on VAR-d16: later tokens learn from a condition that earlier ones must get
    right first. All tokens of one VAR scale share their weight.
    """
    u = layout.position_of_token(device) / max(layout.num_positions - 1, 1)
    return first + (last - first) * u
