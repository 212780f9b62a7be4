"""Time and memory of the teacher's flow, against one that keeps its weights in memory."""

from collections.abc import Callable
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from dd2_lightning import flow
from dd2_lightning.costs import peak_of
from dd2_lightning.evaluation.timing import interleaved
from dd2_lightning.families.registry import build_meta
from dd2_lightning.flow import codebook_posterior_mean
from dd2_lightning.models.codebook_teacher import require_codebook


def stored_posterior_mean(x_t: Tensor, t: Tensor, codebook: Tensor, log_p: Tensor) -> Tensor:
    """The same as :func:`codebook_posterior_mean`, by the formula as it is written: (B, n, m, V) weights in memory."""
    time = t[..., None]
    distances = x_t.square().sum(-1, keepdim=True) - 2 * (1 - time) * (x_t @ codebook.T)
    distances = distances + (1 - time) ** 2 * codebook.square().sum(-1)
    return (log_p[:, :, None] - distances / (2 * time**2)).softmax(-1) @ codebook


def time_flow(
    family: str, architecture: dict[str, Any], batch_size: int, draws: int, rounds: int, device: str
) -> dict[str, Any]:
    """Seconds of every round, and bytes alive at once, of the posterior mean and of its gradient by noised tokens.

    ``fused_gradient`` has logits in double precision; ``single_gradient``, which has not, says what that costs.
    """
    teacher = require_codebook(build_meta(family, architecture))
    n, V, C = teacher.layout.length, len(teacher.codebook), teacher.token_dim
    with torch.device(device):
        x_t, t = torch.randn(batch_size, n, draws, C), torch.rand(batch_size, n, draws).clamp(min=0.02)
        rest = t, torch.randn(V, C), torch.randn(batch_size, n, V).log_softmax(-1)

    def gradient(posterior_mean: Callable[..., Tensor]) -> None:
        x0 = posterior_mean(x_t.detach().requires_grad_(), *rest)
        x0.backward(torch.ones_like(x0))

    def single_gradient() -> None:
        with patch.object(flow, "LOGITS_DTYPE", torch.float32):
            gradient(codebook_posterior_mean)

    functions = {
        "fused": lambda: codebook_posterior_mean(x_t, *rest),
        "stored": lambda: stored_posterior_mean(x_t, *rest),
        "fused_gradient": lambda: gradient(codebook_posterior_mean),
        "stored_gradient": lambda: gradient(stored_posterior_mean),
        "single_gradient": single_gradient,
    }
    seconds = interleaved(functions, rounds, device)
    return {
        "tokens": n,
        "codes": V,
        "channels": C,
        "seconds": seconds,
        "median_seconds": {name: median(taken) for name, taken in seconds.items()},
        "bytes": {name: peak_of(function) for name, function in functions.items()},
    }
