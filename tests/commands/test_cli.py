"""The command line: help, composition of configs, and what a user reads when something is wrong."""

import inspect
import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from dd2_lightning import data, stages
from dd2_lightning.cli import main
from dd2_lightning.cli.arguments import configs_first
from dd2_lightning.cli.main import COMMANDS as ALL
from processes import DD2, dd2, environment
from runs import fails, fit, make_teacher, stage_config

CONFIGS = Path(__file__).parents[2] / "configs"


def printed(capsys, *args: str) -> str:
    try:
        main(list(args))
    except SystemExit as end:
        assert end.code == 0
    return capsys.readouterr().out


def test_one_help_lists_every_command(capsys):
    text = printed(capsys, "--help")
    for command in ("fit", "validate", "test", "predict", "plan", "sample", "evaluate", "convert", "bench"):
        assert command in text


COMMANDS = [
    *("fit", "validate", "test", "predict", "plan", "cache", "sample", "evaluate", "summary", "quality", "statistics"),
    *("export", "push", "configs list", "configs copy"),
    *("convert var", "convert llamagen", "convert dd1", "bench sample", "bench train", "bench flow"),
]


def explained(command: str) -> list[str]:
    """What its help has to name: the commands of a group, the parameters of a function, what every stage needs."""
    if command.endswith(".help"):
        return [name for name in stages.__all__ if name != "Stage"]
    found = ALL
    for word in command.split():
        found = found[word]
    if isinstance(found, dict):
        return list(found)
    if found.trains:
        return ["--config", "--model", "--data", "CSDDistill"]
    parameters = inspect.signature(found.load()).parameters
    names = {f"--{name.replace('_', '-') if p.annotation is bool else name}": p for name, p in parameters.items()}
    if "--common" in names:
        return [*(names.keys() - {"--common"}), "--output", "--models", "--batch_size", "--rounds", "--device"]
    return [name[2:].upper() if p.kind is p.POSITIONAL_ONLY else name for name, p in names.items()]


@pytest.mark.parametrize("command", ["", "convert", "bench", *COMMANDS, "fit --model.help"])
def test_every_command_explains_its_options_within_a_second(command):
    """Of processor time; half a second of slack is for slow machines."""
    arguments = command.split() if command.endswith(".help") else [*command.split(), "--help"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    ended = dd2(*arguments)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert ended.returncode == 0, ended.stderr
    missing = [name for name in explained(command) if name not in ended.stdout]
    assert not missing, ended.stdout
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.5


def test_ten_digits_are_drawn_within_five_seconds(var_run, tmp_path):
    """Of processor time, by a network that is so small that importing is what counts."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    ended = dd2("sample", "--model", str(var_run / "csd"), "--num", "10", "--output", str(tmp_path / "x.png"))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert ended.returncode == 0 and (tmp_path / "x.png").is_file(), ended.stderr
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 5


def test_drawing_imports_nothing_of_training_or_measuring(var_run, tmp_path):
    line = ["sample", "--model", str(var_run / "csd"), "--num", "2", "--device", "cpu"]
    code = f"import sys\nfrom dd2_lightning.cli import main\nmain({[*line, '--output', str(tmp_path / 'x.npz')]})\n"
    code += "print([name for name in ('lightning', 'torchmetrics', 'scipy', 'sklearn') if name in sys.modules])"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment())
    assert ended.stdout.splitlines()[-1] == "[]", ended.stderr


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict", "plan"])
def test_the_short_help_of_a_training_command_is_true(capsys, command):
    """Every option that it names is one; every stage and data module is there."""
    short, full = printed(capsys, command, "--help"), printed(capsys, command, "--help_all")
    for option in re.findall(r"^  (--[\w.]+)", short, re.M):
        assert option == "--help_all" or option in full, option
    for name in (*stages.__all__, *data.__all__):
        assert name in ("Stage", "Batch") or name in short
    assert "guidance updates" not in short and "--trainer.benchmark" in full


def test_commands_are_found_without_torch():
    code = "import sys\nfrom dd2_lightning.cli.main import COMMANDS\nfor command in COMMANDS.values():\n    "
    code += "[c.load() for c in (command.values() if isinstance(command, dict) else [command])]\n"
    code += "print([name for name in ('torch', 'lightning', 'numpy') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        (["sam"], ["sample"]),
        (["convert", "l"], ["llamagen"]),
        (["sample", "--pre"], ["--precision"]),
        (["sample", "--model", "runs/x", "--output", "x.npz", "--lab"], ["--labels"]),
        (["convert", "var", "--lat"], ["--latent-only"]),
        (["fit", "--over"], ["--overwrite"]),
        (["sample", "--model", "runs"], []),
        (["nothing", "--x"], []),
    ],
)
def test_bash_completes_commands_and_options(typed, expected):
    words = " ".join(["dd2", *typed])
    script = f"""
        source <(dd2 --print_completion bash)
        complete -p dd2 > /dev/null || exit 1
        COMP_WORDS=({words}) COMP_CWORD={len(typed)}
        _dd2 dd2
        echo "${{COMPREPLY[@]}}"
    """
    path = f"{DD2.parent}:{os.environ['PATH']}"
    ended = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env={**environment(), "PATH": path})
    assert ended.returncode == 0 and ended.stdout.split() == expected, ended.stderr


def test_completion_of_another_shell(capsys):
    assert "bashcompinit" in printed(capsys, "--print_completion", "zsh")
    with fails(capsys, 2, "bash or zsh"):
        main(["--print_completion", "fish"])


def test_a_flag_is_explained(capsys):
    text = " ".join(printed(capsys, "convert", "var", "--help").split())
    assert "--latent-only take nothing of the tokenizer but its quantiser" in text


def test_stage_settings_are_documented(capsys):
    text = printed(capsys, "fit", "--model.help", "CSDDistill")
    assert "guidance updates a generator update" in " ".join(text.split())


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*_*.yaml")), ids=lambda path: path.stem)
def test_every_config_parses_in_a_fresh_clone(capsys, tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)  # nothing that the config names exists
    command = "evaluate" if path.stem.startswith("evaluate") else "fit"
    text = printed(capsys, command, "--config", str(path), "--print_config")
    assert yaml.safe_load(text)
    assert not list(tmp_path.iterdir())


def test_two_configs_compose_and_the_command_line_wins(capsys, tmp_path):
    base, over = tmp_path / "base.yaml", tmp_path / "over.yaml"
    base.write_text(yaml.safe_dump(stage_config(tmp_path, "csd")))
    over.write_text(yaml.safe_dump({"model": {"init_args": {"alpha": 0.8, "draws": 3}}}))
    text = printed(
        capsys, "fit", "--config", str(base), "--config", str(over), "--model.init_args.draws", "7", "--print_config"
    )
    settings = yaml.safe_load(text)["model"]["init_args"]
    assert settings["alpha"] == 0.8 and settings["draws"] == 7 and settings["guidance_updates"] == 2


def test_the_command_line_wins_wherever_the_config_stands(capsys, tmp_path):
    base = tmp_path / "base.yaml"
    base.write_text(yaml.safe_dump({**stage_config(tmp_path, "csd"), "seed_everything": 3}))
    text = printed(
        capsys, "fit", "--seed_everything", "5", f"--config={base}", "--model.init_args.draws", "7", "--print_config"
    )
    settings = yaml.safe_load(text)
    assert settings["seed_everything"] == 5 and settings["model"]["init_args"]["draws"] == 7


def test_configs_keep_their_order_and_options_theirs():
    line = ["--a", "1", "--config", "x", "--flag", "-c", "y", "--config=z", "--b=2"]
    assert configs_first(line) == ["--config", "x", "-c", "y", "--config", "z", "--a", "1", "--flag", "--b=2"]
    assert configs_first(["--a", "1", "--config"]) == ["--a", "1", "--config"]


def test_a_tool_takes_the_command_line_before_its_config(tmp_path, capsys):
    config = tmp_path / "sample.yaml"
    config.write_text("model: nowhere\noutput: x.png\nsteps: 2\n")
    with fails(capsys, 2, "--steps", "0"):
        main(["sample", "--steps", "0", "--config", str(config)])


def test_the_command_line_beats_the_checkpoint(root, tmp_path):
    config = stage_config(root, "csd", alpha=1.0)
    config["trainer"]["default_root_dir"] = str(tmp_path)
    fit(config, tmp_path, "--trainer.max_steps", "2")
    fit(config, tmp_path, "--ckpt_path", "last", "--model.init_args.alpha", "0.5")
    assert json.loads((tmp_path / "config.json").read_text())["settings"]["alpha"] == 0.5


def test_the_seed_reaches_data_and_networks(root, tmp_path):
    for seed in ("1", "2"):
        config = stage_config(root, "csd")
        config["trainer"]["default_root_dir"] = str(tmp_path / seed)
        fit(config, tmp_path, "--seed_everything", seed)
    one, two = ((tmp_path / seed / "generator_raw.safetensors").read_bytes() for seed in ("1", "2"))
    assert one != two


# --- bad input -------------------------------------------------------------------------------------------------------


def refused(root, capsys, stage, status, *words, args=(), trainer=None, **model):
    config = stage_config(root, stage, **model)
    config["trainer"] |= {"default_root_dir": str(root / "refused"), **(trainer or {})}
    with fails(capsys, status, *words):
        fit(config, root, *args)
    assert not (root / "refused" / "config.json").exists()


def test_truncated_init_from(root, capsys, tmp_path):
    for name in ("config.json", "student.safetensors"):
        (tmp_path / name).write_bytes((root / "init" / name).read_bytes())
    with open(tmp_path / "student.safetensors", "r+b") as file:
        file.truncate(1000)
    refused(root, capsys, "csd", 1, str(tmp_path), "truncated or damaged", init_from=str(tmp_path))


def test_damaged_config_json(root, capsys, tmp_path):
    (tmp_path / "config.json").write_text('{"stage": "in')
    refused(root, capsys, "csd", 1, "config.json is damaged", init_from=str(tmp_path))


def test_init_from_of_another_stage(root, capsys):
    refused(root, capsys, "csd", 1, "comes from stage 'csd', needed: init", init_from=str(root / "csd"))
    refused(root, capsys, "align", 1, "comes from stage 'init', needed: csd", init_from=str(root / "init"))


def test_init_from_of_another_family(root, capsys, tmp_path):
    config = json.loads((root / "init" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "family": "var"}))
    refused(root, capsys, "csd", 1, "family 'var'", "family 'table'", init_from=str(tmp_path))


def test_init_from_of_another_teacher(root, capsys, tmp_path):
    teacher = make_teacher(tmp_path, gap=2.0)
    refused(root, capsys, "csd", 1, "is not the teacher that model.init_from", teacher=str(teacher))


def test_init_from_of_another_size(root, capsys, tmp_path):
    config = json.loads((root / "init" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "head": {"width": 8, "depth": 1, "frequencies": 0}}))
    (tmp_path / "student.safetensors").write_bytes((root / "init" / "student.safetensors").read_bytes())
    refused(root, capsys, "csd", 1, "does not fit the model", "head.", init_from=str(tmp_path))


def test_checkpoint_of_another_stage(root, capsys):
    checkpoint = str(root / "init" / "checkpoints" / "last.ckpt")
    refused(root, capsys, "csd", 1, "stage 'init'", "this is stage 'csd'", args=("--ckpt_path", checkpoint))


def test_truncated_checkpoint(root, capsys, tmp_path):
    path = tmp_path / "last.ckpt"
    path.write_bytes((root / "csd" / "checkpoints" / "last.ckpt").read_bytes()[:5000])
    refused(root, capsys, "csd", 1, str(path), "truncated or damaged", args=("--ckpt_path", str(path)))


def test_output_directory_that_cannot_be_written(root, capsys, tmp_path):
    (tmp_path / "file").write_text("in the way")
    refused(root, capsys, "csd", 1, "cannot write", "file", trainer={"default_root_dir": str(tmp_path / "file")})


def test_full_disk_keeps_the_last_checkpoint(root, capsys, tmp_path, monkeypatch):
    import dd2_lightning.files as files

    config = stage_config(root, "csd")
    config["trainer"]["default_root_dir"] = str(tmp_path)
    written = []
    original = files.os.replace

    def replace(source, target):
        written.append(target)
        if len([p for p in written if str(p).endswith(".ckpt")]) > 1:
            raise OSError(28, "No space left on device")
        original(source, target)

    monkeypatch.setattr(files.os, "replace", replace)
    with fails(capsys, 1, "No space left on device", ".ckpt"):
        fit(config, tmp_path)
    import torch

    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 2
    assert not list((tmp_path / "checkpoints").glob(".*"))
