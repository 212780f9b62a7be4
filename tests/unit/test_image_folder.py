"""Folders of images: what is decoded, its cache, batches and their augmentation."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image, features

from dd2_lightning.data import ImageFolderData, folders
from dd2_lightning.data.decoding import BrokenImageError, decode
from dd2_lightning.errors import DD2Error
from photographs import image, make_folder


@pytest.fixture
def folder(tmp_path):
    return make_folder(tmp_path / "images")


def folder_data(folder, prepare=True, **settings):
    data = ImageFolderData(str(folder), **{"size": 16, "cache_dir": str(folder.parent / "cache"), **settings})
    if prepare:
        data.prepare_data()
        data.setup()
    return data


def saved(path, picture, **options):
    picture.save(path, **options)
    return path


# --- one file --------------------------------------------------------------------------------------------------------


def test_pixels_are_those_of_the_file(tmp_path):
    picture = image("red", 0, 16)
    path = saved(tmp_path / "a.png", picture)
    assert np.array_equal(decode(path, 16, 3, False), np.asarray(picture).transpose(2, 0, 1))
    assert np.array_equal(decode(path, 16, 1, False)[0], np.asarray(picture.convert("L")))


def test_the_middle_of_a_wide_image(tmp_path):
    wide = np.zeros((16, 48, 3), np.uint8)
    wide[:, 16:32] = 255
    assert (decode(saved(tmp_path / "a.png", Image.fromarray(wide)), 16, 3, False) == 255).all()
    half = decode(saved(tmp_path / "b.png", Image.fromarray(wide[:, 16:32])), 8, 3, False)
    assert half.shape == (3, 8, 8) and (half == 255).all()


def test_the_camera_was_turned(tmp_path):
    picture = image("red", 0, 16)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: the first row is on the right
    path = saved(tmp_path / "a.png", picture, exif=exif)
    turned = np.rot90(np.asarray(picture), -1)
    assert np.array_equal(decode(path, 16, 3, False), turned.transpose(2, 0, 1))


def test_sixteen_bits_cmyk_and_transparency(tmp_path):
    deep = Image.fromarray(np.full((8, 8), 0x8040, np.uint16))
    assert (decode(saved(tmp_path / "deep.png", deep), 8, 1, False) == 0x80).all()
    for name, mode, colour in (("ink.jpg", "CMYK", (0, 255, 255, 0)), ("plain.png", "P", 0)):
        picture = Image.new(mode, (8, 8), colour)
        if mode == "P":
            picture.putpalette([255, 0, 0])
        pixels = decode(saved(tmp_path / name, picture), 8, 3, False)
        assert (abs(pixels.astype(int) - np.array([255, 0, 0])[:, None, None]) <= 2).all()
    clear = decode(saved(tmp_path / "clear.png", Image.new("RGBA", (8, 8), (0, 0, 0, 0))), 8, 3, False)
    assert (clear == 255).all()


def test_a_large_jpeg_is_near_what_it_shows(tmp_path):
    """It is decoded at a fraction of its size; the reference is not."""
    picture = image("red", 0, 512)
    path = saved(tmp_path / "a.jpg", picture, quality=95)
    reference = np.asarray(Image.open(path).resize((16, 16), Image.Resampling.LANCZOS)).transpose(2, 0, 1)
    assert abs(decode(path, 16, 3, False).astype(int) - reference).mean() < 2


def truncated(path):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(buffer, "JPEG")
    path.write_bytes(buffer.getvalue()[:1000])


def animated(path):
    frames = [image("red", i) for i in range(3)]
    frames[0].save(path, save_all=True, append_images=frames[1:])


@pytest.mark.parametrize(
    ("name", "make", "words"),
    [
        ("a.jpg", truncated, "truncated"),
        ("a.webp", animated, "is animated, 3 frames"),
        ("a.png", lambda path: path.write_text("text"), "is no image"),
        ("a.png", lambda path: image("red", 0, 15).save(path), "is 15x15, smaller than 16x16"),
    ],
)
def test_broken_files_are_named_and_counted(folder, name, make, words):
    make(folder / "red" / name)
    with pytest.raises(BrokenImageError, match=words):
        decode(folder / "red" / name, 16, 3, False)
    with pytest.raises(DD2Error, match=rf"1 of 25 images .* red/{name} .*{words}.*skip_broken"):
        folder_data(folder)
    data = folder_data(folder, skip_broken=True)
    assert data.train.size + data.held_out.size == 24


def test_small_images_are_enlarged_on_demand(folder):
    assert folder_data(folder, size=32, enlarge=True).train.images.shape[1:] == (3, 32, 32)


# --- folders ---------------------------------------------------------------------------------------------------------


def test_every_image_is_read_once_with_its_class(folder):
    data = folder_data(folder)
    assert (data.num_classes, data.image_shape, data.folder.classes) == (3, (3, 16, 16), ["blue", "green", "red"])
    assert (data.train.size, data.held_out.size) == (22, 2)
    images, labels = data.everything().pixels(), data.everything().labels
    assert torch.equal(images, torch.cat([data.held_out.pixels(), data.train.pixels()]))
    assert labels.bincount().tolist() == [8, 8, 8]
    files = {tuple(decode(path, 16, 3, False).flatten().tolist()): path.parent.name for path in folder.rglob("*.*")}
    found = {tuple((255 * x).round().int().flatten().tolist()): int(y) for x, y in zip(images, labels, strict=True)}
    assert {key: data.folder.classes[label] for key, label in found.items()} == files


def test_a_flat_folder_is_one_class(folder):
    data = folder_data(folder / "red", held_out=0.5)
    assert (data.num_classes, data.train.size, data.held_out.size) == (1, 4, 4)
    assert not data.train.labels.any()


def test_a_second_folder_is_held_out(folder, tmp_path):
    second = make_folder(tmp_path / "second", ("green",), each=3)
    data = folder_data(folder, held_out_folder=str(second))
    assert (data.train.size, data.held_out.labels.tolist()) == (24, [1, 1, 1])
    batches = folder_data(folder, held_out_folder=str(second), batch_size=2).val_dataloader()
    assert torch.equal(torch.cat([batch.images for batch in batches]), data.held_out.pixels())
    (second / "mauve").mkdir()
    with pytest.raises(DD2Error, match="class 'mauve'"):
        folder_data(folder, held_out_folder=str(second))


def test_no_decoder_in_this_pillow(folder, monkeypatch):
    monkeypatch.setattr(features, "check", lambda codec: codec != "webp")
    with pytest.raises(DD2Error, match=r"cannot read .webp \(blue/002.webp and 5 more\)"):
        folder_data(folder)


def test_files_of_other_kinds_are_named(folder):
    for name in ("a.heic", ".hidden", "notes.txt"):
        (folder / "red" / name).touch()
    with pytest.warns(UserWarning, match=r"2 files are not PNG, JPEG or WebP and not read: red/a.heic, red/notes.txt"):
        data = folder_data(folder)
    assert data.everything().size == 24


# --- the cache -------------------------------------------------------------------------------------------------------


def test_the_cache_says_what_changed(folder):
    folder_data(folder)
    (folder / "red/000.png").unlink()
    image("red", 9).save(folder / "red/new.png")
    (folder / "blue/000.png").write_bytes(b"")
    words = r"1 added \(red/new.png\), 1 removed \(red/000.png\), 1 changed \(blue/000.png\); delete the cache"
    with pytest.raises(DD2Error, match=words):
        folder_data(folder)


def test_other_settings_have_another_cache(folder):
    first, second = folder_data(folder), folder_data(folder, channels=1, size=8)
    assert first.folder.cache != second.folder.cache and second.train.images.shape[1:] == (1, 8, 8)


def test_interrupted_decoding_continues(folder, monkeypatch):
    """Killed in any block, what was done is kept and the result is the same, bit for bit."""
    truncated(folder / "red/broken.jpg")
    whole = folder_data(folder, skip_broken=True, cache_dir=str(folder.parent / "other"))
    monkeypatch.setattr(folders, "BLOCK", 4)
    decoded, original = [], folders.decode

    def limited(path, *settings):
        if len(decoded) == 10:
            raise KeyboardInterrupt
        decoded.append(path)
        return original(path, *settings)

    monkeypatch.setattr(folders, "decode", limited)
    monkeypatch.setattr(folders.os, "cpu_count", lambda: 1)
    with pytest.raises(KeyboardInterrupt):
        folder_data(folder)
    data = folder_data(folder, prepare=False)
    assert json.loads((data.folder.cache / "progress.json").read_text())["done"] == 8
    decoded = []
    monkeypatch.setattr(folders, "decode", lambda path, *settings: (decoded.append(path), original(path, *settings))[1])
    resumed = folder_data(folder, skip_broken=True)
    assert len(decoded) == 25 - 8
    for part in ("train", "held_out"):
        assert torch.equal(getattr(resumed, part).images, getattr(whole, part).images)


def test_damaged_cache(folder):
    data = folder_data(folder)
    with open(data.folder.cache / "pixels.uint8", "r+b") as file:
        file.truncate(100)
    with pytest.raises(DD2Error, match="is damaged; delete it"):
        folder_data(folder)


# --- batches ---------------------------------------------------------------------------------------------------------


def test_batches_are_a_function_of_seed_and_iteration(folder):
    settings = {"size": 12, "crop": "random", "resize": 16, "flip": True, "batch_size": 8}
    data, again = folder_data(folder, **settings), folder_data(folder, **settings)
    batch = data.batches(0, 1)[5]
    assert torch.equal(batch.images, again.batches(0, 1)[5].images)
    halves = torch.cat([data.batches(rank, 2)[5].images for rank in range(2)])
    assert torch.equal(batch.images, halves) and batch.images.shape == (8, 3, 12, 12)
    other = folder_data(folder, seed=1, **settings).batches(0, 1)[5]
    assert not torch.equal(batch.images, other.images)


def test_crops_and_flips_are_parts_of_the_images(folder):
    data = folder_data(folder, size=12, crop="random", resize=16, flip=True, batch_size=22)
    whole, seen = data.decoded.pixels(), set()
    for batch in map(data.batches(0, 1).__getitem__, range(6)):
        rows = data.batches(0, 1).order.rows(batch.iteration, 0, 22)
        for crop, source in zip(batch.images, whole[rows], strict=True):
            places = [
                (flip, y, x)
                for flip in (False, True)
                for y in range(5)
                for x in range(5)
                if torch.equal((crop.flip(-1) if flip else crop), source[:, y : y + 12, x : x + 12])
            ]
            assert places
            seen.update(places)
    assert len(seen) > 40  # of 50
    assert torch.equal(data.train.pixels(), whole[..., 2:14, 2:14])
