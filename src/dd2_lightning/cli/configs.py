"""``dd2 configs``: the configs that are installed with the package."""

from pathlib import Path

from dd2_lightning.cli.arguments import INSTALLED, did_you_mean, installed_configs


def list_configs() -> None:
    """List the configs that are installed with dd2: --config takes their names wherever it takes a file."""
    from dd2_lightning.cli.finish import finish
    from dd2_lightning.cli.fit import columns

    texts = {name: (INSTALLED / name).read_text(encoding="utf-8") for name in installed_configs()}
    print(columns({name: text.partition("\n")[0].lstrip("# ") for name, text in texts.items()}))
    finish("configs list")


def copy_config(name: str, /, output: str | None = None) -> None:
    """Copy a config, or a folder of them, to edit it.

    Args:
        name: as dd2 configs list shows it, or a folder of them, . for all.
        output: file or directory to write; its own name in this directory by default.

    Examples:
        dd2 configs copy csd_var.yaml --output mine.yaml
        dd2 configs copy paper/var_d16
    """
    from dd2_lightning.cli.finish import finish
    from dd2_lightning.errors import ArtifactError
    from dd2_lightning.files import write_atomically

    source = INSTALLED / name.removeprefix("configs/")
    names = [path for path in installed_configs() if (INSTALLED / path).is_relative_to(source)]
    if not names:
        raise ValueError(f"there is no config '{name}'{did_you_mean(name, installed_configs())}; see dd2 configs list")
    target = Path(output or (source.name if name != "." else "configs"))
    if target.is_dir() and source.is_file():
        target = target / source.name
    if target.exists():
        raise ArtifactError(f"--output {target} exists already; name another file, or delete it")
    for path in names:
        write_atomically(target / (INSTALLED / path).relative_to(source), INSTALLED / path)
    finish("configs copy", f"{name} -> {target}")
