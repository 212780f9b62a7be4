"""``dd2 sample`` into a file: the same pictures however they are drawn, whole or not at all, resumed to the bit."""

import json
import os
import shutil
import signal
import tracemalloc
import zipfile

import numpy as np
import pytest
import torch

from dd2_lightning import artifacts
from dd2_lightning.artifacts import load_teacher, state_hash, write_artifact, write_teacher
from dd2_lightning.cli import main
from dd2_lightning.errors import ArtifactError
from dd2_lightning.evaluation.samplers import OneStepSampler
from dd2_lightning.files import open_manifest
from dd2_lightning.images.files import to_bytes
from dd2_lightning.images.npz import ImageFile, write_images
from dd2_lightning.images.sample_sets import SampleSet
from dd2_lightning.models.generator import OneStepGenerator
from dd2_lightning.noise import SampleNoise
from dd2_lightning.sampling import Sampling
from processes import forked
from runs import fails
from toys import CLASSES, toy_student, toy_teacher


class Interruption(Exception):
    pass


@pytest.fixture
def model(tmp_path, monkeypatch):
    """A finished stage's directory, whose generator is the toy one."""
    teacher = toy_teacher()
    write_teacher(tmp_path / "teacher", teacher)
    student = toy_student(teacher)
    config = {"family": "table", "teacher": {}, "head": {}, "head_time": 0.4}
    write_artifact(tmp_path / "csd", "csd", config, {"generator": student.state_dict()})
    monkeypatch.setattr(artifacts, "load_generator", lambda _: OneStepGenerator(student, teacher.tokenizer, 0.4).eval())
    monkeypatch.setattr(artifacts, "load_teacher", lambda _: teacher)
    return tmp_path / "csd"


def draw(model, output, *args, batch=30):
    options = ("--model", str(model), "--output", str(output), "--batch_size", str(batch), "--device", "cpu")
    main(["sample", *options, "--num", "100", *args])


def broken_after(monkeypatch, batches, error=Interruption):
    """Decoding fails after so many batches."""
    decode, done = OneStepGenerator.decode, []

    def fail(self, tokens):
        done.append(len(tokens))
        if len(done) > batches:
            raise error("stopped")
        return decode(self, tokens)

    monkeypatch.setattr(OneStepGenerator, "decode", fail)
    return done


@pytest.mark.parametrize("args", [(), ("--protocol", "dd1"), ("--steps", "2", "--teacher", "any")])
def test_an_interrupted_run_continues_to_the_same_bytes(model, tmp_path, monkeypatch, args):
    whole, output = tmp_path / "whole.npz", tmp_path / "set.npz"
    draw(model, whole, *args)

    def killed():
        broken_after(monkeypatch, 2, lambda _: os.kill(os.getpid(), signal.SIGKILL))
        draw(model, output, *args)

    assert forked(killed, tmp_path / "log")[0] == -signal.SIGKILL
    parts = tmp_path / "set.npz.parts"
    assert not output.exists() and sorted(p.name for p in parts.glob("*.npy")) == ["000000.npy", "000001.npy"]
    (parts / ".000002.npy.123.part").write_bytes(b"half a part")
    (tmp_path / ".set.npz.123.part").write_bytes(b"half a file")
    with monkeypatch.context() as patch:
        done = broken_after(patch, 9)
        draw(model, output, *args)
        assert done == [30, 10]  # the others were there
    assert output.read_bytes() == whole.read_bytes()
    assert sorted(path.name for path in tmp_path.glob("*set*")) == ["set.npz"] and not list(tmp_path.glob(".*"))


def test_a_picture_depends_on_the_seed_and_its_index_only(model, tmp_path):
    sets = {}
    for name, args, batch in (
        ("whole", (), 100),
        ("batches", (), 7),
        ("other", ("--seed", "1"), 100),
        ("more", ("--num", "300"), 100),
    ):
        draw(model, tmp_path / f"{name}.npz", *args, batch=batch)
        sets[name] = np.load(tmp_path / f"{name}.npz")["arr_0"].astype(int)
    assert abs(sets["batches"] - sets["whole"]).max() <= 1  # a matrix product rounds by its size
    assert abs(sets["more"][:100] - sets["whole"]).max() <= 1
    assert (sets["other"] != sets["whole"]).mean() > 0.5
    assert len(np.unique(sets["more"].reshape(300, -1), axis=0)) == 300


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_captured_batches_hold_the_same_pictures(model, tmp_path, device):
    """On a GPU the whole of a batch is one graph, replayed; elsewhere the option changes nothing."""
    sets = {}
    for name, option in (("called", []), ("captured", ["--graphs"])):
        draw(model, tmp_path / f"{name}.npz", "--device", device, *option)
        sets[name] = np.load(tmp_path / f"{name}.npz")["arr_0"].astype(int)
    assert abs(sets["captured"] - sets["called"]).max() <= (device == "cuda")


def test_the_file_holds_what_the_evaluation_measures(model, tmp_path):
    draw(model, tmp_path / "set.npz", "--protocol", "openai", batch=100)
    teacher = toy_teacher()
    generator = OneStepGenerator(toy_student(teacher), teacher.tokenizer, 0.4).eval()
    batch = next(OneStepSampler(model=generator).bind(teacher).batches(100, 0, 100))
    file = np.load(tmp_path / "set.npz")
    assert file["arr_0"].dtype == np.uint8 and file["arr_0"].shape == (100, 8, 8, 1)
    assert np.array_equal(file["arr_0"], to_bytes(batch.images).permute(0, 2, 3, 1).numpy())
    assert np.array_equal(file["labels"], np.arange(100) % CLASSES)
    settings = json.loads(str(file["settings"]))
    assert settings["protocol"] == "openai" and settings["seed"] == 0 and settings["num"] == 100


@pytest.mark.parametrize(
    ("args", "word"),
    [
        (("--seed", "1"), "seed = 0"),
        (("--labels", "3"), "labels = "),
        (("--num", "120"), "num = 100"),
        (("--steps", "2", "--teacher", "any"), "steps = 1"),
        (("--batch_size", "10"), "batch_size = 30"),
        (("--protocol", "openai"), "protocol = None"),
    ],
)
def test_parts_of_another_run_are_refused_and_kept(model, tmp_path, monkeypatch, capsys, args, word):
    output, parts = tmp_path / "set.npz", tmp_path / "set.npz.parts"
    with monkeypatch.context() as patch:
        broken_after(patch, 1)
        with pytest.raises(Interruption):
            draw(model, output)
    before = {path.name: path.read_bytes() for path in parts.iterdir()}
    with fails(capsys, 1, str(parts), word, "delete"):
        draw(model, output, *args)
    assert {path.name: path.read_bytes() for path in parts.iterdir()} == before


def test_parts_of_another_model_are_refused(model, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        broken_after(patch, 1)
        with pytest.raises(Interruption):
            draw(model, tmp_path / "set.npz")
    teacher = toy_teacher()
    student = toy_student(teacher)
    student.head.output.weight.mul_(1.5)
    changed = OneStepGenerator(student, teacher.tokenizer, 0.4).eval()
    monkeypatch.setattr(artifacts, "load_generator", lambda _: changed)
    with fails(capsys, 1, "model = "):
        draw(model, tmp_path / "set.npz")


def test_a_run_that_drew_nothing_binds_nobody(model, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        broken_after(patch, 0)
        with pytest.raises(Interruption):
            draw(model, tmp_path / "set.npz")
    draw(model, tmp_path / "set.npz", "--seed", "1")


def test_damaged_parts_are_named(model, tmp_path, monkeypatch, capsys):
    for content in (b"", b"half", (tmp_path / "csd" / "config.json").read_bytes()):
        with monkeypatch.context() as patch:
            broken_after(patch, 1)
            with pytest.raises(Interruption):
                draw(model, tmp_path / "set.npz")
        (tmp_path / "set.npz.parts" / "000000.npy").write_bytes(content)
        with fails(capsys, 1, "000000.npy is damaged", "delete it"):
            draw(model, tmp_path / "set.npz")
        shutil.rmtree(tmp_path / "set.npz.parts")
    manifest = tmp_path / "again" / "manifest.json"
    manifest.parent.mkdir()
    for content, word in (("{", "damaged"), ("{}", "num = None")):
        manifest.write_text(content)
        with pytest.raises(ArtifactError, match=word):
            open_manifest(manifest, {"num": 1}, "")


def test_a_directory_and_a_grid_hold_the_same_pictures(model, tmp_path):
    from matplotlib.image import imread

    draw(model, tmp_path / "set.npz")
    draw(model, tmp_path / "pictures")
    draw(model, tmp_path / "grid.png")
    file, names = np.load(tmp_path / "set.npz"), sorted(path.name for path in (tmp_path / "pictures").iterdir())
    assert names[0] == "00_class0.png" and names[99] == "99_class9.png" and len(names) == 100
    for i in (0, 42, 99):
        assert np.allclose(imread(tmp_path / "pictures" / names[i]) * 255, file["arr_0"][i, :, :, 0], atol=0.5)
    assert imread(tmp_path / "grid.png").shape[0] > 10 * 32


def test_a_protocol_decides_on_the_labels(model, tmp_path, capsys):
    for words, args in [
        (("--protocol", "--num"), ("--protocol", "openai", "--labels", "1")),
        (("unknown protocol 'fid'", "openai, dd1"), ("--protocol", "fid")),
        (("95 samples", "10 classes"), ("--protocol", "openai", "--num", "95")),
    ]:
        with fails(capsys, 2, *words):
            draw(model, tmp_path / "set.npz", *args)
    assert not list(tmp_path.glob("set*"))


def test_memory_holds_a_batch_not_the_set(tmp_path):
    """120 MB of pictures through a set that draws 2 MB at a time."""
    labels = torch.arange(2000) % 10
    pictures = torch.rand(32, 3, 145, 141)

    output = SampleSet(tmp_path / "set.npz", labels, 32, {"seed": 0})
    tracemalloc.start()
    output.complete(lambda start, own: pictures[: len(own)])
    count = sum(len(batch) for batch in ImageFile(output.output).batches(32))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 2000 and output.output.stat().st_size > 120e6
    assert peak < 12e6


def test_the_writer_equals_numpys(tmp_path):
    pixels = torch.randint(0, 256, (10, 4, 6, 3), dtype=torch.uint8).numpy()
    write_images(tmp_path / "a.npz", pixels.shape, [pixels[:3], pixels[3:]], labels=np.arange(10))
    np.savez(tmp_path / "b.npz", arr_0=pixels, labels=np.arange(10))
    for name in ("arr_0.npy", "labels.npy"):
        ours, theirs = (zipfile.ZipFile(tmp_path / f"{file}.npz").read(name) for file in "ab")
        assert ours == theirs
    for size, limit in ((3, None), (100, None), (4, 5)):
        read = torch.cat(list(ImageFile(tmp_path / "b.npz").batches(size, limit)))
        assert np.array_equal(read.permute(0, 2, 3, 1).numpy(), pixels[:limit])


def test_the_hash_of_a_network_is_of_its_content():
    network = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3))
    first = state_hash(network)
    assert first == state_hash(network) and len(first) == 64
    with torch.no_grad():
        network[0].weight[2, 2] += 1e-6
    assert state_hash(network) != first


def test_a_teacher_is_drawn_at_all_its_steps(var_run, tmp_path, capsys):
    """The images of its own sampler, whatever the batch size, with the guidance that is asked for."""
    line = ["sample", "--model", str(var_run / "teacher"), "--num", "7", "--device", "cpu", "--labels", "0,1"]
    line += ["--output", str(tmp_path / "x.npz"), "--batch_size", "3", "--sampling.guidance_scale"]
    main([*line, "1.5"])
    drawn = dict(np.load(tmp_path / "x.npz"))
    teacher, labels = load_teacher(var_run / "teacher"), torch.arange(7) % 2
    uniforms = SampleNoise(0, 0, 7).for_generators(teacher.layout.length, teacher.token_dim)[1]
    expected = teacher.decode(teacher.sample(labels, Sampling(guidance_scale=1.5), uniforms=uniforms))
    assert (drawn["arr_0"] == to_bytes(expected).permute(0, 2, 3, 1).numpy()).all()
    main([*line, "4.0"])
    assert (np.load(tmp_path / "x.npz")["arr_0"] != drawn["arr_0"]).any()
    with fails(capsys, 2, "a teacher takes all its steps"):
        main([*line, "1.5", "--steps", "2", "--teacher", str(var_run / "teacher")])
