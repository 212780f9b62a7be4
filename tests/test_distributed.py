"""Two processes do what one does: the same global batch, the same weights, every stage."""

import pytest
import torch

from equivalence import deviation, weights_of
from runs import STAGES, prepare_all

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """What the runs start from."""
    root = tmp_path_factory.mktemp("distributed")
    prepare_all(root)
    return root


@pytest.mark.parametrize("stage", STAGES)
def test_two_processes_with_accumulation_equal_one(root, tmp_path, stage):
    (alone,) = weights_of(root, stage, tmp_path / "one", 1)
    first, second = weights_of(root, stage, tmp_path / "two", 2)
    assert all(torch.equal(value, second[key]) for key, value in first.items())  # EMAs among them
    assert deviation(alone, first) < TOLERANCE
