"""The figures of one GPU, on the CPU with small networks: every piece runs, and what is late leaves an error."""

import json
import time
from functools import partial

import pytest

from benchmarks.speed import gpu
from reference import release_files


@pytest.fixture(autouse=True)
def cpu(monkeypatch):
    monkeypatch.setattr(gpu, "DEVICE", "cpu")
    monkeypatch.setattr(gpu, "HEAD", {"width": 16, "depth": 1})
    monkeypatch.setattr("torch.cuda.empty_cache", lambda: None)


@pytest.mark.parametrize("family", ["var", "llamagen"])
def test_every_piece(family, tmp_path, monkeypatch):
    name = f"{family}/{release_files(tmp_path, family)['sizes.json']}"
    monkeypatch.setitem(gpu.GUIDED, family, gpu.Sampling(guidance_scale=2.0, top_k=5))
    pieces = {
        "sampling": partial(gpu.sampling, name, 2, True, 1),
        "equal": partial(gpu.equal_samples, name),
        "training": partial(gpu.training, name, 2, 1),
        "flow": partial(gpu.flow, name),
        "late": lambda: time.sleep(5),
    }
    limits = {"late": 0.05}
    monkeypatch.setattr(gpu, "PIECES", {key: (limits.get(key, 60), piece) for key, piece in pieces.items()})
    gpu.main(tmp_path / "gpu.json")
    found = json.loads((tmp_path / "gpu.json").read_text())["pieces"]
    assert {key for key, piece in found.items() if "error" in piece} == {"late"}, found
    assert "TimeoutError" in found["late"]["error"]
    assert found["equal"]["teacher_equal"] == 1 and found["equal"]["one_step_difference"] == 0
    assert {"guidance", "generator", "bare forward"} <= found["training"]["seconds"].keys()
