"""Faults are clear errors that cost nothing."""

import pytest

from faults import FAULTS
from runs import prepare_all


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """What the runs start from."""
    root = tmp_path_factory.mktemp("faults")
    prepare_all(root)
    return root


@pytest.mark.parametrize("fault", FAULTS)
def test_nothing_is_lost(root, tmp_path, fault):
    assert FAULTS[fault](root, tmp_path / "fault") == 0
