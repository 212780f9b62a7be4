"""The rooms of the package: who imports whom, read from every import statement, wherever it stands."""

import ast
from collections.abc import Iterable, Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src"
PACKAGE = "dd2_lightning"
LONGEST = 350
"""Lines a file may have."""

FLOORS = [
    {"__init__", "__main__"},
    {"cli"},
    {"timing"},
    {"planning"},
    {"evaluation"},
    {"stages"},
    {"callbacks", "costs", "metrics"},
    {"data", "images"},
    {"hub"},
    {"artifacts"},
    {"families", "remote"},
    {"models"},
    {"devices", "files", "lightning_internals", "losses", "noise", "progress", "provenance", "sampling"},
    {"errors", "flow", "layout"},
]
"""Rooms from top to bottom; a room imports from lower floors only, and from none on its own."""


def modules() -> dict[str, Path]:
    """Every module by its dotted name; a package stands for its ``__init__.py``."""
    found = {}
    for path in sorted((SOURCE / PACKAGE).rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imported(nodes: Iterable[ast.AST], package: str, known: dict[str, Path]) -> set[str]:
    """Modules of the package that are imported by these nodes.

    ``from package import name`` is the module ``package.name`` if there is one. The package itself, where its version
    and its directory come from, does not count.
    """
    found = set()
    for node in nodes:
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"line {node.lineno}: imports are absolute"
            for name in (alias.name for alias in node.names):
                if (node.module, name) != (package, "__version__"):
                    found.add(f"{node.module}.{name}" if f"{node.module}.{name}" in known else str(node.module))
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names} - {package}
    return {name for name in found if name.split(".")[0] == package}


def on_import(tree: ast.Module) -> Iterator[ast.AST]:
    """Nodes that are executed when a module is imported: not functions, nor what only type checkers read."""
    todo = list(tree.body)
    while todo:
        node = todo.pop()
        yield node
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            todo += node.orelse
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            todo += ast.iter_child_nodes(node)


def room(module: str) -> str:
    return [*module.split("."), "__init__"][1]


TREES = {name: ast.parse(path.read_text()) for name, path in MODULES.items()}
IMPORTS = {name: imported(ast.walk(tree), PACKAGE, MODULES) for name, tree in TREES.items()}


def violations(imports: dict[str, set[str]], floors: list[set[str]]) -> list[str]:
    """Imports that do not go down."""
    floor = {name: i for i, rooms in enumerate(floors) for name in rooms}
    return sorted(
        f"{module} imports {other}"
        for module, others in imports.items()
        for other in others
        if room(module) != room(other) and floor[room(module)] >= floor[room(other)]
    )


TEXT = """
from typing import TYPE_CHECKING
import torch, house.attic, house
from house import __version__, cellar, thing
if TYPE_CHECKING:
    from house.hall.stairs import up
class Visit:
    from house.garden import gate
    def enter():
        import house.kitchen as kitchen
"""


def test_every_import_is_read():
    always = {"house.attic", "house.cellar", "house", "house.garden"}
    tree, known = ast.parse(TEXT), {"house.cellar": Path()}
    assert imported(ast.walk(tree), "house", known) == always | {"house.hall.stairs", "house.kitchen"}
    assert imported(on_import(tree), "house", known) == always
    assert IMPORTS[f"{PACKAGE}.losses"] == {f"{PACKAGE}.flow", f"{PACKAGE}.layout"}


def test_an_import_that_goes_up_or_stays_is_found():
    imports = {"house.a.x": {"house.a.y", "house.b"}, "house.b": {"house.a.x", "house.c"}, "house.c": set()}
    assert violations(imports, [{"a"}, {"b", "c"}]) == ["house.b imports house.a.x", "house.b imports house.c"]


def test_every_room_has_a_floor():
    rooms = {room(module) for module in MODULES}
    assert rooms == set().union(*FLOORS)
    assert sum(map(len, FLOORS)) == len(set().union(*FLOORS))


def test_a_room_imports_only_from_below():
    assert violations(IMPORTS, FLOORS) == []


def test_no_import_goes_in_a_circle():
    TopologicalSorter(IMPORTS).prepare()


def test_every_imported_module_is_there():
    assert {name for names in IMPORTS.values() for name in names} <= MODULES.keys()


def test_only_families_and_conversion_name_a_family():
    """Everyone else asks the registry."""
    families = {f"{PACKAGE}.families.{name}" for name in ("var", "llamagen", "table")}
    for module, names in IMPORTS.items():
        if room(module) not in ("families", "__init__"):
            named = {name for name in names if any(name.startswith(family) for family in families)}
            assert not named, f"{module} imports {named}"


def test_data_know_no_network():
    """Nothing that is imported with a data module, however indirectly, defines one."""
    todo, seen = [name for name in MODULES if room(name) == "data"], set()
    while todo:
        module = todo.pop()
        if module not in seen:
            seen.add(module)
            todo += imported(on_import(TREES[module]), PACKAGE, MODULES)
    networks = {name for name in MODULES if "(nn.Module" in MODULES[name].read_text()}
    assert f"{PACKAGE}.models.layers" in networks and not seen & networks


def test_the_package_knows_no_experiment():
    assert not {name for tree in TREES.values() for name in imported(ast.walk(tree), "benchmarks", {})}


@pytest.mark.parametrize("folder", ["src", "benchmarks"])
def test_no_file_is_too_long(folder):
    paths = sorted((ROOT / folder).rglob("*.py"))
    assert paths
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in paths}
    assert {name: lines for name, lines in lengths.items() if lines > LONGEST} == {}
