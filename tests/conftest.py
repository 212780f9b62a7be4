"""What every test starts from: a fixed seed, one thread, and tiny runs that are made once."""

from pathlib import Path

import pytest
import torch

from runs import prepare_all, run_chain
from teachers import var_teacher

torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is in ``slow/`` and run it first, the rest fills up; skip what needs a GPU where there is none."""
    for item in items:
        if Path(__file__).parent / "slow" in item.path.parents:
            item.add_marker(pytest.mark.slow)
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a GPU"))
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def root(tmp_path_factory):
    """A directory with what the tiny runs of all stages start from; tests write elsewhere."""
    root = tmp_path_factory.mktemp("root")
    torch.manual_seed(0)
    prepare_all(root)
    return root


@pytest.fixture(scope="session")
def var_run(tmp_path_factory):
    """A directory with a tiny VAR teacher, which has images, and its stages 1 and 2."""
    root = tmp_path_factory.mktemp("var")
    torch.manual_seed(0)
    run_chain(root, "init", "csd", teacher=var_teacher())
    return root
