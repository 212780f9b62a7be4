"""Two processes do what one does: the same global batch, the same weights, every stage."""

import pytest
import torch

from equivalence import ITERATIONS, SHARDED, deviation, weights_of
from runs import STAGES

pytestmark = pytest.mark.slow
TOLERANCE = 1e-5


@pytest.mark.parametrize("stage", STAGES)
def test_two_processes_with_accumulation_equal_one(root, tmp_path, stage):
    (alone,) = weights_of(root, stage, tmp_path / "one", 1)
    first, second = weights_of(root, stage, tmp_path / "two", 2)
    assert all(torch.equal(value, second[key]) for key, value in first.items())  # EMAs among them
    assert deviation(alone, first) < TOLERANCE


@pytest.mark.parametrize("stage", ["csd", "dd1"])
def test_sharded_networks_with_accumulation_equal_whole_ones(root, tmp_path, stage):
    """FSDP2, and resumed halfway: where one network is frozen while another is trained, and in the baseline."""
    (alone,) = weights_of(root, stage, tmp_path / "one", 1)
    for iterations in (ITERATIONS // 2, ITERATIONS):
        first, second = weights_of(root, stage, tmp_path / "two", 2, SHARDED, iterations)
    assert all(torch.equal(value, second[key]) for key, value in first.items())
    assert deviation(alone, first) < TOLERANCE
