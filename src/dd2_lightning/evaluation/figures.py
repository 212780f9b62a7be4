"""Figures of a comparison: samples side by side, and quality against steps."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from dd2_lightning.images.figures import blank_figure, write_figure
from dd2_lightning.images.files import mosaic

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def save_comparison(panels: dict[str, Tensor], path: str | Path, labels: list[str]) -> None:
    """Draw the samples of several samplers side by side, one row a class, into a PNG file.

    Panels are title to images (rows * columns, 1 or 3, H, W) in [0, 1], class by class; ``labels`` name the rows.
    """
    counts = [len(images) for images in panels.values()]
    if len(set(counts)) != 1 or counts[0] % len(labels):
        raise ValueError(f"{len(labels)} rows cannot be filled from {counts} images")
    columns = counts[0] // len(labels)
    cell, gap, left, top = 0.42, 0.3, 0.4, 0.4  # inches
    width, height = left + len(panels) * (columns * cell + gap), top + len(labels) * cell + 0.1
    figure = blank_figure(width, height)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    figure.subplots_adjust(left / width, 0.1 / height, 1 - gap / 2 / width, 1 - top / height, gap / (columns * cell))
    for ax, (name, images) in zip(axes, panels.items(), strict=True):
        sheet = mosaic(images.detach().cpu().float().clamp(0, 1), columns).permute(1, 2, 0).numpy()
        ax.imshow(sheet, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        ax.set_title(name, fontsize=12, pad=8)
        ax.set(xticks=[], yticks=[], frame_on=False)
    step = next(iter(panels.values())).shape[-2] + 1
    axes[0].set_yticks([(row + 0.5) * step - 1 for row in range(len(labels))], labels, fontsize=11)
    axes[0].tick_params(length=0)
    write_figure(figure, path)


FLOOR = 1e-6  # the smallest Fréchet distance that is drawn: the axis is logarithmic


CURVES = (
    (("one_step", "refined"), "#0072B2", "o"),
    (("dd1",), "#D55E00", "s"),
    (("independent", "skip", "teacher"), "#000000", "D"),
    (("ar_diffusion",), "#009E73", "^"),
)
"""Kinds of samplers that are drawn alike, in colours of Okabe and Ito."""


def save_curves(rows: dict[str, dict[str, Any]], path: str | Path) -> None:
    """Draw Fréchet distance against steps, both on logarithmic axes, for the rows of a report.

    Filled points are as decoded, and those of a curve are connected; hollow ones, which have no label, are the same
    snapped to the nearest codes.
    """
    figure = blank_figure(7.5, 4.8)
    ax = figure.subplots()
    ax.set(xscale="log", yscale="log", xlabel="steps", ylabel="Fréchet distance to the teacher's samples")
    rows = {name: row for name, row in rows.items() if None not in (row["steps"], row["frechet"])}
    labels, hollow = [], False
    for kinds, colour, marker in CURVES:
        points = []
        for name, row in rows.items():
            if row["kind"] in kinds:
                x, y = row["steps"], max(row["frechet"], FLOOR)
                ax.plot(x, y, marker, color=colour, mfc="white" if row["snapped"] else colour, ms=7)
                hollow |= row["snapped"]
                if not row["snapped"]:
                    points.append((x, y))
                    labels.append((x, y, name, colour))
        if points and "ar_diffusion" not in kinds:
            ax.plot(*zip(*sorted(points), strict=True), color=colour, lw=1.2, zorder=1)
    ticks = sorted({row["steps"] for row in rows.values()})
    apart = (ticks[-1] / ticks[0]) ** 0.04
    shown = [tick for before, tick in zip([0, *ticks], ticks, strict=False) if tick > apart * before]
    ax.set_xticks(shown, [str(tick) for tick in shown])
    ax.set_xticks([], minor=True)
    ax.set_xlim(ticks[0] / 1.1, ticks[-1] * max(1.4, (ticks[-1] / ticks[0]) ** 0.25))  # room for labels on the right
    ax.margins(y=0.12)
    ax.grid(alpha=0.25, which="major")
    ax.spines[["top", "right"]].set_visible(False)
    if hollow:
        ax.set_title("hollow: snapped to the nearest codes", fontsize=9, color="#595959", loc="right")
    figure.tight_layout()
    place_labels(ax, labels)
    write_figure(figure, path)


def place_labels(ax: "Axes", labels: list[tuple[float, float, str, str]]) -> None:
    """Write its name beside every point (x, y, name, colour), as near as points and other labels leave room for it."""
    from matplotlib.patheffects import withStroke
    from matplotlib.transforms import Bbox

    points = ax.figure.dpi / 72
    centres = [ax.transData.transform((x, y)) for x, y, _, _ in labels]
    taken = [Bbox.from_bounds(x - 4 * points, y - 4 * points, 8 * points, 8 * points) for x, y in centres]
    for x, y, name, colour in sorted(labels, key=lambda label: label[1]):
        text = ax.annotate(name, (x, y), (7, 0), textcoords="offset points", color=colour, fontsize=9, va="center")
        text.set_path_effects([withStroke(linewidth=2.5, foreground="white")])
        box = text.get_window_extent()
        heights = (side * box.height * k / 4 for k in range(3, 80) for side in (1, -1))
        free = (h for h in heights if not any(box.translated(0, h).overlaps(other) for other in taken))
        height = next(free, 0.0)
        taken.append(box.translated(0, height))
        text.set_position((7, height / points))
        if abs(height) > 1.5 * box.height:
            end = ax.transData.inverted().transform((box.x0, (box.y0 + box.y1) / 2 + height))
            ax.plot([x, end[0]], [y, end[1]], color=colour, lw=0.6, alpha=0.6)
