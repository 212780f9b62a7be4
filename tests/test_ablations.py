"""``dd2 ablations``: what is varied, that it continues, and what is said of known curves."""

import json
import math
import os
from pathlib import Path
from statistics import stdev

import pytest
from matplotlib.image import imread

from dd2_lightning.ablations import runs
from dd2_lightning.ablations.analysis import Spread, at, fluctuation, judged, share, spread, summarised, verdict
from dd2_lightning.ablations.curves import band, spaced
from dd2_lightning.ablations.problems import Budget, Digits, Tables
from dd2_lightning.ablations.recipes import complete, fingerprint, varied
from dd2_lightning.ablations.variants import BASELINE, FINDINGS, QUESTIONS, Finding, Variant
from dd2_lightning.ablations.workers import perform
from dd2_lightning.cli import main
from jobs import Job, prepare
from runs import fails, fit, teacher_config

VARIANTS = {v.name: v for q in QUESTIONS for v in q.variants}
TINY = {"init_iterations": 2, "iterations": 4, "every": 1, "samples": 60}


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A tiny VAR teacher of the digits."""
    root = tmp_path_factory.mktemp("teacher")
    fit(teacher_config(root), root)
    return root / "digits"


def run(root, *options, **budget):
    """The command at a tiny budget; its JSON."""
    words = [
        w
        for name in ("tables", "digits")
        for key, value in {**TINY, **budget}.items()
        for w in (f"--{name}.{key}", str(value))
    ]
    files = ["--work", str(root / "work"), "--output", str(root / "out.json"), "--document", str(root / "doc/a.md")]
    main(["ablations", *files, *words, *options])
    return json.loads((root / "out.json").read_text())


# --- recipes -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recipes(tmp_path_factory, digits):
    """Complete recipes of both problems at a budget of 1,500 iterations."""
    budget, work = Budget(100, 1500, 50, 10), tmp_path_factory.mktemp("recipes")
    problems = {"tables": Tables(work), "digits": Digits(work, digits, Path(__file__).parents[1] / "configs")}
    return {name: complete(problem.recipe(budget)) for name, problem in problems.items()}


def leaves(value, path=()):
    if isinstance(value, dict):
        return {k: v for key, entry in value.items() for k, v in leaves(entry, (*path, key)).items()}
    return {path: value}


def difference(first, second):
    """Settings that differ, of stages that both have."""
    first, second = leaves({k: first[k] for k in second}), leaves(second)
    assert first.keys() == second.keys()
    return {path[0] + "." + ".".join(path[3:]) for path in first if first[path] != second[path]}


def test_a_variant_changes_what_it_says_and_nothing_else(recipes):
    for recipe in recipes.values():
        base = varied(recipe, Variant(BASELINE), 50)
        assert set(base) == {"init", "csd"}
        for name, variant in VARIANTS.items():
            own = varied(recipe, variant, 50)
            changed = difference(own, base)
            if variant.align or variant.same_time:
                changed.discard("csd.")  # iterations
            allowed = set(variant.changes)
            if "csd.guidance_updates" in allowed:
                allowed |= {f"csd.{network}_optimizer.warmup" for network in ("guidance", "generator")}
            assert changed <= allowed, name
            for path, value in variant.changes.items():
                stage, *keys = path.split(".")
                found = own[stage]["model"]["init_args"]
                for key in keys:
                    found = found[key]
                assert found == value
        with pytest.raises(KeyError, match=r"csd\.alphas"):
            varied(recipe, Variant("x", {"csd.alphas": 1}), 50)


def test_the_baselines_are_the_shipped_recipes(recipes):
    table = recipes["tables"]["csd"]["model"]["init_args"]
    assert (table["form"], table["head_time"], table["guidance_updates"]) == ("dmd", 0.4, 2)
    assert table["guidance_optimizer"]["warmup"] == 60 and table["guidance_optimizer"]["betas"] == [0.0, 0.95]
    digits = recipes["digits"]["csd"]["model"]["init_args"]
    assert (digits["form"], digits["position_weights"], digits["guidance_updates"]) == ("sid", [4.0, 1.0], 1)
    assert digits["teacher_sampling"]["guidance_scale"] == 1.0
    for recipe, name in ((recipes["tables"], "K2"), (recipes["digits"], "K1")):
        base = varied(recipe, Variant(BASELINE), 50)
        assert varied(recipe, VARIANTS[name], 50) == base == varied(recipe, VARIANTS[f"{name}-same-time"], 50)


def test_iterations_of_equal_time_and_of_stage_3(recipes):
    recipe = recipes["tables"]
    five = varied(recipe, VARIANTS["K5-same-time"], 50)["csd"]
    assert five["iterations"] == 750  # (2 + 1) / (5 + 1) of 1,500
    # the same share of a warm-up of 30 iterations
    assert five["model"]["init_args"]["generator_optimizer"]["warmup"] == 150
    three = varied(recipe, VARIANTS["three-stages"], 50)
    assert (three["csd"]["iterations"], three["align"]["iterations"]) == (1100, 400)
    assert three["align"]["model"]["init_args"]["align_guidance_updates"] == 2 * 200


# --- analysis ----------------------------------------------------------------------------------------------------


def curve(values, pace=1.0, step=10, **other):
    """Points every ``step`` iterations, ``pace`` seconds each."""
    return [
        {
            "stage": "csd",
            "iteration": step * (i + 1),
            "seconds": pace * step * (i + 1),
            "ema": {"distance": value, **other},
            "raw": {"distance": 2 * value},
        }
        for i, value in enumerate(values)
    ]


def result(values, pace=1.0, independent=1.0, floor=0.0, variant="x", **other):
    return {
        "variant": variant,
        "curve": curve(values, pace, **other),
        "independent": independent,
        "floor": floor,
        "velocity_error": 0.5,
    }


def test_values_between_points():
    points = curve([0.8, 0.4, 0.1], pace=0.5)
    assert at(points, "iteration", 20) == 0.4
    assert at(points, "iteration", 15) == pytest.approx(math.sqrt(0.8 * 0.4))
    assert at(points, "seconds", 7.5) == pytest.approx(math.sqrt(0.8 * 0.4))
    assert at(points, "seconds", 12.5, network="raw") == pytest.approx(2 * math.sqrt(0.4 * 0.1))
    assert at(points, "iteration", 9) is None and at(points, "iteration", 31) is None
    assert at(curve([0.2, 0.0]), "iteration", 15) == pytest.approx(0.1)
    assert at(points, "iteration", 10, "nll") is None


def test_equal_seconds_turn_round_what_equal_iterations_say():
    """The slow variant wins by iterations; by seconds it has only come as far as the fast one's start."""
    slow, fast = [0.4, 0.2, 0.1, 0.05], [0.5, 0.3, 0.2, 0.1]
    results = {"slow": [result(slow, pace=4.0)] * 3, "fast": [result(fast, pace=1.0)] * 3}
    table = summarised(results)
    assert table["slow"]["at_iterations"].median == 0.05 and table["fast"]["at_iterations"].median == 0.1
    assert table["slow"]["at_seconds"].median == 0.4 and table["fast"]["at_seconds"].median == 0.1
    for figure, expected in (("distance", "appears"), ("seconds", "does not appear")):
        claim = Finding("q", "slow is better", "", "", ("slow", figure), ("fast", figure))
        assert judged(claim, results).verdict == expected


def test_verdicts():
    low, high = Spread(1.0, 0.9, 1.1, 3), Spread(2.0, 1.8, 2.2, 3)
    assert verdict(low, high) == "appears" and verdict(high, low) == "does not appear"
    assert verdict(low, Spread(1.5, 1.1, 2.0, 3)) == "undecided"  # they touch
    assert verdict(low, Spread(2.0, 1.8, 2.2, 2)) == "undecided"
    assert verdict(None, low) == "not run"
    assert verdict(low, high, differs=False) == "does not appear" == verdict(high, low, differs=False)
    assert verdict(low, low, differs=False) == "undecided"
    assert spread([3.0, 1.0, 2.0]) == (2.0, 1.0, 3.0, 3) and spread([1.0, None]) is None and spread([]) is None


def test_distances_are_compared_in_units_of_the_same_teacher():
    """Ranges of the distances themselves overlap: the seeds' teachers differ ten times as much as the variants."""
    scales = (1.0, 10.0, 100.0)
    results = {name: [result([v * s], independent=s) for s in scales] for name, v in (("a", 0.1), ("b", 0.2))}
    claim = Finding("q", "a is better", "", "", ("a", "distance"), ("b", "distance"))
    entry = judged(claim, results)
    assert entry.verdict == "appears" and entry.better == (0.1, 0.1, 0.1, 3)
    assert judged(claim, {"a": results["a"]}).verdict == "not run"
    assert share(result([1.0], independent=0.5, floor=0.1), 0.2) == pytest.approx(0.25)
    assert share(result([1.0], independent=0.1, floor=0.1), 0.2) is None


def test_fluctuation_of_the_last_quarter():
    values = [9.0] * 12 + [1.0, 2.0, 1.0, 2.0]
    assert fluctuation(curve(values)) == pytest.approx(stdev([1, 2, 1, 2]) / 1.5)
    assert fluctuation(curve(values), "raw") == pytest.approx(stdev([1, 2, 1, 2]) / 1.5)
    assert fluctuation(curve([1.0] * 8)) is None  # two points
    later = [{**point, "iteration": point["iteration"] + 1000} for point in curve(values)]
    assert fluctuation(later) == fluctuation(curve(values))
    assert fluctuation([]) is None
    assert fluctuation(curve([9.0, 9.0, 9.0, 1.0, 2.0, 3.0]), last=0.5) == pytest.approx(1 / 2)


def test_findings_name_variants_of_their_question():
    questions = {question.name: {v.name for v in question.variants} for question in QUESTIONS}
    for finding in FINDINGS:
        assert {finding.better[0], finding.worse[0]} <= questions[finding.question], finding.claim
    assert len(VARIANTS) == sum(len(q.variants) for q in QUESTIONS)
    assert len({finding.claim for finding in FINDINGS}) == len(FINDINGS)
    assert not set(VARIANTS) & {*questions, BASELINE}


def test_bands_and_labels():
    drawn = band([result([1.0, 0.5], pace=1.0), result([3.0, 0.1], pace=2.0), result([2.0, 0.2], pace=9.0)], "seconds")
    assert drawn == {"where": [20.0, 40.0], "median": [2.0, 0.2], "low": [1.0, 0.1], "high": [3.0, 0.5]}
    moved = spaced([0.0, 5.0, 0.1], 1.0)
    assert moved[2] - moved[0] == pytest.approx(1.0) and moved[1] > moved[2] + 1
    assert sum(moved) == pytest.approx(5.1)


# --- the command -------------------------------------------------------------------------------------------------


def test_tables_and_digits(tmp_path, digits, capsys):
    """Both problems, three stages and a changed stage 1; a second call does nothing and says the same."""
    options = ("--teacher", str(digits), "--variants", "diffusion,three-stages", "--seeds", "3")
    report = run(tmp_path, *options, iterations=16, every=4)
    assert "10/10  " in capsys.readouterr().out
    for problem, metrics in (("tables", {"impossible"}), ("digits", {"nll"})):
        entry = report["problems"][problem]
        assert set(entry["questions"]) == {"loss", "stages"}
        assert set(entry["questions"]["loss"]) == {BASELINE, "diffusion"}
        assert set(entry["questions"]["stages"]) == {BASELINE, "three-stages"}
        assert {v["verdict"] for v in entry["verdicts"]} <= {"undecided", "not run"}
        own = {r["variant"]: r for r in report["runs"] if r["problem"] == problem}
        assert set(own) == {BASELINE, "diffusion", "three-stages"}
        for entry in own.values():
            assert entry["curve"]["iteration"] == [4, 8, 12, 16]
            assert entry["curve"]["seconds"] == sorted(entry["curve"]["seconds"])
            assert all(f"{network} {metric}" in entry["curve"] for network in ("ema", "raw") for metric in metrics)
            assert entry["floor"] > 0 and (problem == "digits" or entry["floor"] < entry["independent"])
        assert own["three-stages"]["curve"]["stage"] == ["csd"] * 3 + ["align"]
        if problem == "tables":  # the digits' warm-up is longer than this
            for changed in ("diffusion", "three-stages"):
                assert own[BASELINE]["curve"]["ema distance"] != own[changed]["curve"]["ema distance"]
    text = (tmp_path / "doc/a.md").read_text()
    assert "## Verdicts" in text and "images/ablations_stages.png" in text and "**baseline**" in text
    assert imread(tmp_path / "doc/images/ablations_loss.png").shape[1] > 1000
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "work").rglob("*seed3-*.json")}
    assert len(files) == 10 and not list((tmp_path / "work").rglob(".run-*"))
    again = run(tmp_path, *options, iterations=16, every=4)
    assert again["runs"] == report["runs"]
    assert {path: path.stat().st_mtime_ns for path in files} == files
    assert "10 runs are finished, 0 are missing" in capsys.readouterr().out


TABLES = ("--problems", "tables", "--seeds", "0")


def test_an_interrupted_command_continues(tmp_path, monkeypatch, capsys):
    def interrupted(self):
        if self.variant == "sid-1.0":
            raise KeyboardInterrupt
        original(self)

    original = runs.Run.perform
    monkeypatch.setattr(runs.Run, "perform", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, *TABLES, "--variants", "form")
    monkeypatch.setattr(runs.Run, "perform", original)
    before = {path.name: path.read_bytes() for path in (tmp_path / "work/tables").glob("*seed0-*.json")}
    assert len(before) == 3  # stage 1, baseline, sid-0.8
    capsys.readouterr()
    report = run(tmp_path, *TABLES, "--variants", "form", "--report-only")
    assert {entry["variant"] for entry in report["runs"]} == {BASELINE, "sid-0.8"}
    assert len(list((tmp_path / "work/tables").glob("*seed0-*.json"))) == 3
    report = run(tmp_path, *TABLES, "--variants", "form")
    assert "3 runs are finished, 2 are missing" in capsys.readouterr().out
    assert {entry["variant"] for entry in report["runs"]} == {BASELINE, "sid-0.8", "sid-1.0", "sid-1.2"}
    for name, content in before.items():
        assert (tmp_path / "work/tables" / name).read_bytes() == content


def test_changed_settings_are_never_mixed(tmp_path, capsys):
    first = run(tmp_path, *TABLES, "--variants", BASELINE)
    assert [entry["curve"]["iteration"] for entry in first["runs"]] == [[1, 2, 3, 4]]
    second = run(tmp_path, *TABLES, "--variants", BASELINE, every=2)
    assert [entry["curve"]["iteration"] for entry in second["runs"]] == [[2, 4]]
    assert run(tmp_path, *TABLES, "--variants", BASELINE)["runs"] == first["runs"]
    paths = sorted((tmp_path / "work/tables").glob("baseline-seed0-*.json"))
    assert len(paths) == 2
    content = json.loads(paths[0].read_text())
    assert content["hash"] == fingerprint(content["settings"]) and content["hash"] in paths[0].name
    for damage in ('{"hash": 1', json.dumps({**content, "settings": {**content["settings"], "samples": 1}})):
        paths[0].write_text(damage)
        with fails(capsys, 1, str(paths[0]), "delete it"):
            run(tmp_path, *TABLES, "--variants", BASELINE, every=content["settings"]["every"])


def test_a_failed_run_names_itself_and_loses_no_other(tmp_path, monkeypatch, capsys):
    def failing(self):
        if self.variant == "init-diffusion" or self.variant == "sid-0.8":
            raise ValueError("a made-up failure")
        original(self)

    original = runs.Run.perform
    monkeypatch.setattr(runs.Run, "perform", failing)
    with fails(capsys, 1, "3 runs failed", "tables, sid-0.8, seed 0: ValueError: a made-up failure", "its stage 1"):
        run(tmp_path, *TABLES, "--variants", "diffusion,sid-0.8,sid-1.0")
    report = json.loads((tmp_path / "out.json").read_text())
    assert {entry["variant"] for entry in report["runs"]} == {BASELINE, "sid-1.0"}
    assert set(report["failed"]) == {f"tables, {v}, seed 0" for v in ("init-diffusion", "diffusion", "sid-0.8")}
    assert "## Failed" in (tmp_path / "doc/a.md").read_text()


def test_processes_of_their_own(tmp_path):
    """One that raises and one that is killed are named, and the others are done."""
    jobs = [Job(tmp_path / f"{i}.json", fate) for i, fate in enumerate(("done", "raises", "killed", "done"))]
    ends = {}
    perform(jobs, 2, prepare, lambda job, problem: ends.update({job.path.stem: problem}))
    assert ends["0"] is None and ends["3"] is None
    assert "RuntimeError: a made-up failure" in ends["1"] and str(tmp_path / "1.log") in ends["1"]
    assert "status -9" in ends["2"]
    texts = [(tmp_path / f"{i}.json").read_text().split() for i in (0, 3)]
    assert len({texts[0][0], texts[1][0], str(os.getpid())}) == 3
    assert [text[1] for text in texts] == ["yes", "yes"]
    assert sorted(path.name for path in tmp_path.glob("*.log")) == ["1.log", "2.log"]


def test_bad_input(tmp_path, capsys, digits):
    for words, *options in (
        ("--variants: there is no 'K7'; there are: baseline, loss", "--variants", "K7"),
        ("--problems: there is no 'cats'; there are: tables, digits", "--problems", "tables,cats"),
        ("--seeds must be numbers", "--seeds", "0,x"),
        ("--processes must be at least 1", "--processes", "0"),
        ("iterations must be a multiple of every", "--tables.every", "3"),
        ("samples must be at least 1", "--digits.samples", "0"),
    ):
        with fails(capsys, 2, words):
            run(tmp_path, *options)
    with fails(capsys, 1, "--teacher", "nowhere is no finished teacher", "make teacher"):
        run(tmp_path, "--teacher", str(tmp_path / "nowhere"))
    with fails(capsys, 1, "init_var.yaml", "--configs"):
        run(tmp_path, "--teacher", str(digits), "--configs", str(tmp_path))
    with fails(capsys, 1, "nothing to report", "--work"):
        run(tmp_path, *TABLES, "--report-only")
    (tmp_path / "file").write_text("")
    with fails(capsys, 1, "cannot write", "file"):
        main(["ablations", "--work", str(tmp_path / "file" / "x")])
    assert not (tmp_path / "out.json").exists()


def test_the_help_explains_everything(capsys):
    with pytest.raises(SystemExit):
        main(["ablations", "--help"])
    words = capsys.readouterr().out
    for option in ("work", "output", "document", "problems", "variants", "seeds", "teacher", "configs", "processes"):
        assert f"--{option} " in words
    for option in ("init_iterations", "iterations", "every", "samples"):
        assert f"--tables.{option} " in words and f"--digits.{option} " in words
    assert "divides" in words
