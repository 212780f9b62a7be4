"""Self-contained directories: what is exported samples the same images without its teacher, and says when it cannot."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
import yaml

import dd2_lightning as dd2
from dd2_lightning.artifacts import write_artifact, write_teacher
from dd2_lightning.cli import main
from dd2_lightning.errors import ArtifactError
from dd2_lightning.families.var.model import VARTeacher
from dd2_lightning.files import sha256
from runs import any_config, fails, fit
from teachers import FAMILIES, dd1_generator, student_of

HEAD = {"width": 16, "depth": 2, "frequencies": 0}


def write_run(root, family: str, stage: str = "csd") -> None:
    """A teacher, and a finished run whose every weight says something."""
    teacher = FAMILIES[family]()
    write_teacher(root / "teacher", teacher, source={"release": "VAR", "arch": "d16", "transformer": {"file": "a.pth"}})
    name = json.loads((root / "teacher/config.json").read_text())["family"]
    reference = {"path": "../teacher", "sha256": sha256(root / "teacher/teacher.safetensors")}
    config = {"family": name, "teacher": reference, "settings": {"teacher": "/home/me/teacher", "alpha": 1.0}}
    if stage == "dd1":
        states, config = {"generator": dd1_generator(teacher).student.state_dict()}, {**config, "split": 1, "second": 2}
    else:
        states = {part: student_of(teacher).state_dict() for part in ("generator", "generator_raw", "guidance")}
        config |= {"head": HEAD, "head_time": 0.4}
    write_artifact(root / stage, stage, config, states)


@pytest.fixture
def run(tmp_path):
    write_run(tmp_path, "var")
    return tmp_path / "csd"


def drawn(directory, **options):
    generator = dd2.load_generator(directory, **options)
    tokens = generator.sample(torch.arange(2), generator=torch.Generator().manual_seed(1))
    return tokens, generator.decode(tokens) if generator.tokenizer.has_images else generator.tokenizer.codebook


@pytest.mark.parametrize("stage", ["csd", "dd1"])
@pytest.mark.parametrize("family", ["var", "llamagen", "table"])
def test_an_export_samples_and_decodes_without_its_teacher(tmp_path, family, stage):
    write_run(tmp_path, family, stage)
    expected = drawn(tmp_path / stage)
    main(["export", str(tmp_path / stage), "--output", str(tmp_path / "out")])
    shutil.rmtree(tmp_path / "teacher")
    shutil.move(tmp_path / "out", tmp_path / "elsewhere")
    with pytest.raises(ArtifactError, match="teacher"):
        dd2.load_generator(tmp_path / stage)
    for value, found in zip(expected, drawn(tmp_path / "elsewhere"), strict=True):
        assert torch.equal(value, found)


def test_a_users_teacher_is_exported_too(tmp_path):
    write_run(tmp_path, "gru")
    expected = drawn(tmp_path / "csd")
    dd2.export(tmp_path / "csd", tmp_path / "out")
    shutil.rmtree(tmp_path / "teacher")
    assert torch.equal(expected[0], drawn(tmp_path / "out")[0])


def test_more_networks_are_optional(run, tmp_path):
    dd2.export(run, tmp_path / "small")
    dd2.export(run, tmp_path / "large", guidance=True, raw=True)
    for weights in ("ema", "raw"):
        assert torch.equal(drawn(run, weights=weights)[0], drawn(tmp_path / "large", weights=weights)[0])
    small, large = ({path.name for path in (tmp_path / name).iterdir()} for name in ("small", "large"))
    assert large - small == {"guidance.safetensors", "generator_raw.safetensors"}
    with pytest.raises(ArtifactError, match="is missing; it was exported without it"):
        dd2.load_generator(tmp_path / "small", weights="raw")
    with pytest.raises(ValueError, match="--guidance: a run of stage 'teacher'"):
        dd2.export(tmp_path / "teacher", tmp_path / "out", guidance=True)


def test_an_export_is_exported_again_and_says_what_it_is(run, tmp_path):
    """Without names of the machine that it was made on; the card has the licence of the weights behind it."""
    dd2.export(run, tmp_path / "one")
    dd2.export(tmp_path / "one", tmp_path / "two")
    config = json.loads((tmp_path / "two/config.json").read_text())
    assert config == json.loads((tmp_path / "one/config.json").read_text())
    assert config["settings"] == {"alpha": 1.0} and "path" not in config["teacher"]
    for name, checksum in config["files"].items():
        assert sha256(tmp_path / "two" / name) == checksum
    card = (tmp_path / "two/README.md").read_text()
    metadata = yaml.safe_load(card.split("---")[1])
    assert metadata["license"] == "mit" and metadata["library_name"] == "dd2-lightning"
    for words in (
        "distilled from VAR d16",
        "`a.pth`",
        "alpha: 1.0",
        f'dd2.load_generator("{tmp_path}/two")',
        "head time",
    ):
        assert words in card
    assert "/home/me" not in card


def test_a_teacher_is_exported(run, tmp_path):
    dd2.export(tmp_path / "teacher", tmp_path / "out", license="cc-by-4.0")
    theirs, ours = dd2.load_teacher(tmp_path / "teacher"), dd2.load_teacher(tmp_path / "out")
    labels, uniforms = torch.arange(3), torch.rand(3, theirs.layout.length)
    assert torch.equal(theirs.sample(labels, uniforms=uniforms), ours.sample(labels, uniforms=uniforms))
    assert "license: cc-by-4.0" in (tmp_path / "out/README.md").read_text()


def test_stage_3_and_evaluation_take_an_export(var_run, tmp_path, capsys):
    """With its guidance network, and with the teacher that it was made from."""
    dd2.export(var_run / "csd", tmp_path / "csd", guidance=True)
    config = any_config(var_run, "align", tmp_path / "align", init_from=str(tmp_path / "csd"))
    fit(config, tmp_path, "--trainer.max_steps", "2")
    assert f"next: dd2 sample --model {tmp_path / 'align'}" in capsys.readouterr().out
    line = ["evaluate", "--models", f"[{tmp_path / 'csd'}]", "--output", str(tmp_path / "report"), "--device", "cpu"]
    with fails(capsys, 1, "was exported without its teacher: name the teacher's directory, too"):
        main(line)


def test_what_is_damaged_or_in_the_way_is_refused(run, tmp_path, capsys):
    out = tmp_path / "out"
    main(["export", str(run), "--output", str(out)])
    before = {path: path.read_bytes() for path in out.iterdir()}
    with fails(capsys, 1, f"{out} exists and is not an empty directory"):
        main(["export", str(run), "--output", str(out)])
    assert {path: path.read_bytes() for path in out.iterdir()} == before
    changed = bytearray((out / "tokenizer.safetensors").read_bytes())
    changed[-1] ^= 1
    (out / "tokenizer.safetensors").write_bytes(changed)
    with fails(capsys, 1, "tokenizer.safetensors is damaged: its SHA-256"):
        main(["sample", "--model", str(out), "--output", str(tmp_path / "x.png"), "--device", "cpu"])
    for damage in (lambda path: os.truncate(path, 1000), Path.unlink):
        damage(run / "generator.safetensors")
        with fails(capsys, 1, "generator.safetensors is"):
            main(["export", str(run), "--output", str(tmp_path / "other")])
    assert not (tmp_path / "other").exists() and not list(tmp_path.glob(".*"))


def test_a_generator_with_constants_that_no_file_holds(run, tmp_path, monkeypatch):
    """A user's network may keep them in buffers of its constructor; they are built where there are values."""
    original = VARTeacher.student_backbone

    def student_backbone(self):
        backbone = original(self)
        backbone.register_buffer("constant", torch.full((1,), 3.0, device=self.codebook.device), persistent=False)
        return backbone

    monkeypatch.setattr(VARTeacher, "student_backbone", student_backbone)
    dd2.export(run, tmp_path / "out")
    assert dd2.load_generator(tmp_path / "out").student.backbone.constant.item() == 3
