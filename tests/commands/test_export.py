"""Self-contained directories: what is exported samples the same images without its teacher, and says when it cannot."""

import json
import shutil

import pytest
import torch

import dd2_lightning as dd2
from dd2_lightning.artifacts import write_artifact, write_teacher
from dd2_lightning.cli import main
from dd2_lightning.errors import ArtifactError
from dd2_lightning.files import sha256
from teachers import FAMILIES, dd1_generator, student_of

HEAD = {"width": 16, "depth": 2, "octaves": 0}


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
