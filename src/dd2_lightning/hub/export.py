"""Self-contained directories: what a stage left, with all that is needed to use it and nothing else."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import save

from dd2_lightning.artifacts import FORMAT, REQUIRED, Artifact, load_generator, load_init, load_teacher
from dd2_lightning.errors import ArtifactError
from dd2_lightning.files import check_writable, sha256, write_atomically
from dd2_lightning.hub.model_card import find_report, model_card

MAIN = {"teacher": "teacher", "init": "student"}
"""Name of the file with the network of a stage, where it is not the ``generator``."""

LOCAL = ("teacher", "init_from", "lpips_weights", "features")
"""Settings that name files of the machine a run was made on."""

Contents = dict[str, Path | bytes]  # files by name: a path where one is taken as it is


def collect(
    run: str | Path,
    name: str,
    guidance: bool = False,
    raw: bool = False,
    report: str | Path | None = None,
    license: str | None = None,
) -> Contents:
    """The files of a self-contained directory: networks, ``config.json`` with their checksums, and a model card.

    The model is loaded by its ``name``; other arguments are the options of ``dd2 export``.
    """
    artifact = Artifact.open(run, tuple(REQUIRED), "RUN")
    stage, main = artifact.config["stage"], MAIN.get(artifact.config["stage"], "generator")
    loaders: dict[str, Callable[..., Any]] = {"teacher": load_teacher, "init": load_init}
    loaders.get(stage, load_generator)(run)  # what is damaged is not handed on
    has_raw = ("csd", "align", "frechet", "dd1")
    wanted = {"guidance": guidance and ("csd", "align"), "generator_raw": raw and has_raw}
    for extra, stages in wanted.items():
        if stages and stage not in stages:
            raise ValueError(
                f"--{extra.removeprefix('generator_')}: a run of stage '{stage}' has no {extra}.safetensors"
            )
    contents: Contents = {f"{part}.safetensors": artifact.file(part) for part in (main, *filter(wanted.get, wanted))}
    config = {**artifact.config, "files": {}}
    config.pop("original", None)
    if "settings" in config:
        config["settings"] = {key: value for key, value in config["settings"].items() if key not in LOCAL}
    if stage == "teacher":
        config["source"] = source(artifact)
    elif artifact.exported:
        contents["tokenizer.safetensors"] = artifact.file("tokenizer")
    else:
        teacher = Artifact.open(artifact.teacher_path(), ("teacher",), "teacher")
        contents["tokenizer.safetensors"] = save(teacher.tensors("teacher", "tokenizer."))
        kept = {key: value for key, value in config["teacher"].items() if key != "path"}
        config["teacher"] = {**kept, "architecture": teacher.config["architecture"], "source": source(teacher)}
    config["files"] = {key: checksum(content) for key, content in contents.items()}
    found = find_report(artifact.directory, config["files"][f"{main}.safetensors"], report)
    if found is not None and (found / "samples.png").is_file():
        contents["samples.png"] = found / "samples.png"
    contents["README.md"] = model_card(name, config, found, license).encode()
    contents["config.json"] = json.dumps({"format": FORMAT, **config}, indent=2, ensure_ascii=False).encode()
    return contents


def source(teacher: Artifact) -> dict[str, Any] | None:
    """The published files that a teacher was converted from, also one that was adapted; None if there are none."""
    original = teacher.referenced("original")
    if "source" not in teacher.config and original is not None:
        try:
            return source(Artifact.open(original, ("teacher",), "original"))
        except ArtifactError:  # it need not be there any more
            return None
    return teacher.config.get("source")


def checksum(content: Path | bytes) -> str:
    """SHA-256 of a file or of bytes, in hexadecimal."""
    return sha256(content) if isinstance(content, Path) else hashlib.sha256(content).hexdigest()


def size(contents: Contents) -> str:
    """Size of files in all, ``12.3 MB``."""
    total = sum(item.stat().st_size if isinstance(item, Path) else len(item) for item in contents.values())
    return f"{total / 1e6:,.1f} MB" if total >= 1e5 else f"{total / 1e3:,.1f} kB"


def export(run: str | Path, output: str | Path, **options: Any) -> Contents:
    """Write a self-contained directory, complete or not at all; ``options`` are those of :func:`collect`.

    An ``ArtifactError`` refuses a directory that is not empty.
    """
    output = Path(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ArtifactError(f"--output {output} exists and is not an empty directory; name another, or delete it")
    check_writable(output)
    contents = collect(run, str(output), **options)
    temporary = output.with_name(f".{output.name}.{os.getpid()}.part")
    try:
        for name, content in contents.items():
            write_atomically(temporary / name, content)
        os.replace(temporary, output)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return contents
