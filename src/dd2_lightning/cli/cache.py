"""``dd2 cache``: fill a cache of teacher sequences, in several processes."""

import signal
from collections.abc import Callable
from typing import Any, Literal

from dd2_lightning.errors import DD2Error, check_at_least_one, check_samples
from dd2_lightning.families.registry import AnySampling
from dd2_lightning.sampling import Sampling


def cache(
    teacher: str,
    num: int,
    output: str,
    sampling: AnySampling = Sampling(),
    seed: int = 0,
    processes: int = 1,
    shard_size: int = 10_000,
    batch_size: int | Literal["auto"] = "auto",
    device: str = "auto",
    part: int = 0,
    parts: int = 1,
    pair_steps: int | None = None,
) -> None:
    """Sample teacher sequences into shards, for data.cache_dir; a directory that is there already is completed.

    Args:
        teacher: directory of the teacher.
        num: number of sequences; data.cache_size of the runs that read them.
        output: directory of the cache.
        sampling: guidance and truncation.
        seed: of the sequences; the runs' data.cache_seed, by default their seed_everything.
        processes: how many sample at a time, each its own shards.
        shard_size: sequences a file; what an interruption can cost. Where that would leave processes without a shard,
            shards are smaller.
        batch_size: sequences at a time; auto is the largest that fits the GPU's memory, or 4 GB on a CPU, up to 500.
        device: where to compute: auto, cpu, cuda (every process its GPU), mps.
        part: for several machines: which part of the shards is this one's, from 0.
        parts: for several machines: how many there are.
        pair_steps: for DD1's pairs of noise and sequence; data.steps of the runs that read them. By default sequences
            alone are sampled.
    """
    from torch import multiprocessing

    from dd2_lightning.artifacts import Artifact, load_teacher
    from dd2_lightning.cli.finish import finish
    from dd2_lightning.data.cache import SequenceCache
    from dd2_lightning.devices import resolve_device
    from dd2_lightning.stages.sequences import describe_cache, fill

    size = None if batch_size == "auto" else batch_size
    counts = {"num": num, "processes": processes, "shard_size": shard_size, "batch_size": size, "parts": parts}
    check_samples(seed)
    check_at_least_one("--", **counts, pair_steps=pair_steps)
    device = str(resolve_device(device))
    if not 0 <= part < parts:
        raise ValueError(f"--part must be in 0..{parts - 1}, got {part}")
    Artifact.open(teacher, ("teacher",), "--teacher")
    network = load_teacher(teacher)
    description = describe_cache(teacher, network, sampling, num, seed, pair_steps)
    sequences = SequenceCache(output, description, min(shard_size, -(-num // (processes * parts))))
    with sequences.lock(part, parts):
        mine = [shard for shard in sequences.missing() if shard % parts == part]
        shares = [mine[k::processes] for k in range(processes) if mine[k::processes]]
        if len(shares) > 1:
            work = (teacher, output, description, sampling, shares, size, device)
            try:
                run_processes(sample_share, work, len(shares))
            except multiprocessing.ProcessRaisedException as error:
                raise DD2Error(f"a process of dd2 cache failed: {error.msg.strip().splitlines()[-1]}") from error
            except multiprocessing.ProcessExitedException as error:
                raise DD2Error(
                    f"a process of dd2 cache ended: {error}; run the command again to complete it"
                ) from error
        else:
            fill(sequences, network.to(device), sampling, mine, size)
    done = len(sequences.shards) - len(sequences.missing())
    finish("cache", f"{done} of {len(sequences.shards)} shards, {num} sequences -> {output}", output=output, num=num)


def sample_share(
    rank: int,
    teacher: str,
    output: str,
    description: dict[str, Any],
    sampling: Sampling,
    shares: list[list[int]],
    batch_size: int | None,
    device: str,
) -> None:
    """Sample one process's shards; the first process shows its progress."""
    import torch

    from dd2_lightning.artifacts import load_teacher
    from dd2_lightning.data.cache import SequenceCache
    from dd2_lightning.stages.sequences import fill

    torch.set_num_threads(1)
    device = f"cuda:{rank % torch.cuda.device_count()}" if device == "cuda" else device
    sequences = SequenceCache(output, description)
    fill(sequences, load_teacher(teacher).to(device), sampling, shares[rank], batch_size, show=rank == 0)


def run_processes(function: Callable[..., None], arguments: tuple[Any, ...], number: int) -> None:
    """Run a function in several processes, which SIGINT reaches through this one alone; if one fails, all end."""
    from torch import multiprocessing

    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)  # they inherit it
    context = multiprocessing.spawn(function, arguments, number, join=False)
    signal.signal(signal.SIGINT, handler)
    try:
        while not context.join():
            pass
    finally:
        for process in context.processes:
            process.terminate()
