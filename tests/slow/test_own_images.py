"""``docs/own_images.md``: every command, as it stands there, on a folder that is made on the spot."""

import re
import shlex
from pathlib import Path

import pytest
import torch
from PIL import Image

import dd2_lightning as dd2
from dd2_lightning.cli import main
from dd2_lightning.models.codebook import spacing
from photographs import make_folder

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/own_images.md").read_text()
SHORT = {
    "trainer.max_steps": 4,
    "trainer.val_check_interval": 2,
    "trainer.enable_progress_bar": "false",
    "data.batch_size": 8,
}
STAGES = {
    "teacher": {"model.tokenizer_iterations": 2, "model.tokenizer_batch_size": 4, "data.validation_size": 4},
    "init": {"data.cache_size": 16, "data.validation_size": 8},
    "csd": {"data.validation_size": 8},
    "align": {"model.align_guidance_updates": 1, "data.validation_size": 8},
}
SIZES = {"width": 16, "depth": 1, "heads": 2, "codes": 16, "ch": 4}
LITTLE = {"samples": 30, "reference_samples": 30, "batch_size": 30}


def shortened(words: list[str]) -> list[str]:
    """A command with budgets and networks of a test."""
    extra = {}
    if words[0] == "fit":
        stage = Path(words[words.index("--config") + 1]).stem.split("_")[0]
        extra = {**SHORT, **STAGES[stage]}
        if stage == "teacher":
            extra |= {f"model.architecture.{name}": value for name, value in SIZES.items()}
    elif words[0] == "evaluate":
        extra = LITTLE
    return [*words, *(part for name, value in extra.items() for part in (f"--{name}", str(value)))]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A directory with the configs and three classes of images in ``photos``."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    make_folder(tmp_path / "photos", side=32, each=10)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("family", ["var", "llamagen"])
def test_from_the_folder_to_the_grid(here, family):
    blocks = re.findall(r"```bash\n(.*?)```", PAGE, re.S)
    (block,) = (block for block in blocks if f"teacher_{family}_folder" in block)
    commands = [shlex.split(line) for line in block.replace("\\\n", " ").splitlines()]
    assert {words[0] for words in commands} == {"dd2"} and len(commands) == 6
    for _, *words in commands:
        main(shortened(words))
    runs = here / ("runs/photos" if family == "var" else "runs/photos_llamagen")
    assert Image.open(runs / "grid.png").size == (10 * 34 - 2, 10 * 34 - 2)
    assert dd2.load_generator(runs / "align").sample(torch.arange(3)).shape[0] == 3
    assert (runs / "report/table.md").read_text()


def test_the_table_of_distances():
    rows = re.findall(r"^\| ([\d,]+) \| ([\d. |]+) \|$", PAGE, re.M)
    assert len(rows) == 5
    for codes, distances in rows:
        for width, value in zip((2, 4, 8, 16, 32), distances.split(" | "), strict=True):
            vectors = torch.nn.functional.normalize(torch.randn(int(codes.replace(",", "")), width), dim=-1)
            assert (width**0.5 * spacing(vectors)).median().item() == pytest.approx(float(value), rel=0.1, abs=0.02)
