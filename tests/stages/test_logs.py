"""What TensorBoard shows of a run."""

import io

import numpy as np
import pytest
import torch
from matplotlib import colormaps
from PIL import Image
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.metadata import SESSION_START_INFO_TAG, parse_session_start_info_plugin_data

import dd2_lightning as dd2
from dd2_lightning.callbacks.positions import PerPositionMonitor, colour_limits, heat_map
from dd2_lightning.callbacks.tags import DESCRIPTIONS, describe
from dd2_lightning.layout import Layout
from dd2_lightning.models.walk import noise_to_codes
from dd2_lightning.noise import stream
from runs import STAGES, any_config, fit


def shown(directory):
    """What the TensorBoard server reads."""
    return EventAccumulator(str(directory), size_guidance={"tensors": 0}).Reload()


def described(directory):
    board = shown(directory)
    return {tag: board.SummaryMetadata(tag).summary_description for tag in board.Tags()["tensors"]}


@pytest.fixture(scope="module", params=STAGES)
def stage_run(request, root, tmp_path_factory):
    directory = tmp_path_factory.mktemp(request.param)
    config = any_config(root, request.param, directory / "run")
    config["trainer"] |= {"max_steps": 5, "val_check_interval": 5}
    fit(config, directory)
    return directory / "run"


def test_every_tag_has_a_description(stage_run):
    found = described(stage_run)
    texts = {"run/text_summary", "config/text_summary"}
    assert texts <= found.keys() and any(tag.startswith("loss/") for tag in found) and "epoch" not in found
    assert [
        tag for tag, text in found.items() if not text and not tag.endswith("text_summary") and "_hparams_" not in tag
    ] == []


def test_settings_and_config_are_shown(stage_run):
    board = shown(stage_run)
    content = board.SummaryMetadata(SESSION_START_INFO_TAG).plugin_data.content
    settings = parse_session_start_info_plugin_data(content).hparams
    assert settings["accumulate"].number_value == 1 and any(name.endswith("optimizer.lr") for name in settings)
    config = board.Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()
    lines = (stage_run / "config.yaml").read_text().splitlines()
    assert config.splitlines()[1:-1] == [line for line in lines if not line.endswith(": null")]


def test_descriptions_are_those_of_the_quantity():
    assert describe("val_score_gap_teacher_at_position/003") == describe("val/score_gap_teacher")
    assert describe("val_12_accuracy_per_token") == describe("val/accuracy_from_12") == DESCRIPTIONS["accuracy"]
    assert "means nothing" in describe("loss/generator") and describe("gradient_norm/whole model")
    assert describe("a/quantity_of_the_users") == ""


def test_a_stage_says_what_its_axis_counts(var_run):
    text = shown(var_run / "csd").Tensors("run/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "iterations of this stage, from 0" in text and "the 6 iterations of **init** are not counted" in text


def last_image(directory, tag):
    content = shown(directory).Tensors(tag)[-1].tensor_proto.string_val[2]
    return torch.from_numpy(np.array(Image.open(io.BytesIO(content))))


@pytest.mark.parametrize("stage", ["init", "csd"])
def test_the_teachers_images_of_the_same_noise_stand_beside_the_samples(var_run, stage):
    """Four rows of three classes, enlarged, at their places; they are drawn again from the artifacts."""
    teacher = dd2.load_teacher(var_run / "teacher")
    labels = torch.arange(3).repeat(4)
    noise = torch.randn(12, 14, 4, generator=stream(0, "pictures", "noise", 0))
    images = [teacher.decode(noise_to_codes(teacher.walk(labels), noise))]
    if stage == "csd":
        generator = dd2.load_generator(var_run / "csd")
        images.insert(0, generator.decode(generator.sample(labels, noise)))
    sheet, size = last_image(var_run / stage, "samples"), images[0].shape[-1]
    scale = -(-32 // size)
    step = size * scale + 2
    assert sheet.shape[:2] == (4 * step - 2, 2 * (3 * step - 2) + 16)
    starts = {"csd": (0, 3 * step - 2 + 16), "init": (3 * step - 2 + 16,)}[stage]
    for start, expected in zip(starts, images, strict=True):
        for i in range(12):
            top, left = i // 3 * step, start + i % 3 * step
            shown_image = sheet[top : top + size * scale : scale, left : left + size * scale : scale]
            pixels = (expected[i, 0] * 255).round()
            assert (shown_image[..., 0] - pixels).abs().max() <= 1


def test_a_heat_map_has_one_scale_and_its_tokens_in_order():
    """The colour of every cell is that of its value, whatever else is in the figure."""
    values = torch.tensor([[0.2, 2.0, 0.02], [0.5, 0.0, 0.05]])
    image = heat_map((10, 30), values, Layout((1, 2)), "score_gap").permute(1, 2, 0)
    assert image.shape == (400, 700, 3)
    for time, x in ((0, 200), (1, 470)):
        for token, y in ((0, 290), (1, 200), (2, 90)):
            level = (values[time, token].clamp(0.01, 10).log10() + 2) / 3
            colour = torch.tensor(colormaps["viridis"](level.item())[:3]) * 255
            assert (image[y, x] - colour).abs().max() < 2
    assert colour_limits(values, linear=False) == (0.01, 10.0)
    assert colour_limits(values[:, :1], linear=False) == (0.1, 1.0)
    assert colour_limits(values, linear=True) == colour_limits(torch.zeros(2, 3), linear=False) == (0.0, 1.0)


def test_without_matplotlib_there_are_scalars_and_a_warning(root, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("dd2_lightning.callbacks.positions.find_spec", lambda name: None)
    fit(any_config(root, "csd", tmp_path / "run"), tmp_path)
    assert "no heat maps without matplotlib" in capsys.readouterr().err
    tags = shown(tmp_path / "run").Tags()["tensors"]
    assert "val_score_gap_teacher_at_position/001" in tags and not any(tag.endswith("per_token") for tag in tags)


def test_heat_maps_keep_the_time_of_what_is_thinned_out():
    monitor = PerPositionMonitor(heat_map_columns=4)
    monitor.history["x"] = [(step, torch.tensor([float(step)])) for step in range(4)]
    restored = PerPositionMonitor()
    restored.load_state_dict(monitor.state_dict())
    assert restored.history == monitor.history
