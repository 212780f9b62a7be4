r"""Rectified flow over token embeddings, and the two fields it is read from.

Data is at time t = 0, noise at t = 1, and a token on its way is

.. math:: q^t = (1 - t)\, q + t\, \varepsilon, \qquad \varepsilon \sim N(0, I).

An autoregressive teacher is an *exact* conditional flow (DD2, arXiv 2510.21003, eq. 1). Where it gives
probabilities :math:`p_j` to codebook vectors :math:`c_j`, the noised token has the density
:math:`p_t(x) = \sum_j p_j N(x; (1-t) c_j, t^2 I)`, whose posterior mean, velocity and score are closed forms:

.. math::

    \hat x_0 = \sum_j w_j c_j, \quad
    w = \mathrm{softmax}_j\Big(\log p_j - \frac{\|x - (1-t) c_j\|^2}{2 t^2}\Big), \quad
    v = \frac{x - \hat x_0}{t}, \quad
    s = \frac{(1-t)\hat x_0 - x}{t^2}.

Everything is computed from :math:`\hat x_0` and v, which are regular for every t in (0, 1]; the way back
from a score divides by 1 - t. Shapes: B sequences, n tokens, m noise draws a token, C channels, V codes.
"""

import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

T_FLOOR = 1e-3  # times below this are treated as this: the softmax logits grow as 1/t², and float32 resolves no more

LOGITS_DTYPE = torch.float64
"""Of the softmax logits in a backward pass."""

CHUNKS = {"cpu": 1 << 17, "cuda": 1 << 24}
"""Weights (rows times codes) that a backward pass holds at a time: what a processor's cache or a GPU takes easily."""


class Flow(Protocol):
    """The conditional flow of every token of a batch of sequences, given what came before it."""

    def velocity(self, x_t: Tensor, t: Tensor) -> Tensor:
        """v = E[ε - q | x_t], (B, n, m, C) in float32 or wider, for noised tokens (B, n, m, C) at times (B, n, m)."""

    def denoise(self, x_t: Tensor, t: Tensor) -> Tensor:
        """x̂0 = E[q | x_t], (B, n, m, C): the posterior mean of the clean token."""


class Noised(NamedTuple):
    """Clean tokens and m noised versions of each."""

    q: Tensor  # clean tokens, (B, n, C)
    t: Tensor  # times, (B, n, m)
    eps: Tensor  # noise, (B, n, m, C)
    x_t: Tensor  # noised tokens q^t, (B, n, m, C)


def add_noise(q: Tensor, t: Tensor, eps: Tensor) -> Noised:
    """q^t = (1-t) q + t ε for q (B, n, C), t (B, n, m), ε (B, n, m, C)."""
    time = t[..., None]
    return Noised(q, t, eps, (1 - time) * q[..., None, :] + time * eps)


def velocity_from_denoised(x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    """The velocity v = (x_t - x̂0) / t, with t floored."""
    return (x_t - x0) / t.clamp(min=T_FLOOR)[..., None]


def denoised_from_velocity(v: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    """x̂0 = x_t - t v."""
    return x_t - t[..., None] * v


def codebook_posterior_mean(x_t: Tensor, t: Tensor, codebook: Tensor, log_p: Tensor) -> Tensor:
    r"""x̂0 of the closed-form teacher (DD2 eq. 1) as one fused attention.

    The softmax logits are, up to a constant,

    .. math::
        \log p_j - \frac{\|x - (1-t) c_j\|^2}{2 t^2} = \log p_j
        + \tfrac{1-t}{t^2}\langle x, c_j\rangle - \tfrac{(1-t)^2}{2t^2}\|c_j\|^2 + \dots ,

    so the query is :math:`(\tfrac{1-t}{t^2} x, -\tfrac{(1-t)^2}{2t^2})`, the key :math:`(c_j, \|c_j\|^2)`, the value
    :math:`c_j`, and the attention mask log p alone.

    The m draws are the batch of the attention, the B n contexts its queries. Nothing of size (B, n, m, V) is ever
    stored, nor in the backward pass, see :class:`_PosteriorMean`.

    Tokens ``x_t`` and posterior means are (B, n, m, C), the latter in float32 or wider; times (B, n, m) are constants,
    the codebook is (V, C), and ``log_p`` (B, n, V) need not be normalised; -inf gives exactly zero weight.
    """
    dtype = torch.promote_types(x_t.dtype, torch.float32)
    time = t.to(dtype).clamp(min=T_FLOOR).expand(x_t.shape[:-1])
    with torch.autocast(x_t.device.type, enabled=False):
        return _PosteriorMean.apply(x_t.to(dtype), time, codebook.to(dtype), log_p.to(dtype))


def chunks(rows: int, size: int) -> Iterable[slice]:
    """Consecutive slices of ``rows`` rows, of ``size`` each; the last one may be shorter."""
    return (slice(start, min(start + size, rows)) for start in range(0, rows, size))


class _PosteriorMean(torch.autograd.Function):
    """Fused attention forward; backward, its vector-Jacobian product written out, in chunks of rows.

    Where one code has all the weight and the Jacobian is zero, a fused kernel's backward pass has an error of its
    rounding times (1-t)/t². Written out there is none. Softmax logits are in double precision, so that weights between
    two codes are exact too; the rest need not be, relative to the likeliest code, whose weight may be nearly one.
    """

    @staticmethod
    def forward(ctx: Any, x_t: Tensor, t: Tensor, codebook: Tensor, log_p: Tensor) -> Tensor:
        ctx.save_for_backward(x_t, t, codebook, log_p)
        (B, n, m, C), V = x_t.shape, codebook.shape[0]
        # values carry the extra channel too, as zeros: with unequal widths the CPU kernel stores the weights
        width = C + 1 if x_t.device.type == "cpu" else math.ceil((C + 1) / 8) * 8
        pad = width - C - 1
        x, time = x_t.reshape(B * n, m, C).transpose(0, 1), t.reshape(B * n, m).T[..., None]
        gain, square = (1 - time) / time**2, codebook.square().sum(-1, keepdim=True)
        query, key = torch.cat([gain * x, -gain * (1 - time) / 2], -1), torch.cat([codebook, square], -1)
        x0 = F.scaled_dot_product_attention(
            F.pad(query, (0, pad))[:, None],
            F.pad(key, (0, pad)).expand(m, 1, V, width),
            F.pad(codebook, (0, pad + 1)).expand(m, 1, V, width),
            attn_mask=log_p.reshape(1, 1, B * n, V).expand(m, -1, -1, -1),
            scale=1.0,
        )
        return x0[:, 0, :, :C].transpose(0, 1).reshape(B, n, m, C)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """With s_j = <g, c_j> and ds_j = w_j (s_j - <w, s>): of x, (1-t)/t² Σ_j ds_j c_j; of log p_j, ds_j."""
        x_t, t, codebook, log_p = ctx.saved_tensors
        wants_codes, wants_log_p = ctx.needs_input_grad[2:]
        m, C = x_t.shape[2:]
        c = codebook
        wide = c.to(LOGITS_DTYPE)
        square = wide.square().sum(-1)
        of_x, of_codes = x_t.new_empty(x_t.shape), torch.zeros_like(c)
        of_log_p = log_p.new_empty(log_p.shape if wants_log_p else 0)
        contexts = max(1, CHUNKS.get(x_t.device.type, CHUNKS["cpu"]) // (m * len(c)))
        flat = x_t.reshape(-1, m, C), t.reshape(-1, m, 1), log_p.reshape(-1, 1, len(c)), grad.reshape(-1, m, C)
        for rows in chunks(len(flat[0]), contexts):
            x, time, bias, g = (tensor[rows] for tensor in flat)
            gain, far = (1 - time) / time**2, time.to(wide.dtype)
            logits = (x.to(wide.dtype) @ wide.T).sub_((1 - far) / 2 * square).mul_((1 - far) / far**2).add_(bias)
            w = logits.softmax(-1).to(c.dtype)
            s = g @ c.T
            s -= s.gather(-1, w.argmax(-1, keepdim=True))
            ds = s.sub_(torch.linalg.vecdot(w, s)[..., None]).mul_(w)
            of_x.view(-1, m, C)[rows] = (gain * (ds @ c)).to(of_x.dtype)
            if wants_log_p:
                of_log_p.view(-1, len(c))[rows] = ds.sum(1).to(of_log_p.dtype)
            if wants_codes:
                pull = (gain * (1 - time) * ds).sum((0, 1))
                of_codes += torch.einsum("kmv,kmc->vc", w, g) + torch.einsum("kmv,kmc->vc", ds, gain * x)
                of_codes -= pull[:, None] * c
        return of_x, None, of_codes.to(codebook.dtype) if wants_codes else None, of_log_p if wants_log_p else None


@dataclass
class CodebookFlow:
    """The exact flow of a categorical over a codebook: what an autoregressive teacher is."""

    codebook: Tensor  # (V, C)
    log_p: Tensor  # log probabilities after guidance and truncation, (B, n, V); -inf for tokens that were cut

    def denoise(self, x_t: Tensor, t: Tensor) -> Tensor:
        return codebook_posterior_mean(x_t, t, self.codebook, self.log_p)

    def velocity(self, x_t: Tensor, t: Tensor) -> Tensor:
        return velocity_from_denoised(self.denoise(x_t, t), x_t, t)


@dataclass
class HeadFlow:
    """A learned flow: a velocity head that reads noised token, time and a feature of the prefix."""

    head: Callable[[Tensor, Tensor, Tensor], Tensor]  # ``head(x_t, t, features) -> v``, (B, n, m, C)
    features: Tensor  # (B, n, d); feature i has seen earlier positions only. All m draws share it.

    def velocity(self, x_t: Tensor, t: Tensor) -> Tensor:
        return self.head(x_t, t, self.features).to(torch.promote_types(x_t.dtype, torch.float32))

    def denoise(self, x_t: Tensor, t: Tensor) -> Tensor:
        return denoised_from_velocity(self.velocity(x_t, t), x_t, t)


def integrate(flow: Flow, eps: Tensor, times: Tensor) -> Tensor:
    """Euler's method from noise to data: x <- x + (t' - t) v(x, t) along ``times`` (steps + 1,) from 1 down to 0.

    Starting points ``eps`` and the end points are (B, n, C).
    """
    x = eps[:, :, None]
    for now, after in itertools.pairwise(times):
        x = x + (after - now) * flow.velocity(x, now.expand(x.shape[:-1]))
    return x[:, :, 0]


def euler_times(steps: int, device: torch.device | None = None) -> Tensor:
    """``steps`` equal steps from noise (t = 1) to data (t = 0): (steps + 1,)."""
    return torch.linspace(1, 0, steps + 1, device=device)


def shifted_times(steps: int, shift: float, device: torch.device | None = None) -> Tensor:
    r"""Times at which :math:`\frac{t}{1-t} = s \frac{u}{1-u}`, with u in equal steps from 1 to 0: (steps + 1,).

    With s = ρ, the root mean square of the codes, u is the time of the same problem with codes of size 1: where codes
    are small next to the noise, what a point becomes is decided late, and the steps are finer there.
    """
    u = euler_times(steps, device)
    return shift * u / (1 + (shift - 1) * u)


def multistep(flow: Flow, eps: Tensor, times: Tensor) -> Tensor:
    r"""The exact solution of the flow for a clean token that is linear in t through its last two values.

    Since :math:`\frac{d}{dt} \frac{x}{t} = -\hat x_0 / t^2`, the flow goes from a to b < a by

    .. math:: \frac{x_b}{b} = \frac{x_a}{a} + \int_b^a \frac{\hat x_0(\tau)}{\tau^2} d\tau,

    and with :math:`\hat x_0(\tau) \approx \hat x_0(a) + r\,(\tau - a)`

    .. math::
        x_b = \hat x_0(a) + \tfrac{b}{a} (x_a - \hat x_0(a)) - r\, b\, \big(\ln\tfrac{b}{a} + \tfrac{a}{b} - 1\big).

    At r = 0 this is Euler's step; the first step has no slope yet, and the last one, to b = 0, ends on the clean token.
    One evaluation a step; DEIS (arXiv 2204.13902) with its polynomial of order one. Arguments are those of
    :func:`integrate`.
    """
    x, slope, before = eps[:, :, None], 0.0, None
    for now, after in itertools.pairwise(times.tolist()):
        x0 = flow.denoise(x, x.new_tensor(now).expand(x.shape[:-1]))
        if before is not None:
            slope = (x0 - before[0]) / (now - before[1])
        curve = after * math.log(after / now) + now - after if after else 0.0
        x, before = x0 + after / now * (x - x0) - slope * curve if after else x0, (x0, now)
    return x[:, :, 0]
