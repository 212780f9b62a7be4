"""Pictures: samples of several contenders side by side, and plain grids."""

import io
import struct
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dd2_lightning.artifacts import write_atomically
from dd2_lightning.errors import DD2Error

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def mosaic(images: Tensor, columns: int, gap: int = 1, background: float = 1.0) -> Tensor:
    """Arrange pictures in rows.

    Args:
        images: (B, channels, H, W).
        columns: pictures a row; the last row is filled up with background.
        gap: pixels between pictures.
        background: value between them.

    Returns:
        One picture, (channels, height, width).

    Raises:
        ValueError: for other shapes, no picture, or fewer than one column.
    """
    if images.ndim != 4 or not len(images):
        raise ValueError(f"a grid needs pictures (B, channels, H, W), got {tuple(images.shape)}")
    if columns < 1:
        raise ValueError(f"a grid needs at least 1 column, got {columns}")
    B, channels, H, W = images.shape
    count = -(-B // columns)
    sheet = images.new_full((count * columns, channels, H + gap, W + gap), background)
    sheet[:B, :, :H, :W] = images
    sheet = sheet.unflatten(0, (count, columns)).permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2)
    return sheet[:, : sheet.shape[1] - gap, : sheet.shape[2] - gap]


def encode_png(image: Tensor) -> bytes:
    """PNG file of a picture (1 or 3, H, W) in [0, 1]; values outside are clipped.

    Raises:
        ValueError: for another number of channels.
    """
    if image.ndim != 3 or image.shape[0] not in (1, 3):
        raise ValueError(f"a PNG holds grey (1, H, W) or RGB (3, H, W), got {tuple(image.shape)}")
    channels, H, W = image.shape
    pixels = (image.detach().cpu().float() * 255).round().clamp(0, 255).byte().permute(1, 2, 0).reshape(H, -1)
    lines = torch.cat([torch.zeros(H, 1, dtype=torch.uint8), pixels], 1)  # filter type 0 before every line

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", W, H, 8, 0 if channels == 1 else 2, 0, 0, 0)
    body = zlib.compress(lines.contiguous().numpy().tobytes(), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def save_grid(images: Tensor, path: str | Path, columns: int, scale: int | None = None) -> None:
    """Write pictures as one PNG file.

    Args:
        images: (B, 1 or 3, H, W) in [0, 1].
        path: the file.
        columns: pictures a row.
        scale: pixels a pixel becomes. By default pictures in a grid are enlarged to 32 pixels or more and a lone
            picture is written as it is.

    Raises:
        ValueError: for other shapes.
        ArtifactError: if the file cannot be written.
    """
    if scale is None:
        scale = 1 if len(images) == 1 else max(1, -(-32 // images.shape[-1]))
    large = images.repeat_interleave(scale, -1).repeat_interleave(scale, -2)
    write_atomically(Path(path), encode_png(mosaic(large, columns, gap=2)))


def blank_figure(width: float, height: float) -> "Figure":
    """A figure of this size in inches.

    Raises:
        DD2Error: if matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise DD2Error("the picture needs matplotlib: pip install dd2-lightning[demo]") from error
    return FigureCanvasAgg(Figure((width, height), dpi=150)).figure


def write_figure(figure: "Figure", path: str | Path) -> None:
    """Write a figure as a PNG file.

    Raises:
        ArtifactError: if it cannot be written.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    write_atomically(Path(path), buffer.getvalue())


def save_comparison(panels: dict[str, Tensor], path: str | Path, labels: list[str], title: str = "") -> None:
    """Several contenders side by side, one row a class.

    Args:
        panels: title to pictures (rows * columns, 1 or 3, H, W) in [0, 1], class by class; the same number in each.
        path: PNG file.
        labels: names of the rows.
        title: above everything.

    Raises:
        ValueError: if the pictures do not fill the rows.
        DD2Error: if matplotlib is not installed.
        ArtifactError: if the file cannot be written.
    """
    counts = {name: len(images) for name, images in panels.items()}
    if len(set(counts.values())) != 1 or next(iter(counts.values())) % len(labels):
        raise ValueError(f"{len(labels)} rows cannot be filled from {counts} pictures")
    columns = next(iter(counts.values())) // len(labels)
    cell, gap, left, top = 0.42, 0.3, 0.4, 0.75 if title else 0.4  # inches
    width, height = left + len(panels) * (columns * cell + gap), top + len(labels) * cell + 0.1
    figure = blank_figure(width, height)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    figure.subplots_adjust(left / width, 0.1 / height, 1 - gap / 2 / width, 1 - top / height, gap / (columns * cell))
    for i, (ax, (name, images)) in enumerate(zip(axes, panels.items(), strict=True)):
        step = images.shape[-2] + 1
        sheet = mosaic(images.detach().cpu().float().clamp(0, 1), columns).permute(1, 2, 0).numpy()
        ax.imshow(
            sheet if sheet.shape[-1] == 3 else sheet[..., 0], cmap="gray", vmin=0, vmax=1, interpolation="nearest"
        )
        ax.set_title(name, fontsize=12, pad=8)
        ax.set_xticks([])
        ax.set_yticks([])
        if i == 0:
            ax.set_yticks([(row + 0.5) * step - 1 for row in range(len(labels))], labels, fontsize=11)
        ax.tick_params(length=0)
        for spine in ax.spines.values():
            spine.set_visible(False)
    if title:
        figure.suptitle(title, fontsize=13, y=1 - 0.12 / height, va="top")
    write_figure(figure, path)
