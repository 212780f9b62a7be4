"""The digits from nothing to a report, with the shipped configs at a few iterations, and what the README says."""

import json
import re
import shlex
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import dd2_lightning as dd2
from benchmarks.ablations.__main__ import main as ablations
from dd2_lightning.cli import main
from dd2_lightning.noise import SampleNoise
from reference import release_files
from runs import fails

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
DOCUMENTS = [README, *(path.read_text() for path in sorted((ROOT / "docs").glob("*.md")))]
SMALL = {"--trainer.enable_progress_bar": "false", "--trainer.log_every_n_steps": "1", "--checkpoint_every": "10"}


def fit(config: str, *args: str) -> None:
    options = [part for option in SMALL.items() for part in option]
    main(["fit", "--config", str(ROOT / f"configs/{config}.yaml"), *options, *args])


def run_stages(family: str) -> None:
    """All stages, as ``make demo`` would run them, but short."""
    settings = ("--model.tokenizer_iterations", "20", "--trainer.val_check_interval", "30")
    fit(f"teacher_{family}", *settings, "--trainer.max_steps", "30")
    short = ("--trainer.max_steps", "4", "--trainer.val_check_interval", "2", "--data.validation_size", "20")
    cache = ("--data.cache_size", "100", "--data.batch_size", "8")
    if (ROOT / f"configs/adapt_{family}.yaml").exists():
        fit(f"adapt_{family}", *short, *cache, "--model.input_iterations", "2")
    fit(f"init_{family}", *short, *cache)
    fit(f"csd_{family}", *short, "--data.batch_size", "8")
    fit(f"align_{family}", *short, "--data.batch_size", "8", "--model.align_guidance_updates", "4")
    fit(f"dd1_{family}", *short, *cache)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A directory in which all stages of VAR have run."""
    root = tmp_path_factory.mktemp("digits")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        run_stages("var")
        yield root


@pytest.fixture
def inside(runs, monkeypatch):
    monkeypatch.chdir(runs)
    return runs


def test_every_stage_leaves_its_directory(runs):
    files = {
        stage: {path.name for path in (runs / "runs/var" / stage).glob("*.*")} for stage in ("init", "csd", "align")
    }
    networks = {"generator.safetensors", "generator_raw.safetensors", "guidance.safetensors"}
    baseline = {path.name for path in (runs / "runs/var/dd1").glob("*.*")}
    assert {path for path in baseline if path.endswith("safetensors")} == networks - {"guidance.safetensors"}
    assert {"config.json", "config.yaml", "time.json"} <= baseline
    assert {"config.json", "student.safetensors"} <= files["init"]
    assert networks <= files["csd"] and networks <= files["align"]
    assert json.loads((runs / "runs/var/align/config.json").read_text())["teacher"]["path"] == "../teacher"


def test_llamagen_goes_through_all_stages(tmp_path, monkeypatch):
    """Embedding table, adapted, distilled, drawn with and without its teacher, measured."""
    monkeypatch.chdir(tmp_path)
    run_stages("llamagen")
    architectures = {
        stage: json.loads(Path(f"runs/llamagen/{stage}/config.json").read_text())["architecture"]
        for stage in ("teacher", "adapt")
    }
    assert architectures["adapt"] == {**architectures["teacher"], "continuous_input": True}
    config = json.loads(Path("runs/llamagen/align/config.json").read_text())
    assert config["teacher"]["path"] == "../adapt" and config["family"] == "llamagen"
    common = ["--model", "runs/llamagen/align", "--num", "4", "--output", "samples.npz"]
    main(["sample", *common])
    refined = ["--teacher", "runs/llamagen/adapt", "--steps", "3", "--sampling.cfg_interval", "5"]
    main(["sample", *common, *refined, "--sampling.guidance_scale", "2.0"])
    assert np.load("samples.npz")["arr_0"].shape == (4, 8, 8, 1)
    sizes = ["--samples", "100", "--reference_samples", "200"]
    main(["evaluate", "--config", str(ROOT / "configs/evaluate_llamagen.yaml"), *sizes])
    results = json.loads(Path("runs/llamagen/report/results.json").read_text())
    assert results["samplers"]["teacher"]["steps"] == 16 and set(results["ratios"]) == {"frechet", "nll"}


def test_a_teacher_adapts_to_pictures_too(tmp_path, monkeypatch):
    """Real pictures in the place of teacher sequences."""
    monkeypatch.chdir(tmp_path)
    short = ("--trainer.max_steps", "4", "--trainer.val_check_interval", "4")
    fit("teacher_llamagen", *short, "--model.tokenizer_iterations", "2")
    config = yaml.safe_load((ROOT / "configs/adapt_llamagen.yaml").read_text())
    config["data"] = {"class_path": "DigitsData", "init_args": {"batch_size": 16}}
    Path("pictures.yaml").write_text(yaml.safe_dump(config))
    options = [part for option in SMALL.items() for part in option]
    main(["fit", "--config", "pictures.yaml", *options, *short, "--model.input_iterations", "2"])
    assert json.loads(Path("runs/llamagen/adapt/config.json").read_text())["cross_entropy_ratio"] > 0


def test_tensorboard_shows_scores_per_position(runs):
    board = EventAccumulator(str(runs / "runs/var/csd"))
    board.Reload()
    scalars, images = board.Tags()["scalars"], board.Tags()["images"]
    for name in ("lr/guidance", "lr/generator", "ema_rate", "gradient_norm/guidance", "gradient_norm/generator"):
        assert name in scalars
    for name in ("score_gap", "fcs", "val_score_gap_teacher"):
        assert {f"{name}_at_position/{k:03d}" for k in range(3)} <= set(scalars)
        assert f"{name}_per_token" in images
    assert "samples" in images
    assert [event.step for event in board.Scalars("loss/generator")] == [0, 1, 2, 3]  # the x-axis is iterations


def test_python_of_the_readme_runs(inside):
    blocks = re.findall(r"```python\n(.*?)```", README, re.S)
    assert blocks
    names = {}
    for block in blocks:
        exec(block, names)
    assert names["images"].shape[1:] == (1, 8, 8)


@pytest.mark.parametrize("output", ["grid.png", "samples.npz", "pictures"])
def test_sample_writes_what_was_asked_for(inside, tmp_path, output):
    target = tmp_path / output
    arguments = ["--model", "runs/var/csd", "--num", "12", "--seed", "3", "--output", str(target)]
    main(["sample", *arguments])
    if output.endswith("npz"):
        pictures = np.load(target)["arr_0"]
        assert pictures.shape == (12, 8, 8, 1) and pictures.dtype == np.uint8
        main(["sample", *arguments, "--batch_size", "5"])
        assert np.array_equal(np.load(target)["arr_0"], pictures)  # picture i depends on the seed and i only
    elif output.endswith("png"):
        assert target.read_bytes().startswith(b"\x89PNG")
    else:
        assert len(list(target.glob("*.png"))) == 12


def test_refined_samples_with_all_steps_are_the_teachers(inside, tmp_path):
    target = tmp_path / "refined.npz"
    common = ["--model", "runs/var/csd", "--num", "4", "--output", str(target), "--teacher", "runs/var/teacher"]
    main(["sample", *common, "--steps", "4", "--sampling.guidance_scale", "1.0"])
    teacher = dd2.load_teacher("runs/var/teacher")
    uniforms = SampleNoise(0, 0, 4).rand("teacher", 21)
    images = teacher.decode(teacher.sample(torch.arange(4), dd2.Sampling(guidance_scale=1.0), uniforms=uniforms))
    pixels = (images * 255).round().byte().permute(0, 2, 3, 1).numpy()
    assert np.abs(np.load(target)["arr_0"].astype(int) - pixels).max() <= 1


def test_evaluate_writes_report_table_and_picture(inside, tmp_path):
    report = tmp_path / "results.json"
    sizes = ["--samples", "100", "--reference_samples", "200"]
    main(["evaluate", "--config", str(ROOT / "configs/evaluate_var.yaml"), *sizes, "--output", str(report)])
    results = json.loads(report.read_text())
    rows = results["samplers"]
    assert {"teacher", "one-step", "refined 2-step", "independent", "skip-1", "AR-diffusion", "real"} <= set(rows)
    assert set(results["ratios"]) == {"frechet", "nll"}
    for name in ("samples.png", "steps.png", "table.md"):
        assert (tmp_path / name).exists()


def test_a_generator_is_refused_with_a_teacher_that_changed(inside, tmp_path, capsys):
    path = inside / "runs/var/teacher/teacher.safetensors"
    original = path.read_bytes()
    try:
        path.write_bytes(original[:-4] + b"\0\0\0\1")
        with fails(capsys, 1, "teacher.safetensors is not the teacher"):
            main(["sample", "--model", "runs/var/csd", "--output", str(tmp_path / "x.npz")])
    finally:
        path.write_bytes(original)


def test_validate_and_predict_read_a_checkpoint(inside, capsys):
    config = str(ROOT / "configs/csd_var.yaml")
    common = ["--ckpt_path", "runs/var/csd/checkpoints/last.ckpt", "--data.validation_size", "10"]
    for command in ("validate", "test", "predict"):
        main([command, "--config", config, *common, "--trainer.enable_progress_bar", "false"])
        text = capsys.readouterr().out
        assert "checkpoint: runs/var/csd/checkpoints/last.ckpt" in text
        assert "predict.png" in text if command == "predict" else "val/score_gap_teacher" in text
    assert Path("runs/var/csd/predict.png").is_file()


# --- what the documents promise ---------------------------------------------------------------------------------------


def commands() -> list[str]:
    blocks = [block for text in DOCUMENTS for block in re.findall(r"```(?:bash|sh)\n(.*?)```", text, re.S)]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(blocks))
    lines = (line.split("#")[0].strip() for line in joined.splitlines())
    return sorted({line for line in lines if line})


def replaced(words: list[str], values: dict[str, str]) -> list[str]:
    """The words of a command with other values for some of its options."""
    return [values.get(before, word) for before, word in zip(["", *words], words, strict=False)]


@pytest.mark.parametrize("command", commands())
def test_commands_of_the_documents(command, inside, capsys, tmp_path, monkeypatch):
    words = shlex.split(command)
    if words[0] in ("torchrun", "srun"):  # test_user_machine launches them; here the settings
        words = ["dd2", *words[words.index("fit") :]]
    if words[0] == "make":
        assert subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, capture_output=True).returncode == 0
    elif words[:2] == ["dd2", "fit"]:
        arguments = [str(ROOT / word) if word.startswith("configs/") else word for word in words[1:]]
        with pytest.raises(SystemExit) as end:
            main([*arguments, "--print_config"])
        assert end.value.code == 0 and yaml.safe_load(capsys.readouterr().out)
    elif words[:2] == ["dd2", "sample"]:
        exported = words[words.index("--model") + 1]
        if not (Path(exported) / "config.json").is_file():  # of a page that another test goes through, or exported
            exported = "runs/var/align"
        main(replaced(words[1:], {"--num": "30", "--model": exported}))
    elif words[:2] == ["dd2", "push"]:
        main([*(word for word in words[1:] if word != "--dry-run"), "--dry-run"])
    elif words[:2] in (["dd2", "export"], ["dd2", "configs"]):
        main(words[1:])
    elif words[:2] == ["dd2", "quality"]:
        for option, seed in (("--samples", "0"), ("--reference", "1")):
            file = words[words.index(option) + 1]
            main(["sample", "--model", "runs/var/align", "--num", "100", "--seed", seed, "--output", file])
        main(words[1:])
        assert json.loads(Path("quality.json").read_text())["recall"] > 0
    elif words[:2] == ["dd2", "cache"]:
        output = words.index("--output") + 1
        words[output] = "runs/var/another_cache"  # that of the stages is smaller
        main([*words[1:], "--num", "40", "--processes", "1"])
    elif words[:2] == ["dd2", "evaluate"]:
        arguments = [str(ROOT / word) if word.startswith("configs/") else word for word in words[1:]]
        own = [re.sub(r"runs/photos\w*", "runs/var", word) for word in arguments]  # another test has photographs
        main([*own, "--samples", "100", "--reference_samples", "200"])
    elif words[:2] == ["dd2", "plan"]:
        configs = [str(ROOT / word) if word.startswith("configs/") else word for word in words[1:]]
        main([*configs, "--model.teacher", "runs/var/teacher", "--model.init_from", "runs/var/init"])
        assert "optimizer state" in capsys.readouterr().out
    elif words[:2] == ["dd2", "convert"]:
        small = release_files(tmp_path, words[2])
        sizes = json.loads(small["sizes.json"].read_text())
        sizes.pop("block_size", None)  # the grid is the command's, and no weight depends on it
        small["sizes.json"].write_text(json.dumps(sizes))
        monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda _, name: str(small[name]))
        main([*replaced(words[1:], {"--arch": str(small["sizes.json"])})])
        assert dd2.load_teacher(words[words.index("--output") + 1]).tokenizer.has_images
    elif words[:2] == ["dd2", "bench"]:
        small = [f"{family}/{release_files(tmp_path, family)['sizes.json']}" for family in ("var", "llamagen")]
        main([*replaced(words[1:], {"--models": f"[{','.join(small)}]"}), "--rounds", "1"])
        assert len(json.loads(Path(words[words.index("--output") + 1]).read_text())["models"]) == 2
    elif words[:3] == ["python", "-m", "benchmarks.ablations"]:
        monkeypatch.chdir(ROOT)
        with pytest.raises(SystemExit) as end:
            ablations([*words[3:], "--problems", "[benchmarks/ablations/tables.yaml]", "--work", str(tmp_path)])
        assert end.value.code == 1 and "no run with these settings is finished" in capsys.readouterr().err
    else:
        assert words[0] in ("git", "cd", "export", "tensorboard", "pip"), f"no test runs `{command}`"
