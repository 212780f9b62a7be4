"""Settings of the documentation site; ``make docs`` builds it."""

import re
import sys
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent
sys.path[:0] = [str(DOCS.parent / "src"), str(DOCS)]

project, author, copyright = "dd2-lightning", "The dd2-lightning authors", "the dd2-lightning authors"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax"]
exclude_patterns = ["_build"]
html_theme, html_title = "furo", "dd2-lightning"

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

autodoc_member_order, autodoc_typehints = "bysource", "none"
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_inherit_docstrings = False
napoleon_use_ivar, napoleon_use_rtype = True, False


def name_files_outside(app: Any, page: str, source: list[str]) -> None:
    """Replace links to files of the repository, which the site has not, by their paths."""
    source[0] = re.sub(r"\[([^\]]*)\]\(\.\./([^)]*)\)", r"\1 (`\2`)", source[0])


def setup(app: Any) -> None:
    """Write the pages that are made from the code before the sources are looked for."""
    from pages import write_pages

    write_pages(DOCS / "generated")
    app.connect("source-read", name_files_outside)
