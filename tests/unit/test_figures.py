"""Grids of pictures, and figures with axes."""

import itertools

import pytest
import torch
from matplotlib.image import imread

from dd2_lightning.evaluation.figures import save_comparison, save_curves
from dd2_lightning.images.files import mosaic, save_grid

# --- pictures ----------------------------------------------------------------------------------------------------


def test_grid_holds_every_pixel(tmp_path):
    for channels in (1, 3):
        images = torch.rand(5, channels, 8, 6)
        save_grid(images, tmp_path / "grid.png", columns=3, scale=4)
        pixels = torch.tensor(imread(tmp_path / "grid.png"))
        assert pixels.shape[:2] == (2 * 32 + 2, 3 * 24 + 4)
        fourth = pixels[34:66, :24].reshape(32, 24, -1)
        expected = images[3].permute(1, 2, 0).repeat_interleave(4, 0).repeat_interleave(4, 1)
        torch.testing.assert_close(fourth, expected, rtol=0, atol=1 / 255)
    save_grid(images[:1], tmp_path / "one.png", columns=1)
    assert imread(tmp_path / "one.png").shape == (8, 6, 3)


def test_grid_refuses_what_it_cannot_draw(tmp_path):
    for wrong, message in ((torch.zeros(0, 1, 8, 8), "needs images"), (torch.zeros(2, 2, 8, 8), "grey")):
        with pytest.raises(ValueError, match=message):
            save_grid(wrong, tmp_path / "grid.png", columns=2, scale=1)
    with pytest.raises(ValueError, match="at least 1 column"):
        mosaic(torch.zeros(2, 1, 8, 8), 0)
    with pytest.raises(ValueError, match="cannot be filled"):
        save_comparison({"a": torch.zeros(4, 1, 8, 8), "b": torch.zeros(2, 1, 8, 8)}, tmp_path / "a.png", ["0", "1"])


# --- quality against steps ---------------------------------------------------------------------------------------


def drawn_row(kind, steps, frechet, snapped=False):
    return {"kind": kind, "steps": steps, "frechet": frechet, "snapped": snapped}


def test_curves_have_a_label_beside_every_point_and_none_on_another(tmp_path, monkeypatch):
    """Ten samplers in three columns, some at the very same place."""
    rows = {f"DD1 {k}-step": drawn_row("dd1", k, 1e-3 / k) for k in (1, 2, 3)}
    rows |= {f"refined {k}-step": drawn_row("refined", k, 1e-3 / k) for k in (1, 2, 3)}
    rows |= {"teacher": drawn_row("teacher", 3, 0.0), "skip-1": drawn_row("skip", 2, 0.1)}
    rows |= {
        "AR-diffusion": drawn_row("ar_diffusion", 3, 3e-3),
        "one-step snapped": drawn_row("one_step", 1, 9e-4, True),
    }
    rows["real"] = drawn_row("real", None, 0.1)
    figures = []
    monkeypatch.setattr("dd2_lightning.evaluation.figures.write_figure", lambda figure, path: figures.append(figure))
    save_curves(rows, tmp_path / "steps.png")
    (ax,), renderer = figures[0].axes, figures[0].canvas.get_renderer()
    assert {text.get_text() for text in ax.texts} == set(rows) - {"real", "one-step snapped"}
    boxes = [text.get_window_extent(renderer) for text in ax.texts]
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
    assert all(ax.bbox.x0 < box.x0 and box.x1 < figures[0].bbox.x1 for box in boxes)
    points = [line for line in ax.lines if line.get_marker() in "osD^"]
    assert len(points) == len(rows) - 1
    assert sum(line.get_markerfacecolor() == "white" for line in points) == 1


def test_curves_of_a_single_sampler(tmp_path):
    save_curves({"teacher": drawn_row("teacher", 3, 0.1)}, tmp_path / "steps.png")
    assert imread(tmp_path / "steps.png").shape[1] > 1000
