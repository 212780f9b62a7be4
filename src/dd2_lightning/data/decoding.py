"""Image files to pixels: square, of one size, upright, grey or RGB, 8 bits."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError, features

from dd2_lightning.errors import DD2Error

CODECS = {".png": "zlib", ".jpg": "jpg", ".jpeg": "jpg", ".webp": "webp"}
"""Endings of the files that are read, and what Pillow calls their decoder."""


class BrokenImageError(DD2Error):
    """A file that holds no image that can be read."""


def check_codecs(files: list[str]) -> None:
    """Refuse files that this Pillow was built without a decoder for."""
    for ending, codec in CODECS.items():
        of_ending = [name for name in files if name.lower().endswith(ending)]
        if of_ending and not features.check(codec):
            raise DD2Error(
                f"this Pillow cannot read {ending} ({of_ending[0]} and {len(of_ending) - 1:,} more): it was built "
                f"without {codec}; install one that has it (pip install --force-reinstall pillow) or convert the files"
            )


def decode(path: Path, side: int, channels: int, enlarge: bool) -> np.ndarray:
    """Read one file: (channels, side, side), uint8; the middle of an image whose shorter side was made ``side`` long.

    What a camera noted about its orientation is applied. 16-bit grey loses its lower 8 bits, CMYK becomes RGB, and
    what is transparent lies on white. Animated files, and without ``enlarge`` smaller ones, are no images.
    """
    try:
        with Image.open(path) as image:
            frames = getattr(image, "n_frames", 1)
            if frames > 1 and image.format != "MPO":  # a camera's JPEG with previews
                raise BrokenImageError(f"is animated, {frames} frames")
            if min(image.size) < side and not enlarge:
                raise BrokenImageError(f"is {image.width}x{image.height}, smaller than {side}x{side}")
            image.draft(None, (2 * side, 2 * side))  # a JPEG that is much larger is decoded at a fraction of its size
            upright = ImageOps.exif_transpose(image)
            pixels = ImageOps.fit(flat(upright, channels), (side, side), Image.Resampling.LANCZOS)
    except UnidentifiedImageError as error:
        raise BrokenImageError("is no image") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise BrokenImageError(" ".join(str(error).split())) from error
    return np.asarray(pixels).reshape(side, side, channels).transpose(2, 0, 1)


def flat(image: Image.Image, channels: int) -> Image.Image:
    """The image in 8 bits, grey or RGB, transparent parts on white."""
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB" if channels == 3 else "L")
