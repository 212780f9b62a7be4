"""Pages of the documentation that are made from the code: every setting of every stage, every config, the API."""

import inspect
import re
from pathlib import Path
from typing import Any

from docstring_parser import parse

import dd2_lightning.callbacks as callbacks
import dd2_lightning.data as data
import dd2_lightning.stages as stages
from dd2_lightning.families.registry import AnySampling
from dd2_lightning.sampling import Sampling
from dd2_lightning.stages.execution import Execution
from dd2_lightning.stages.schedule import OptimizerSettings

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src/dd2_lightning"

ROOMS = {
    "The method": ("flow", "losses", "sampling", "layout", "noise"),
    "Models": ("models", "families"),
    "Training": ("data", "stages", "callbacks", "artifacts"),
    "Images and metrics": ("images", "metrics", "evaluation"),
    "Published files": ("hub",),
    "Planning and timing": ("costs", "planning", "timing"),
}
"""Pages of the API, and what is on them. Commands explain themselves with --help."""


def write_pages(folder: Path) -> None:
    """Write all generated pages; those that have not changed keep their dates, so that they are not read again."""
    pages = {"configs": configs_page(), **{f"api_{page_name(title)}": api_page(title) for title in ROOMS}}
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in pages.items():
        path = folder / f"{name}.md"
        if not path.is_file() or path.read_text() != text:
            path.write_text(text)


def page_name(title: str) -> str:
    """``The method`` -> ``the_method``."""
    return title.lower().replace(" ", "_")


def configs_page() -> str:
    """Every setting that a config can have, and the configs that are shipped."""
    kinds = {
        "Stages (`model`)": [getattr(stages, name) for name in stages.__all__ if name != "Stage"],
        "Data (`data`)": [getattr(data, name) for name in data.__all__ if name != "Batch"],
        "Optimizers (`…_optimizer`)": [OptimizerSettings],
        "Guidance and truncation (`…sampling`)": [Sampling, *sampling_types()],
        "How networks are run (`execution`)": [Execution],
        "What is logged (`trainer.callbacks`)": [callbacks.PerPositionMonitor, callbacks.SampleGrid],
    }
    parts = [
        "# Configs",
        "A config is a YAML file with `model`, `data` and `trainer`, as Lightning's command line reads it. The command "
        "line overrides it (`--model.draws 4`), several `--config` compose, and `--print_config` prints all settings "
        "as they would be used. This page is made from signatures and docstrings.",
        "## Shipped",
        shipped_configs(),
    ]
    for title, classes in kinds.items():
        parts += [f"## {title}", *(settings_table(kind) for kind in classes)]
    return "\n\n".join(parts) + "\n"


def sampling_types() -> list[type[Sampling]]:
    """The families' own sampling settings."""
    return [kind for kind in getattr(AnySampling, "__args__", ()) if kind is not Sampling]


def shipped_configs() -> str:
    """A table of the files in ``configs/`` and what their first line says."""
    rows = ["| file | what it runs |", "| --- | --- |"]
    for path in sorted((ROOT / "configs").rglob("*.yaml"), key=lambda path: (len(path.parts), path)):
        rows.append(f"| `{path.relative_to(ROOT)}` | {path.read_text().splitlines()[0].lstrip('# ')} |")
    return "\n".join(rows)


def settings_table(kind: type) -> str:
    """What a class is, and a table of its constructor's settings."""
    documented = parse(inspect.getdoc(kind) or "")
    helps = {parameter.arg_name: parameter.description or "" for parameter in documented.params}
    rows = ["| setting | default | meaning |", "| --- | --- | --- |"]
    signature = inspect.signature(kind).parameters
    for name, parameter in signature.items():
        if parameter.kind is not parameter.VAR_KEYWORD:
            default = "required" if parameter.default is parameter.empty else f"`{default_text(parameter.default)}`"
            rows.append(f"| `{name}` | {default} | {cell(helps.get(name, ''))} |")
    also = [f"\nAnd the settings of {kind.__mro__[1].__name__}."] if "kwargs" in signature else []
    return "\n".join([f"### {kind.__name__}", "", cell(documented.short_description or ""), "", *rows, *also])


def default_text(value: Any) -> str:
    """A default as it is written in Python; of settings of several values, the class."""
    plain = value is None or isinstance(value, str | int | float | tuple | list | dict)
    return repr(value) if plain else f"{type(value).__name__}()"


def cell(text: str) -> str:
    """Text of a docstring as Markdown, in one line."""
    text = re.sub(r":\w+:`~?(?:[^`]*\.)?([^`.]+)`", r"`\1`", " ".join(text.split()))
    return text.replace("``", "`").replace("|", "\\|")


def api_page(title: str) -> str:
    """The modules of some rooms, documented by their docstrings."""
    modules = [module for room in ROOMS[title] for module in room_modules(room)]
    blocks = [f"## {module}\n\n```{{eval-rst}}\n.. automodule:: dd2_lightning.{module}\n```" for module in modules]
    return "\n\n".join([f"# {title}", *blocks]) + "\n"


def room_modules(room: str) -> list[str]:
    """A module, or the modules of a package, by their names within dd2_lightning."""
    if (PACKAGE / f"{room}.py").is_file():
        return [room]
    paths = sorted((PACKAGE / room).rglob("*.py"))
    return [".".join(path.relative_to(PACKAGE).with_suffix("").parts) for path in paths if path.stem != "__init__"]
