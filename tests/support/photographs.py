"""Folders of small images, made on the spot."""

from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = {"blue": (40, 60, 220), "green": (40, 200, 60), "red": (220, 50, 40)}


def image(name: str, seed: int, side: int = 16, width: int | None = None) -> Image.Image:
    """A disc of a class's colour at a random place on grey."""
    rng = np.random.default_rng([seed, *name.encode()])
    y, x = np.mgrid[:side, : width or side]
    top, left, radius = rng.uniform(0.3, 0.7, 3) * side * (1, 1, 0.5)
    inside = (y - top) ** 2 + (x - left) ** 2 < radius**2
    pixels = np.where(inside[..., None], COLOURS.get(name, (128, 0, 128)), rng.integers(90, 160))
    return Image.fromarray(pixels.astype(np.uint8))


def make_folder(folder: Path, classes: tuple[str, ...] = ("blue", "green", "red"), each: int = 8, **size) -> Path:
    """A folder of class folders, with files of all endings that are read."""
    for name in classes:
        (folder / name).mkdir(parents=True)
        for i in range(each):
            image(name, i, **size).save(folder / name / f"{i:03d}{('.png', '.jpg', '.webp')[i % 3]}")
    return folder
