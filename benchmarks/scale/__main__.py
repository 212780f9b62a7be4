"""``python -m benchmarks.scale``: the study's commands."""

import json
from pathlib import Path

import torch

from benchmarks.command import run_command
from benchmarks.scale.report import draw_curves, draw_ratios, markdown, summarise
from benchmarks.scale.ruler import describe, open_ruler
from benchmarks.scale.runs import Run
from benchmarks.scale.study import METHODS, read_study
from dd2_lightning.devices import resolve_device
from dd2_lightning.errors import DD2Error
from dd2_lightning.evaluation.report import to_json
from dd2_lightning.files import write_atomically

SETTINGS, OUTPUT = "benchmarks/scale/settings.yaml", "runs/scale"
RESULTS, DOCUMENT = "benchmarks/scale.json", "docs/scale.md"


def prepare(
    setting: str, teacher: str | None = None, output: str = OUTPUT, device: str = "cpu", settings: str = SETTINGS
) -> None:
    """Make what all runs of a setting are measured with; a run does so itself where it is missing.

    Args:
        setting: one of the YAML file's.
        teacher: its directory, if not the file's.
        output: directory of the study.
        device: auto, cpu, cuda.
        settings: YAML file.
    """
    study, chosen = read_study(settings), resolve_device(device)
    entry = study.setting(setting)
    ruler = open_ruler(study, entry, Path(output) / setting, teacher or entry.teacher, chosen)
    print(to_json(describe(ruler)).decode(), end="")


def run(
    setting: str,
    method: str,
    seed: int,
    seconds: float | None = None,
    teacher: str | None = None,
    output: str = OUTPUT,
    device: str = "cpu",
    settings: str = SETTINGS,
) -> None:
    """Perform one run on one thread, or what is missing of it.

    Args:
        setting: one of the YAML file's.
        method: dd2 or dd1.
        seed: of networks, data and noise.
        seconds: of sampling and training, if not the file's; of the processor, or on a GPU by the wall.
        teacher: directory of the teacher, if not the file's.
        output: directory of the study.
        device: auto, cpu, cuda.
        settings: YAML file.
    """
    torch.set_num_threads(1)
    study = read_study(settings)
    if method not in METHODS:
        raise ValueError(f"there is no method '{method}'; there are: {', '.join(METHODS)}")
    entry = study.setting(setting)
    place, chosen = Path(output), resolve_device(device)
    job = Run(study, setting, method, seed, place, seconds or study.seconds, teacher or entry.teacher, chosen)
    if not job.is_complete:
        job.perform()
    print(f"{job.path} is complete")


def missing(seconds: float | None = None, output: str = OUTPUT, device: str = "cpu", settings: str = SETTINGS) -> None:
    """Print the runs that are not complete and whose teacher is there, a line each, as arguments of ``run``.

    Args:
        seconds: as of ``run``.
        output: directory of the study.
        device: auto, cpu, cuda.
        settings: YAML file.
    """
    study, chosen = read_study(settings), resolve_device(device)
    for seed in study.seeds:
        for name, entry in study.settings.items():
            for method in METHODS:
                job = Run(study, name, method, seed, Path(output), seconds or study.seconds, entry.teacher, chosen)
                if (Path(entry.teacher) / "config.json").is_file() and not job.is_complete:
                    print(name, method, seed)


def report(
    output: str = OUTPUT,
    results: str = RESULTS,
    document: str = DOCUMENT,
    settings: str = SETTINGS,
) -> None:
    """Write figures and page of the runs that are there.

    Args:
        output: directory of the study.
        results: JSON file of all figures.
        document: Markdown file; its figures go into ``images`` beside it.
        settings: YAML file.
    """
    write_atomically(Path(results), to_json(summarise(read_study(settings), Path(output))))
    write_document(results, document)


def write_document(results: str = RESULTS, document: str = DOCUMENT) -> None:
    """Write figures and page again from the JSON file of all figures.

    Args:
        results: JSON file that ``report`` wrote.
        document: Markdown file.
    """
    try:
        content, page = json.loads(Path(results).read_text()), Path(document)
    except (OSError, ValueError) as error:
        raise DD2Error(f"{results} cannot be read: {error}") from error
    draw_ratios(content, page.parent / "images" / "scale.png")
    draw_curves(content, page.parent / "images" / "scale_curves.png")
    write_atomically(page, markdown(content).encode())
    print(f"{results}, {document}")


def main(arguments: list[str] | None = None) -> None:
    """Run a command."""
    commands = {"prepare": prepare, "run": run, "missing": missing, "report": report, "document": write_document}
    run_command("benchmarks.scale", commands, arguments)


if __name__ == "__main__":
    main()
