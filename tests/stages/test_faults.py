"""Faults are clear errors that cost nothing."""

import pytest

from faults import FAULTS


@pytest.mark.parametrize("fault", FAULTS)
def test_nothing_is_lost(root, tmp_path, fault):
    assert FAULTS[fault](root, tmp_path / "fault") == 0
