"""What every test starts from: a fixed seed and one thread, so that results do not depend on the machine."""

import pytest
import torch

from runs import prepare_all

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A directory with what the tiny runs of all stages start from."""
    root = tmp_path_factory.mktemp("root")
    prepare_all(root)
    return root
