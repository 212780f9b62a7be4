"""``dd2 ablations``: what is asked for, what of it is missing, and what all of it says."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from dd2_lightning.ablations.curves import save_curves
from dd2_lightning.ablations.problems import Budget, Digits, Problem, Tables
from dd2_lightning.ablations.recipes import complete
from dd2_lightning.ablations.report import Outcome, as_json, markdown, relative, summary
from dd2_lightning.ablations.runs import Plan, Run, planned, quietly
from dd2_lightning.ablations.variants import BASELINE, QUESTIONS, Question, Variant
from dd2_lightning.ablations.workers import perform
from dd2_lightning.artifacts import check_writable, write_atomically
from dd2_lightning.errors import DD2Error, check_at_least_one

PROBLEMS = ("tables", "digits")


def ablations(
    work: str = "runs/ablations",
    output: str = "benchmarks/ablations.json",
    document: str = "docs/ablations.md",
    problems: str = "tables,digits",
    variants: str = "all",
    seeds: str = "0,1,2",
    teacher: str = "runs/var/teacher",
    configs: str = "configs",
    tables: Budget = Budget(init_iterations=2000, iterations=1000, every=50, samples=5000),
    digits: Budget = Budget(init_iterations=500, iterations=300, every=15, samples=500),
    processes: int = 1,
    report_only: bool = False,
) -> None:
    """Vary the paper's choices one at a time, on the exact tables and the digits; an interrupted command continues.

    Args:
        work: directory of the runs, a JSON file each; what is finished there with the same settings is not done again.
        output: JSON file of all figures.
        document: Markdown file of tables and verdicts; its pictures go into ``images`` beside it.
        problems: ``tables``, ``digits`` or both, separated by commas.
        variants: names of variants or of questions, separated by commas; ``all`` is all. The baseline is always run.
        seeds: separated by commas; fewer than three decide nothing.
        teacher: directory of the digits' teacher; ``make teacher`` makes it.
        configs: directory of the configs that the digits' baseline is read from.
        tables: what a run on the tables takes.
        digits: what a run on the digits takes.
        processes: runs at a time, one thread each.
        report_only: run nothing, write what the finished runs say.

    Raises:
        ValueError: for names that there are not, or numbers that cannot be.
        ArtifactError: if the teacher is missing, or something cannot be written.
        DD2Error: if runs failed; all others are finished and reported then. Or if there is nothing to report.
    """
    check_at_least_one("--", processes=processes)
    wanted = names(problems, "problems", PROBLEMS)
    questions = asked(variants)
    numbers = [int(seed) for seed in names(seeds, "seeds")]
    chosen = list({variant.name: variant for question in questions for variant in question.variants}.values())
    for file in (output, document):
        check_writable(Path(file).parent)
    root, budgets = Path(work), {"tables": tables, "digits": digits}
    check_writable(root)
    opened: list[Problem] = []
    if "tables" in wanted:
        opened.append(Tables(root / "tables"))
    if "digits" in wanted:
        opened.append(Digits(root / "digits", Path(teacher), Path(configs)))
    plans = {problem.name: plan_of(problem, budgets[problem.name], chosen, numbers) for problem in opened}
    failed = {} if report_only else perform_all(plans, processes)
    outcomes = [
        Outcome(problem, budgets[problem.name], questions, results_of(plans[problem.name])) for problem in opened
    ]
    if report_only and not any(outcome.results for outcome in outcomes):
        raise DD2Error(f"there is nothing to report: no run with these settings is finished in --work {root}")
    write(outcomes, failed, Path(output), Path(document))
    if failed:
        raise DD2Error(f"{len(failed)} runs failed: " + "; ".join(f"{run}: {why}" for run, why in failed.items()))


def names(text: str, option: str, known: tuple[str, ...] | None = None) -> list[str]:
    """``a,b`` as a list without repetitions.

    Args:
        text: what was given.
        option: whose value it is.
        known: what there is; None is numbers.

    Raises:
        ValueError: for what there is not.
    """
    given = list(dict.fromkeys(part.strip() for part in text.split(",")))
    if known is None and not all(part.isdecimal() for part in given):
        raise ValueError(f"--{option} must be numbers separated by commas, like 0,1,2; got {text!r}")
    if known is not None:
        for part in given:
            if part not in known:
                raise ValueError(f"--{option}: there is no {part!r}; there are: {', '.join(known)}")
    return given


def asked(text: str) -> list[Question]:
    """The questions, with the variants that were named.

    Raises:
        ValueError: for a name that there is not.
    """
    if text == "all":
        return list(QUESTIONS)
    known = [name for q in QUESTIONS for name in (q.name, *(variant.name for variant in q.variants))]
    given = names(text, "variants", (BASELINE, *known))
    questions = []
    for question in QUESTIONS:
        kept = tuple(v for v in question.variants if question.name in given or v.name in given)
        if kept:
            questions.append(Question(question.name, question.title, kept))
    return questions


def plan_of(problem: Problem, budget: Budget, variants: list[Variant], seeds: list[int]) -> Plan:
    """All runs of a problem."""
    recipe = complete(problem.recipe(budget))
    return planned(problem, recipe, variants, seeds, {"every": budget.every, "samples": budget.samples})


def perform_all(plans: dict[str, Plan], processes: int) -> dict[str, str]:
    """Do what is missing: every stage 1 first, then what starts from it.

    Returns:
        Runs that failed, and why.
    """
    console, failed = Console(highlight=False), {}
    inits = list({run.path: run for plan in plans.values() for run in plan.inits}.values())
    runs = list({run.path: run for plan in plans.values() for run in plan.runs.values()}.values())
    missing = [run for run in (*inits, *runs) if run.result() is None]
    done = len(inits) + len(runs) - len(missing)
    if done:
        console.print(f"{done} runs are finished, {len(missing)} are missing")
    tell = teller(console, len(missing), failed)
    perform([run for run in missing if run.init is None], processes, quietly, tell)
    ready = []
    for run in (run for run in missing if run.init is not None):
        if run.init.result() is None:
            tell(run, f"its stage 1 failed: {run.init.label}")
        else:
            ready.append(run)
    perform(ready, processes, quietly, tell)
    return failed


def teller(console: Console, total: int, failed: dict[str, str]) -> Callable[[Run, str | None], None]:
    """What prints a line for every run that ends, and notes those that failed."""
    started, count = time.monotonic(), 0

    def tell(run: Run, problem: str | None) -> None:
        nonlocal count
        count += 1
        if problem is not None:
            failed[run.label] = problem
        left = (time.monotonic() - started) / count * (total - count) / 60
        said = f"failed: {problem}" if problem is not None else in_short(run.result())
        console.print(f"{count}/{total}  {run.label}: {said}; about {left:.0f} min left", soft_wrap=True, markup=False)

    return tell


def in_short(result: dict[str, Any]) -> str:
    """A finished run in a few words."""
    if "curve" not in result:
        return f"velocity error {result['velocity_error']:.4f}, {result['seconds']:.0f} s"
    last = result["curve"][-1]
    pace = 1000 * last["seconds"] / last["iteration"]
    distance, raw = last["ema"]["distance"], last["raw"]["distance"]
    return f"distance {distance:.4f}, raw {raw:.4f}, {last['seconds']:.0f} s, {pace:.0f} ms an iteration"


def results_of(plan: Plan) -> dict[str, list[dict[str, Any]]]:
    """Finished runs by variant, each with the velocity error of its stage 1."""
    results: dict[str, list[dict[str, Any]]] = {}
    for (variant, _), run in plan.runs.items():
        content = run.result()
        if content is not None:
            velocity_error = run.init.result()["velocity_error"]
            results.setdefault(variant, []).append({**content, "velocity_error": velocity_error})
    return results


def write(outcomes: list[Outcome], failed: dict[str, str], output: Path, document: Path) -> None:
    """JSON, pictures, document."""
    write_atomically(output, as_json(summary(outcomes, failed)))
    pictures = {}
    for question in {q.name: q for outcome in outcomes for q in outcome.questions}.values():
        path = document.parent / "images" / f"ablations_{question.name}.png"
        if save_curves(question, outcomes, path):
            pictures[question.name] = relative(path, document)
    write_atomically(document, markdown(outcomes, failed, pictures).encode())
    Console(highlight=False).print(f"{output}, {document}", soft_wrap=True)
