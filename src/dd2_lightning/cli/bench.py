"""``dd2 bench``: how long things take here, on this machine."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from dd2_lightning.errors import check_at_least_one
from dd2_lightning.families.registry import AnySampling
from dd2_lightning.sampling import Sampling


def bench_sample(
    output: str,
    models: list[str],
    batch_size: int = 1,
    rounds: int = 3,
    sampling: Sampling = Sampling(guidance_scale=2.0),
    head_width: int = 1024,
    head_depth: int = 4,
    device: str = "auto",
) -> dict[str, Any]:
    """Time a teacher against a one-step generator, at published sizes with random weights.

    Weights do not change the time. Teacher, generator and decoder take turns.

    Args:
        output: JSON file: ``{"models": {name: …}, "batch_size", "rounds", "sampling", "hardware", "torch", "commit"}``.
        models: published sizes like var/d16, or var/FILE.json as for ``dd2 convert --arch``.
        batch_size: images at a time.
        rounds: how often each is timed, after one round to warm up; medians count.
        sampling: guidance and truncation of the teacher.
        head_width: width of the generator's velocity head.
        head_depth: its residual blocks.
        device: where to compute: auto, cpu, cuda, cuda:1, mps.
    """
    from dd2_lightning.timing.sampling import time_sampling

    return measure(
        output,
        models,
        device,
        lambda family, sizes, device: time_sampling(
            family, sizes, batch_size, rounds, sampling, (head_width, head_depth), device
        ),
        "{name}: teacher {median_seconds[teacher]:.3f} s in {steps} steps, "
        "one step {median_seconds[one_step]:.3f} s ({ratio:.1f}x), "
        "decoder {median_seconds[decoder]:.3f} s ({ratio_with_decoder:.1f}x with it)",
        {"batch_size": batch_size, "rounds": rounds},
        sampling=vars(sampling),
    )


def bench_train(
    output: str,
    models: list[str],
    batch_size: int = 1,
    rounds: int = 3,
    draws: int = 4,
    sampling: AnySampling = Sampling(guidance_scale=2.0),
    head_width: int = 1024,
    head_depth: int = 4,
    precision: str = "32-true",
    device: str = "auto",
) -> dict[str, Any]:
    """Time every kind of update of stages 1 and 2, at published sizes with random weights.

    An update is a loss, its gradient, a clipped step of Adam, and that of the EMA where it has one. The updates of a
    stage take turns. The operations a second that come out are what ``dd2 plan --throughput`` asks for.

    Args:
        output: JSON file: ``{"models": {name: {update: …}}, …, "hardware", "torch", "commit"}``.
        models: published sizes like var/d16, or var/FILE.json as for ``dd2 convert --arch``.
        batch_size: samples of a micro-batch.
        rounds: how often each is timed, after one round to warm up; medians count.
        draws: m, noise draws a token.
        sampling: guidance and truncation of the teacher inside the loss.
        head_width: width of the velocity head.
        head_depth: its residual blocks.
        precision: of the trainer: 32-true, bf16-mixed or 16-mixed.
        device: where to compute: auto, cpu, cuda, cuda:1, mps.
    """
    from dd2_lightning.costs import computing_in
    from dd2_lightning.timing.training import UPDATES, time_stages

    computing_in(precision)  # refuses one that there is not
    head = {"width": head_width, "depth": head_depth}

    return measure(
        output,
        models,
        device,
        lambda family, sizes, device: time_stages(
            family, sizes, batch_size, rounds, draws, sampling, head, precision, device
        ),
        "{name}: "
        + ", ".join(f"{{{name}[seconds_per_sample]:.3f}} s a sample of {name}" for name in UPDATES.values())
        + " ({generator[tflops]:.3g} TFLOP/s)",
        {"batch_size": batch_size, "rounds": rounds, "draws": draws},
        head=head,
        sampling=vars(sampling),
        precision=precision,
    )


def bench_flow(
    output: str,
    models: list[str],
    batch_size: int = 1,
    rounds: int = 5,
    draws: int = 4,
    device: str = "auto",
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
        device: where to compute: auto, cpu, cuda, cuda:1, mps.
    """
    from dd2_lightning.timing.flows import time_flow

    return measure(
        output,
        models,
        device,
        lambda family, sizes, device: time_flow(family, sizes, batch_size, draws, rounds, device),
        "{name}: posterior mean {median_seconds[fused]:.3f} s, as written {median_seconds[stored]:.3f} s; "
        "with gradient {median_seconds[fused_gradient]:.3f} s, {median_seconds[stored_gradient]:.3f} s",
        {"batch_size": batch_size, "rounds": rounds, "draws": draws},
    )


def measure(
    output: str,
    models: list[str],
    device: str,
    of_size: Callable[[str, dict[str, Any], str], dict[str, Any]],
    line: str,
    counts: dict[str, int],
    **settings: Any,
) -> dict[str, Any]:
    """Measure sizes and write the report.

    Args:
        output: JSON file: ``{"models": {name: …}, …, "hardware", "torch", "commit"}``.
        models: published sizes like var/d16, or var/FILE.json as for ``dd2 convert --arch``.
        device: where it computes.
        of_size: from a family, its sizes and the device to what was measured.
        line: what is printed of it, a format of its keys and ``name``.
        counts: settings that are at least 1.
        settings: the others that the report tells.

    Returns:
        What was written.

    Raises:
        ValueError: for numbers below 1, or a size that there is not.
        ArtifactError: if the file cannot be written.
    """
    import torch

    from dd2_lightning.cli.finish import finish
    from dd2_lightning.devices import resolve_device
    from dd2_lightning.evaluation.report import to_json
    from dd2_lightning.files import check_writable, write_atomically
    from dd2_lightning.hub.cards import published
    from dd2_lightning.provenance import commit, hardware

    check_at_least_one("--", **counts)
    chosen = str(resolve_device(device))
    check_writable(Path(output).parent)
    sizes = {name: published(name) for name in models}
    report: dict[str, Any] = {"models": {}, **counts, **settings}
    report |= {"hardware": hardware(chosen), "torch": torch.__version__, "commit": commit()}
    for name, size in sizes.items():
        report["models"][name] = of_size(*size, chosen)
        print(line.format(name=name, **report["models"][name]), flush=True)
    write_atomically(Path(output), to_json(report))
    finish("bench", f"times -> {output}")
    return report
