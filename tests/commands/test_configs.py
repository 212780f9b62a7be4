"""The configs that come with the package, and the last lines of every command."""

import re
import shlex
from itertools import pairwise
from pathlib import Path
from string import Formatter

import pytest
import yaml

import dd2_lightning
from dd2_lightning import stages
from dd2_lightning.cli import main
from dd2_lightning.cli.arguments import installed_configs
from dd2_lightning.cli.finish import NEXT, finish
from dd2_lightning.cli.fit import ORDER
from dd2_lightning.cli.main import COMMANDS
from runs import fails

CONFIGS = Path(__file__).parents[2] / "configs"


def printed(capsys, name: str):
    """What ``dd2 fit --print_config`` prints with this config: settings, and on stderr."""
    with pytest.raises(SystemExit) as end:
        main(["fit", f"--config={name}", "--print_config"])
    assert end.value.code == 0
    texts = capsys.readouterr()
    return yaml.safe_load(texts.out)["model"]["init_args"], texts.err


def test_a_config_is_found_by_its_name_and_a_file_of_that_name_wins(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("csd_var.yaml", "configs/csd_var.yaml"):
        settings, message = printed(capsys, name)
        assert settings["position_weights"] == [4.0, 1.0]
        assert f"{name} is no file here; reading the one that comes with dd2" in message
    (tmp_path / "csd_var.yaml").write_text((CONFIGS / "csd_var.yaml").read_text().replace("draws: 2", "draws: 7"))
    settings, message = printed(capsys, "csd_var.yaml")
    assert settings["draws"] == 7 and not message
    with fails(capsys, 2, "cds_var.yaml does not exist; did you mean csd_var.yaml?"):
        main(["fit", "--config", "cds_var.yaml"])


def test_configs_are_listed_and_copied(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main(["configs", "list"])
    text = capsys.readouterr().out
    assert set(installed_configs()) == {str(path.relative_to(CONFIGS)) for path in CONFIGS.rglob("*.yaml")}
    for name in installed_configs():
        assert re.search(rf"^  {re.escape(name)} +\w", text, re.M), name
    main(["configs", "copy", "csd_var.yaml", "--output", "mine.yaml"])
    assert (tmp_path / "mine.yaml").read_text() == (CONFIGS / "csd_var.yaml").read_text()
    main(["configs", "copy", "paper/var_d16"])
    assert (tmp_path / "var_d16/csd.yaml").read_text() == (CONFIGS / "paper/var_d16/csd.yaml").read_text()
    main(["configs", "copy", "."])
    copied = {path.relative_to(tmp_path / "configs") for path in (tmp_path / "configs").rglob("*.yaml")}
    assert copied == {path.relative_to(CONFIGS) for path in CONFIGS.rglob("*.yaml")}
    with fails(capsys, 1, "mine.yaml exists already"):
        main(["configs", "copy", "csd_var.yaml", "--output", "mine.yaml"])
    with fails(capsys, 2, "there is no config 'csd_vra.yaml'; did you mean csd_var.yaml?"):
        main(["configs", "copy", "csd_vra.yaml"])


def test_what_comes_next_names_commands_and_configs_that_there_are(capsys):
    values = {
        name: "a b" for lines in NEXT.values() for line in lines for _, name, _, _ in Formatter().parse(line) if name
    }
    for command in NEXT:
        finish(command, **{**values, "family": "llamagen"})
    lines = [line[6:] for line in capsys.readouterr().out.splitlines()]
    assert len(lines) > 30
    for words in map(shlex.split, lines):
        if words[0] == "dd2":
            found = COMMANDS[words[1]]
            assert not isinstance(found, dict) or words[2] in found
        for option, value in pairwise(words):
            if option == "--config" and value.endswith(".yaml"):
                assert value in installed_configs(), value


@pytest.mark.parametrize("name", dd2_lightning.__all__)
def test_the_public_names_are_there(name):
    assert name in dir(dd2_lightning) and getattr(dd2_lightning, name) is not None


def test_the_help_orders_stages_that_there_are():
    assert set(ORDER) < set(stages.__all__)
