"""All runs together: ``ablations.json`` from the runs, and ``ablations.md`` from that."""

import json
from typing import Any, NamedTuple

from benchmarks.ablations.analysis import DECISIVE, Result, Spread, assess, spread, summarise
from benchmarks.ablations.problems import Problem
from benchmarks.ablations.variants import BASELINE, QUESTIONS, Question
from dd2_lightning.evaluation.report import markdown_table
from dd2_lightning.provenance import commit, hardware

Content = dict[str, Any]
"""See :func:`summary`."""


class Outcome(NamedTuple):
    """A problem and its results: of every variant, one a finished seed."""

    problem: Problem
    results: dict[str, list[Result]]

    def of(self, question: Question) -> dict[str, list[Result]]:
        """Results of a question's variants, with the baseline if none of them equals it."""
        chosen = {v.name: self.results[v.name] for v in question.variants if self.results.get(v.name)}
        if chosen and not any(result["variant"] == BASELINE for several in chosen.values() for result in several):
            chosen = {BASELINE: self.results[BASELINE], **chosen} if self.results.get(BASELINE) else chosen
        return chosen


def rounded(value: float | None) -> float | None:
    """Five significant digits."""
    return None if value is None else float(f"{value:.5g}")


def columns(result: Result) -> Result:
    """A run without its settings, its curve as columns."""
    curve = result["curve"]
    points = {axis: [point[axis] for point in curve] for axis in ("stage", "iteration", "seconds")}
    for network in ("ema", "raw"):
        for metric in curve[0][network]:
            points[f"{network} {metric}"] = [rounded(point[network][metric]) for point in curve]
    return {**{k: v for k, v in result.items() if k not in ("settings", "curve")}, "curve": points}


def summary(outcomes: list[Outcome], failed: dict[str, str]) -> Content:
    """The contents of ``ablations.json``.

    Returns:
        ``{"problems": {name: {"title", "distance", "budget", "independent", "floor", "questions": {question:
        {variant: figures}}, "verdicts": [{"claim", "better", "worse", "verdict"}]}}, "failed", "hardware", "commit",
        "runs"}``; spreads are ``[median, low, high, seeds]``. A variant without runs equals the baseline.
    """
    problems, runs = {}, {}
    for problem, results in outcomes:
        settings, base = problem.settings, results.get(BASELINE, [])
        runs |= {(problem.name, r["variant"], r["seed"]): columns(r) for several in results.values() for r in several}
        assessed = [(claim, assess(claim, results)) for question in problem.questions for claim in question.claims]
        problems[problem.name] = {
            "title": settings.title,
            "distance": settings.distance,
            "budget": settings.budget,
            "independent": spread([result["independent"] for result in base]),
            "floor": spread([result["floor"] for result in base]),
            "questions": {q.name: summarise(Outcome(problem, results).of(q)) for q in problem.questions},
            "verdicts": [{"claim": claim.text, **assessment._asdict()} for claim, assessment in assessed],
        }
    return {
        "problems": problems,
        "failed": failed,
        "hardware": hardware(),
        "commit": commit(),
        "runs": list(runs.values()),
    }


def as_json(content: Content) -> bytes:
    """Readable, with one line a run."""
    head = json.dumps({**content, "runs": []}, indent=2, ensure_ascii=False, allow_nan=False)
    lines = [json.dumps(run, ensure_ascii=False, allow_nan=False) for run in content["runs"]]
    inner = ",\n".join(f"    {line}" for line in lines)
    return (head.removesuffix("[]\n}") + f"[\n{inner}\n  ]\n}}\n").encode()


def runs_of(content: Content, problem: str, variant: str) -> list[Result]:
    """The runs of a variant, those of the baseline if it has none."""
    runs = [run for run in content["runs"] if run["problem"] == problem]
    return [run for run in runs if run["variant"] == variant] or [run for run in runs if run["variant"] == BASELINE]


def cell(value: list[float] | None, pattern: str = ".4f") -> str:
    """Median (low to high) of a spread."""
    if value is None:
        return "–"
    value = Spread(*value)
    if value.count == 1:
        return format(value.median, pattern)
    return f"{value.median:{pattern}} ({value.low:{pattern}} to {value.high:{pattern}})"


def question_table(content: Content, name: str, question: Question) -> list[str]:
    """One question's figures on one problem."""
    problem = content["problems"][name]
    table = problem["questions"].get(question.name)
    if not table:
        return []
    optional = {"nll": "NLL", "velocity_error": "velocity error of stage 1"}
    present = [key for key in optional if any(row[key] for row in table.values())]
    if question.name != "loss":
        present = [key for key in present if key != "velocity_error"]
    header = ["variant", "iterations", "seconds", f"{problem['distance']}, end", "equal iterations"]
    header += ["equal seconds", *(optional[key] for key in present), "fluctuation, EMA", "raw"]
    rows = []
    for variant, row in table.items():
        is_baseline = runs_of(content, name, variant)[0]["variant"] == BASELINE
        rows.append(
            [
                f"**{variant}**" if is_baseline else variant,
                f"{row['iterations']:,}",
                cell(row["time"], ".1f"),
                *(cell(row[key]) for key in ("end", "at_iterations", "at_seconds")),
                *(cell(row[key], ".2f" if key == "nll" else ".4f") for key in present),
                *(cell(row[key], ".1%") for key in ("fluctuation_ema", "fluctuation_raw")),
            ]
        )
    return [f"{problem['title']}:", "", *markdown_table(header, rows), ""]


def verdict_table(content: Content) -> list[str]:
    """Every claim: the paper, the prototype, and these runs."""
    problems = content["problems"].values()
    assessed = [{entry["claim"]: entry for entry in problem["verdicts"]} for problem in problems]
    claims = [claim for q in QUESTIONS for claim in q.claims if any(claim.text in verdicts for verdicts in assessed)]
    rows = []
    for claim in claims:
        here = [verdict_cell(verdicts.get(claim.text)) for verdicts in assessed]
        rows.append([claim.text, claim.paper, claim.prototype, *here])
    header = ["claim", "paper", "prototype", *(f"here, {problem['title'].lower()}" for problem in problems)]
    return [line.replace("---:", "---") for line in (*markdown_table(header, rows), "")]


def verdict_cell(entry: dict[str, Any] | None) -> str:
    """A verdict with its figures."""
    if entry is None or entry["better"] is None or entry["worse"] is None:
        return "not run"
    return f"**{entry['verdict']}**: {cell(entry['better'], '.3f')} against {cell(entry['worse'], '.3f')}"


def markdown(content: Content, figures: dict[str, str]) -> str:
    """The contents of ``ablations.md``; ``figures`` has the relative path of each question's figure."""
    lines = ["# Ablations", "", "Written by `python -m benchmarks.ablations report` (`make ablations`).", ""]
    for name, problem in content["problems"].items():
        budget = problem["budget"]
        seeds = [str(run["seed"]) for run in runs_of(content, name, BASELINE)]
        lines.append(
            f"* **{problem['title']}**: {budget['init_iterations']:,} iterations of stage 1, "
            f"{budget['iterations']:,} after it, measured every {budget['every']} with {budget['samples']:,} samples; "
            f"seeds {', '.join(seeds) or '–'}. {problem['distance'].capitalize()} of independent tokens: "
            f"{cell(problem['independent'])}; of as many samples of the teacher: {cell(problem['floor'])}."
        )
    lines += [
        "",
        "A variant changes one thing of the baseline, which is printed bold where it is one of them. Figures are those "
        "of the EMA generator unless they say *raw*: median (smallest to largest) over the seeds. Seconds are the "
        "processor's, of one thread, without stage 1 and without the measuring. *Equal iterations* and *equal seconds* "
        "are the last ones that all runs of a table reach, between two points on the straight line of logarithms; a "
        "run's learning rate decays over its own iterations. Fluctuation is the standard deviation of the distance "
        "over the last quarter of the iterations, relative to its mean.",
        "",
        "## Verdicts",
        "",
        "Compared is what is left of the independent tokens' error (0 is a sample of the same teacher as large, 1 "
        "is independent tokens), at equal iterations unless the claim says otherwise. *Appears*: the ranges over "
        "the seeds do not overlap and lie as the claim has it; *does not appear*: they lie the other way, or differ "
        f"where the claim is that they do not; *undecided*: they overlap, or there are fewer than {DECISIVE} seeds. "
        "Of two settings that do not differ, three seeds each are disjoint in one case of ten: a table of this "
        "length holds some verdicts that are chance.",
        "",
        *verdict_table(content),
    ]
    for question in asked(content):
        lines += [f"## {question.title}", ""]
        for name in content["problems"]:
            lines += question_table(content, name, question)
        if question.name in figures:
            lines += [f"![{question.title}]({figures[question.name]})", ""]
    if content["failed"]:
        lines += ["## Failed", "", *(f"* {run}: {why}" for run, why in content["failed"].items()), ""]
    lines.append(f"{content['hardware']}; commit {(content['commit'] or 'unknown')[:10]}.")
    return "\n".join(lines) + "\n"


def asked(content: Content) -> list[Question]:
    """The questions that the file answers."""
    return [q for q in QUESTIONS if any(q.name in problem["questions"] for problem in content["problems"].values())]
