"""A wheel in an environment of its own, without the repository: from its configs to a table."""

import email
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SHORT = {
    "teacher_var.yaml": ["--trainer.max_steps", "4", "--model.tokenizer_iterations", "2"],
    "init_var.yaml": ["--trainer.max_steps", "2", "--data.cache_size", "64"],
    "csd_var.yaml": ["--trainer.max_steps", "2"],
    "--models": ["--samples", "40", "--reference_samples", "40"],
}
"""What makes a command of that config short."""


def run(*arguments: str | Path, cwd: Path, **variables: str) -> str:
    """Run a command to its end; what it printed."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    env.pop("PYTHONPATH", None)
    ended = subprocess.run(arguments, cwd=cwd, env=env, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout + ended.stderr


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The sdist, and the wheel that is made of it, from the files that git knows."""
    place = tmp_path_factory.mktemp("build")
    names = run("git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=ROOT).split("\n")
    for name in filter(None, names):
        (place / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, place / "source" / name, follow_symlinks=False)
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", place, ".", cwd=place / "source")
    return next(place.glob("*.tar.gz")), next(place.glob("*.whl"))


@pytest.fixture(scope="module")
def command(built, tmp_path_factory):
    """``dd2`` as the wheel installs it; what it needs is that of this environment."""
    place = tmp_path_factory.mktemp("venv")
    venv.create(place, with_pip=False, symlinks=True)
    python = place / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", built[1], cwd=place)
    site = next(place.glob("lib/python*/site-packages"))
    (site / "needs.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")  # after what is installed here
    return place / "bin" / "dd2"


def test_the_sdist_has_the_tests_and_the_configs_and_the_readme_is_absolute(built):
    sdist, wheel = built
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
        links = [member.name for member in archive if member.issym()]
    assert {"tests/conftest.py", "configs/csd_var.yaml", "docs/images/digits_var.png", "constraints.txt"} <= names
    assert not links
    with zipfile.ZipFile(wheel) as archive:
        metadata = email.message_from_bytes(archive.read(next(n for n in archive.namelist() if n.endswith("METADATA"))))
        configs = {name.removeprefix("dd2_lightning/") for name in archive.namelist() if "/configs/" in name}
    assert configs == {str(path.relative_to(ROOT)) for path in (ROOT / "configs").rglob("*.yaml")}
    targets = re.findall(r"\]\(([^)]*)\)", metadata.get_payload())
    assert len(targets) > 5 and all(target.startswith(("https://", "#")) for target in targets)
    assert metadata["Name"] == "dd2-lightning" and "Source" not in metadata and len(metadata.get_all("Classifier")) > 5


def test_from_its_configs_to_a_table_without_the_repository(command, tmp_path):
    """Every command is the one that the one before it names, made short."""
    assert str(ROOT) not in run(command, "--version", cwd=tmp_path)
    line = [str(command), "fit", "--config", "teacher_var.yaml"]
    for number in range(5):
        key = next((word for word in line if word in SHORT), "")
        text = run(*line, *SHORT.get(key, []), cwd=tmp_path, CUDA_VISIBLE_DEVICES="")
        following = re.findall(r"^(?:next:|     ) (dd2 .*)$", text, re.M)
        wanted = ("init_var", "csd_var", "dd2 sample --model runs/var/csd", "evaluate", "push")[number]
        if wanted == "evaluate":  # what follows a sample is a larger one
            following = ["dd2 evaluate --models [runs/var/csd] --output report --device cpu"]
        line = next(row for row in following if wanted in row).split()
        line[0] = str(command)
    assert (tmp_path / "grid.png").is_file() and "one-step" in (tmp_path / "report/table.md").read_text()
