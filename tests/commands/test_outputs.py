"""Files that commands write and read: names, sizes, formats, and files of other tools."""

import struct
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from dd2_lightning import artifacts
from dd2_lightning.artifacts import write_artifact, write_teacher
from dd2_lightning.cli import main
from dd2_lightning.errors import ArtifactError
from dd2_lightning.images.files import MOST_PIXELS, check_grid, check_pixels, output_kind, save_grid
from dd2_lightning.images.npz import ImageFile, read_arrays
from dd2_lightning.models.generator import OneStepGenerator
from runs import fails
from toys import toy_student, toy_teacher


@pytest.fixture
def model(tmp_path, monkeypatch):
    """A finished stage's directory, whose generator is the toy one."""
    teacher = toy_teacher()
    write_teacher(tmp_path / "teacher", teacher)
    student = toy_student(teacher)
    config = {"family": "table", "teacher": {}, "head": {}, "head_time": 0.4}
    write_artifact(tmp_path / "csd", "csd", config, {"generator": student.state_dict()})
    monkeypatch.setattr(artifacts, "load_generator", lambda _: OneStepGenerator(student, teacher.tokenizer, 0.4).eval())
    return tmp_path / "csd"


def draw(model, output, *args):
    main(["sample", "--model", str(model), "--output", str(output), "--num", "20", "--device", "cpu", *args])


# --- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["grid.png", "grid.JPG", "grid.jpeg", "grid.webp", "mit Leerzeichen/bild ü 図.webp"])
def test_every_format_holds_the_grid(model, tmp_path, name):
    draw(model, tmp_path / "reference.png")
    draw(model, tmp_path / name)
    reference, found = (np.asarray(Image.open(tmp_path / file).convert("L"), int) for file in ("reference.png", name))
    assert found.shape == reference.shape == (2 * 32 + 2, 10 * 32 + 9 * 2)
    exact = not name.lower().endswith(("jpg", "jpeg"))
    assert abs(found - reference).max() == 0 if exact else abs(found - reference).mean() < 8
    expected = {"png": "PNG", "jpg": "JPEG", "jpeg": "JPEG", "webp": "WEBP"}[name.rsplit(".")[-1].lower()]
    assert Image.open(tmp_path / name).format == expected


def test_rgb_comes_back_exactly(tmp_path):
    images = torch.randint(0, 256, (1, 3, 5, 7), dtype=torch.uint8)
    for name in ("a.png", "a.webp"):
        save_grid(images, tmp_path / name, 1)
        assert np.array_equal(np.asarray(Image.open(tmp_path / name).convert("RGB")), images[0].permute(1, 2, 0))


@pytest.mark.parametrize("name", ["x.tiff", "x.foo", "samples.np", "x.png.bak"])
def test_an_unknown_ending_is_a_usage_error(model, tmp_path, capsys, name):
    with fails(capsys, 2, name, ".png, .jpg, .jpeg, .webp, .npz", "directory"):
        draw(model, tmp_path / name)
    assert not (tmp_path / name).exists()


def test_files_and_directories_are_not_taken_for_each_other(model, tmp_path, capsys):
    (tmp_path / "file").write_text("kept")
    for name in ("dir.npz", "dir.png"):
        (tmp_path / name).mkdir()
        with fails(capsys, 1, name, "is a directory"):
            draw(model, tmp_path / name)
    with fails(capsys, 1, "file is a file"):
        draw(model, tmp_path / "file")
    with fails(capsys, 1, "cannot write"):
        draw(model, tmp_path / "file" / "grid.png")
    with pytest.raises(ArtifactError, match="is a directory, not an npz file"):
        ImageFile(tmp_path)
    assert (tmp_path / "file").read_text() == "kept" and output_kind(tmp_path / "new") == "directory"


# --- numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--seed", "-1"), "--seed must be 0 or more, got -1"),
        (("--num", "1000000000000"), "--num must be at most 10,000,000, got 1,000,000,000,000"),
        (("--batch_size", "1000000000000"), "--batch_size must be at most 10,000,000"),
        (("--device", "tpu"), "--device tpu is not here; available: auto, cpu"),
        (("--precision", "fp8"), "--precision must be one of 32, bf16, got fp8"),
        (("--labels", "99999999999999999999"), "--labels must be classes"),
    ],
)
def test_numbers_out_of_range_name_their_option(model, tmp_path, capsys, args, words):
    with fails(capsys, 2, words):
        draw(model, tmp_path / "set.npz", *args)
    assert not list(tmp_path.glob("set*"))


def test_evaluation_has_the_same_limits(tmp_path, capsys):
    for args, words in (
        (("--seed", "-1"), "--seed must be 0 or more"),
        (("--samples", "1000000000000"), "--samples must be at most"),
        (("--reference_samples", "1000000000000"), "--reference_samples must be at most"),
    ):
        with fails(capsys, 2, words):
            main(["evaluate", "--models", "[nowhere]", "--output", str(tmp_path / "report"), *args])
    assert not list(tmp_path.iterdir())


def test_a_grid_that_its_format_cannot_hold_is_refused_before_it_is_drawn(model, tmp_path, capsys, monkeypatch):
    decode, drawn = OneStepGenerator.decode, []
    monkeypatch.setattr(OneStepGenerator, "decode", lambda self, tokens: drawn.append(1) or decode(self, tokens))
    with fails(capsys, 2, "too large: WEBP holds 16,383 a side", ".npz or a directory"):
        draw(model, tmp_path / "grid.webp", "--num", "9000", "--batch_size", "10")
    assert drawn == [1] and not (tmp_path / "grid.webp").exists()
    check_grid(9000, 8, 8, 10, "grid.png")
    with pytest.raises(ValueError, match="too large"):
        check_pixels(2, MOST_PIXELS, ".png")


def test_bf16_changes_little_and_is_part_of_the_file(model, tmp_path):
    draw(model, tmp_path / "32.npz")
    draw(model, tmp_path / "16.npz", "--precision", "bf16")
    exact, rounded = (np.load(tmp_path / name) for name in ("32.npz", "16.npz"))
    difference = abs(exact["arr_0"].astype(int) - rounded["arr_0"])
    assert 0 < difference.mean() < 5
    assert '"precision": "bf16"' in str(rounded["settings"])


# --- npz files of others ---------------------------------------------------------------------------------------------


def header(shape, descr="|u1") -> bytes:
    text = repr({"descr": descr, "fortran_order": False, "shape": shape}).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (header((10**12, 8, 8, 1)), r"arr_0 claims to be uint8 .* and has 0 bytes"),
        (header((2, 8, 8, 1)) + bytes(5), "has 5 bytes"),
        (header((-2, 8, -8, 1)) + bytes(128), "claims to be"),
        (header((1,), "|O") + bytes(8), "Python objects"),
        (b"\x93NUMPY\x03\x00" + bytes(20), "damaged"),
        (b"\x93NUMPY\x01\x00\x10\x00{'shape': (1,)} ", "damaged"),
        (b"plain text", "damaged"),
        (b"", "damaged"),
    ],
)
def test_headers_that_lie_are_one_line(tmp_path, content, words):
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("arr_0.npy", content)
        archive.writestr("labels.npy", content)
    for read in (ImageFile, read_arrays):
        with pytest.raises(ArtifactError, match=words.replace("arr_0", "(arr_0|labels)")) as error:
            read(path)
        assert "\n" not in str(error.value)


def test_a_zip_bomb_is_refused_unopened(tmp_path, monkeypatch):
    monkeypatch.setattr("dd2_lightning.images.npz.BOMB_BYTES", 2**16)
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("arr_0.npy", header((2**22, 1, 1, 1)) + bytes(2**22))
    with pytest.raises(ArtifactError, match=r"arr_0\.npy claims 4,194,\d+ bytes"):
        ImageFile(tmp_path / "x.npz")


def test_an_encrypted_entry_is_one_line(tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, arr_0=np.zeros((2, 4, 4, 1), np.uint8))
    data = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(signature) + offset] |= 1
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match=r"no npz file, or damaged.*encrypted"):
        ImageFile(path)


def test_damage_in_compressed_images_shows_while_they_are_read(tmp_path):
    path = tmp_path / "x.npz"
    pixels = np.random.default_rng(0).integers(0, 256, (50, 16, 16, 3), np.uint8)
    np.savez_compressed(path, arr_0=pixels)
    assert torch.equal(next(ImageFile(path).batches(50)), torch.from_numpy(pixels).movedim(3, 1))
    data = bytearray(path.read_bytes())
    data[5000:5100] = bytes(100)
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match="damaged"):
        list(ImageFile(path).batches(10))


def test_settings_of_another_tool_are_one_line(tmp_path, capsys):
    np.savez(tmp_path / "a.npz", arr_0=np.zeros((40, 8, 8, 1), np.uint8), settings=np.array("no JSON"))
    with fails(capsys, 1, "a.npz", "settings"):
        common = ("--samples", str(tmp_path / "a.npz"), "--reference", str(tmp_path / "a.npz"), "--device", "cpu")
        main(["quality", *common, "--output", str(tmp_path / "out.json")])
    assert not (tmp_path / "out.json").exists()
