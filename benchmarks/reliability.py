"""What a run survives: kill tiny runs at random, split them over processes, round them, break them, count what is lost.

``python -m benchmarks.reliability``; what is done lies in ``--work`` and is not done again.
"""

import json
import random
import signal
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import yaml

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "tests/support"))  # its runs and faults are those of the tests

from benchmarks.command import run_command  # noqa: E402
from dd2_lightning.cli import main as dd2  # noqa: E402
from dd2_lightning.evaluation.report import markdown_table  # noqa: E402
from dd2_lightning.files import write_atomically  # noqa: E402
from dd2_lightning.provenance import commit  # noqa: E402
from equivalence import ITERATIONS, deviation, weights_of  # noqa: E402
from evidence import left_behind, logs, readable, unequal  # noqa: E402
from faults import FAULTS  # noqa: E402
from processes import Forked, forked  # noqa: E402
from runs import STAGES, any_config, fit, prepare_all  # noqa: E402

KILLS_A_RUN = 5
CURVE = (1, 50, 100, 200, 300)
"""Iterations at which the table shows losses."""
LOSSES = {"init": "gts", "csd": "guidance"}
PRECISIONS = ("32-true", "bf16-mixed")


def once(path: Path, function: Callable[..., Any], *arguments: Any) -> Any:
    """The function's result, from a file if it was there before."""
    if not path.is_file():
        write_atomically(path, json.dumps(function(*arguments), indent=1).encode())
    return json.loads(path.read_text())


def succeed(process: Forked) -> None:
    """Wait for a process that has to succeed."""
    status = process.wait()
    assert status == 0, f"status {status}: {process.output()[-3000:]}"


# --- kills -----------------------------------------------------------------------------------------------------------


class ResumableRun:
    """One kind of run: how to start or resume it, and what it leaves.

    Args:
        kind: a stage, or ``cache``.
        root: directory of what the runs start from.
        directory: of this run.
    """

    def __init__(self, kind: str, root: Path, directory: Path):
        self.kind, self.root, self.directory, self.output = kind, root, directory, directory / "run"
        directory.mkdir(parents=True, exist_ok=True)

    def start(self) -> Forked:
        """Start it where it was interrupted."""
        return Forked(self._cache if self.kind == "cache" else self._fit, self.directory / "log")

    def _fit(self) -> None:
        config = any_config(self.root, self.kind, self.output)
        config["trainer"] |= {"max_steps": 60, "val_check_interval": 20}
        fit({**config, "checkpoint_every": 5}, self.directory, "--ckpt_path", "auto")

    def _cache(self) -> None:
        sizes = ["--num", "4000", "--shard_size", "100", "--batch_size", "100"]
        dd2(["cache", "--teacher", str(self.root / "original"), "--output", str(self.output), *sizes])

    def progress(self) -> int:
        """Iterations or shards that are done; -1 for a file that cannot be read."""
        if self.kind == "cache":
            return len(list(self.output.glob("*.sha256")))
        if not readable(self.output):
            return -1
        checkpoint = self.output / "checkpoints/last.ckpt"
        return torch.load(checkpoint, weights_only=True)["global_step"] if checkpoint.is_file() else 0

    def result(self) -> dict[str, Any]:
        """Everything that it leaves."""
        if self.kind == "cache":
            return {path.name: path.read_bytes() for path in self.output.iterdir()}
        return left_behind(self.output)


def uninterrupted_run(kind: str, root: Path, work: Path) -> dict[str, Any]:
    """Run without a signal; its processor seconds."""
    process = ResumableRun(kind, root, work / "uninterrupted" / kind).start()
    succeed(process)
    return {"seconds": process.worked}


def killed_run(number: int, kind: str, kills: int, root: Path, work: Path) -> dict[str, Any]:
    """Run with ``kills`` signals at random moments, then to its end."""
    rng = random.Random(number)
    seconds = json.loads((work / f"uninterrupted-{kind}.json").read_text())["seconds"]
    run = ResumableRun(kind, root, work / "killed" / f"{number:03d}-{kind}")
    record = {"kind": kind, "kills": [], "unreadable": 0, "redone": 0}
    before = run.progress()
    while len(record["kills"]) < kills:
        process, how = run.start(), rng.choice([signal.SIGKILL, signal.SIGTERM])
        status = process.wait(work=rng.uniform(0.1, 0.95) * seconds)
        if status == 0:  # finished before the signal: the remaining kills are for another run
            break
        assert status is None, f"{kind}: status {status}: {process.output()[-3000:]}"
        process.send(how)
        status = process.wait()
        after = run.progress()
        record["kills"].append({"signal": how.name, "status": status, "from": before, "to": after})
        record["unreadable"] += after < 0
        record["redone"] += after < before
        before = after
    succeed(run.start())
    reference = ResumableRun(kind, root, work / "uninterrupted" / kind)
    return {**record, "differs": unequal(reference.result(), run.result())}


def kill(total: int, root: Path, work: Path) -> list[dict[str, Any]]:
    """Runs of all kinds in turn until there were ``total`` kills."""
    kinds, records = (*STAGES, "cache"), []
    for kind in kinds:
        once(work / f"uninterrupted-{kind}.json", uninterrupted_run, kind, root, work)
    while (left := total - sum(len(record["kills"]) for record in records)) > 0:
        number = len(records)
        arguments = number, kinds[number % len(kinds)], min(left, KILLS_A_RUN), root, work
        records.append(once(work / f"killed-{number:03d}.json", killed_run, *arguments))
        print(f"{sum(len(record['kills']) for record in records)} kills: {records[-1]}", flush=True)
    return records


# --- processes, precision --------------------------------------------------------------------------------------------


def distribute(stage: str, root: Path, work: Path) -> dict[str, float]:
    """Largest differences of the weights after 20 iterations: of two processes from one, and between the two."""
    (alone,) = weights_of(root, stage, work / f"one-{stage}", 1)
    first, second = weights_of(root, stage, work / f"two-{stage}", 2)
    return {"deviation": deviation(alone, first), "between": deviation(first, second)}


def run_digits(stage: str, root: Path, output: Path, steps: int, precision: str = "32-true", **model: Any) -> str:
    """Run the shipped config of a stage on the digits for so many iterations; its directory."""
    config = yaml.safe_load((ROOT / f"configs/{stage}_var.yaml").read_text())
    settings = config["model"]["init_args"]
    places = {"teacher": root / "teacher", "init_from": root / "init-32-true"}
    settings |= {key: str(path) for key, path in places.items() if key in settings} | model
    config["trainer"] |= {"default_root_dir": str(output), "max_steps": steps, "limit_val_batches": 0}
    config["trainer"] |= {"log_every_n_steps": 1, "enable_progress_bar": False, "precision": precision}
    if stage == "init":
        config["data"]["init_args"]["cache_dir"] = str(root / "cache")
    root.mkdir(exist_ok=True)
    succeed(Forked(lambda: fit(config, root), root / "log"))
    return str(output)


def loss_curve(stage: str, precision: str, root: Path) -> dict[str, float]:
    """Losses of a run on the digits, averaged over the 20 iterations before each that is shown."""
    output = run_digits(stage, root, root / f"{stage}-{precision}", CURVE[-1], precision)
    losses = [value for _, value in logs(Path(output))[f"log loss/{LOSSES[stage]}"]]
    return {str(n): sum(losses[max(0, n - 20) : n]) / len(losses[max(0, n - 20) : n]) for n in CURVE}


# --- results and report ----------------------------------------------------------------------------------------------


def measure(kills: int, work: Path) -> dict[str, Any]:
    """The contents of ``benchmarks/reliability.json``."""
    root, measured = work / "root", once(work / "commit.json", commit)
    once(work / "root.json", lambda: forked(lambda: prepare_all(root), work / "log"))
    records = kill(kills, root, work)
    split = {stage: once(work / f"ddp-{stage}.json", distribute, stage, root, work) for stage in STAGES}
    digits = work / "digits"
    once(digits / "done.json", lambda: run_digits("teacher", digits, digits / "teacher", 800, tokenizer_iterations=300))
    curves = {
        stage: {p: once(work / f"digits-{stage}-{p}.json", loss_curve, stage, p, digits) for p in PRECISIONS}
        for stage in LOSSES
    }
    faults = [
        {"fault": name, "lost": once(work / f"fault-{i}.json", happens, root, work / f"fault-{i}")}
        for i, (name, happens) in enumerate(FAULTS.items())
    ]
    last = str(CURVE[-1])
    ratios = [curves[stage]["bf16-mixed"][last] / curves[stage]["32-true"][last] for stage in LOSSES]
    total = sum(len(record["kills"]) for record in records)
    return {
        "kills": total,
        "unreadable": sum(record["unreadable"] for record in records),
        "redone": sum(record["redone"] for record in records),
        "resumes": total,
        "bit_identical": sum(len(record["kills"]) for record in records if not record["differs"]),
        "ddp_max_deviation": max(result["deviation"] for result in split.values()),
        "ddp_max_between_processes": max(result["between"] for result in split.values()),
        "bf16_final_loss_ratio": max(ratios, key=lambda ratio: abs(ratio - 1)),
        "faults": faults,
        "runs": records,
        "ddp": split,
        "curves": curves,
        "commit": measured,
    }


def table(head: list[str], rows: list[list[Any]]) -> str:
    """A Markdown table; all columns but the first are figures."""
    return "\n".join(markdown_table(head, [[str(cell) for cell in row] for row in rows]))


def report(results: dict[str, Any]) -> str:
    """The contents of ``docs/reliability.md``."""
    killed = []
    for kind in dict.fromkeys(record["kind"] for record in results["runs"]):
        records = [record for record in results["runs"] if record["kind"] == kind]
        signals = [kill["signal"] for record in records for kill in record["kills"]]
        same = sum(len(record["kills"]) for record in records if not record["differs"])
        killed.append([kind, signals.count("SIGKILL"), signals.count("SIGTERM")])
        killed[-1] += [sum(record[key] for record in records) for key in ("unreadable", "redone")]
        killed[-1].append(f"{same} of {len(signals)}")
    split = [[stage, f"{r['deviation']:.1e}", f"{r['between']:.0e}"] for stage, r in results["ddp"].items()]
    curves = [
        [f"{stage}, {p}", *(f"{value:.4f}" for value in values.values())]
        for stage, both in results["curves"].items()
        for p, values in both.items()
    ]
    return f"""# What a run survives

Written by `make reliability` at commit {(results["commit"] or "unknown")[:10]}; figures in
[benchmarks/reliability.json](../benchmarks/reliability.json). All runs are tiny and on the CPU; what they run is the
code of every run.

## Killed at random

{results["kills"]} signals at random moments. A resumed run counts as identical if weights, EMA, optimizer states, every
logged value and image, and the artifact are, bit by bit, those of a run that nothing happened to (`cache`: every
file is). *Redone*: a kill after which less was done than before it.

{table(["run", "SIGKILL", "SIGTERM", "unreadable files", "redone", "identical resumes"], killed)}

## Two processes

Largest difference of any weight after {ITERATIONS} iterations from those of one process with the same global batch; two
processes (gloo) with two micro-batches each. Between the two processes, EMA included, in the last column.

{table(["stage", "from one process", "between the two"], split)}

## Precision

Loss, averaged over the 20 iterations up to the one at the head of the column: L_GTS of stage 1 and L_FCS of stage 2, on
the digits.

{table(["stage, precision", *(str(n) for n in CURVE)], curves)}

Final ratio bf16-mixed to float32: {results["bf16_final_loss_ratio"]:.4f}.

## Faults

Each ends the run with exit status 1 and a message that names the file, loss or iteration. *Lost*: iterations before
the last checkpoint, and values of the run's end that are not those of a run without the fault.

{table(["fault", "lost"], [[entry["fault"], entry["lost"]] for entry in results["faults"]])}
"""


def reliability(
    kills: int = 50,
    work: str = "runs/reliability",
    output: str = "benchmarks/reliability.json",
    document: str = "docs/reliability.md",
) -> None:
    """Measure what runs survive.

    Args:
        kills: signals in all.
        work: directory of the runs.
        output: JSON file of all figures.
        document: Markdown file of the tables.
    """
    directory = Path(work).resolve()
    directory.mkdir(parents=True, exist_ok=True)
    import_module("dd2_lightning.cli.training")  # imports everything once instead of in every forked process
    results = measure(kills, directory)
    write_atomically(Path(output), json.dumps(results, indent=1).encode())
    write_atomically(Path(document), report(results).encode())
    print(report(results))


if __name__ == "__main__":
    run_command("benchmarks.reliability", reliability)
