"""Teacher sequences on disk: complete or not there, the same however they were made, refused where they do not fit."""

import json
import os
import signal

import numpy as np
import pytest
import torch

from dd2_lightning.artifacts import load_teacher
from dd2_lightning.cli import main
from dd2_lightning.data.cache import SequenceCache
from dd2_lightning.data.iterations import EpochOrder
from dd2_lightning.data.prefixes import CachedBatches
from dd2_lightning.errors import ArtifactError
from dd2_lightning.files import directory_lock
from dd2_lightning.sampling import Sampling
from dd2_lightning.stages.sequences import describe_cache
from processes import forked
from runs import fails, fit, make_teacher, stage_config

SIZES = ["--num", "50", "--shard_size", "16"]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A teacher's directory."""
    return make_teacher(tmp_path_factory.mktemp("cache"))


def build(teacher, output, *args):
    main(["cache", "--teacher", str(teacher), "--output", str(output), *SIZES, *args])


def opened(teacher, directory, num=50):
    description = describe_cache(teacher, load_teacher(teacher), Sampling(), num, 0)
    return SequenceCache(directory, description)


def files(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.fixture(scope="module")
def whole(teacher, tmp_path_factory):
    """A cache made at once."""
    directory = tmp_path_factory.mktemp("whole")
    build(teacher, directory)
    return directory


def test_what_a_cache_holds(teacher, whole):
    cache = opened(teacher, whole)
    assert list(cache.shards) == [0, 1, 2, 3] and cache.missing() == []
    tokens, labels = cache.read(np.arange(50))
    assert tokens.shape == (50, 2) and torch.equal(labels, torch.arange(50) % 2)
    assert (tokens[:, 0] == tokens[:, 1]).all() and set(tokens.unique().tolist()) == {0, 1}
    assert np.load(whole / "00000.npy")["tokens"].dtype == np.uint16
    manifest = json.loads((whole / "manifest.json").read_text())
    assert manifest["num"] == 50 and manifest["seed"] == 0 and manifest["sampling"]["top_k"] == 0
    shard = torch.arange(16).numpy()
    assert torch.equal(cache.read(shard[::-1].copy())[0], tokens[:16].flip(0))


@pytest.mark.parametrize("args", [("--batch_size", "7"), ("--processes", "2"), ("--part", "0", "--parts", "2")])
def test_it_does_not_depend_on_how_it_was_made(teacher, whole, tmp_path, args):
    build(teacher, tmp_path, *args)
    if "--part" in args:
        assert opened(teacher, tmp_path).missing() == [1, 3]
        build(teacher, tmp_path, "--part", "1", "--parts", "2")
    assert files(tmp_path) == files(whole)


@pytest.mark.parametrize(("processes", "parts", "sizes"), [(2, 1, [25, 25]), (1, 4, [13, 13, 13, 11]), (1, 1, [50])])
def test_every_process_has_a_shard(teacher, tmp_path, processes, parts, sizes):
    """Where shards would be fewer than processes they are smaller; the runs that read them need not know."""
    for part in range(parts):
        counts = ("--processes", str(processes), "--part", str(part), "--parts", str(parts), "--shard_size", "100")
        build(teacher, tmp_path, *counts)
    cache = opened(teacher, tmp_path)
    assert [len(np.load(cache.path(shard))) for shard in cache.shards] == sizes
    cache.verify()


@pytest.mark.parametrize(("codes", "kind"), [(1 << 16, np.uint16), ((1 << 16) + 1, np.uint32)])
def test_large_codebooks_take_more_bytes(teacher, tmp_path, codes, kind):
    cache = opened(teacher, tmp_path, num=2)
    tokens = torch.tensor([[codes - 1, 1], [2, 3]])
    cache.write(0, tokens, torch.tensor([0, 1]), codes)
    assert np.load(tmp_path / "00000.npy")["tokens"].dtype == kind
    assert torch.equal(cache.read(np.arange(2))[0], tokens)


def test_an_interrupted_build_continues(teacher, whole, tmp_path):
    """Killed while it writes the third shard; the first two are not sampled again, and nothing is left lying."""
    directory = tmp_path / "cache"

    def killed():
        original = os.replace

        def replace(part, path):
            if str(path).endswith("00002.npy"):
                signal.raise_signal(signal.SIGKILL)
            original(part, path)

        os.replace = replace
        build(teacher, directory)

    assert forked(killed, tmp_path / "log")[0] == -signal.SIGKILL
    assert len(list(directory.glob(".00002.npy.*.part"))) == 1
    (directory / "00002.npy").write_bytes(b"half")
    assert opened(teacher, directory).missing() == [2, 3]
    before = (directory / "00000.npy").stat().st_mtime_ns
    build(teacher, directory)
    assert files(directory) == files(whole)
    assert (directory / "00000.npy").stat().st_mtime_ns == before


def test_a_directory_has_one_writer(teacher, whole, tmp_path, capsys):
    """A second ``dd2 cache`` or a run that wants to complete the cache is refused; a run that only reads is not."""
    cache = SequenceCache(tmp_path / "cache", describe_cache(teacher, load_teacher(teacher), Sampling(), 50, 0), 16)
    words = (f"written by process {os.getpid()} on", "wait for it")
    config = stage_config(teacher.parent, "init")
    config["trainer"]["default_root_dir"] = str(tmp_path / "run")
    config["data"]["init_args"] |= {"sequences": "cached", "cache_dir": str(tmp_path / "cache"), "cache_size": 50}
    with cache.lock():
        with fails(capsys, 1, *words):
            build(teacher, tmp_path / "cache")
        with fails(capsys, 1, *words):
            fit(config, tmp_path)
    build(teacher, tmp_path / "cache")
    assert files(tmp_path / "cache") == files(whole)
    with cache.lock():
        fit(config, tmp_path)


def test_parts_have_writers_of_their_own(teacher, whole, tmp_path, capsys):
    def build_part(part):
        build(teacher, tmp_path, "--part", str(part), "--parts", "2")

    with directory_lock(tmp_path, ".lock.0-of-2"):
        build_part(1)
        with fails(capsys, 1, "is being written by process"):
            build_part(0)
    build_part(0)
    assert files(tmp_path) == files(whole)


def test_a_damaged_shard_is_named(teacher, tmp_path):
    build(teacher, tmp_path)
    content = (tmp_path / "00001.npy").read_bytes()
    (tmp_path / "00001.npy").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ArtifactError, match=r"00001\.npy is damaged"):
        opened(teacher, tmp_path).verify()


@pytest.mark.parametrize("args", [("--seed", "1"), ("--sampling.top_k", "1")])
def test_other_settings_are_refused(teacher, whole, capsys, args):
    before = files(whole)
    with fails(capsys, 1, str(whole), args[0].lstrip("-").split(".")[0]):
        build(teacher, whole, *args)
    assert files(whole) == before


@pytest.mark.parametrize("pairs", [(), ("--pair_steps", "4")])
def test_more_sequences_continue_a_cache(teacher, tmp_path, pairs):
    """Whole shards stay as they are; the result is that of a cache made at once, and serves for fewer sequences."""
    for name, numbers in (("once", ["50"]), ("grown", ["20", "50"])):
        for number in numbers:
            build(teacher, tmp_path / name, "--num", number, *pairs)
        times = {path: path.stat().st_mtime_ns for path in (tmp_path / name).glob("00000.*")}
        build(teacher, tmp_path / name, "--num", "50", *pairs)
        assert times == {path: path.stat().st_mtime_ns for path in times}
    assert files(tmp_path / "once") == files(tmp_path / "grown")
    before = files(tmp_path / "once")
    build(teacher, tmp_path / "once", "--num", "20", *pairs)
    assert files(tmp_path / "once") == before
    if not pairs:
        fewer = opened(teacher, tmp_path / "once", num=20)
        assert (len(fewer), list(fewer.shards), fewer.missing()) == (20, [0, 1], [])
        assert torch.equal(fewer.read(np.arange(20))[0], opened(teacher, tmp_path / "grown").read(np.arange(20))[0])


def test_another_teacher_is_refused(whole, tmp_path, capsys):
    with fails(capsys, 1, str(whole), "teacher_sha256"):
        build(make_teacher(tmp_path, gap=2.0), whole)


@pytest.mark.parametrize("args", [("--processes", "0"), ("--part", "2", "--parts", "2"), ("--shard_size", "0")])
def test_numbers_that_cannot_be(teacher, tmp_path, capsys, args):
    with fails(capsys, 2, args[0]):
        build(teacher, tmp_path / "cache", *args)
    assert not (tmp_path / "cache").exists()


def test_a_stage_completes_its_cache_and_reads_it(tmp_path, capsys):
    teacher = make_teacher(tmp_path)
    config = stage_config(tmp_path, "init")
    directory = tmp_path / "cache"
    config["data"]["init_args"] |= {"sequences": "cached", "cache_dir": str(directory), "cache_size": 50}
    build(teacher, directory, "--part", "0", "--parts", "2")
    fit(config, tmp_path)
    written = files(directory)
    assert opened(teacher, directory).missing() == []
    config["trainer"]["default_root_dir"] = str(tmp_path / "again")
    fit(config, tmp_path)
    assert files(directory) == written
    config["trainer"]["default_root_dir"] = str(tmp_path / "other")
    config["data"]["init_args"]["sampling"] = {"top_k": 1}
    with fails(capsys, 1, str(directory), "sampling"):
        fit(config, tmp_path)


def test_every_epoch_is_a_new_order_of_everything(teacher, whole):
    """And batch i is the same after a resume, and the union of the processes' shares."""
    cache = opened(teacher, whole)
    order = EpochOrder(50, 20, seed=3)
    rows = torch.cat([order.rows(i, 0, 20) for i in range(5)])
    first, second = rows[:50], rows[50:]
    assert torch.equal(first.sort().values, torch.arange(50)) and torch.equal(second.sort().values, torch.arange(50))
    assert not torch.equal(first, second)
    assert torch.equal(EpochOrder(50, 20, seed=3).rows(4, 0, 20), rows[80:])
    batches = [CachedBatches(cache, 20, 3, rank, 2)[2] for rank in range(2)]
    tokens, labels = cache.read(rows[40:60].numpy())
    assert torch.equal(torch.cat([batch.tokens for batch in batches]), tokens)
    assert torch.equal(torch.cat([batch.labels for batch in batches]), labels)
