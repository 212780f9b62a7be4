"""DD1's pairs and its training: the map from noise to codes, the loss, the stage."""

import itertools
import math
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from benchmarks.tables import distil_table_dd1, independent_total_variation, random_table
from dd2_lightning.artifacts import load_generator, load_teacher
from dd2_lightning.cli import main
from dd2_lightning.data import Batch, PairData
from dd2_lightning.data.cache import SequenceCache
from dd2_lightning.errors import ArtifactError, DD2Error
from dd2_lightning.flow import CodebookFlow, euler_times, integrate, multistep, shifted_times
from dd2_lightning.losses import dd1_loss
from dd2_lightning.metrics.perceptual import lpips_distance
from dd2_lightning.models.codebook import nearest_code
from dd2_lightning.models.walk import noise_to_codes
from dd2_lightning.planning import make_plan
from dd2_lightning.sampling import Sampling
from dd2_lightning.stages import DD1Distill
from dd2_lightning.stages.sequences import complete, describe_cache
from fake_lpips import install_lpips
from faults import poisoned
from helpers import circle
from runs import fails, fit, make_teacher, stage_config
from teachers import FAMILIES, labels_for, table_teacher
from toys import toy_teacher

GUIDED = Sampling(guidance_scale=1.5, top_k=3)


# --- the solver ------------------------------------------------------------------------------------------------------


class LineFlow:
    """A flow whose clean token is a + b t, whatever the point; its solution is known."""

    a, b = 0.7, -1.3

    def denoise(self, x_t, t):
        return (self.a + self.b * t[..., None]).expand_as(x_t)

    def velocity(self, x_t, t):
        return (x_t - self.denoise(x_t, t)) / t[..., None]


def test_multistep_is_exact_for_a_clean_token_on_a_line():
    """From t = 0.9 on, where x is known: x/t = x₀/t₀ + a (1/t - 1/t₀) + b ln(t₀/t), by integrating by hand."""
    times = torch.tensor([0.9, 0.85, 0.6, 0.45, 0.2], dtype=torch.float64)
    x = torch.randn(2, 3, 1, dtype=torch.float64)
    flow = LineFlow()
    # the first step has no slope: it is Euler's, and errs; from its end on everything is exact
    second = integrate(flow, x, times[:2])
    t0, t = times[1], times[-1]
    expected = t * (second / t0 + flow.a * (1 / t - 1 / t0) + flow.b * (t0 / t).log())
    torch.testing.assert_close(multistep(flow, x, times), expected)
    assert (integrate(flow, x, times) - expected).abs().min() > 0.01


def test_the_last_step_is_the_clean_token_and_one_step_is_eulers():
    codebook, log_p = torch.randn(7, 3), torch.randn(2, 4, 7).log_softmax(-1)
    flow, eps = CodebookFlow(codebook, log_p), torch.randn(2, 4, 3)
    for steps in (1, 2):  # before the first slope there is none, and the last step takes none
        times = euler_times(steps)
        torch.testing.assert_close(multistep(flow, eps, times), integrate(flow, eps, times))
    times = shifted_times(4, 2.0)
    assert times[0] == 1 and times[-1] == 0 and torch.allclose(times[2], torch.tensor(2 / 3))


def test_multistep_needs_a_tenth_of_eulers_steps():
    """Tokens that end on another code than with a fine solution in double precision."""
    tokens = 4_000
    log_p = (1.5 * torch.randn(1, tokens, 8)).masked_fill(torch.rand(1, tokens, 8).argsort(-1) > 2, -math.inf)
    codebook, log_p, eps = circle(8, 1.4), log_p.log_softmax(-1), torch.randn(1, tokens, 2)

    def codes(solver, times, dtype=torch.float32):
        flow = CodebookFlow(codebook.to(dtype), log_p.to(dtype))
        return nearest_code(solver(flow, eps.to(dtype), times.to(dtype)), codebook.to(dtype), log_p)

    fine = codes(multistep, euler_times(500), torch.float64)

    def wrong(*how):
        return (codes(*how) != fine).float().mean()

    assert wrong(integrate, euler_times(500), torch.float64) < 2e-3  # the same limit
    assert wrong(multistep, shifted_times(25, 1.0)) < 1e-3 and wrong(integrate, euler_times(100)) > 1e-3


def test_codes_that_are_cut_are_never_chosen():
    z, codebook = torch.randn(4, 5, 2), torch.randn(6, 2)
    log_p = torch.randn(4, 5, 6)
    log_p[..., :3] = -torch.inf
    chosen = nearest_code(z, codebook, log_p)
    assert torch.equal(chosen, 3 + torch.cdist(z, codebook[3:]).argmin(-1))
    assert (nearest_code(z, codebook) < 3).any()


def test_times_follow_the_size_of_the_codes():
    """The same problem in other units: codes r times as large at t are codes of size 1 at u, with x scaled alike."""
    r, u = 3.0, euler_times(5)[1:-1]
    t = shifted_times(5, r)[1:-1]
    codebook, log_p = torch.randn(7, 2), torch.randn(1, 4, 7).log_softmax(-1)
    x, scale = torch.randn(1, 4, 4, 2), ((1 - t) * r / (1 - u))[:, None]
    torch.testing.assert_close(scale[:, 0], t / u)  # of the noise as of the codes
    ours = CodebookFlow(r * codebook, log_p).denoise(scale * x, t.expand(1, 4, 4))
    torch.testing.assert_close(ours, r * CodebookFlow(codebook, log_p).denoise(x, u.expand(1, 4, 4)))


# --- the map ---------------------------------------------------------------------------------------------------------


@pytest.fixture(params=FAMILIES)
def teacher(request):
    return FAMILIES[request.param]().eval().requires_grad_(False)


def test_what_a_code_depends_on(teacher):
    """On the class, its own noise and that of earlier positions; on no other, so two sequences agree that far."""
    layout, labels = teacher.layout, labels_for(teacher, 20)
    noise, other = torch.randn(2, 20, layout.length, teacher.token_dim)
    codes = noise_to_codes(teacher.walk(labels, GUIDED), noise)
    changed = 0
    for k in range(layout.num_positions):
        span = layout.span(k)
        # all noise behind position k, and within it that of every token but the first
        mixed = torch.cat([noise[:, : span.start + 1], other[:, span.start + 1 :]], 1)
        again = noise_to_codes(teacher.walk(labels, GUIDED), mixed)
        assert torch.equal(again[:, : span.start + 1], codes[:, : span.start + 1])
        changed += (again != codes).sum()
        own = noise.clone()
        own[:, span.start] = other[:, span.start]
        assert not torch.equal(noise_to_codes(teacher.walk(labels, GUIDED), own)[:, span.start], codes[:, span.start])
    assert changed > 0
    shifted = noise_to_codes(teacher.walk((labels + 1) % teacher.num_classes, GUIDED), noise)
    assert not torch.equal(shifted, codes)


def test_the_map_is_the_flow_position_after_position(teacher):
    """By hand, with whole-sequence flows and many Euler steps; every code is one of the three that are possible."""
    layout, labels = teacher.layout, labels_for(teacher, 30)
    noise = torch.randn(30, layout.length, teacher.token_dim)
    codes = noise_to_codes(teacher.walk(labels, GUIDED), noise, steps=50)
    flow = teacher.flow(codes, labels, GUIDED)
    assert flow.log_p.gather(-1, codes[..., None]).isfinite().all()
    ends = nearest_code(integrate(flow, noise, euler_times(200)), teacher.codebook)
    assert (ends == codes).float().mean() > 0.99


def test_the_map_steps_at_times_that_follow_the_size_of_the_codes():
    """With two steps the times decide the codes; those on the unit circle have a root mean square of √½."""
    teacher = table_teacher()
    labels, noise = labels_for(teacher, 500), torch.randn(500, 3, 2)
    codes = noise_to_codes(teacher.walk(labels), noise, steps=2)
    flow = teacher.flow(codes, labels)

    def ends(shift):
        return nearest_code(multistep(flow, noise, shifted_times(2, shift)), teacher.codebook, flow.log_p)

    assert torch.equal(ends(0.5**0.5), codes) and not torch.equal(ends(0.5), codes)


def test_the_map_draws_from_the_joint():
    """Total variation no larger than that of a sample of the same size."""
    table, samples = random_table(0, {}), 20_000
    labels = torch.zeros(samples, dtype=torch.long)
    codes = noise_to_codes(table.walk(labels), torch.randn(samples, 3, 2))
    distance, impossible = table.total_variation(codes)
    assert distance < 0.02 and impossible == 0


# --- pairs as data ---------------------------------------------------------------------------------------------------


def online(teacher, batch):
    return complete(replace(batch, request=PairData().request("online")), teacher)


def test_pairs_are_a_function_of_seed_iteration_and_sample():
    """Twice the same, also in parts; other ones for every iteration and seed."""
    teacher, labels = table_teacher(), torch.arange(12) % 2
    whole = online(teacher, Batch(labels, 5, 7, 0, 12))
    assert torch.equal(whole.noise, online(teacher, Batch(labels, 5, 7, 0, 12)).noise)
    for start in (0, 4, 8):
        part = online(teacher, Batch(labels[start : start + 4], 5, 7, start, 12))
        assert torch.equal(part.noise, whole.noise[start : start + 4])
        assert torch.equal(part.tokens, whole.tokens[start : start + 4])
        assert torch.equal(whole.micro_batch(start // 4, 3).noise, part.noise)
    for iteration, seed in ((6, 7), (5, 8)):
        assert not torch.equal(online(teacher, Batch(labels, iteration, seed, 0, 12)).noise, whole.noise)
    assert torch.equal(whole.tokens, noise_to_codes(teacher.walk(labels), whole.noise))


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A teacher's directory."""
    return make_teacher(tmp_path_factory.mktemp("pairs"))


def build(table, output, *args):
    main(["cache", "--teacher", str(table), "--output", str(output), "--num", "50", "--shard_size", "16", *args])


def files(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.mark.parametrize("args", [("--batch_size", "7"), ("--processes", "2")])
def test_cached_pairs_do_not_depend_on_how_they_were_made(table, tmp_path, args):
    build(table, tmp_path / "whole", "--pair_steps", "9")
    build(table, tmp_path / "parts", "--pair_steps", "9", *args)
    assert files(tmp_path / "parts") == files(tmp_path / "whole")


def test_cached_noise_leads_to_the_cached_codes(table, tmp_path):
    build(table, tmp_path, "--pair_steps", "9")
    teacher = load_teacher(table)
    cache = SequenceCache(tmp_path, describe_cache(table, teacher, Sampling(), 50, 0, 9))
    rows = np.array([33, 4, 48])
    (codes, labels), noise = cache.read(rows), cache.noise(rows)
    assert noise.shape == (3, 2, 2) and torch.equal(noise, cache.noise(np.arange(50))[rows])
    assert torch.equal(noise_to_codes(teacher.walk(labels), noise, 9), codes)
    everything = cache.noise(np.arange(50))
    assert everything.mean().abs() < 0.3 and 0.8 < everything.std() < 1.2 and len(everything.unique()) == 200


@pytest.mark.parametrize("args", [("--pair_steps", "8"), (), ("--pair_steps", "9", "--seed", "1")])
def test_pairs_of_other_settings_are_refused(table, tmp_path, capsys, args):
    build(table, tmp_path / "pairs", "--pair_steps", "9")
    before = files(tmp_path / "pairs")
    with fails(capsys, 1, str(tmp_path / "pairs"), "was sampled with " + ("seed" if "--seed" in args else "pairs")):
        build(table, tmp_path / "pairs", *args)
    assert files(tmp_path / "pairs") == before


def test_sequences_are_not_taken_for_pairs(table, tmp_path, capsys):
    build(table, tmp_path / "sequences")
    with fails(capsys, 1, "was sampled with pairs = None"):
        build(table, tmp_path / "sequences", "--pair_steps", "9")
    with fails(capsys, 2, "--pair_steps must be at least 1"):
        build(table, tmp_path / "none", "--pair_steps", "0")


# --- the loss --------------------------------------------------------------------------------------------------------


def test_the_loss_against_a_loop():
    B, n, V, weight = 3, 4, 5, 0.3
    logits, codes = torch.randn(B, n, V), torch.randint(V, (B, n))
    unfinished, distance = torch.randint(2, (B, n)).float(), torch.rand(B, n)
    found = dd1_loss(logits, codes, unfinished, distance, weight)
    for b, i in itertools.product(range(B), range(n)):
        numbers = [math.exp(value) for value in logits[b, i].tolist()]
        surprise = -math.log(numbers[codes[b, i]] / sum(numbers)) if unfinished[b, i] else 0.0
        assert found.cross_entropy[b, i].item() == pytest.approx(surprise, abs=1e-5)
        assert found.loss[b, i].item() == pytest.approx(surprise + weight * distance[b, i].item(), abs=1e-5)
        right = unfinished[b, i] and max(range(V), key=numbers.__getitem__) == codes[b, i]
        assert found.hit[b, i].item() == right


@pytest.fixture(params=["table", "var", "llamagen"])
def released(request):
    """A teacher whose family has a network for DD1."""
    return FAMILIES[request.param]().eval().requires_grad_(False)


def stage_with(teacher, **settings):
    stage = DD1Distill("teacher", **{"second": 1, "split": 1, **settings})
    stage.teacher = teacher
    stage.build({})
    return stage


def test_gradients_reach_what_they_should(released):
    """Logits of tokens that are noise; continuous tokens behind the split; nothing at finished positions."""
    teacher, layout, labels = released, released.layout, labels_for(released, 4)
    stage = stage_with(teacher, second=1, split=2)
    batch = online(teacher, Batch(labels, 0, 0, 0, 4))
    seen = {}

    class Watched(torch.nn.Module):
        def forward(self, x, labels, t):
            q = teacher.embed(batch.tokens)
            finished = layout.position_of_token() < t[:, None]
            assert torch.equal(x, torch.where(finished[..., None], q, batch.noise))
            prediction = stage.student(x, labels, t)
            seen["tokens"], seen["logits"] = (part.detach().requires_grad_() for part in prediction)
            return type(prediction)(seen["tokens"], seen["logits"])

    times = stage.times(batch)
    assert times.tolist() == [0, 1, 0, 1]
    stage.jump_loss(Watched(), batch, times).loss.sum().backward()
    position = layout.position_of_token()
    for b, t in enumerate(times.tolist()):
        for name, first in (("logits", t), ("tokens", 2)):
            reached = seen[name].grad[b].abs().sum(-1) > 0
            assert torch.equal(reached, position >= first), (name, b)


def test_halves_of_the_batch_start_from_either_point(released):
    stage = stage_with(released)
    whole = stage.times(Batch(torch.zeros(8, dtype=torch.long), 3, 0, 0, 8))
    parts = [stage.times(Batch(torch.zeros(4, dtype=torch.long), 3, 0, start, 8)) for start in (0, 4)]
    assert torch.equal(torch.cat(parts), whole) and whole.sum() == 4
    assert torch.equal(stage.times(Batch(torch.zeros(8, dtype=torch.long), 4, 0, 0, 8)), 1 - whole)


def test_pictures_are_compared_where_lpips_is_installed(monkeypatch, tmp_path):
    weights = install_lpips(monkeypatch, tmp_path / "vgg.pt")
    teacher = toy_teacher()
    stage = stage_with(teacher, distance="lpips", lpips_weights=str(weights), distance_weight=0.5)
    end = torch.randn(4, 3, 2, requires_grad=True)
    q = torch.randn(4, 3, 2)
    found = stage.sequence_distance(end, q)
    pictures = [teacher.decode(part) for part in (end, q)]
    expected = 3 * 4 * (pictures[0] - pictures[1]).square().mean((1, 2, 3))  # [-1, 1] is twice as wide
    torch.testing.assert_close(found, expected[:, None])
    found.sum().backward()
    assert (end.grad.abs().sum(-1) > 0).all() and not any("lpips" in key for key in stage.state_dict())
    torch.save({"other": torch.tensor(3.0)}, weights)
    with pytest.raises(ArtifactError, match=r"vgg\.pt is no state dict of LPIPS"):
        lpips_distance(weights)
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(DD2Error, match=r"pip install 'dd2-lightning\[lpips\]'"):
        lpips_distance(weights)


# --- the stage -------------------------------------------------------------------------------------------------------


def test_one_iteration_moves_the_student_and_its_ema(tmp_path):
    make_teacher(tmp_path)
    config = stage_config(tmp_path, "dd1")
    config["trainer"] |= {"max_steps": 1, "val_check_interval": 1}
    fit(config, tmp_path)
    one = load_file(tmp_path / "dd1/generator_raw.safetensors")
    ema = load_file(tmp_path / "dd1/generator.safetensors")
    fit(stage_config(tmp_path, "dd1"), tmp_path, "--trainer.default_root_dir", str(tmp_path / "more"))
    six = load_file(tmp_path / "more/generator_raw.safetensors")
    assert any(not torch.equal(one[name], six[name]) for name in one)
    assert any(not torch.equal(one[name], ema[name]) for name in one)
    generator = load_generator(tmp_path / "dd1")
    assert (generator.second, generator.split) == (1, 1)
    assert generator.sample(torch.tensor([0, 1])).shape == (2, 2, 2)


def test_accumulation_changes_nothing(tmp_path):
    make_teacher(tmp_path)
    for accumulate in (1, 4):
        config = stage_config(tmp_path, "dd1", accumulate=accumulate)
        config["trainer"]["default_root_dir"] = str(tmp_path / str(accumulate))
        fit(config, tmp_path)
    one, four = (load_file(tmp_path / name / "generator_raw.safetensors") for name in ("1", "4"))
    assert all(torch.allclose(one[name], four[name], atol=1e-4) for name in one)


def test_a_stage_completes_its_pairs_and_reads_them(tmp_path, capsys):
    teacher = make_teacher(tmp_path)
    config = stage_config(tmp_path, "dd1")
    cached = {"sequences": "cached", "cache_dir": str(tmp_path / "cache"), "cache_size": 50, "steps": 9}
    config["data"]["init_args"] |= cached
    build(teacher, tmp_path / "cache", "--pair_steps", "9", "--part", "0", "--parts", "2")
    fit(config, tmp_path)
    assert len(list((tmp_path / "cache").glob("*.sha256"))) == 4
    config["data"]["init_args"]["steps"] = 10
    config["trainer"]["default_root_dir"] = str(tmp_path / "other")
    with fails(capsys, 1, "was sampled with pairs"):
        fit(config, tmp_path)


def test_a_nan_names_its_place(tmp_path, capsys, monkeypatch):
    make_teacher(tmp_path)
    monkeypatch.setattr(DD1Distill, "jump_loss", poisoned(DD1Distill.jump_loss))
    with fails(capsys, 1, "student is nan at iteration 4, position 1"):
        fit(stage_config(tmp_path, "dd1"), tmp_path)


def test_settings_that_cannot_be(tmp_path, capsys):
    make_teacher(tmp_path)
    for settings, status, words in (
        ({"accumulate": 0}, 2, "model.accumulate must be at least 1"),
        ({"distance_weight": -1.0}, 2, "model.distance_weight must be 0 or more"),
        ({"distance": "lpips"}, 2, "model.lpips_weights"),
        ({"second": 2}, 1, "second must be in 1..1"),
        ({"split": 3}, 1, "split must be in 0..2"),
    ):
        with fails(capsys, status, words):
            fit(stage_config(tmp_path, "dd1", **settings), tmp_path)
    with fails(capsys, 2, "data.steps must be at least 1"):
        fit(stage_config(tmp_path, "dd1"), tmp_path, "--data.steps", "0")
    config = stage_config(tmp_path, "dd1")
    config["data"] = {"class_path": "PrefixData", "init_args": {"batch_size": 8, "sequences": "online"}}
    with fails(capsys, 1, "set data.class_path to PairData"):
        fit(config, tmp_path)


def test_a_plan(tmp_path):
    teacher = str(make_teacher(tmp_path))
    stage = DD1Distill(teacher, second=1, split=1)
    trainer = {"max_steps": 10, "devices": 2}
    few, many = (make_plan(stage, PairData(batch_size=8, steps=steps), trainer) for steps in (5, 10))
    assert [(u.name, u.count) for u in few.updates] == [("student", 10)] and few.sequences == 80
    assert few.parameters["student"] == few.parameters["ema"] == few.updates[0].parameters
    # two attention products of 2 tokens with 2 codes, of width C + 1, a step
    assert many.sequence_flops - few.sequence_flops == 5 * 2 * (2 * 2 * 2 * 3)


# --- the oracle ------------------------------------------------------------------------------------------------------


def test_a_table_is_learned():
    """Total variation after a short training; of a long one see docs/architecture.md."""
    table = random_table(0, {"width": 32, "depth": 2, "heads": 4, "frequencies": 2}, tokens=2)
    curve = distil_table_dd1(table, seed=0, iterations=200, batch_size=128, steps=8, every=200, lr=4e-3)
    assert curve[-1]["total_variation"] < independent_total_variation(table) / 4
