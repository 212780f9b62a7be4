"""What a plan says, against real runs of small networks and against formulas."""

import json
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode

from dd2_lightning.artifacts import load_teacher, write_teacher
from dd2_lightning.cli import main
from dd2_lightning.costs import (
    LARGEST,
    Ledger,
    count_flops,
    largest_batch,
    loss_cost,
    peak_of,
    sampling_flops,
    sampling_peak,
    saved_bytes,
    shapes_only,
)
from dd2_lightning.data import PrefixData
from dd2_lightning.families.registry import build_meta
from dd2_lightning.flow import CHUNKS
from dd2_lightning.hub.cards import published
from dd2_lightning.models.head import VelocityHead
from dd2_lightning.planning import blank_batch, make_plan
from dd2_lightning.sampling import Sampling
from dd2_lightning.stages import ARDiffusionInit, ContinuousInput, CSDDistill, PerformanceAlign, TeacherTraining
from runs import fails, run_chain, stage_config
from teachers import FAMILIES, llamagen_teacher

CONFIGS = Path(__file__).parents[2] / "configs"
HEAD = {"head_width": 16, "head_depth": 2}
TRAINER = {"max_steps": 10, "devices": 2}


@pytest.fixture(params=FAMILIES)
def teacher(request, tmp_path):
    """The directory of a small teacher."""
    write_teacher(tmp_path / "teacher", FAMILIES[request.param]())
    return str(tmp_path / "teacher")


def init_stage(teacher: str, **settings) -> ARDiffusionInit:
    return ARDiffusionInit(teacher, **HEAD, draws=2, **settings)


def csd_stage(teacher: str, tmp_path: Path, kind=CSDDistill, **settings) -> CSDDistill:
    """A stage whose ``init_from`` is only begun: its config says the size of the head."""
    (tmp_path / "init").mkdir(exist_ok=True)
    head = {"width": 16, "depth": 2, "frequencies": 0}
    config = {"stage": "init", "format": 1, "family": "", "teacher": {"path": "", "sha256": ""}, "head": head}
    (tmp_path / "init/config.json").write_text(json.dumps(config))
    sampling = Sampling(guidance_scale=1.5, top_k=3)
    return kind(teacher=teacher, init_from=str(tmp_path / "init"), teacher_sampling=sampling, draws=2, **settings)


def test_parameters_are_those_of_the_real_networks(teacher):
    plan = make_plan(init_stage(teacher), PrefixData(8), TRAINER)
    stage = init_stage(teacher)
    stage.configure_model()
    assert plan.parameters["student"] == sum(p.numel() for p in stage.student.parameters())
    kept = (*stage.parameters(), *stage.buffers())
    assert plan.weights == sum(t.numel() * t.element_size() for t in kept)
    assert plan.gradients == 4 * plan.parameters["student"] and plan.optimizer == 8 * plan.parameters["student"]


def real_networks(stage, teacher: str, head: dict[str, int]):
    """Give a stage real networks, as training does but for their weights."""
    stage.teacher = load_teacher(teacher)
    stage.build({"head": head})
    return stage


@pytest.mark.parametrize("which", ["whole model", "guidance", "generator"])
def test_activations_are_those_of_a_real_run(teacher, tmp_path, which):
    """What autograd keeps, and the peak of what is alive: within 1% of the same on real tensors."""
    batch_size, head = 12, {"width": 16, "depth": 2, "frequencies": 0}

    def stage():
        return init_stage(teacher) if which == "whole model" else csd_stage(teacher, tmp_path)

    planned = make_plan(stage(), PrefixData(8), TRAINER)
    update = next(entry for entry in planned.updates if entry.name == which)
    real = real_networks(stage(), teacher, head)
    loss = next(entry for entry in real.updates() if entry.name == which)
    cost = loss_cost(real, loss.network, lambda: loss.loss(blank_batch(real, batch_size), 0).loss)
    per_sample = update.cost.saved * batch_size
    real.requires_grad_(False)
    loss.network.requires_grad_(True)
    with saved_bytes(real) as saved:
        loss.loss(blank_batch(real, batch_size), 0).loss.mean()
    # what does not grow with the batch (a codebook that is kept once) is not the sample's
    assert sum(saved) - update.fixed.saved <= per_sample * 1.01 and per_sample <= sum(saved) * 1.01
    assert cost.peak == pytest.approx(update.cost.peak * batch_size + update.fixed.peak, rel=0.01)
    assert update.cost.flops * batch_size + update.fixed.flops == pytest.approx(cost.flops, rel=1e-6)


def test_the_ledger_counts_what_is_alive():
    with Ledger() as ledger:
        a = torch.zeros(1000)
        b = a + 1
        assert ledger.alive == 8000
        view = b[10:]
        b += 1
        del a
        assert (ledger.alive, ledger.peak) == (4000, 8000)
        del b
        assert ledger.alive == 4000
        del view
        assert ledger.alive == 0


def test_operations_of_a_linear_map():
    """Forward 2·b·i·o; backward that for the weight, and again for the input if it needs a gradient."""
    linear = nn.Sequential(nn.Linear(30, 50), nn.Linear(50, 70))
    x = torch.randn(11, 30)
    cost = loss_cost(linear, linear, lambda: linear(x))
    first, second = 2 * 11 * 30 * 50, 2 * 11 * 50 * 70
    assert cost.flops == 2 * first + 3 * second
    assert cost.saved == 4 * 11 * (30 + 50)
    frozen = loss_cost(linear, linear[1], lambda: linear(x))
    assert frozen.flops == first + 2 * second and frozen.saved == 4 * 11 * 50


def test_operations_of_the_head():
    """One position, m draws: input, time, condition, blocks of 5 width² and the last modulation, counted by hand."""
    C, d, w, depth, m = 4, 24, 32, 3, 5
    head = VelocityHead(C, d, w, depth)
    with torch.no_grad(), count_flops() as flops:
        head(torch.randn(1, 1, m, C), torch.rand(1, 1, m), torch.randn(1, 1, d))
    per_draw = 2 * (C * w + 256 * w + w * w + depth * 5 * w * w + 2 * w * w + w * C)
    assert flops.get_total_flops() == m * per_draw + 2 * d * w


def test_sampling_costs_what_the_matrices_say():
    """VAR without attention: 2 operations a weight and token, of every matrix that a token goes through."""
    teacher = build_meta("var", {**published("var/d16")[1], "depth": 2, "pixels": False})
    with shapes_only(teacher):
        once, twice = (sampling_flops(teacher, guided) for guided in (False, True))
    assert twice == 2 * once
    C, n, N, V, token_dim, depth = 1024, 680, 10, 4096, 32, 2
    blocks = depth * (n * 12 * C * C + 6 * C * C)  # modulations once a walk
    matrices = 2 * (blocks + (n - 1) * token_dim * C + n * V * C + N * 2 * C * C)
    keys = sum(count * sum(c for c in teacher.layout.counts[: k + 1]) for k, count in enumerate(teacher.layout.counts))
    attention = 2 * 2 * depth * keys * C
    assert matrices + attention < once < 1.02 * (matrices + attention)  # the rest builds the accumulated map


@pytest.mark.parametrize("teacher", ["llamagen"], indirect=True)
@pytest.mark.parametrize("contexts", [1, 5])
def test_a_few_chunks_stand_for_all(teacher, tmp_path, monkeypatch, contexts):
    """Every count is the same whether all chunks of a flow's backward pass run or some."""
    monkeypatch.setitem(CHUNKS, "cpu", contexts * 2 * 12)  # two draws, twelve codes
    few = make_plan(csd_stage(teacher, tmp_path), PrefixData(8), TRAINER)
    monkeypatch.setattr("dd2_lightning.costs.few_chunks", lambda counter: nullcontext([]))
    assert make_plan(csd_stage(teacher, tmp_path), PrefixData(8), TRAINER) == few


@pytest.mark.parametrize("teacher", ["var"], indirect=True)
def test_precision_changes_memory_not_operations(teacher):
    plans = [
        make_plan(init_stage(teacher), PrefixData(8), {**TRAINER, "precision": precision})
        for precision in ("32-true", "bf16-mixed")
    ]
    flops, saved = zip(*((plan.updates[0].cost.flops, plan.updates[0].cost.saved) for plan in plans), strict=True)
    assert flops[0] == flops[1] and saved[1] < saved[0]
    with pytest.raises(ValueError, match="16-true is not counted"):
        make_plan(init_stage(teacher), PrefixData(8), {**TRAINER, "precision": "16-true"})


@pytest.mark.parametrize("teacher", ["table"], indirect=True)
def test_counts_of_a_run(teacher, tmp_path):
    """Updates, batches and sequences of every stage."""
    head = make_plan(init_stage(teacher, head_iterations=4), PrefixData(8, "online"), TRAINER)
    assert [(u.name, u.count) for u in head.updates] == [("head", 4), ("whole model", 6)]
    assert head.updates[0].cost.flops < head.updates[1].cost.flops
    assert head.updates[0].cost.peak < head.updates[1].cost.peak
    assert (head.sequences, head.micro_batch) == (80, 4)
    csd = make_plan(csd_stage(teacher, tmp_path, guidance_updates=3, accumulate=2), PrefixData(8), TRAINER)
    assert [(u.name, u.count) for u in csd.updates] == [("guidance", 30), ("generator", 10)]
    assert (csd.sequences, csd.micro_batch, csd.sampling_flops) == (0, 2, 0)
    align = make_plan(csd_stage(teacher, tmp_path, PerformanceAlign, align_guidance_updates=8), PrefixData(8), TRAINER)
    assert [(u.name, u.count) for u in align.updates] == [("guidance", 20), ("generator", 6)]
    total = sum(u.count * (u.cost.flops * 8 + u.fixed.flops) for u in csd.updates)
    assert csd.training_flops == total and csd.hours(total, 1e9) == total / (2 * 1e9 * 3600)


def test_a_plan_of_the_adaptation(tmp_path):
    write_teacher(tmp_path / "teacher", llamagen_teacher(continuous_input=False))
    stage = ContinuousInput(str(tmp_path / "teacher"), input_iterations=3)
    plan = make_plan(stage, PrefixData(8, "online"), TRAINER)
    assert [(u.name, u.count) for u in plan.updates] == [("input", 3), ("transformer", 7)]
    first, second = plan.updates
    mlp = stage.model.backbone.tok_embeddings
    assert first.parameters == sum(p.numel() for p in mlp.parameters()) < second.parameters
    assert first.cost.flops == 0 and first.fixed.flops > 0  # it reads the codebook, not the batch


@pytest.mark.parametrize("teacher", ["table"], indirect=True)
def test_the_batch_that_fits(teacher):
    plan = make_plan(init_stage(teacher), PrefixData(8), TRAINER)
    memory = (plan.constant + 10.5 * plan.activations) / 0.9
    assert plan.fits(memory) == 10
    assert plan.fits(plan.constant) == 0


@pytest.mark.parametrize("teacher", ["table"], indirect=True)
def test_settings_that_cannot_be(teacher):
    with pytest.raises(ValueError, match="max_steps"):
        make_plan(init_stage(teacher), PrefixData(8), {**TRAINER, "max_steps": -1})
    with pytest.raises(ValueError, match="not divisible by 3 GPUs"):
        make_plan(init_stage(teacher), PrefixData(8), {**TRAINER, "devices": 3})
    with pytest.raises(ValueError, match=r"trainer.devices"):
        make_plan(init_stage(teacher), PrefixData(8), {**TRAINER, "devices": -1})
    sizes = FAMILIES["var"]().config
    with pytest.raises(ValueError, match="TeacherTraining is not planned"):
        make_plan(TeacherTraining("var", sizes), PrefixData(8), TRAINER)


@pytest.mark.parametrize("teacher", ["var", "llamagen"], indirect=True)
def test_memory_of_sampling_is_that_of_a_real_run(teacher):
    """Counted at the last position, on shapes; measured over all positions."""
    network = load_teacher(teacher).eval()
    sampling, labels = Sampling(guidance_scale=2.0), torch.zeros(16, dtype=torch.long)
    with torch.no_grad():
        measured = peak_of(lambda: network.sample(labels, sampling, uniforms=torch.zeros(16, network.layout.length)))
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert sampling_peak(network, 16, sampling) == pytest.approx(measured, rel=0.3)


def test_the_largest_batch(monkeypatch):
    def peak(size):
        torch.zeros(size, 1000)
        return 4000 * size

    cpu = torch.device("cpu")
    assert largest_batch(cpu, 10**6, peak) == LARGEST
    assert largest_batch(cpu, 40, peak) == 40
    monkeypatch.setattr("dd2_lightning.costs.CPU_MEMORY", 50_000)
    assert largest_batch(cpu, 10**6, peak, lambda size: size) == 12
    monkeypatch.setattr("dd2_lightning.costs.CPU_MEMORY", 1)
    assert largest_batch(cpu, 10**6, peak) == 1


@pytest.mark.parametrize("teacher", ["var"], indirect=True)
def test_the_peak_has_a_name(teacher):
    plan = make_plan(init_stage(teacher), PrefixData(8), TRAINER, phases=True)
    names = ["update of the whole model", "validation, 4 samples", "sampling the teacher, 4 sequences"]
    assert list(plan.peaks)[:3] == names and "decoding" in list(plan.peaks)[3]
    assert plan.peaks[names[0]] == plan.constant + 4 * plan.activations
    assert min(plan.peaks.values()) > plan.weights + plan.optimizer


# --- the command -----------------------------------------------------------------------------------------------------


def test_a_plan_of_the_paper_before_anything_is_there(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = str(CONFIGS / "paper/var_d16/init.yaml")
    main(["plan", "--config", config, "--memory", "40", "--throughput", "50", "--model.head_iterations", "0"])
    text, progress = capsys.readouterr()
    assert "count operations 1/1 updates" in progress
    for word in ("var/d16", "329,514,272", "303,985,920", "whole model", "optimizer state", "fits 40 GB", "50 TFLOP/s"):
        assert word in text, text
    assert not list(tmp_path.iterdir())


def test_a_plan_of_what_is_there(capsys, tmp_path):
    import yaml

    run_chain(tmp_path, "init")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(stage_config(tmp_path, "csd")))
    capsys.readouterr()
    main(["plan", "--config", str(tmp_path / "config.yaml")])
    text = capsys.readouterr().out
    assert str(tmp_path / "teacher") in text.replace("\n", "") and "generator" in text
    config = tmp_path / "init/config.json"
    config.write_text(config.read_text().replace('"frequencies"', '"octaves"'))  # as version 0.1 has it
    main(["plan", "--config", str(tmp_path / "config.yaml")])
    assert capsys.readouterr().out == text
    for flag, value, words in (
        ("--memory", "0", "--memory must be positive"),
        ("--trainer.max_steps", "-1", "trainer.max_steps"),
        ("--model.guidance_updates", "0", "model.guidance_updates must be at least 1"),
    ):
        with fails(capsys, 2, words):
            main(["plan", "--config", str(tmp_path / "config.yaml"), flag, value])
    with fails(capsys, 1, "model.teacher", "nowhere does not exist"):
        main(["plan", "--config", str(tmp_path / "config.yaml"), "--model.teacher", "nowhere"])
