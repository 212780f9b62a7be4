"""Random streams."""

import itertools
import subprocess
import sys

import pytest
import torch

from dd2_lightning.noise import stream


def numbers(seed, *key, n=8):
    return torch.randn(n, generator=stream(seed, *key))


def test_same_key_same_numbers():
    assert torch.equal(numbers(3, "guidance", 7, 2), numbers(3, "guidance", 7, 2))


def test_every_part_of_the_key_matters():
    keys = [(0,), (1,), (0, "a"), (0, "b"), (0, "a", 1), (0, "a", 2), (0, 1, "a"), (0, 1, 2), (0, 2, 1), (0, 1, 2, 0)]
    for one, other in itertools.combinations(keys, 2):
        assert not torch.equal(numbers(*one), numbers(*other)), (one, other)


def test_neighbouring_keys_are_independent():
    """Iterations 0, 1, 2, ... are the keys in use: their numbers must be neither equal nor correlated."""
    rows = torch.stack([numbers(0, "x", i, n=4096) for i in range(16)])
    correlation = rows.corrcoef() - torch.eye(16)
    assert correlation.abs().max() < 5 / 4096**0.5


def test_global_random_state_is_neither_read_nor_moved():
    state = torch.get_rng_state()
    first = numbers(0, "x")
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    assert torch.equal(numbers(0, "x"), first)


def test_same_numbers_in_another_process():
    """Python salts ``hash(str)`` per process; a resumed run must not."""
    code = "from dd2_lightning.noise import stream; print(stream(5, 'generator', 11).initial_seed())"
    for salt in ("1", "2"):
        run = subprocess.run([sys.executable, "-c", code], env={"PYTHONHASHSEED": salt}, capture_output=True, text=True)
        assert run.stdout.strip() == str(stream(5, "generator", 11).initial_seed()), run.stderr


def test_a_negative_seed_is_refused():
    with pytest.raises(ValueError):
        stream(-1, "x")
