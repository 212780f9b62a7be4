"""Sampling teacher sequences: for a batch that requests them, and for a cache."""

import json
from collections.abc import Iterable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dd2_lightning.artifacts import Artifact
from dd2_lightning.costs import LARGEST, largest_batch, sampling_peak
from dd2_lightning.data.batch import Batch
from dd2_lightning.data.cache import SequenceCache
from dd2_lightning.errors import DD2Error
from dd2_lightning.files import sha256
from dd2_lightning.models.codebook_teacher import CodebookTeacher, require_codebook
from dd2_lightning.models.walk import noise_to_codes
from dd2_lightning.noise import stream
from dd2_lightning.progress import tracked
from dd2_lightning.sampling import Sampling

FORMAT = 1
SOLVER = "multistep, times shifted by the rms of the codes"
"""How :func:`noise_to_codes` integrates: another solver makes other pairs."""


def describe_cache(
    teacher_path: str | Path,
    teacher: CodebookTeacher,
    sampling: Sampling,
    num: int,
    seed: int,
    pair_steps: int | None = None,
) -> dict[str, Any]:
    """All that determines the ``num`` sequences of a cache: what its manifest must say.

    ``pair_steps`` are the evaluations of the flow a token of DD1's pairs; None is for sequences without noise.
    """
    pairs = {"solver": SOLVER, "steps": pair_steps, "noise": [teacher.layout.length, teacher.token_dim]}
    return {
        "format": FORMAT,
        "teacher_sha256": sha256(Artifact.open(teacher_path, ("teacher",), "teacher").file("teacher")),
        "sampling": json.loads(json.dumps(asdict(teacher.resolve_sampling(sampling)))),
        "num": num,
        "seed": seed,
        **({"pairs": pairs} if pair_steps else {}),
    }


def sample_codes(teacher: CodebookTeacher, labels: Tensor, sampling: Sampling, uniforms: Tensor) -> Tensor:
    """Teacher sequences as indices (B, n) from uniform numbers (B, n); refuses settings that make soft tokens."""
    tokens = teacher.sample(labels, sampling, uniforms=uniforms)
    if tokens.is_floating_point():
        raise DD2Error(f"data.sampling: stages learn from sequences of codes, {sampling} makes soft tokens")
    return tokens


def complete(batch: Batch, teacher: CodebookTeacher, count: int = 1) -> Batch:
    """The batch with the sequences, or pairs of noise and sequence, that it requests, drawn in ``count`` parts."""
    request, layout = batch.request, teacher.layout
    assert request is not None
    parts = batch.parts(-(-len(batch) // count))
    if request.pair_steps:
        noise = [part.randn(request.purpose, shape=(layout.length, teacher.token_dim)) for part in parts]
        walks = (teacher.walk(part.labels, request.sampling) for part in parts)
        drawn = [noise_to_codes(*pair, request.pair_steps) for pair in zip(walks, noise, strict=True)]
        return replace(batch, tokens=torch.cat(drawn), noise=torch.cat(noise), request=None)
    drawn = [
        sample_codes(teacher, part.labels, request.sampling, part.rand(request.purpose, shape=(layout.length,)))
        for part in parts
    ]
    return replace(batch, tokens=torch.cat(drawn), request=None)


def complete_cache(
    directory: str | Path, description: dict[str, Any], teacher: CodebookTeacher, sampling: Sampling
) -> None:
    """Sample the missing shards of a cache on the teacher's device, and check all of them."""
    cache = SequenceCache(directory, description)
    if cache.missing():
        with cache.lock():
            fill(cache, teacher, sampling, cache.missing())
    cache.verify()


def fill(
    cache: SequenceCache,
    teacher: CodebookTeacher,
    sampling: Sampling,
    shards: Iterable[int],
    batch_size: int | None = None,
    show: bool = True,
) -> None:
    """Sample shards of a cache, one after the other. Labels go round the classes.

    Their sequences depend on seed, shard and the manifest's shard size; neither on the batch size nor on the teacher's
    device, where they are drawn; without a batch size, as many at a time as its memory takes. Progress is reported if
    ``show``.
    """
    device, drawn = require_codebook(teacher).codebook.device, []
    if batch_size is None:
        drawing = partial(sampling_peak, teacher, sampling=sampling, pairs=cache.pairs is not None)
        batch_size = largest_batch(device, LARGEST, drawing)
    batches = [(shard, rows) for shard in shards for rows in cache.rows(shard).split(batch_size)]
    total = sum(len(rows) for _, rows in batches)
    progress = tracked(batches, "teacher sequences", total, "sequences", batch_size) if show else batches
    for shard, rows in progress:
        labels = rows.to(device) % teacher.num_classes
        noise = cache.noise(rows.numpy())
        if noise is not None:
            tokens = noise_to_codes(teacher.walk(labels, sampling), noise.to(device), cache.pairs["steps"])
        else:
            every = cache.rows(shard)
            uniforms = torch.rand(len(every), teacher.layout.length, generator=stream(cache.seed, "cache", shard))
            tokens = sample_codes(teacher, labels, sampling, uniforms[rows - every[0]].to(device))
        drawn.append(tokens.cpu())
        if rows[-1] == cache.rows(shard)[-1]:
            cache.write(shard, torch.cat(drawn), cache.rows(shard) % teacher.num_classes, len(teacher.codebook))
            drawn.clear()
