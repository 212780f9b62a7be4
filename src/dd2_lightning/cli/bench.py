"""``dd2 bench``: how long things take here, on this machine."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from dd2_lightning.errors import check_at_least_one
from dd2_lightning.families.registry import AnySampling
from dd2_lightning.sampling import Sampling


def bench_sample(
    sampling: Sampling = Sampling(guidance_scale=2.0),
    head_width: int = 1024,
    head_depth: int = 4,
    precision: str | int = "32",
    graphs: bool = False,
    **common,
) -> dict[str, Any]:
    """Time a teacher against a one-step generator, at published sizes with random weights.

    Weights do not change the time. Teacher, generator, a pass of its backbone alone and the decoder take turns.

    Args:
        sampling: guidance and truncation of the teacher.
        head_width: width of the generator's velocity head.
        head_depth: its residual blocks.
        precision: of the networks: 32 or bf16.
        graphs: replay CUDA graphs, which launch all kernels of a sample at once; on a CPU nothing changes.
        common: as for :func:`measure`.
    """
    from dd2_lightning.timing.sampling import time_sampling

    return measure(
        partial(time_sampling, sampling=sampling, head=(head_width, head_depth), precision=precision, graphs=graphs),
        "{name}: teacher {median_seconds[teacher]:.3f} s in {steps} steps, "
        "one step {median_seconds[one_step]:.3f} s ({ratio:.1f}x; {passes[seconds]:.2f} backbone passes, "
        "{passes[flops]:.2f} by operations), "
        "decoder {median_seconds[decoder]:.3f} s ({ratio_with_decoder:.1f}x with it)",
        {"sampling": vars(sampling), "precision": str(precision), "graphs": graphs},
        **common,
    )


def bench_train(
    draws: int = 4,
    sampling: AnySampling = Sampling(guidance_scale=2.0),
    head_width: int = 1024,
    head_depth: int = 4,
    precision: str = "32-true",
    **common,
) -> dict[str, Any]:
    """Time every kind of update of stages 1 and 2, at published sizes with random weights.

    An update is a loss, its gradient, a clipped step of Adam, and that of the EMA where it has one. The updates of a
    stage take turns. The operations a second that come out are what ``dd2 plan --throughput`` asks for.

    Args:
        draws: m, noise draws a token.
        sampling: guidance and truncation of the teacher inside the loss.
        head_width: width of the velocity head.
        head_depth: its residual blocks.
        precision: of the trainer: 32-true, bf16-mixed or 16-mixed.
        common: as for :func:`measure`.
    """
    from dd2_lightning.costs import computing_in
    from dd2_lightning.timing.training import UPDATES, time_stages

    check_at_least_one("--", draws=draws)
    computing_in(precision)  # refuses one that there is not
    head = {"width": head_width, "depth": head_depth}
    return measure(
        partial(time_stages, draws=draws, sampling=sampling, head=head, precision=precision),
        "{name}: "
        + ", ".join(f"{{{name}[seconds_per_sample]:.3f}} s a sample of {name}" for name in UPDATES.values())
        + " ({generator[tflops]:.3g} TFLOP/s)",
        {"draws": draws, "head": head, "sampling": vars(sampling), "precision": precision},
        **common,
    )


def bench_flow(draws: int = 4, rounds: int = 5, **common) -> dict[str, Any]:
    """Time the posterior mean of every token, and its gradient, at published sizes.

    The flow that the losses use never holds a weight for every draw and code; it takes turns with the formula as it is
    written, which does.

    Args:
        draws: m, noise draws a token.
        rounds: how often each is timed, after one round to warm up; medians count.
        common: as for :func:`measure`.
    """
    from dd2_lightning.timing.flows import time_flow

    check_at_least_one("--", draws=draws)
    return measure(
        partial(time_flow, draws=draws),
        "{name}: posterior mean {median_seconds[fused]:.3f} s, as written {median_seconds[stored]:.3f} s; "
        "with gradient {median_seconds[fused_gradient]:.3f} s, {median_seconds[stored_gradient]:.3f} s; "
        "{median_seconds[single_gradient]:.3f} s of it without double precision",
        {"draws": draws},
        rounds=rounds,
        **common,
    )


def measure(
    of_size: Callable[..., dict[str, Any]],
    line: str,
    settings: dict[str, Any],
    output: str,
    models: list[str],
    batch_size: int = 1,
    rounds: int = 3,
    device: str = "auto",
) -> dict[str, Any]:
    """Measure sizes with ``of_size``, print of each what ``line`` is a format of, write and return the report.

    Args:
        of_size: from a family, its sizes, batch size, rounds and device to what was measured.
        line: format of what was measured, and ``name``.
        settings: of ``of_size``, for the report.
        output: JSON file: ``{"models": {name: …}, "batch_size", "rounds", …, "hardware", "torch", "commit"}``.
        models: published sizes like var/d16, or var/FILE.json as for ``dd2 convert --arch``.
        batch_size: samples at a time.
        rounds: how often each is timed, after one round to warm up; medians count.
        device: where to compute: auto, cpu, cuda, cuda:1, mps.
    """
    import torch

    from dd2_lightning.cli.finish import finish
    from dd2_lightning.devices import resolve_device
    from dd2_lightning.evaluation.report import to_json
    from dd2_lightning.files import check_writable, write_atomically
    from dd2_lightning.hub.cards import published
    from dd2_lightning.provenance import commit, hardware

    check_at_least_one("--", batch_size=batch_size, rounds=rounds)
    chosen = str(resolve_device(device))
    check_writable(Path(output).parent)
    sizes = {name: published(name) for name in models}
    report: dict[str, Any] = {"models": {}, "batch_size": batch_size, "rounds": rounds, **settings}
    report |= {"hardware": hardware(chosen), "torch": torch.__version__, "commit": commit()}
    for name, size in sizes.items():
        measured = of_size(*size, batch_size=batch_size, rounds=rounds, device=chosen)
        report["models"][name] = measured
        print(line.format(name=name, **measured), flush=True)
    write_atomically(Path(output), to_json(report))
    finish("bench", f"times -> {output}")
    return report
