"""The device and the precision of a command, and the progress that it reports."""

import io

import pytest
import torch
from torch import nn

from dd2_lightning import progress
from dd2_lightning.devices import autocast, check_precision, resolve_device
from dd2_lightning.progress import tracked


@pytest.mark.parametrize(("cuda", "expected"), [(0, "cpu"), (2, "cuda")])
def test_auto_is_the_gpu_where_there_is_one(monkeypatch, cuda, expected):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert resolve_device("auto") == resolve_device() == torch.device(expected)
    assert resolve_device("mps") == torch.device("mps")
    if cuda:
        assert resolve_device("cuda:1") == torch.device("cuda:1")


@pytest.mark.parametrize("name", ["cuda:2", "cuda:x", "cuda:-1", "mps", "tpu", "", "meta", "cpu:7", "CPU"])
def test_a_device_that_is_not_there_is_named(monkeypatch, name):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ValueError, match=rf"--device {name} is not here; available: auto, cpu, cuda$"):
        resolve_device(name)


def test_bf16_is_for_networks_only():
    network, x, cpu = nn.Linear(8, 8), torch.randn(4, 8), torch.device("cpu")
    for precision, expected in (("32", torch.float32), (32, torch.float32), ("bf16", torch.bfloat16)):
        check_precision(cpu, precision)
        with autocast(cpu, precision):
            assert network(x).dtype == expected
    assert network.weight.dtype == torch.float32


def test_a_precision_that_does_not_work_is_named(monkeypatch):
    with pytest.raises(ValueError, match="--precision must be one of 32, bf16, got 16"):
        check_precision(torch.device("cpu"), "16")

    def refuse(*args, **kwargs):
        raise RuntimeError("no bfloat16 here\nmore")

    monkeypatch.setattr(torch, "autocast", refuse)
    with pytest.raises(ValueError, match=r"--precision bf16 does not work on cpu: no bfloat16 here$"):
        check_precision(torch.device("cpu"), "bf16")


# --- progress --------------------------------------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test sets."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_without_a_terminal_there_is_a_line_now_and_then(clock, capsys):
    for _ in tracked(range(20), "evaluate: one-step", 4900, size=250):
        clock[0] += 4.0
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "evaluate: one-step 750/4,900 images, 62.5/s, 1:06 left"
    assert len(lines) == 7 and lines[-1] == "evaluate: one-step 4,900/4,900 images, 61.2/s"


def test_a_short_task_is_one_line_and_nothing_to_do_is_none(clock, capsys):
    assert list(tracked(iter("ab"), "cache", 2, unit="shards")) == ["a", "b"]
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert list(tracked([], "cache", 0)) == []
    assert capsys.readouterr().err == ""


def test_a_task_that_fails_does_not_look_finished(clock, capsys):
    def broken():
        yield 1
        raise OSError

    with pytest.raises(OSError):
        list(tracked(broken(), "cache", 2))
    assert capsys.readouterr().err == ""


def test_on_a_terminal_there_is_a_bar(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr("sys.stderr", stream)
    assert list(tracked(range(3), "sample: a.npz", 30, size=10)) == [0, 1, 2]
    text = stream.getvalue()
    assert "sample: a.npz" in text and "30/30" in text and "images/s" in text
