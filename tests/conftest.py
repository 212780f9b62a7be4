"""What every test starts from: a fixed seed and one thread, so that results do not depend on the machine."""

import pytest
import torch

from runs import prepare_all, run_chain
from teachers import var_teacher

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


@pytest.fixture(scope="session")
def var_run(tmp_path_factory):
    """A directory with a tiny VAR teacher, which has images, and its stages 1 and 2."""
    root = tmp_path_factory.mktemp("var")
    torch.manual_seed(0)
    run_chain(root, "init", "csd", teacher=var_teacher())
    return root
