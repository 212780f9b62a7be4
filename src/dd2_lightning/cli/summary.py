"""``dd2 summary``: several seeds in one table."""

from pathlib import Path
from typing import Any


def summary(results: list[str | Path], output: str | Path) -> dict[str, Any]:
    """Medians and ranges of several results.json, as JSON and as a Markdown table beside it.

    Args:
        results: the files.
        output: the JSON file to write; the table gets its name with ``.md``.
    """
    from dd2_lightning.cli.finish import finish
    from dd2_lightning.evaluation.report import aggregate, markdown, print_table, read_report, to_json
    from dd2_lightning.files import write_atomically

    medians = aggregate([read_report(path) for path in results])
    write_atomically(Path(output).with_suffix(".md"), markdown(medians).encode())
    write_atomically(Path(output), to_json(medians))
    print_table(medians)
    finish("summary", f"medians and their table -> {output}")
    return medians
