"""The figures of one GPU, on the CPU with small networks: every piece runs, and what is late leaves an error."""

import json
import time
from functools import partial

import pytest
import yaml

from benchmarks.speed import __main__ as speed
from benchmarks.speed import gpu, scaling, unused
from benchmarks.speed.hours import hours
from benchmarks.training import build
from dd2_lightning.planning import make_plan
from processes import forked
from reference import release_files
from runs import stage_config


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


@pytest.mark.parametrize("family", ["var", "llamagen"])
def test_against_the_reference(family, tmp_path, monkeypatch):
    """The same tokens, and images that differ by rounding, in turn as often as asked for."""
    monkeypatch.setitem(speed.SAMPLING, family, gpu.Sampling(guidance_scale=2.0, top_k=5))
    name = f"{family}/{release_files(tmp_path, family)['sizes.json']}"
    path = tmp_path / "report.json"
    speed.main("teachers", str(path), [name], batch_size=2, rounds=2)
    found = json.loads(path.read_text())["models"][name]
    assert found["equal_tokens"] == 1 and len(found["ratios"]) == 2
    for what in ("passes", "decoders"):
        speed.main(what, str(path), [name], rounds=1)
        found = json.loads(path.read_text())["models"][name]
        assert found["largest_difference"] < 1e-4 and len(found["seconds"]["ours"]) == 1
    assert found["largest_difference"] > 0  # another decoder, not ours once more


def test_the_search_for_unused_parameters(tmp_path):
    name = f"llamagen/{release_files(tmp_path, 'llamagen')['sizes.json']}"
    status, text = forked(partial(unused.main, str(tmp_path / "unused.json"), [name], rounds=2), tmp_path / "log")
    assert status == 0, text
    found = json.loads((tmp_path / "unused.json").read_text())["models"][name]
    assert {update: len(taken) for update, taken in found["seconds"].items()} == {"guidance": 2, "generator": 2}
    assert all(taken > 0 for taken in found["median_seconds"].values())


def test_hours_of_runs(root, tmp_path, capsys):
    """Operations of a real plan over what so many GPUs do in an hour; stages without a config count nothing."""
    config = {**stage_config(root, "csd"), "release": None}
    (tmp_path / "var_d16").mkdir()
    (tmp_path / "var_d16/csd.yaml").write_text(yaml.safe_dump(config))
    hours(str(tmp_path / "hours.json"), str(tmp_path))
    found = json.loads((tmp_path / "hours.json").read_text())["models"]
    plan = make_plan(*build(config, {}, {}), config["trainer"])
    assert found["var_d16"]["hours"]["8 H100"] == pytest.approx(plan.training_flops / (8 * 0.4 * 989e12 * 3600))
    assert found["var_d16"]["stages"]["csd"]["fits"]["one RTX 4090"] == plan.fits(24e9)
    assert found["llamagen_l"]["hours"]["8 A800"] == 0
    assert "| var_d16 | 0 | 0 | 0 | 116 |" in " ".join(capsys.readouterr().out.split())


def test_scaling(tmp_path, monkeypatch, capsys):
    """Every size is varied, fitted and drawn; the fit finds the line that it was given."""
    small = scaling.Sizes(tokens=4, codes=16, draws=2, batch_size=2, width=16)
    monkeypatch.setattr(scaling, "Sizes", lambda: small)
    monkeypatch.setattr(scaling, "VARIED", {name: (size, 4 * size) for name, size in small._asdict().items()})
    scaling.scaling(str(tmp_path / "scaling.json"), str(tmp_path / "scaling.png"), rounds=1)
    found = json.loads((tmp_path / "scaling.json").read_text())
    assert list(found["sizes"]) == list(small._fields) == list(scaling.SYMBOLS)
    assert all(len(taken) == 1 for entry in found["sizes"].values() for taken in entry["seconds"].values())
    assert (tmp_path / "scaling.png").read_bytes().startswith(b"\x89PNG")
    fit = scaling.fitted([1, 2, 5], [0.3 + 0.2 * x**2 for x in (1, 2, 5)], 2)
    assert (fit["constant"], fit["slope"]) == pytest.approx((0.3, 0.2)) and fit["largest_deviation"] < 1e-9


def test_an_iteration_has_k_guidance_updates(monkeypatch):
    calls = []
    monkeypatch.setattr(scaling, "step_of", lambda stage, update, *_: lambda: calls.append(update.name))
    scaling.iteration(scaling.Sizes(tokens=4, codes=16, batch_size=2, width=16, guidance_updates=3))()
    assert calls == ["guidance"] * 3 + ["generator"]
