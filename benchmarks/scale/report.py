"""The study's figures from the files of its runs: ratio of what DD2 leaves to what DD1 leaves, against nats."""

import json
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.scale.study import METHODS, Study
from dd2_lightning.errors import DD2Error
from dd2_lightning.evaluation.figures import place_labels
from dd2_lightning.evaluation.report import markdown_table
from dd2_lightning.images.figures import blank_figure, write_figure

METRICS = {"frechet": ("Fréchet", "#0072B2", "o"), "nll": ("NLL", "#D55E00", "s")}
"""Of what is left: name, colour and marker."""

DIGITS = Path(__file__).parents[1]
BENCHMARKS = {"digits_llamagen": ("digits, LlamaGen", 16), "digits_var": ("digits, VAR", 21)}
"""Results of ``make benchmark`` that join the study: title and number of tokens."""

Content = dict[str, Any]


def read_runs(study: Study, output: Path) -> dict[str, dict[str, dict[int, Content]]]:
    """Runs that have measured something, complete or not: setting, method and seed to the contents of its file."""
    runs: dict[str, dict[str, dict[int, Content]]] = {}
    for name in study.settings:
        for method in METHODS:
            for seed in study.seeds:
                path = output / name / f"{method}-seed{seed}.json"
                content = json.loads(path.read_text()) if path.is_file() else {}
                if content.get("curve"):
                    runs.setdefault(name, {}).setdefault(method, {})[seed] = content
    if not runs:
        raise DD2Error(f"there is nothing to report: {output} holds no run that has measured anything")
    return runs


def digits(path: Path, title: str, tokens: int) -> Content:
    """A setting from the results of ``make benchmark``: the same question on the 8x8 digits, with processor seconds."""
    runs = json.loads(path.read_text())["runs"]
    ends: dict[str, list[Content]] = {method: [] for method in METHODS}
    for run in runs:
        rows = run["samplers"]
        for method, name in (("dd2", "one-step"), ("dd1", "DD1 1-step")):
            ends[method].append(
                {
                    key: (rows[name][key] - rows["teacher"][key]) / (rows["independent"][key] - rows["teacher"][key])
                    for key in METRICS
                }
            )
    nats = median(run["samplers"]["teacher"]["nll"] for run in runs)
    teacher = {"tokens": tokens, "codes": 32, "nats": nats, "nats_per_token": nats / tokens}
    known = {"title": title, "teacher": teacher, "hardware": runs[0]["hardware"], "source": path.name, "runs": {}}
    return {**known, **compared(ends, list(zip(ends["dd2"], ends["dd1"], strict=True)))}


def compared(ends: dict[str, list[Content]], pairs: list[tuple[Content, Content]]) -> Content:
    """What is left at the end of the runs by method, and the ratio of pairs of runs of a seed."""
    left = {method: {key: spread([end[key] for end in found]) for key in METRICS} for method, found in ends.items()}
    return {"left": left, "ratio": {key: spread([dd2[key] / dd1[key] for dd2, dd1 in pairs]) for key in METRICS}}


def spread(values: list[float]) -> Content | None:
    """Median and ends; None of no values."""
    return {"median": median(values), "range": [min(values), max(values)], "number": len(values)} if values else None


def summarise(study: Study, output: Path) -> Content:
    """The contents of the results file, setting by setting in the order of nats a sequence.

    Where a run of a seed was stopped early, the two of that seed are compared at the last point that both have.
    """
    settings = {name: digits(DIGITS / f"{name}.json", *about) for name, about in BENCHMARKS.items()}
    for name, methods in read_runs(study, output).items():
        first = next(iter(next(iter(methods.values())).values()))
        ends = {method: [run["curve"][-1]["left"] for run in runs.values()] for method, runs in methods.items()}
        pairs = []
        for seed in sorted(set(methods.get("dd2", {})) & set(methods.get("dd1", {}))):
            curves = [methods[method][seed]["curve"] for method in METHODS]
            last = min(map(len, curves)) - 1
            pairs.append(tuple(curve[last]["left"] for curve in curves))
        settings[name] = {
            "title": first["title"],
            "teacher": first["teacher"],
            "hardware": first["hardware"],
            **compared(ends, pairs),
            "runs": {method: {seed: shortened(run) for seed, run in runs.items()} for method, runs in methods.items()},
        }
    return {"settings": dict(sorted(settings.items(), key=lambda item: item[1]["teacher"]["nats"]))}


def shortened(run: Content) -> Content:
    """What is kept of a run."""
    return {
        "seconds": run["settings"]["seconds"],
        **{key: run[key] for key in ("complete", "parts", "curve", "commit")},
    }


def logarithmic(ax: Any, which: str) -> None:
    """Make the axis ``x`` or ``y`` logarithmic, with numbers as people write them."""
    from matplotlib.ticker import LogLocator, NullFormatter

    ax.set(**{f"{which}scale": "log"})
    axis = getattr(ax, f"{which}axis")
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())
    ax.grid(alpha=0.25)
    ax.spines[["top", "right"]].set_visible(False)


def draw_ratios(content: Content, path: Path) -> None:
    """Draw the ratios with their ranges against nats a sequence and nats a token."""
    figure = blank_figure(10, 4.2)
    panels = figure.subplots(1, 2, sharey=True)
    for ax, (key, label) in zip(panels, (("nats", "a sequence"), ("nats_per_token", "a token")), strict=True):
        ax.axhline(1, color="0.4", lw=0.8)
        for metric, (name, colour, marker) in METRICS.items():
            points = [(entry["teacher"][key], entry["ratio"][metric]) for entry in content["settings"].values()]
            points = sorted((x, ratio) for x, ratio in points if ratio and ratio["range"][0] > 0)
            for x, ratio in points:
                ax.plot([x, x], ratio["range"], color=colour, lw=1.2)
            middles = [(x, ratio["median"]) for x, ratio in points]
            if middles:
                ax.plot(*zip(*middles, strict=True), marker, color=colour, label=name)
        ax.set_xlabel(f"teacher's entropy, nats {label}")
        logarithmic(ax, "x")
        logarithmic(ax, "y")
        nats = [entry["teacher"][key] for entry in content["settings"].values()]
        ax.set_xlim(min(nats) / 1.2, 3.5 * max(nats))  # room for the titles
    panels[0].set_ylabel("left by DD2 / left by DD1")
    panels[1].legend(frameon=False, title="below 1: DD2 is closer", loc="upper right")
    figure.tight_layout()
    for ax, key in zip(panels, ("nats", "nats_per_token"), strict=True):
        shown = [
            entry for entry in content["settings"].values() if (entry["ratio"]["frechet"] or {}).get("median", 0) > 0
        ]
        place_labels(ax, [(e["teacher"][key], e["ratio"]["frechet"]["median"], e["title"], "#595959") for e in shown])
    write_figure(figure, path)


def draw_curves(content: Content, path: Path) -> None:
    """Draw what is left of the independent tokens' error against seconds, a row a metric and a column a setting."""
    settings = {name: entry for name, entry in content["settings"].items() if entry["runs"]}
    figure = blank_figure(3.2 * len(settings), 5.6)
    grid = figure.subplots(2, len(settings), squeeze=False, sharex="col")
    for column, entry in zip(grid.T, settings.values(), strict=True):
        for ax, metric in zip(column, METRICS, strict=True):
            for method, colour in (("dd2", "#0072B2"), ("dd1", "#D55E00")):
                for run in entry["runs"].get(method, {}).values():
                    points = [(point["seconds"], point["left"][metric]) for point in run["curve"]]
                    points = [(x, y) for x, y in points if y > 0]
                    if points:
                        ax.plot(*zip(*points, strict=True), ".-", color=colour, lw=1, label=method.upper())
            logarithmic(ax, "y")
        column[0].set_title(entry["title"], fontsize=10)
        column[1].set_xlabel("seconds")
    for ax, (name, _, _) in zip(grid[:, 0], METRICS.values(), strict=True):
        ax.set_ylabel(f"left of the error, {name}")
    handles = {label: handle for handle, label in zip(*grid[0, 0].get_legend_handles_labels(), strict=True)}
    grid[0, 0].legend(handles.values(), handles.keys(), frameon=False)
    figure.tight_layout()
    write_figure(figure, path)


def shown(value: Content | None) -> str:
    """A median with its range."""
    return "–" if value is None else f"{value['median']:.3f} ({value['range'][0]:.3f} to {value['range'][1]:.3f})"


def markdown(content: Content) -> str:
    """The page: tables, and what was not run."""
    head = ["setting", "tokens x codes", "nats", "nats a token", "runs", "DD2 Fréchet", "DD1 Fréchet"]
    head += ["DD2 NLL", "DD1 NLL", "DD2 / DD1 Fréchet", "DD2 / DD1 NLL"]
    rows, short = [], []
    for entry in content["settings"].values():
        teacher, left = entry["teacher"], entry["left"]
        row = [entry["title"], f"{teacher['tokens']} x {teacher['codes']}", f"{teacher['nats']:.1f}"]
        row += [f"{teacher['nats_per_token']:.2f}", str(entry["ratio"]["frechet"]["number"])]
        row += [shown(left.get(method, {}).get(metric)) for metric in METRICS for method in METHODS]
        rows.append([*row, *(shown(entry["ratio"][metric]) for metric in METRICS)])
        for method, runs in entry["runs"].items():
            short += [f"{entry['title']}, {method.upper()}, seed {s}" for s, run in runs.items() if not run["complete"]]
    crossover = [
        entry["title"] for entry in content["settings"].values() if (r := entry["ratio"]["frechet"]) and r["median"] < 1
    ]
    seconds = {
        run["seconds"] for e in content["settings"].values() for runs in e["runs"].values() for run in runs.values()
    }
    lines = [
        "# The study of scale",
        "",
        "Where is one step of DD2 closer to its teacher than one step of DD1? Every run has the same time, the",
        "teacher's sequences or pairs included; only the networks' seeds differ. What is left is the share of the",
        "independent tokens' error: 0 is the teacher, 1 is independent tokens. Medians, and in brackets all seeds.",
        "`make scale` runs and draws it; [settings.yaml](../benchmarks/scale/settings.yaml) is what was run.",
        "",
        *markdown_table(head, rows),
        "",
        "![ratios against nats](images/scale.png)",
        "",
        "![what is left against seconds](images/scale_curves.png)",
        "",
        f"Seconds of a run: {', '.join(f'{value:g}' for value in sorted(seconds))}. Hardware: "
        + "; ".join(sorted({entry["hardware"] for entry in content["settings"].values()}))
        + ".",
        "",
        f"DD2 is closer in Fréchet distance at: {', '.join(crossover) or 'none'}.",
    ]
    if short:
        lines += ["", f"Stopped before their time was over: {'; '.join(short)}."]
    return "\n".join(lines) + "\n"
