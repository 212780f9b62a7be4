"""``make reliability``: kill tiny runs at random, split them, round them, break them, and count what is lost.

What is done lies in ``--work`` and is not done again.
"""

import argparse
import json
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml

from dd2_lightning.artifacts import write_atomically
from dd2_lightning.cli import main as dd2
from dd2_lightning.cli import tools
from dd2_lightning.evaluation.report import commit
from equivalence import ITERATIONS, deviation, weights_of
from evidence import left_behind, logs, readable, unequal
from faults import FAULTS
from processes import Forked, forked
from runs import STAGES, any_config, fit, prepare_all

KILLS_A_RUN = 5
CURVE = (1, 50, 100, 200, 300)
"""Iterations at which the table shows losses."""


def once(path: Path, function: Callable[[], Any]) -> Any:
    """The function's result, from a file if it was there before."""
    if not path.is_file():
        write_atomically(path, json.dumps(function(), indent=1).encode())
    return json.loads(path.read_text())


# --- kills -----------------------------------------------------------------------------------------------------------


class Victim:
    """One kind of run: how to start or resume it, and what it leaves.

    Args:
        kind: a stage, or ``cache``.
        root: what the runs start from.
        directory: of this run.
    """

    def __init__(self, kind: str, root: Path, directory: Path):
        self.kind, self.root, self.directory, self.run = kind, root, directory, directory / "run"
        directory.mkdir(parents=True, exist_ok=True)

    def start(self) -> Forked:
        """Start it where it was left."""
        return Forked(self._cache if self.kind == "cache" else self._fit, self.directory / "log")

    def _fit(self) -> None:
        config = any_config(self.root, self.kind, self.run)
        config["trainer"] |= {"max_steps": 60, "val_check_interval": 20}
        fit({**config, "checkpoint_every": 5}, self.directory, "--ckpt_path", "auto")

    def _cache(self) -> None:
        sizes = ["--num", "4000", "--shard_size", "100", "--batch_size", "100"]
        dd2(["cache", "--teacher", str(self.root / "original"), "--output", str(self.run), *sizes])

    def progress(self) -> int:
        """Iterations or shards that are done; -1 for a file that cannot be read."""
        if self.kind == "cache":
            return len(list(self.run.glob("*.sha256")))
        if not readable(self.run):
            return -1
        checkpoint = self.run / "checkpoints/last.ckpt"
        return torch.load(checkpoint, weights_only=True)["global_step"] if checkpoint.is_file() else 0

    def left(self) -> dict[str, Any]:
        """Everything that it leaves."""
        if self.kind == "cache":
            return {path.name: path.read_bytes() for path in self.run.iterdir()}
        return left_behind(self.run)


def whole_run(kind: str, root: Path, work: Path) -> dict[str, Any]:
    """The run that nothing happens to, and its seconds at work."""
    process = Victim(kind, root, work / "whole" / kind).start()
    assert process.wait() == 0, process.output()[-3000:]
    return {"seconds": process.worked}


def killed_run(number: int, kind: str, kills: int, root: Path, work: Path) -> dict[str, Any]:
    """A run that gets ``kills`` signals at random moments, then is left alone."""
    chance = random.Random(number)
    seconds = json.loads((work / f"whole-{kind}.json").read_text())["seconds"]
    victim = Victim(kind, root, work / "killed" / f"{number:03d}-{kind}")
    record = {"kind": kind, "kills": [], "unreadable": 0, "redone": 0}
    before = victim.progress()
    while len(record["kills"]) < kills:
        process, how = victim.start(), chance.choice([signal.SIGKILL, signal.SIGTERM])
        status = process.wait(work=chance.uniform(0.1, 0.95) * seconds)
        if status is None:
            process.send(how)
            status = process.wait()
            after = victim.progress()
            record["kills"].append({"signal": how.name, "status": status, "from": before, "to": after})
            record["unreadable"] += after < 0
            record["redone"] += after < before
            before = after
        elif status != 0:
            raise AssertionError(f"{kind}: status {status}: {process.output()[-3000:]}")
        else:  # it was done before its time: the next one is a run of its own
            break
    process = victim.start()
    assert process.wait() == 0, process.output()[-3000:]
    whole = Victim(kind, root, work / "whole" / kind)
    return {**record, "differs": unequal(whole.left(), victim.left())}


def kill(total: int, root: Path, work: Path) -> list[dict[str, Any]]:
    """Runs of all kinds in turn until there were so many kills."""
    kinds, records, number = (*STAGES, "cache"), [], 0
    for kind in kinds:
        once(work / f"whole-{kind}.json", lambda kind=kind: whole_run(kind, root, work))
    while (left := total - sum(len(record["kills"]) for record in records)) > 0:
        kind = kinds[number % len(kinds)]
        arguments = number, kind, min(left, KILLS_A_RUN), root, work
        records.append(once(work / f"killed-{number:03d}.json", lambda arguments=arguments: killed_run(*arguments)))
        print(f"{sum(len(record['kills']) for record in records)} kills: {records[-1]}", flush=True)
        number += 1
    return records


# --- processes, precision, faults ------------------------------------------------------------------------------------


def distribute(stage: str, root: Path, work: Path) -> dict[str, float]:
    """Largest differences of the weights after 20 iterations: of two processes from one, and between the two."""
    (alone,) = weights_of(root, stage, work / f"one-{stage}", 1)
    first, second = weights_of(root, stage, work / f"two-{stage}", 2)
    return {"deviation": deviation(alone, first), "between": deviation(first, second)}


def digits_config(stage: str, root: Path, output: Path, steps: int) -> dict[str, Any]:
    """The shipped configuration of a stage on the digits, for so many iterations."""
    config = yaml.safe_load((Path(__file__).parents[1] / f"configs/{stage}_var.yaml").read_text())
    places = {"teacher": root / "teacher", "init_from": root / "init-32-true"}
    config["model"]["init_args"] |= {
        key: str(path) for key, path in places.items() if key in config["model"]["init_args"]
    }
    config["trainer"] |= {"default_root_dir": str(output), "max_steps": steps, "limit_val_batches": 0}
    config["trainer"] |= {"log_every_n_steps": 1, "enable_progress_bar": False}
    if stage == "init":
        config["data"]["init_args"]["cache_dir"] = str(root / "cache")
    return config


def run_digits(stage: str, root: Path, output: Path, steps: int, precision: str = "32-true", **model: Any) -> Path:
    """Run it; the directory it leaves."""
    config = digits_config(stage, root, output, steps)
    config["trainer"]["precision"] = precision
    config["model"]["init_args"] |= model
    root.mkdir(exist_ok=True)
    status, text = forked(lambda: fit(config, root), root / "log")
    assert status == 0, text[-3000:]
    return output


def curve(stage: str, precision: str, root: Path) -> dict[str, float]:
    """Losses of a run on the digits in one precision, averaged over the 20 iterations before each that is shown."""
    run = run_digits(stage, root, root / f"{stage}-{precision}", CURVE[-1], precision)
    losses = [value for _, value in logs(run)[f"log loss/{LOSSES[stage]}"]]
    return {str(n): sum(losses[max(0, n - 20) : n]) / len(losses[max(0, n - 20) : n]) for n in CURVE}


LOSSES = {"init": "gts", "csd": "guidance"}


# --- the product -----------------------------------------------------------------------------------------------------


def measure(kills: int, work: Path) -> dict[str, Any]:
    """Everything, as ``benchmarks/reliability.json`` has it."""
    root, measured = work / "root", once(work / "commit.json", commit)
    once(work / "root.json", lambda: forked(lambda: prepare_all(root), work / "log"))
    records = kill(kills, root, work)
    split = {s: once(work / f"ddp-{s}.json", lambda s=s: distribute(s, root, work)) for s in STAGES}
    digits = work / "digits"
    once(
        digits / "done.json",
        lambda: str(run_digits("teacher", digits, digits / "teacher", 800, tokenizer_iterations=300)),
    )
    curves = {
        stage: {p: once(work / f"digits-{stage}-{p}.json", lambda a=(stage, p): curve(*a, digits)) for p in PRECISIONS}
        for stage in LOSSES
    }
    faults = []
    for i, (name, happens) in enumerate(FAULTS.items()):
        lost = once(work / f"fault-{i}.json", lambda a=(happens, i): a[0](root, work / f"fault-{a[1]}"))
        faults.append({"fault": name, "lost": lost})
    last = str(CURVE[-1])
    ratios = {stage: curves[stage]["bf16-mixed"][last] / curves[stage]["32-true"][last] for stage in LOSSES}
    return {
        "kills": sum(len(record["kills"]) for record in records),
        "unreadable": sum(record["unreadable"] for record in records),
        "redone": sum(record["redone"] for record in records),
        "resumes": sum(len(record["kills"]) for record in records),
        "bit_identical": sum(len(record["kills"]) for record in records if not record["differs"]),
        "ddp_max_deviation": max(result["deviation"] for result in split.values()),
        "ddp_max_between_processes": max(result["between"] for result in split.values()),
        "bf16_final_loss_ratio": max(ratios.values(), key=lambda ratio: abs(ratio - 1)),
        "faults": faults,
        "runs": records,
        "ddp": split,
        "curves": curves,
        "commit": measured,
    }


PRECISIONS = ("32-true", "bf16-mixed")


def table(head: list[str], rows: list[list[Any]]) -> str:
    """A Markdown table; all columns but the first are figures."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def report(results: dict[str, Any]) -> str:
    """``docs/reliability.md``."""
    kinds = list(dict.fromkeys(record["kind"] for record in results["runs"]))
    killed = []
    for kind in kinds:
        own = [record for record in results["runs"] if record["kind"] == kind]
        signals = [kill["signal"] for record in own for kill in record["kills"]]
        same = sum(len(record["kills"]) for record in own if not record["differs"])
        killed.append([kind, signals.count("SIGKILL"), signals.count("SIGTERM"), sum(r["unreadable"] for r in own)])
        killed[-1] += [sum(r["redone"] for r in own), f"{same} of {len(signals)}"]
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
logged value and picture, and the artifact are, bit by bit, those of a run that nothing happened to (`cache`: every
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


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--work", type=Path, default=Path("runs/reliability"))
    parser.add_argument("--output", type=Path, default=Path("benchmarks/reliability.json"))
    parser.add_argument("--report", type=Path, default=Path("docs/reliability.md"))
    given = parser.parse_args()
    work = given.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    tools()  # imports them here, once, instead of in every process
    results = measure(given.kills, work)
    write_atomically(given.output, json.dumps(results, indent=1).encode())
    write_atomically(given.report, report(results).encode())
    print(report(results))


if __name__ == "__main__":
    main()
