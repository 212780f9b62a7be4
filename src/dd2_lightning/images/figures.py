"""Figures with axes; they need matplotlib."""

import io
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dd2_lightning.errors import DD2Error
from dd2_lightning.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def blank_figure(width: float, height: float, dpi: int = 150) -> "Figure":
    """A figure of this size in inches; a DD2Error says that matplotlib is not installed."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise DD2Error("figures need matplotlib: pip install 'dd2-lightning[demo]'") from error
    return FigureCanvasAgg(Figure((width, height), dpi=dpi)).figure


def write_figure(figure: "Figure", path: str | Path) -> None:
    """Write a figure as a PNG file, atomically."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    write_atomically(Path(path), buffer.getvalue())


def figure_pixels(figure: "Figure") -> Tensor:
    """A figure as bytes (3, height, width)."""
    figure.canvas.draw()
    pixels = torch.frombuffer(bytearray(figure.canvas.buffer_rgba()), dtype=torch.uint8)  # type: ignore[attr-defined]
    width, height = figure.canvas.get_width_height()
    return pixels.view(height, width, 4)[..., :3].permute(2, 0, 1)
