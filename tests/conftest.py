"""What every test starts from: a fixed seed and one thread, so that results do not depend on the machine."""

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
