"""Every bad input is one line: status 2 for usage, 1 for anything else, no traceback, nothing half-written."""

import json
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from dd2_lightning.cli import main
from photographs import make_folder
from runs import any_config, fit

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture(scope="module")
def files(root, tmp_path_factory):
    """A directory with a config of each kind and files that are not in order."""
    place = tmp_path_factory.mktemp("place")
    config = any_config(root, "csd", place / "run")
    (place / "ok.yaml").write_text(yaml.safe_dump(config))
    (place / "malformed.yaml").write_text("model:\n  class_path: [CSDDistill\ntrainer: {}\n")
    (place / "list.yaml").write_text("- 1\n- 2\n")
    (place / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    (place / "unknown.yaml").write_text(yaml.safe_dump({**config, "modle": 3}))
    nested = {**config, "model": {**config["model"], "init_args": {**config["model"]["init_args"], "guidence": 1}}}
    (place / "nested.yaml").write_text(yaml.safe_dump(nested))
    (place / "file").write_text("in the way")
    (place / "empty").mkdir()
    for stage in ("csd", "init", "teacher"):
        copy(root / stage, place / stage)
    for key, stage in (("head", "init"), ("head_time", "csd"), ("family", "teacher"), ("stage", "teacher")):
        without(place / stage, place / f"{stage}_without_{key}", key)
    copy(root / "csd", place / "truncated")
    with open(place / "truncated/generator.safetensors", "r+b") as file:
        file.truncate(100)
    copy(root / "csd", place / "newer")
    settings = json.loads((place / "newer/config.json").read_text())
    (place / "newer/config.json").write_text(json.dumps({**settings, "format": 99}))
    (place / "code.pt").write_bytes(pickle.dumps(Path("a")))
    torch.save({"a": Path("code")}, place / "code.pth")
    bomb = zipfile.ZipFile(place / "bomb.npz", "w", zipfile.ZIP_DEFLATED)
    with bomb, bomb.open("arr_0.npy", "w") as entry:
        header = {"descr": "|u1", "fortran_order": False, "shape": (200_000, 32, 32, 3)}
        np.lib.format.write_array_header_1_0(entry, header)
        for _ in range(200):
            entry.write(bytes(1_000_000))
    np.savez(place / "other.npz", weights=np.zeros(3))
    np.savez(place / "objects.npz", arr_0=np.array([{"a": 1}], dtype=object))
    np.savez(place / "floats.npz", arr_0=np.zeros((4, 8, 8, 1)))
    (place / "cut.npz").write_bytes((place / "floats.npz").read_bytes()[:200])
    np.savez(place / "images.npz", arr_0=np.zeros((4, 8, 8, 1), np.uint8))
    np.savez(place / "large.npz", arr_0=np.zeros((4, 16, 16, 1), np.uint8))
    (place / "teacher.yaml").write_text(yaml.safe_dump(any_config(root, "teacher", place / "run")))
    make_folder(place / "two", ("blue", "red"), each=3)
    make_folder(place / "one", ("blue",), each=1)
    make_folder(place / "cut", ("blue",), each=3)
    photograph = place / "cut/blue/001.jpg"
    photograph.write_bytes(photograph.read_bytes()[:-100])
    return place


@pytest.fixture
def place(files, monkeypatch):
    """The working directory of a command that is refused, and leaves it as it is."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(files.parent / "cache"))
    monkeypatch.chdir(files)
    return files


def copy(source: Path, target: Path) -> None:
    """The files of an artifact; the teacher that it names stays where it is."""
    target.mkdir()
    for path in source.iterdir():
        if path.is_file():
            (target / path.name).write_bytes(path.read_bytes())
    settings = json.loads((target / "config.json").read_text())
    if isinstance(settings.get("teacher"), dict):
        settings["teacher"]["path"] = str((source / settings["teacher"]["path"]).resolve())
        (target / "config.json").write_text(json.dumps(settings))


def without(source: Path, target: Path, key: str) -> None:
    copy(source, target)
    settings = json.loads((target / "config.json").read_text())
    del settings[key]
    (target / "config.json").write_text(json.dumps(settings))


FIT = "fit --config ok.yaml "
FOLDER = "fit --config teacher.yaml --data ImageFolderData --data.size 8 --data.channels 1 --data.folder "
CLASSES = "--model.architecture.num_classes "
SAMPLE = "sample --output x.npz --device cpu --model "
QUALITY = "quality --output q.json --device cpu --data DigitsData "

CASES = [
    # the command line itself
    ("smple", 2, "unknown command 'smple'; did you mean sample?"),
    ("bench smple", 2, "unknown command 'smple'; did you mean sample?"),
    ("fit", 2, "--config"),
    ("fit --config", 2, "--config"),
    ("validate", 2, "--config"),
    ("plan", 2, "--config"),
    ("sample", 2, "model"),
    ("sample --model csd", 2, "output"),
    ("evaluate", 2, "output"),
    ("convert var", 2, "transformer"),
    (SAMPLE + "csd --stepz 2", 2, "unknown setting --stepz; did you mean --steps?"),
    (SAMPLE + "csd --step 2", 2, "--step"),
    (FIT + "--model.guidence_updates 2", 2, "--model.guidence_updates; did you mean --model.guidance_updates?"),
    (FIT + "--model.init_args.drws=2", 2, "--model.init_args.drws; did you mean --model.init_args.draws?"),
    (FIT + "--model.execution.compile inductor", 2, "--model.execution.compile; did you mean --execution.compile?"),
    (FIT + "--data.batchsize 2", 2, "unknown setting --data.batchsize; did you mean --data.batch_size?"),
    (FIT + "--trainr.max_steps 2", 2, "did you mean --trainer.max_steps?"),
    (FIT + "--trainer.max_step 2", 2, "--trainer.max_step"),
    (FIT + "--overwrit", 2, "did you mean --overwrite?"),
    (FIT + "--model.form kl", 2, "form: expected one of 'sid', 'dmd'"),
    (FIT + "--model.draws many", 2, "draws"),
    (FIT + "--trainer.max_steps many", 2, "trainer.max_steps: expected an integer"),
    ("fit --config ok.yaml --model CSDDistil", 2, "did you mean CSDDistill?"),
    ("fit --config ok.yaml --data PrefxData", 2, "did you mean PrefixData?"),
    ("fit --config ok.yaml --data broken_data.WithoutLoaders", 2, "train_dataloader"),
    # config files
    ("fit --config nowhere.yaml", 2, "nowhere.yaml does not exist"),
    ("fit --config malformed.yaml", 2, "malformed.yaml, line 3"),
    ("fit --config list.yaml", 2, "list.yaml holds no settings"),
    ("fit --config binary.yaml", 2, "binary.yaml cannot be read"),
    ("fit --config empty", 2, "empty cannot be read"),
    ("fit --config unknown.yaml", 2, "modle in unknown.yaml"),
    ("fit --config nested.yaml", 2, "guidence in nested.yaml"),
    ("sample --config malformed.yaml", 2, "malformed.yaml, line 3"),
    # settings without meaning
    (FIT + "--seed_everything -1", 2, "--seed_everything must be in 0.."),
    (FIT + "--seed_everything abc", 2, "seed_everything"),
    (FIT + "--model.draws 0", 2, "model.draws"),
    (FIT + "--model.guidance_updates -1", 2, "model.guidance_updates"),
    (FIT + "--model.head_time 2", 2, "head_time"),
    (FIT + "--model.head_time nan", 2, "head_time"),
    (FIT + "--model.position_weights [-1,1]", 2, "position_weights"),
    (FIT + "--model.position_weights [.nan,1]", 2, "position_weights"),
    (FIT + "--model.ema_limit 2", 2, "ema_limit"),
    (FIT + "--model.t_min_guidance 1.5", 2, "t_min_guidance"),
    (FIT + "--model.generator_optimizer.lr -1", 2, "lr must be positive"),
    (FIT + "--model.generator_optimizer.lr nan", 2, "lr"),
    (FIT + "--data.batch_size 0", 2, "batch_size"),
    (FIT + "--trainer.max_steps -1", 2, "trainer.max_steps"),
    (FIT + "--checkpoint_every 0", 2, "--checkpoint_every"),
    (FIT + "--overwrite --ckpt_path last", 2, "--overwrite"),
    # the machine
    (FIT + "--trainer.accelerator gpu", 2, "trainer.accelerator gpu is not here"),
    (FIT + "--trainer.precision bf16-true", 2, "trainer.precision bf16-true does not work"),
    (FIT + "--trainer.precision 16-mixed", 2, "trainer.precision 16-mixed does not work"),
    (FIT + "--trainer.devices 0", 2, "devices"),
    (FIT + "--trainer.strategy dpp", 2, "dpp"),
    ("sample --output x.npz --model csd --device cuda", 2, "--device cuda"),
    ("sample --output x.npz --model csd --device gpu", 2, "--device gpu"),
    (SAMPLE + "csd --precision bf17", 2, "--precision"),
    # directories
    (FIT + "--model.teacher nowhere", 1, "nowhere does not exist"),
    (FIT + "--model.init_from file", 1, "file is a file"),
    (FIT + "--model.init_from nowhere", 1, "nowhere does not exist"),
    (FIT + "--model.init_from empty", 1, "is not finished"),
    (FIT + "--model.init_from csd", 1, "comes from stage 'csd', needed: init"),
    (FIT + "--model.init_from init_without_head", 1, "has no key 'head'"),
    (FIT + "--model.teacher teacher_without_family", 1, "has no key 'family'"),
    (FIT + "--model.teacher teacher_without_stage", 1, "has no key 'stage'"),
    (FIT + "--trainer.default_root_dir file", 1, "file is a file"),
    (FIT + "--trainer.default_root_dir file/deeper", 1, "file is a file"),
    (FIT + "--ckpt_path last", 1, "there is nothing to resume"),
    (FIT + "--ckpt_path nowhere.ckpt", 1, "nowhere.ckpt does not exist"),
    (FIT + "--ckpt_path code.pth", 1, "code.pth is truncated or damaged"),
    ("validate --config ok.yaml", 1, "last.ckpt does not exist"),
    (SAMPLE + "nowhere", 1, "nowhere does not exist"),
    (SAMPLE + "file", 1, "file is a file"),
    (SAMPLE + "csd_without_head_time", 1, "has no key 'head_time'"),
    (SAMPLE + "truncated", 1, "truncated or damaged"),
    (SAMPLE + "newer", 1, "has format 99"),
    (SAMPLE + "init", 1, "comes from stage 'init'"),
    # sampling
    (SAMPLE + "csd --seed -1", 2, "--seed"),
    (SAMPLE + "csd --num 0", 2, "--num must be at least 1"),
    (SAMPLE + "csd --num 1000000000000", 2, "--num"),
    (SAMPLE + "csd --labels 0,7", 2, "label 7 is out of range"),
    (SAMPLE + "csd --labels one", 2, "--labels must be classes"),
    (SAMPLE + "csd --steps 2", 2, "--teacher"),
    (SAMPLE + "csd --protocol openai", 2, "--num"),
    ("sample --model csd --device cpu --output x.tiff", 2, ".png"),
    ("sample --model csd --device cpu --output file/x.png", 1, "file is a file"),
    # files of images
    (QUALITY + "--samples nowhere.npz --reference images.npz", 1, "nowhere.npz does not exist"),
    (QUALITY + "--samples other.npz --reference images.npz", 1, "other.npz"),
    (QUALITY + "--samples objects.npz --reference images.npz", 1, "objects.npz"),
    (QUALITY + "--samples floats.npz --reference images.npz", 1, "floats.npz"),
    (QUALITY + "--samples cut.npz --reference images.npz", 1, "cut.npz"),
    (QUALITY + "--samples bomb.npz --reference images.npz", 1, "bomb.npz"),
    (QUALITY + "--samples large.npz --reference images.npz", 1, "16x16"),
    (QUALITY + "--samples images.npz --reference file", 1, "file"),
    (QUALITY + "--samples images.npz --reference images.npz --protocol mine", 2, "protocol"),
    ("statistics --images images.npz --output x.txt --device cpu", 2, ".safetensors"),
    # evaluation, caches, published files
    ("evaluate --output report --teacher teacher --device cpu", 2, "--config"),
    ("evaluate --output report --models [nowhere] --device cpu", 1, "nowhere does not exist"),
    ("evaluate --output report --models [csd] --samples 0 --device cpu", 2, "--samples must be at least 1"),
    ("cache --teacher nowhere --num 10 --output cache", 1, "nowhere does not exist"),
    ("cache --teacher teacher --num 0 --output cache", 2, "--num must be at least 1"),
    ("cache --teacher teacher --num 10 --output file", 1, "file"),
    ("convert var --arch d16 --output c --tokenizer code.pth --transformer code.pth", 1, "code.pth"),
    ("convert var --arch d17 --output c --tokenizer code.pth --transformer code.pth", 2, "d17"),
    ("convert var --arch d16 --output c --tokenizer hf://a/b/../../c.pth --transformer code.pth", 2, "hf://OWNER/REPO"),
    ("convert dd1 --teacher nowhere --checkpoint code.pth --output c", 1, "nowhere does not exist"),
    ("convert dd1 --teacher teacher --checkpoint code.pth --output c --weights newest", 2, "'ema', 'raw'"),
    ("cache --teacher teacher --num 10 --output cache --part 2 --parts 2", 2, "--part must be in 0..1"),
    ("cache --teacher teacher --num 10 --output cache --seed -1", 2, "--seed must be 0 or more"),
    ("cache --teacher teacher --num 10 --output cache --device gpu", 2, "--device gpu"),
    ("cache --teacher csd --num 10 --output cache", 1, "comes from stage 'csd', needed: teacher"),
    # folders of images
    (FOLDER + "nowhere", 2, "data.folder nowhere does not exist"),
    (FOLDER + "file", 2, "data.folder file is a file"),
    (FOLDER + "two", 2, "num_classes is 10, that of the data 2"),
    (FOLDER + "two --data.size 12 " + CLASSES + "2", 2, "is for images 1x8x8 (channels, height, width), the data has"),
    (FOLDER + "two --data.size 0", 2, "data.size must be at least 1"),
    (FOLDER + "two --data.held_out 1", 2, "data.held_out must be in (0, 1)"),
    (FOLDER + "two --data.resize 9", 2, "data.resize 9 is for data.crop random"),
    (FOLDER + "empty " + CLASSES + "1", 1, "empty holds no images"),
    (FOLDER + "one " + CLASSES + "1", 1, "one holds 1 image"),
    (FOLDER + "one/blue " + CLASSES + "1 --data.size 32", 2, "is for images 1x8x8"),
    (FOLDER + "cut " + CLASSES + "1", 1, "1 of 3 images in cut cannot be used: blue/001.jpg"),
    # checkpoints, timings, reports
    ("predict", 2, "--config"),
    ("predict --config ok.yaml", 1, "last.ckpt does not exist"),
    ("predict --config ok.yaml --ckpt_path code.pth", 1, "code.pth is truncated or damaged"),
    ("predict --config ok.yaml --outptu x.png", 2, "did you mean --output?"),
    ("test --config ok.yaml --ckpt_path nowhere.ckpt", 1, "nowhere.ckpt does not exist"),
    ("plan --config ok.yaml --release var/d17 --model.teacher nowhere", 2, "d17"),
    ("bench sample --output x.json", 2, "models"),
    ("bench sample --output x.json --models [var/d17]", 2, "d17"),
    ("bench flow --output x.json --models [var/d16] --rounds 0", 2, "--rounds must be at least 1"),
    ("bench flow --output x.json --models [var/d16] --device gpu", 2, "--device gpu"),
    ("bench flow --output file/x.json --models [var/d16]", 1, "file is a file"),
    ("bench train --output x.json --models [var/d16] --precision 8", 2, "precision 8"),
    ("bench train --output x.json --models [vra/d16]", 2, "'vra'"),
    ("summary --output x.json", 2, "results"),
    ("summary --output x.json --results []", 2, "no report"),
    ("summary --output x.json --results [nowhere.json]", 1, "nowhere.json is no report"),
    ("summary --output x.json --results [file]", 1, "file is no report"),
    ("--print_completion fish", 2, "bash or zsh"),
]


@pytest.mark.parametrize(("line", "status", "words"), CASES, ids=[case[0][-60:] for case in CASES])
def test_bad_input_is_one_line(place, capsys, line, status, words):
    before = {path: path.stat().st_mtime_ns for path in place.rglob("*")}
    with pytest.raises(SystemExit) as end:
        main(line.split())
    text = capsys.readouterr().err
    message = [row for row in text.splitlines() if not row.startswith(("see dd2", "dd2: warning", "decode "))]
    assert end.value.code == status, text
    assert len(message) == 1 and "error: " in message[0] and words in message[0], text
    assert "Traceback" not in text and "jsonargparse" not in text and "<class" not in text
    assert {path: path.stat().st_mtime_ns for path in place.rglob("*")} == before


def test_names_with_spaces_and_other_alphabets(var_run, tmp_path):
    """They are no bad input."""
    target = tmp_path / "meine Läufe" / "モデル 1"
    config = any_config(var_run, "csd", target)
    fit(config, tmp_path)
    main(["sample", "--model", str(target), "--num", "4", "--device", "cpu", "--output", str(target / "ein Bild.npz")])
    assert len(np.load(target / "ein Bild.npz")["arr_0"]) == 4
