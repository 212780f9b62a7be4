"""``python -m benchmarks.ablations``: list the missing runs, perform one, write the report of those that are finished.

Runs are independent of each other once the runs of stage 1 are finished; ``make ablations`` performs several at a time.
"""

import json
import shlex
from pathlib import Path
from typing import Literal

from benchmarks.ablations.figures import save_curves
from benchmarks.ablations.problems import open_problem
from benchmarks.ablations.report import Content, Outcome, as_json, asked, markdown, summary
from benchmarks.ablations.runs import plan_runs
from benchmarks.command import run_command
from dd2_lightning.errors import DD2Error
from dd2_lightning.files import check_writable, write_atomically

WORK = "runs/ablations"
RESULTS = "benchmarks/ablations.json"
DOCUMENT = "docs/ablations.md"
PROBLEMS = ["benchmarks/ablations/tables.yaml", "benchmarks/ablations/digits.yaml"]


def missing(stage: Literal["init", "csd"], problems: list[str] = PROBLEMS, work: str = WORK) -> None:
    """Print the runs that are not finished, a line each: the arguments of ``run``.

    Args:
        stage: ``init`` lists the runs of stage 1; ``csd`` those of the later stages, which start from them.
        problems: YAML files.
        work: directory of the runs.
    """
    check_writable(work)
    for problem in problems:
        for run in plan_runs(open_problem(problem, Path(work))).of_stage(stage):
            if run.result() is None:
                print(shlex.join([problem, run.variant, str(run.seed), "--work", work]))


def run(problem: str, variant: str, seed: int, work: str = WORK) -> None:
    """Perform one run, unless it is finished with the same settings.

    Args:
        problem: YAML file.
        variant: name of a variant, or ``init-`` and a loss for a stage 1.
        seed: one of the problem's.
        work: directory of the runs; each leaves a JSON file, or a log if it fails.
    """
    plan = plan_runs(open_problem(problem, Path(work)))
    runs = [*plan.of_stage("init"), *plan.of_stage("csd")]
    chosen = next((run for run in runs if (run.variant, run.seed) == (variant, seed)), None)
    if chosen is None:
        raise ValueError(f"{problem} has no run {variant!r} with seed {seed}; see its variants and seeds")
    content = chosen.result() or chosen.perform()
    if "curve" in content:
        last = content["curve"][-1]
        figures = f"distance {last['ema']['distance']:.4f}, raw {last['raw']['distance']:.4f}, {last['seconds']:.0f} s"
    else:
        figures = f"velocity error {content['velocity_error']:.4f}, {content['seconds']:.0f} s"
    finished = sum(run.path.is_file() for run in runs)
    print(f"{chosen.label}: {figures}; {finished} of {len(runs)} are finished", flush=True)


def report(problems: list[str] = PROBLEMS, work: str = WORK, results: str = RESULTS, document: str = DOCUMENT) -> None:
    """Write figures and document of the finished runs, and name those that failed.

    Args:
        problems: YAML files.
        work: directory of the runs.
        results: JSON file of all figures.
        document: Markdown file of tables and verdicts; its figures go into ``images`` beside it.
    """
    outcomes, failed = [], {}
    for path in problems:
        plan = plan_runs(open_problem(path, Path(work)))
        outcomes.append(Outcome(plan.inits[0].problem, plan.results()))
        runs = [run for stage in ("init", "csd") for run in plan.of_stage(stage) if run.result() is None]
        failed |= {run.label: why for run in runs if (why := run.failure())}
    if not any(outcome.results for outcome in outcomes) and not failed:
        raise DD2Error(f"there is nothing to report: no run with these settings is finished in --work {work}")
    content = summary(outcomes, failed)
    write_atomically(Path(results), as_json(content))
    write_document(content, Path(document))
    print(f"{results}, {document}")
    if failed:
        raise DD2Error(f"{len(failed)} runs failed: " + "; ".join(f"{run}: {why}" for run, why in failed.items()))


def document(results: str = RESULTS, document: str = DOCUMENT) -> None:
    """Write the document again from the JSON file of all figures.

    Args:
        results: JSON file that ``report`` wrote.
        document: Markdown file.
    """
    try:
        content = json.loads(Path(results).read_text())
    except (OSError, ValueError) as error:
        raise DD2Error(f"{results} cannot be read: {error}") from error
    write_document(content, Path(document))


def write_document(content: Content, path: Path) -> None:
    """Figures and Markdown."""
    figures = {}
    for question in asked(content):
        figure = path.parent / "images" / f"ablations_{question.name}.png"
        if save_curves(question, content, figure):
            figures[question.name] = figure.relative_to(path.parent).as_posix()
    write_atomically(path, markdown(content, figures).encode())


def main(arguments: list[str] | None = None) -> None:
    """Run a command."""
    commands = {"missing": missing, "run": run, "report": report, "document": document}
    run_command("benchmarks.ablations", commands, arguments)


if __name__ == "__main__":
    main()
