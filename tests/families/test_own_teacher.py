"""A teacher of one's own: the code and the commands of ``docs/own_teacher.md``, as they stand there."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import dd2_lightning as dd2
from dd2_lightning.cli import main
from dd2_lightning.errors import ArtifactError
from dd2_lightning.families.registry import FAMILIES, family_class, family_of
from dd2_lightning.families.table.model import TableTeacher
from teachers import DOCUMENT, code_of_the_document, gru_teacher, table_teacher

ROOT = Path(__file__).parents[2]
SHORT = {
    "--trainer.max_steps": "4",
    "--trainer.val_check_interval": "2",
    "--trainer.enable_progress_bar": "false",
    "--data.batch_size": "8",
    "--data.validation_size": "20",
}


def test_the_documents_teacher_is_short():
    assert len(code_of_the_document()[0].splitlines()) < 120


def test_the_document_from_top_to_bottom(tmp_path, monkeypatch):
    """Its module in a file, its teacher written, and every command run, with few iterations."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(__import__("sys").modules, "gru_teacher", raising=False)
    module, usage = code_of_the_document()
    (tmp_path / "gru_teacher.py").write_text(module)
    with torch.no_grad():
        exec(usage, {})
    assert json.loads(Path("runs/gru/teacher/config.json").read_text())["family"] == "gru_teacher.GRUTeacher"
    block = re.search(r"```bash\n(.*?)```", DOCUMENT, re.S).group(1).replace("\\\n", " ")
    commands = [shlex.split(line) for line in block.splitlines() if line.startswith("dd2 ")]
    assert len(commands) == 3
    for _, *words in commands:
        words = [str(ROOT / word) if word.startswith("configs/") else word for word in words]
        extra = dict(SHORT)
        if any("init_var" in word for word in words):
            extra["--data.cache_size"] = "40"
        if any("align_var" in word for word in words):
            extra["--model.align_guidance_updates"] = "2"
        main([*words, *(part for option in extra.items() for part in option)])
    generator = dd2.load_generator("runs/gru/align")
    labels = torch.arange(10)
    tokens = generator.sample(labels, generator=torch.Generator().manual_seed(0))
    assert tokens.shape == (10, 6, 2) and tokens.isfinite().all()
    with pytest.raises(dd2.errors.DD2Error, match="cannot read or draw images"):
        generator.decode(tokens)


def test_a_family_is_named_by_its_class():
    assert family_of(gru_teacher()) == "gru_teacher.GRUTeacher"
    assert family_class("gru_teacher.GRUTeacher") is type(gru_teacher())
    assert family_of(table_teacher()) == "table"


def test_families_and_their_sampling_settings_are_known_without_torch():
    """So that the help of the command line is quick."""
    code = """if True:
        import sys
        import dd2_lightning as dd2
        from dd2_lightning.families.registry import FAMILIES, AnySampling

        assert AnySampling == dd2.Sampling | dd2.VARSampling | dd2.LlamaGenSampling
        print(*FAMILIES, 'torch' in sys.modules)
    """
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["var", "llamagen", "table", "False"]


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_a_family_is_registered_with_the_sampling_settings_of_its_teacher(family):
    assert family.teacher.sampling_type is family.sampling


def test_classes_that_cannot_be_named():
    class Local(TableTeacher):
        """Nobody can import this."""

    teacher = table_teacher()
    teacher.__class__ = Local
    with pytest.raises(ValueError, match="cannot be imported"):
        family_of(teacher)


@pytest.mark.parametrize(
    ("family", "words"),
    [
        ("tabel", "unknown family 'tabel'"),
        ("no_such_module.Teacher", "cannot be imported"),
        ("json.NoSuchThing", "cannot be imported"),
        ("json.JSONDecoder", "is not a subclass of Teacher"),
        ("json.dumps", "is not a subclass of Teacher"),
    ],
)
def test_families_that_are_none(tmp_path, family, words):
    dd2.write_teacher(tmp_path, gru_teacher())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "family": family}))
    with pytest.raises(ArtifactError, match="config.json: .*" + words):
        dd2.load_teacher(tmp_path)
