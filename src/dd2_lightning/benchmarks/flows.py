"""``dd2 bench flow``: the teacher's flow, against one that keeps its weights in memory."""

from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import Tensor

from dd2_lightning.benchmarks.measured import measure
from dd2_lightning.costs import Ledger
from dd2_lightning.evaluation.timing import interleaved
from dd2_lightning.families.registry import build_meta
from dd2_lightning.flow import codebook_posterior_mean


def bench_flow(
    output: str,
    models: list[str],
    batch_size: int = 1,
    rounds: int = 5,
    draws: int = 4,
    device: str = "cpu",
) -> dict[str, Any]:
    """Time the posterior mean of every token, and its gradient, at published sizes.

    The flow that the losses use never holds a weight for every draw and code; it takes turns with the formula as it is
    written, which does.

    Args:
        output: JSON file: ``{"models": {name: …}, …, "hardware", "torch", "commit"}``.
        models: published sizes like var/d16, or var/FILE.json as for ``dd2 convert --arch``.
        batch_size: sequences at a time.
        rounds: how often each is timed, after one round to warm up; medians count.
        draws: m, noise draws a token.
        device: where to compute.
    """
    return measure(
        output,
        models,
        device,
        lambda *size: time_flow(*size, batch_size, draws, rounds, device),
        "{name}: posterior mean {median_seconds[fused]:.3f} s, as written {median_seconds[stored]:.3f} s; "
        "with gradient {median_seconds[fused_gradient]:.3f} s, {median_seconds[stored_gradient]:.3f} s",
        {"batch_size": batch_size, "rounds": rounds, "draws": draws},
    )


def stored_posterior_mean(x_t: Tensor, t: Tensor, codebook: Tensor, log_p: Tensor) -> Tensor:
    """The same as :func:`codebook_posterior_mean`, by the formula as it is written: (B, n, m, V) weights in memory."""
    time = t[..., None]
    distances = x_t.square().sum(-1, keepdim=True) - 2 * (1 - time) * (x_t @ codebook.T)
    distances = distances + (1 - time) ** 2 * codebook.square().sum(-1)
    return (log_p[:, :, None] - distances / (2 * time**2)).softmax(-1) @ codebook


def time_flow(
    family: str, architecture: dict[str, Any], batch_size: int, draws: int, rounds: int, device: str
) -> dict[str, Any]:
    """Seconds and memory of the posterior mean, alone and with its gradient by the noised tokens.

    Returns:
        ``tokens``, ``codes`` and ``channels``, ``seconds`` of every round, ``median_seconds``, and ``bytes`` that are
        alive at once beyond what is given.
    """
    teacher = build_meta(family, architecture)
    n, V, C = teacher.layout.length, len(teacher.codebook), teacher.token_dim
    with torch.device(device):
        x_t, t = torch.randn(batch_size, n, draws, C), torch.rand(batch_size, n, draws).clamp(min=0.02)
        rest = t, torch.randn(V, C), torch.randn(batch_size, n, V).log_softmax(-1)

    def gradient(posterior_mean: Callable[..., Tensor]) -> None:
        x0 = posterior_mean(x_t.detach().requires_grad_(), *rest)
        x0.backward(torch.ones_like(x0))

    functions = {
        "fused": lambda: codebook_posterior_mean(x_t, *rest),
        "stored": lambda: stored_posterior_mean(x_t, *rest),
        "fused_gradient": lambda: gradient(codebook_posterior_mean),
        "stored_gradient": lambda: gradient(stored_posterior_mean),
    }
    seconds = interleaved(functions, rounds, device)
    return {
        "tokens": n,
        "codes": V,
        "channels": C,
        "seconds": seconds,
        "median_seconds": {name: median(taken) for name, taken in seconds.items()},
        "bytes": {name: peak_bytes(function) for name, function in functions.items()},
    }


def peak_bytes(function: Callable[[], Any]) -> int:
    """The largest number of bytes alive at once that a call allocated."""
    with Ledger() as ledger:
        function()
    return ledger.peak
