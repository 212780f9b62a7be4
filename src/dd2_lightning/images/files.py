"""Image files: a grid in one file, or one file an image."""

import io
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from dd2_lightning.errors import ArtifactError
from dd2_lightning.files import write_atomically


class Format(NamedTuple):
    """A file format: Pillow's name of it, the most pixels a side, and Pillow's options."""

    name: str
    longest: int
    options: dict[str, Any]


JPEG = Format("JPEG", 65_500, {"quality": 95})
FORMATS = {
    ".png": Format("PNG", 2**24, {}),
    ".jpg": JPEG,
    ".jpeg": JPEG,
    ".webp": Format("WEBP", 16_383, {"lossless": True}),
}
"""By the ending of a name."""

MOST_PIXELS = 2**28  # of one file; a grid is held in memory

GAP = 2  # pixels between the images of a grid


def to_bytes(images: Tensor) -> Tensor:
    """Images in [0, 1] in 256 steps, uint8 of the same shape; values outside are clipped. Bytes stay as they are."""
    return images if images.dtype == torch.uint8 else (images.float() * 255).round().clamp(0, 255).byte()


def output_kind(path: str | Path) -> Literal["npz", "grid", "directory"]:
    """What the name of an output asks for; refuses unknown endings, and files and directories in each other's place."""
    path = Path(path)
    ending, known = path.suffix.lower(), (*FORMATS, ".npz")
    if not ending:
        if path.exists() and not path.is_dir():
            raise ArtifactError(f"--output {path} is a file; a name without an ending is a directory of images")
        return "directory"
    if ending not in known:
        endings = ", ".join(known)
        raise ValueError(f"--output {path}: the ending must be one of {endings}, or none for a directory of images")
    check_not_directory(path)
    return "npz" if ending == ".npz" else "grid"


def check_not_directory(path: Path) -> None:
    """Refuse a directory in the place of a file that is to be written."""
    if path.is_dir():
        raise ArtifactError(f"--output {path} is a directory, not a file")


def mosaic(images: Tensor, columns: int, gap: int = 1, background: float = 1.0) -> Tensor:
    """Arrange images (B, channels, H, W) in rows of ``columns``: one image, (channels, height, width).

    Pixels between images, ``gap`` wide, and the rest of the last row have the value ``background``.
    """
    if images.ndim != 4 or not len(images):
        raise ValueError(f"a grid needs images (B, channels, H, W), got {tuple(images.shape)}")
    if columns < 1:
        raise ValueError(f"a grid needs at least 1 column, got {columns}")
    B, channels, H, W = images.shape
    sheet = images.new_full((-(-B // columns) * columns, channels, H + gap, W + gap), background)
    sheet[:B, :, :H, :W] = images
    sheet = rearrange(sheet, "(r c) ch h w -> ch (r h) (c w)", c=columns)
    return sheet[:, : sheet.shape[1] - gap, : sheet.shape[2] - gap]


def encode_image(image: Tensor, ending: str = ".png") -> bytes:
    """Encode one image (1 or 3, H, W) of [0, 1] or bytes; JPEG at quality 95, the others without loss."""
    if image.ndim != 3 or image.shape[0] not in (1, 3):
        raise ValueError(f"an image file holds grey (1, H, W) or RGB (3, H, W), got {tuple(image.shape)}")
    channels, height, width = image.shape
    check_pixels(height, width, ending)
    pixels = to_bytes(image.detach()).cpu().permute(1, 2, 0).contiguous().numpy()
    buffer, format = io.BytesIO(), FORMATS[ending]
    Image.fromarray(pixels if channels == 3 else pixels[..., 0]).save(buffer, format.name, **format.options)
    return buffer.getvalue()


def check_pixels(height: int, width: int, ending: str) -> None:
    """Refuse an image that a format does not hold, or that is too large for memory."""
    format = FORMATS[ending]
    if max(height, width) > format.longest or height * width > MOST_PIXELS:
        raise ValueError(
            f"an image of {width:,} x {height:,} pixels is too large: {format.name} holds {format.longest:,} a side, "
            f"{MOST_PIXELS:,} in all; write .npz or a directory"
        )


def grid_scale(width: int, count: int) -> int:
    """Pixels a pixel becomes: images in a grid are enlarged to 32 pixels or more, a single image is not."""
    return 1 if count == 1 else max(1, -(-32 // width))


def check_grid(count: int, height: int, width: int, columns: int, path: str | Path) -> None:
    """Refuse a grid that its file cannot hold, before its images are drawn; see :func:`check_pixels`."""
    scale, rows = grid_scale(width, count), -(-count // columns)
    size = rows * (height * scale + GAP) - GAP, columns * (width * scale + GAP) - GAP
    check_pixels(*size, Path(path).suffix.lower())


def save_grid(images: Tensor, path: str | Path, columns: int, scale: int | None = None) -> None:
    """Write images (B, 1 or 3, H, W), of [0, 1] or bytes, as one file in the format of its ending.

    There are ``columns`` images a row; a pixel becomes ``scale`` pixels, see :func:`grid_scale`.
    """
    scale = scale or grid_scale(images.shape[-1], len(images))
    large = to_bytes(images).repeat_interleave(scale, -1).repeat_interleave(scale, -2)
    write_atomically(Path(path), encode_image(mosaic(large, columns, GAP, 255), Path(path).suffix.lower()))
