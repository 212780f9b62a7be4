"""The order of tokens."""

import pytest
import torch

from dd2_lightning.layout import Layout

SCALES = Layout((1, 4, 9))


def test_counts_and_offsets():
    assert (SCALES.num_positions, SCALES.length) == (3, 14)
    assert SCALES.offsets == (0, 1, 5, 14)
    assert [SCALES.span(i) for i in range(3)] == [slice(0, 1), slice(1, 5), slice(5, 14)]


def test_position_of_token():
    assert SCALES.position_of_token().tolist() == [0] + [1] * 4 + [2] * 9
    assert Layout((1,) * 5).position_of_token().tolist() == [0, 1, 2, 3, 4]


def test_positions_in_whole_prefixes_only():
    assert [SCALES.positions_in(k) for k in (0, 1, 5, 14)] == [0, 1, 2, 3]
    for k in (2, 4, 13, 15):
        with pytest.raises(ValueError, match="end inside a position"):
            SCALES.positions_in(k)


def test_mean_per_position_weighs_positions_equally():
    values = torch.arange(28.0).view(2, 14)
    means = torch.stack([values[:, SCALES.span(i)].mean(1) for i in range(3)], 1)
    torch.testing.assert_close(SCALES.mean_per_position(values), means)
    assert SCALES.mean_per_position(values).shape == (2, 3)


@pytest.mark.parametrize("counts", [(), (1, 0), (2, -1)])
def test_empty_positions_are_refused(counts):
    with pytest.raises(ValueError, match="at least one token"):
        Layout(counts)


def test_equal_layouts_are_one_key():
    """A layout read from a list (as a config gives it) equals, and hashes as, the one written as a tuple."""
    assert Layout([1, 4, 9]) == SCALES
    assert hash(Layout([1, 4, 9])) == hash(SCALES)
    assert Layout((1, 4)) != SCALES
