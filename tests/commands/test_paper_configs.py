"""The paper's settings: one complete config a stage."""

from pathlib import Path

import pytest
import yaml

from benchmarks.training import build, read_config
from dd2_lightning.cli import main
from dd2_lightning.families.registry import build_meta
from dd2_lightning.hub.cards import published
from dd2_lightning.models.student import build_student
from dd2_lightning.planning import build_networks
from runs import fit, make_teacher, stage_config

CONFIGS = Path(__file__).parents[2] / "configs"
STAGES = {"init": "ARDiffusionInit", "csd": "CSDDistill", "align": "PerformanceAlign"}

# section 9 of the settings: learning rate, batch, micro-batches, iterations of the head alone, iterations
INIT = {
    "var_d16": (2e-4, 512, 4, 300_000, 330_000),
    "var_d20": (2e-4, 512, 8, 300_000, 330_000),
    "var_d24": (2e-4, 512, 16, 200_000, 230_000),
    "llamagen_l": (1e-4, 512, 4, 0, 100_000),
}
# learning rates of guidance network and generator, warm-up, batch, micro-batches, updates of the two, K
CSD = {
    "var_d16": (2e-4, 2e-4, 40_000, 512, 4, 40_000, 8_000, 5),
    "var_d20": (2e-4, 2e-4, 40_000, 512, 8, 80_000, 16_000, 5),
    "var_d24": (4e-4, 5e-5, 20_000, 1024, 32, 30_000, 15_000, 2),
    "llamagen_l": (2e-4, 1e-4, 40_000, 1024, 8, 60_000, 12_000, 5),
}
# the second t and the split, of the sampling scripts; batch and micro-batches of the other stages
DD1 = {
    "var_d16": (5, 5, 512, 4),
    "var_d20": (4, 4, 512, 8),
    "var_d24": (4, 4, 512, 16),
    "llamagen_l": (80, 130, 512, 4),
}
# guidance updates alone, then of both networks
ALIGN = {"var_d16": (8_000, 15_000, 7_500), "var_d20": (8_000, 36_000, 18_000)}
PAPER_SIZES = {"var_d16": 329e6, "var_d20": 619e6, "var_d24": 1.04e9, "llamagen_l": 335e6}
EVERY = sorted(CONFIGS.glob("paper/*/*.yaml"))
PAPER = sorted(CONFIGS.glob("paper/*"))


def settings(capsys, model: str, stage: str) -> dict:
    """All settings of a stage of one of the paper's models."""
    with pytest.raises(SystemExit) as end:
        main(["fit", "--config", str(CONFIGS / "paper" / model / f"{stage}.yaml"), "--print_config"])
    assert end.value.code == 0
    return yaml.safe_load(capsys.readouterr().out)


def test_every_model_is_checked():
    assert {path.name for path in PAPER} == set(INIT) == set(CSD) == set(DD1) == set(PAPER_SIZES)


@pytest.mark.parametrize("name", INIT)
def test_settings_of_stage_1(capsys, name):
    config = settings(capsys, name, "init")
    model, data = config["model"]["init_args"], config["data"]["init_args"]
    lr, batch, accumulate, head, total = INIT[name]
    assert model["optimizer"]["lr"] == lr and model["optimizer"]["betas"] == [0.9, 0.95]
    assert (data["batch_size"], model["accumulate"]) == (batch, accumulate)
    assert (model["head_iterations"], config["trainer"]["max_steps"]) == (head, total)
    assert (model["head_width"], model["head_depth"], model["head_frequencies"]) == (1024, 4, 0)
    assert model["loss"] == "gts" and data["sequences"] != "none"
    assert data["sampling"]["guidance_scale"] == 2.0


@pytest.mark.parametrize("name", CSD)
def test_settings_of_stage_2(capsys, name):
    config = settings(capsys, name, "csd")
    model, data = config["model"]["init_args"], config["data"]["init_args"]
    guidance, generator, warmup, batch, accumulate, psi, theta, K = CSD[name]
    for name, lr in (("guidance", guidance), ("generator", generator)):
        optimizer = model[f"{name}_optimizer"]
        assert optimizer["lr"] == lr and optimizer["betas"] == [0.9, 0.95]
        assert (optimizer["warmup"], optimizer["lr_start"], optimizer["decay_from"]) == (warmup, 1e-6, 1.0)
    assert (data["batch_size"], model["accumulate"]) == (batch, accumulate)
    assert (model["guidance_updates"], config["trainer"]["max_steps"]) == (K, theta) and K * theta == psi
    assert (model["form"], model["alpha"], model["head_time"]) == ("sid", 1.0, 1.0)
    assert (model["teacher_sampling"]["guidance_scale"], model["teacher_sampling"]["top_k"]) == (2.0, 900)


@pytest.mark.parametrize("name", ALIGN)
def test_settings_of_stage_3(capsys, name):
    config = settings(capsys, name, "align")
    model = config["model"]["init_args"]
    alone, psi, theta = ALIGN[name]
    K = model["guidance_updates"]
    assert (K, model["align_guidance_updates"]) == (2, alone)
    assert config["trainer"]["max_steps"] == alone / K + theta and K * theta == psi
    assert model["guidance_optimizer"]["warmup"] == 0


def test_settings_of_stage_0(capsys):
    config = settings(capsys, "llamagen_l", "adapt")
    model = config["model"]["init_args"]
    assert config["trainer"]["max_steps"] - model["input_iterations"] == 200_000
    assert config["data"]["init_args"]["sampling"]["guidance_scale"] is None and model["targets"] == "codes"
    later = settings(capsys, "llamagen_l", "init")["model"]["init_args"]["teacher"]
    assert later == config["trainer"]["default_root_dir"] != model["teacher"]


def test_settings_of_stage_4(capsys):
    """Those of FD-loss for one-step generators: table 4 and its scripts."""
    config = settings(capsys, "var_d16", "frechet")
    model, data = config["model"]["init_args"], config["data"]["init_args"]
    adam = model["generator_optimizer"]
    assert (data["batch_size"], adam["lr"], adam["betas"], adam["clip"]) == (1024, 1e-6, [0.9, 0.95], 0)
    assert (model["moment_decay"], model["moment_samples"], model["csd_weight"]) == (0.999, 50_000, 0)
    assert adam["warmup"] == 5 * 1250 and config["trainer"]["max_steps"] == 100 * 1250
    assert [entry["network"] for entry in model["features"]] == ["inception"]
    assert model["init_from"] == settings(capsys, "var_d16", "align")["trainer"]["default_root_dir"]


@pytest.mark.parametrize("name", DD1)
def test_settings_of_dd1(capsys, name):
    config = settings(capsys, name, "dd1")
    model, data = config["model"]["init_args"], config["data"]["init_args"]
    second, split, batch, accumulate = DD1[name]
    assert (model["second"], model["split"]) == (second, split)
    assert (data["batch_size"], model["accumulate"]) == (batch, accumulate)
    assert model["optimizer"]["betas"] == [0.9, 0.95] and model["ema_limit"] == 0.9999
    truncation = (8000, 1.0) if name.startswith("llamagen") else (900, 0.95)
    sampling = data["sampling"]
    assert (sampling["guidance_scale"], sampling["top_k"], sampling["top_p"]) == (2.0, *truncation)
    assert model["teacher"] == settings(capsys, name, "csd")["model"]["init_args"]["teacher"]


@pytest.mark.parametrize("path", PAPER, ids=lambda path: path.name)
def test_the_stages_of_a_model_are_chained(capsys, path):
    chain = {stage: settings(capsys, path.name, stage) for stage in STAGES}
    roots = {stage: config["trainer"]["default_root_dir"] for stage, config in chain.items()}
    assert len(set(roots.values())) == 3
    assert chain["csd"]["model"]["init_args"]["init_from"] == roots["init"]
    assert chain["align"]["model"]["init_args"]["init_from"] == roots["csd"]
    assert len({config["model"]["init_args"]["teacher"] for config in chain.values()}) == 1
    for stage, config in chain.items():
        assert config["model"]["class_path"].endswith(STAGES[stage])
        batch, devices = config["data"]["init_args"]["batch_size"], config["trainer"]["devices"]
        assert batch % (devices * config["model"]["init_args"]["accumulate"]) == 0


@pytest.mark.parametrize("path", PAPER, ids=lambda path: path.name)
def test_students_have_the_papers_size(path):
    content = yaml.safe_load((path / "init.yaml").read_text())
    settings = content["model"]["init_args"]
    teacher = build_meta(*published(content["release"]))
    student = build_student(teacher, width=settings["head_width"], depth=settings["head_depth"])
    size = sum(parameter.numel() for parameter in student.parameters())
    assert size == pytest.approx(PAPER_SIZES[path.name], rel=0.01)


@pytest.mark.parametrize("path", EVERY, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_stage_is_built_without_a_weight(path):
    """The very networks of the config, on the meta device."""
    stage, _ = build(read_config(path), {}, {})
    kinds = {**STAGES, "adapt": "ContinuousInput", "dd1": "DD1Distill", "frechet": "FrechetAlign"}
    assert type(stage).__name__ == kinds[path.stem]
    build_networks(stage, yaml.safe_load(path.read_text())["release"])
    updates = stage.updates()
    assert updates and {p.device.type for u in updates for p in u.network.parameters()} == {"meta"}


def test_the_first_lines_say_how_to_run_it():
    for path in EVERY:
        assert f"dd2 fit --config {path.relative_to(CONFIGS.parent)}" in path.read_text()


def test_a_run_with_a_release_writes_nothing_of_it(tmp_path):
    make_teacher(tmp_path)
    fit({**stage_config(tmp_path, "init"), "release": "var/d16"}, tmp_path)
    assert (tmp_path / "init/config.json").is_file()
    assert "release" not in yaml.safe_load((tmp_path / "init/config.yaml").read_text())
    assert "var/d16" not in (tmp_path / "init/config.json").read_text()
