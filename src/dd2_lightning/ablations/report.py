"""What all runs together say: ``ablations.json`` and ``ablations.md``, every word about figures computed from them."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from dd2_lightning.ablations.analysis import DECISIVE, Judged, Result, Spread, judged, spread, summarised
from dd2_lightning.ablations.problems import Budget, Problem
from dd2_lightning.ablations.variants import BASELINE, FINDINGS, Question
from dd2_lightning.evaluation.report import commit, hardware, markdown_table


class Outcome(NamedTuple):
    """One problem with its results.

    Attributes:
        problem: which.
        budget: what its runs took.
        questions: that were asked.
        results: of every variant that was asked for, one a seed that is finished.
    """

    problem: Problem
    budget: Budget
    questions: list[Question]
    results: dict[str, list[Result]]

    def of(self, question: Question) -> dict[str, list[Result]]:
        """Results of a question's variants; the baseline too, if none of them is that."""
        chosen = {v.name: self.results[v.name] for v in question.variants if self.results.get(v.name)}
        if chosen and not any(result["variant"] == BASELINE for several in chosen.values() for result in several):
            chosen = {BASELINE: self.results[BASELINE], **chosen} if self.results.get(BASELINE) else chosen
        return chosen

    def verdicts(self) -> dict[str, Judged]:
        """By the words of the claim, those of the questions that were asked."""
        asked = {question.name for question in self.questions}
        return {f.claim: judged(f, self.results) for f in FINDINGS if f.question in asked}


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


def summary(outcomes: list[Outcome], failed: dict[str, str]) -> dict[str, Any]:
    """The contents of ``ablations.json``.

    Returns:
        ``{"problems": {name: {"title", "distance", "budget", "independent", "floor", "questions": {question:
        {variant: figures}}, "verdicts": [{"claim", "better", "worse", "verdict"}]}}, "failed", "hardware", "commit",
        "runs"}``; spreads are ``[median, low, high, seeds]``.
    """
    problems, runs = {}, {}
    for outcome in outcomes:
        name = outcome.problem.name
        runs |= {(name, r["variant"], r["seed"]): columns(r) for several in outcome.results.values() for r in several}
        base = outcome.results.get(BASELINE, [])
        problems[name] = {
            "title": outcome.problem.title,
            "distance": outcome.problem.distance,
            "budget": vars(outcome.budget),
            "independent": spread([result["independent"] for result in base]),
            "floor": spread([result["floor"] for result in base]),
            "questions": {q.name: summarised(outcome.of(q)) for q in outcome.questions},
            "verdicts": [
                {"claim": claim, "better": entry.better, "worse": entry.worse, "verdict": entry.verdict}
                for claim, entry in outcome.verdicts().items()
            ],
        }
    return {
        "problems": problems,
        "failed": failed,
        "hardware": hardware(),
        "commit": commit(),
        "runs": list(runs.values()),
    }


def as_json(content: dict[str, Any]) -> bytes:
    """Readable, with one line a run."""
    head = json.dumps({**content, "runs": []}, indent=2, ensure_ascii=False, allow_nan=False)
    lines = [json.dumps(run, ensure_ascii=False, allow_nan=False) for run in content["runs"]]
    inner = ",\n".join(f"    {line}" for line in lines)
    return (head.removesuffix("[]\n}") + f"[\n{inner}\n  ]\n}}\n").encode()


def shown(value: Spread | None, pattern: str = ".4f") -> str:
    """Median (low to high)."""
    if value is None:
        return "–"
    if value.count == 1:
        return format(value.median, pattern)
    return f"{value.median:{pattern}} ({value.low:{pattern}} to {value.high:{pattern}})"


def figures_table(outcome: Outcome, question: Question) -> list[str]:
    """One question's figures on one problem."""
    table_of = summarised(outcome.of(question))
    if not table_of:
        return []
    optional = {"nll": "NLL", "velocity_error": "velocity error of stage 1"}
    present = [key for key in optional if any(row[key] for row in table_of.values())]
    if question.name != "loss":
        present = [key for key in present if key != "velocity_error"]
    header = ["variant", "iterations", "seconds", f"{outcome.problem.distance}, end", "equal iterations"]
    header += ["equal seconds", *(optional[key] for key in present), "fluctuation, EMA", "raw"]
    rows = []
    for variant, row in table_of.items():
        same = outcome.results[variant][0]["variant"] == BASELINE
        rows.append(
            [
                f"**{variant}**" if same else variant,
                f"{row['iterations']:,}",
                shown(row["time"], ".1f"),
                *(shown(row[key]) for key in ("end", "at_iterations", "at_seconds")),
                *(shown(row[key], ".2f" if key == "nll" else ".4f") for key in present),
                *(shown(row[key], ".1%") for key in ("fluctuation_ema", "fluctuation_raw")),
            ]
        )
    return [f"{outcome.problem.title}:", "", *markdown_table(header, rows), ""]


def verdict_table(outcomes: list[Outcome]) -> list[str]:
    """The paper, the prototype, and these runs."""
    by_problem = [outcome.verdicts() for outcome in outcomes]
    claims = {claim: entry.finding for verdicts in by_problem for claim, entry in verdicts.items()}
    rows = []
    for claim, finding in claims.items():
        here = [said(verdicts.get(claim)) for verdicts in by_problem]
        rows.append([claim, finding.paper, finding.prototype, *here])
    header = ["claim", "paper", "prototype", *(f"here, {o.problem.title.lower()}" for o in outcomes)]
    return [line.replace("---:", "---") for line in (*markdown_table(header, rows), "")]


def said(entry: Judged | None) -> str:
    """A verdict with its figures."""
    if entry is None or entry.better is None or entry.worse is None:
        return "not run"
    return f"**{entry.verdict}**: {shown(entry.better, '.3f')} against {shown(entry.worse, '.3f')}"


def markdown(outcomes: list[Outcome], failed: dict[str, str], pictures: dict[str, str]) -> str:
    """The contents of ``ablations.md``.

    Args:
        outcomes: of every problem.
        failed: runs that failed, and why.
        pictures: name of a question to the picture's path, relative to the document.
    """
    lines = ["# Ablations", "", "Written by `dd2 ablations` (`make ablations`).", ""]
    for outcome in outcomes:
        budget, base = outcome.budget, outcome.results.get(BASELINE, [])
        independent, floor = (spread([result[key] for result in base]) for key in ("independent", "floor"))
        lines.append(
            f"* **{outcome.problem.title}**: {budget.init_iterations:,} iterations of stage 1, {budget.iterations:,} "
            f"after it, measured every {budget.every} with {budget.samples:,} samples; seeds "
            f"{', '.join(str(result['seed']) for result in base) or '–'}. {outcome.problem.distance.capitalize()} of "
            f"independent tokens: {shown(independent)}; of as many samples of the teacher: {shown(floor)}."
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
        *verdict_table(outcomes),
    ]
    asked = {question.name: question for outcome in outcomes for question in outcome.questions}
    for question in asked.values():
        lines += [f"## {question.title}", ""]
        for outcome in outcomes:
            lines += figures_table(outcome, question) if question in outcome.questions else []
        if question.name in pictures:
            lines += [f"![{question.title}]({pictures[question.name]})", ""]
    if failed:
        lines += ["## Failed", "", *(f"* {run}: {why}" for run, why in failed.items()), ""]
    lines.append(f"{hardware()}; commit {(commit() or 'unknown')[:10]}.")
    return "\n".join(lines) + "\n"


def relative(path: Path, document: Path) -> str:
    """A picture's path as the document writes it."""
    return path.relative_to(document.parent).as_posix()
