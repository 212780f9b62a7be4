"""The documents: their names exist, links lead somewhere, code can be read, generated pages are complete."""

import importlib
import inspect
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "docs"))
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
GENERATED = "generated/"


def slug(heading: str) -> str:
    """The anchor of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def anchors(path: Path) -> set[str]:
    text = re.sub(r"```.*?```", "", path.read_text(), flags=re.S)
    return {slug(heading) for heading in re.findall(r"^#+ (.*)$", text, re.M)}


def broken_links(path: Path, text: str) -> list[str]:
    """Relative links of a document that lead to no file, or to no heading of it."""
    bad = []
    text = re.sub(r"```.*?```", "", text, flags=re.S)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", link) or link.startswith(GENERATED):
            continue
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        if not target.exists() or (anchor and anchor not in anchors(target)):
            bad.append(link)
    return bad


def missing_pages(index: str, names: set[str]) -> set[str]:
    """Pages that no table of contents of the site has."""
    listed = {line.strip() for block in re.findall(r"```{toctree}(.*?)```", index, re.S) for line in block.splitlines()}
    return names - listed


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    assert broken_links(path, path.read_text()) == []


def test_a_broken_link_is_found():
    text = "[a](nowhere.md) [b](glossary.md#no-such-heading) [c](glossary.md#flows) [d](https://example.org)"
    assert broken_links(ROOT / "docs/index.md", text) == ["nowhere.md", "glossary.md#no-such-heading"]


def test_every_page_is_in_the_contents():
    pages = {path.stem for path in (ROOT / "docs").glob("*.md")} - {"index"}
    assert missing_pages((ROOT / "docs/index.md").read_text(), pages) == set()
    assert missing_pages("```{toctree}\na\n```", {"a", "b"}) == {"b"}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_python_can_be_read(path):
    for block in re.findall(r"```python\n(.*?)```", path.read_text(), re.S):
        compile(block, path.name, "exec")


def names_of(text: str) -> set[str]:
    """Dotted names of the package in a document's code, like ``losses.gts_loss``."""
    rooms = "flow|losses|layout|models|stages|callbacks|data"
    return set(re.findall(rf"`((?:{rooms})(?:\.\w+)+)`", text)) - {"data.cache_size", "data.sequences"}


def resolve(name: str) -> object:
    """What a dotted name is; an AttributeError or ImportError if it is nothing."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            value = importlib.import_module(".".join(["dd2_lightning", *parts[:length]]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            value = getattr(value, part)
        return value
    raise ImportError(name)


def test_equations_name_functions_that_exist():
    names = names_of((ROOT / "docs/method.md").read_text())
    assert len(names) >= 20
    for name in names:
        resolve(name)
    with pytest.raises(AttributeError):
        resolve("losses.no_such_loss")


def test_equations_are_named_where_they_are_computed():
    """And back: every function of the paper's losses and flows is on the page of the method."""
    page = (ROOT / "docs/method.md").read_text()
    losses = importlib.import_module("dd2_lightning.losses")
    public = {
        name
        for name, value in vars(losses).items()
        if inspect.isfunction(value) and value.__module__ == losses.__name__
    }
    assert {f"losses.{name}" for name in public if not name.startswith("_")} <= names_of(page)


def test_the_page_of_configs_has_every_setting():
    from pages import configs_page

    page = configs_page()
    stages = importlib.import_module("dd2_lightning.stages")
    for kind in (stages.CSDDistill, stages.ARDiffusionInit, stages.TeacherTraining):
        for name in inspect.signature(kind).parameters:
            row = re.search(rf"^\| `{name}` \| (?:required|`.*`) \| (.+) \|$", page, re.M)
            assert row, f"{kind.__name__}.{name} has no help"
    assert "`configs/paper/var_d16/csd.yaml`" in page and ":class:" not in page
