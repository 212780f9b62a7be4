"""Ablations: what is varied, that runs continue, and what is said of known curves."""

import json
import math
import shlex
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from statistics import stdev

import pytest
import yaml
from matplotlib.image import imread

from benchmarks.ablations import runs
from benchmarks.ablations.__main__ import main
from benchmarks.ablations.analysis import (
    FIGURES,
    Spread,
    assess,
    error_left,
    fluctuation,
    spread,
    summarise,
    value_at,
    verdict,
)
from benchmarks.ablations.figures import band, spaced
from benchmarks.ablations.problems import open_problem
from benchmarks.ablations.recipes import fingerprint, varied
from benchmarks.ablations.report import columns
from benchmarks.ablations.variants import BASELINE, QUESTIONS, Claim, Variant
from runs import fails, fit, teacher_config

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
VARIANTS = {v.name: v for q in QUESTIONS for v in q.variants}
TINY = {"init_iterations": 2, "iterations": 4, "every": 1, "samples": 60}


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A tiny VAR teacher of the digits."""
    root = tmp_path_factory.mktemp("teacher")
    fit(teacher_config(root), root)
    return root / "digits"


def write_problem(root, name, budget, warmup=True, **changes):
    """The shipped YAML file of a problem with another budget and other settings; tables also without a warm-up."""
    settings = yaml.safe_load((ROOT / f"benchmarks/ablations/{name}.yaml").read_text())
    settings["configs"] = {stage: str(ROOT / path) for stage, path in settings["configs"].items()}
    if not warmup and name == "tables":
        for stage, path in settings["configs"].items():
            settings["configs"][stage] = str(root / f"{stage}.yaml")
            (root / f"{stage}.yaml").write_text(Path(path).read_text().replace("warmup: 40", "warmup: 0"))
    path = root / f"{name}.yaml"
    path.write_text(yaml.safe_dump(settings | {"budget": settings["budget"] | budget} | changes))
    return str(path)


class Command:
    """What ``make ablations`` does, one run after the other, at a tiny budget."""

    def __init__(self, root, *problems, teacher=None, budget=None, **settings):
        self.root, budget = root, TINY | (budget or {})
        names = problems or ("tables",)
        digits = {"teacher": str(teacher)}
        files = [
            write_problem(root, name, budget, warmup=False, **settings, **(digits if name == "digits" else {}))
            for name in names
        ]
        self.options = ["--problems", f"[{','.join(files)}]", "--work", str(root / "work")]

    def missing(self, stage):
        with redirect_stdout(StringIO()) as out:
            main(["missing", stage, *self.options])
        return [shlex.split(line) for line in out.getvalue().splitlines()]

    def perform(self):
        """All missing runs; one that fails ends with status 1."""
        for stage in ("init", "csd"):
            for arguments in self.missing(stage):
                try:
                    main(["run", *arguments])
                except SystemExit as end:
                    assert end.code == 1

    def report(self):
        output = ["--results", str(self.root / "out.json"), "--document", str(self.root / "doc/a.md")]
        main(["report", *self.options, *output])
        return json.loads((self.root / "out.json").read_text())

    def run(self):
        self.perform()
        return self.report()


# --- recipes -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recipes(tmp_path_factory, digits):
    """Complete recipes of both problems at a budget of 1,500 iterations."""
    root, budget = tmp_path_factory.mktemp("recipes"), {"iterations": 1500}
    files = {
        "tables": write_problem(root, "tables", budget),
        "digits": write_problem(root, "digits", budget, teacher=str(digits)),
    }
    return {name: open_problem(path, root).recipe() for name, path in files.items()}


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
    assert table["guidance_optimizer"]["warmup"] == 40 and table["guidance_optimizer"]["betas"] == [0.0, 0.95]
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
    # the same share of a warm-up of 20 iterations
    assert five["model"]["init_args"]["generator_optimizer"]["warmup"] == 100
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
    assert value_at(points, "iteration", 20) == 0.4
    assert value_at(points, "iteration", 15) == pytest.approx(math.sqrt(0.8 * 0.4))
    assert value_at(points, "seconds", 7.5) == pytest.approx(math.sqrt(0.8 * 0.4))
    assert value_at(points, "seconds", 12.5, network="raw") == pytest.approx(2 * math.sqrt(0.4 * 0.1))
    assert value_at(points, "iteration", 9) is None and value_at(points, "iteration", 31) is None
    assert value_at(curve([0.2, 0.0]), "iteration", 15) == pytest.approx(0.1)
    assert value_at(points, "iteration", 10, "nll") is None


def test_equal_seconds_turn_round_what_equal_iterations_say():
    """The slow variant wins by iterations; by seconds it has only come as far as the fast one's start."""
    slow, fast = [0.4, 0.2, 0.1, 0.05], [0.5, 0.3, 0.2, 0.1]
    results = {"slow": [result(slow, pace=4.0)] * 3, "fast": [result(fast, pace=1.0)] * 3}
    table = summarise(results)
    assert table["slow"]["at_iterations"].median == 0.05 and table["fast"]["at_iterations"].median == 0.1
    assert table["slow"]["at_seconds"].median == 0.4 and table["fast"]["at_seconds"].median == 0.1
    for figure, expected in (("distance", "appears"), ("seconds", "does not appear")):
        claim = Claim("slow is better", "", "", ("slow", figure), ("fast", figure))
        assert assess(claim, results).verdict == expected


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
    claim = Claim("a is better", "", "", ("a", "distance"), ("b", "distance"))
    entry = assess(claim, results)
    assert entry.verdict == "appears" and entry.better == (0.1, 0.1, 0.1, 3)
    assert assess(claim, {"a": results["a"]}).verdict == "not run"
    assert error_left(result([1.0], independent=0.5, floor=0.1), 0.2) == pytest.approx(0.25)
    assert error_left(result([1.0], independent=0.1, floor=0.1), 0.2) is None


def test_fluctuation_of_the_last_quarter():
    values = [9.0] * 12 + [1.0, 2.0, 1.0, 2.0]
    assert fluctuation(curve(values)) == pytest.approx(stdev([1, 2, 1, 2]) / 1.5)
    assert fluctuation(curve(values), "raw") == pytest.approx(stdev([1, 2, 1, 2]) / 1.5)
    assert fluctuation(curve([1.0] * 8)) is None  # two points
    later = [{**point, "iteration": point["iteration"] + 1000} for point in curve(values)]
    assert fluctuation(later) == fluctuation(curve(values))
    assert fluctuation([]) is None
    assert fluctuation(curve([9.0, 9.0, 9.0, 1.0, 2.0, 3.0]), last=0.5) == pytest.approx(1 / 2)


def test_claims_name_variants_of_their_question():
    claims = [claim for question in QUESTIONS for claim in question.claims]
    for question in QUESTIONS:
        for claim in question.claims:
            assert {claim.better[0], claim.worse[0]} <= {v.name for v in question.variants}, claim.text
            assert {claim.better[1], claim.worse[1]} <= set(FIGURES)
    assert len(VARIANTS) == sum(len(q.variants) for q in QUESTIONS)
    assert len({claim.text for claim in claims}) == len(claims)
    assert not set(VARIANTS) & {*(question.name for question in QUESTIONS), BASELINE}


def test_bands_and_labels():
    runs = [result([1.0, 0.5], pace=1.0), result([3.0, 0.1], pace=2.0), result([2.0, 0.2], pace=9.0)]
    drawn = band([columns(run) for run in runs], "seconds")
    assert drawn == {"where": [20.0, 40.0], "median": [2.0, 0.2], "low": [1.0, 0.1], "high": [3.0, 0.5]}
    moved = spaced([0.0, 5.0, 0.1], 1.0)
    assert moved[2] - moved[0] == pytest.approx(1.0) and moved[1] > moved[2] + 1
    assert sum(moved) == pytest.approx(5.1)


# --- the command -------------------------------------------------------------------------------------------------


def test_tables_and_digits(tmp_path, digits, capsys):
    """Both problems, three stages and a changed stage 1; a second call does nothing and says the same."""
    settings = {"variants": ["diffusion", "three-stages"], "seeds": [3], "budget": {"iterations": 16, "every": 4}}
    command = Command(tmp_path, "tables", "digits", teacher=digits, **settings)
    report = command.run()
    assert "5 of 5 are finished" in capsys.readouterr().out
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
    again = command.run()
    assert again["runs"] == report["runs"]
    assert {path: path.stat().st_mtime_ns for path in files} == files
    assert not command.missing("init") and not command.missing("csd")
    main(["document", "--results", str(tmp_path / "out.json"), "--document", str(tmp_path / "again/a.md")])
    assert (tmp_path / "again/a.md").read_text() == (tmp_path / "doc/a.md").read_text()


def test_interrupted_runs_continue(tmp_path, monkeypatch):
    def interrupted(self):
        if self.variant == "sid-1.0":
            raise KeyboardInterrupt
        return original(self)

    command, original = Command(tmp_path, variants=["form"], seeds=[0]), runs.Run.figures
    monkeypatch.setattr(runs.Run, "figures", interrupted)
    with pytest.raises(KeyboardInterrupt):
        command.run()
    monkeypatch.setattr(runs.Run, "figures", original)
    before = {path.name: path.read_bytes() for path in (tmp_path / "work/tables").glob("*seed0-*.json")}
    assert len(before) == 3  # stage 1, baseline, sid-0.8
    assert {entry["variant"] for entry in command.report()["runs"]} == {BASELINE, "sid-0.8"}
    assert len(list((tmp_path / "work/tables").glob("*seed0-*.json"))) == 3
    assert [arguments[1] for arguments in command.missing("csd")] == ["sid-1.0", "sid-1.2"]
    report = command.run()
    assert {entry["variant"] for entry in report["runs"]} == {BASELINE, "sid-0.8", "sid-1.0", "sid-1.2"}
    for name, content in before.items():
        assert (tmp_path / "work/tables" / name).read_bytes() == content


def test_changed_settings_are_never_mixed(tmp_path, capsys):
    def run(every):
        return Command(tmp_path, variants=[BASELINE], seeds=[0], budget={"every": every})

    first = run(1).run()
    assert [entry["curve"]["iteration"] for entry in first["runs"]] == [[1, 2, 3, 4]]
    second = run(2).run()
    assert [entry["curve"]["iteration"] for entry in second["runs"]] == [[2, 4]]
    assert run(1).run()["runs"] == first["runs"]
    paths = sorted((tmp_path / "work/tables").glob("baseline-seed0-*.json"))
    assert len(paths) == 2
    content = json.loads(paths[0].read_text())
    assert content["hash"] == fingerprint(content["settings"]) and content["hash"] in paths[0].name
    for damage in ('{"hash": 1', json.dumps({**content, "settings": {**content["settings"], "samples": 1}})):
        paths[0].write_text(damage)
        for action in ("missing", "report"):
            command = run(content["settings"]["every"])
            with fails(capsys, 1, str(paths[0]), "delete it"):
                command.missing("csd") if action == "missing" else command.report()


def test_a_failed_run_names_itself_and_loses_no_other(tmp_path, monkeypatch, capsys):
    def failing(self):
        if self.variant == "init-diffusion" or self.variant == "sid-0.8":
            raise ValueError("a made-up failure")
        return original(self)

    command, original = Command(tmp_path, variants=["diffusion", "sid-0.8", "sid-1.0"], seeds=[0]), runs.Run.figures
    monkeypatch.setattr(runs.Run, "figures", failing)
    command.perform()
    errors = capsys.readouterr().err
    assert "tables, sid-0.8, seed 0 failed: ValueError: a made-up failure" in errors and errors.count("error:") == 3
    with fails(capsys, 1, "3 runs failed", "tables, sid-0.8, seed 0: ValueError: a made-up failure", "its stage 1"):
        command.report()
    report = json.loads((tmp_path / "out.json").read_text())
    assert {entry["variant"] for entry in report["runs"]} == {BASELINE, "sid-1.0"}
    assert set(report["failed"]) == {f"tables, {v}, seed 0" for v in ("init-diffusion", "diffusion", "sid-0.8")}
    assert "## Failed" in (tmp_path / "doc/a.md").read_text()
    monkeypatch.setattr(runs.Run, "figures", original)
    assert command.run()["failed"] == {} and not list((tmp_path / "work").rglob("*.log"))


def test_bad_input(tmp_path, capsys, digits):
    for words, settings in (
        ("variants: there is no 'K7'; there are: baseline, loss", {"variants": ["K7"]}),
        ("seeds must be numbers", {"seeds": ["x"]}),
        ("budget.iterations must be a multiple of every", {"budget": {"every": 3}}),
        ("budget.samples must be at least 1", {"budget": {"samples": 0}}),
        ("problem: there is no 'cats'; there are: tables, digits", {"problem": "cats"}),
    ):
        with fails(capsys, 2, "tables.yaml", words):
            Command(tmp_path, **settings).report()
    nowhere = {name: str(tmp_path / "no_such_init.yaml") for name in ("init", "csd", "align")}
    for words, command in (
        ("nowhere is no finished teacher; make teacher", Command(tmp_path, "digits", teacher=tmp_path / "nowhere")),
        ("no_such_init.yaml is no config of a stage", Command(tmp_path, configs=nowhere)),
    ):
        with fails(capsys, 1, words):
            command.report()
    command = Command(tmp_path, variants=[BASELINE])
    with fails(capsys, 1, "nothing to report", "--work"):
        command.report()
    with fails(capsys, 2, "has no run 'K5' with seed 0"):
        main(["run", command.missing("csd")[0][0], "K5", "0", *command.options[2:]])
    with fails(capsys, 1, "no-such.yaml is no problem of the ablations"):
        main(["report", "--problems", f"[{tmp_path}/no-such.yaml]"])
    with fails(capsys, 1, "no.json cannot be read"):
        main(["document", "--results", str(tmp_path / "no.json")])
    (tmp_path / "file").write_text("")
    with fails(capsys, 1, "cannot write", "file"):
        main(["missing", "init", "--work", str(tmp_path / "file" / "x")])
    assert not (tmp_path / "out.json").exists()


def test_the_committed_document_is_that_of_the_figures(tmp_path):
    main(["document", "--results", str(ROOT / "benchmarks/ablations.json"), "--document", str(tmp_path / "a.md")])
    assert (tmp_path / "a.md").read_text() == (ROOT / "docs/ablations.md").read_text()
    images = {path.name for path in (ROOT / "docs/images").glob("ablations_*.png")}
    assert {path.name for path in (tmp_path / "images").iterdir()} == images
