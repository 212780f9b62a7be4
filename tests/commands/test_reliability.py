"""``docs/reliability.md`` says what ``benchmarks/reliability.json`` holds."""

import json
from pathlib import Path

from benchmarks.reliability import report

ROOT = Path(__file__).parents[2]


def test_the_document_is_that_of_the_figures():
    figures = json.loads((ROOT / "benchmarks/reliability.json").read_text())
    assert (ROOT / "docs/reliability.md").read_text() == report(figures)
