"""The questions, variants and claims of ``variants.yaml``."""

from pathlib import Path
from typing import Any, NamedTuple

import yaml

BASELINE = "baseline"


class Variant(NamedTuple):
    """A change of one thing against the baseline.

    Attributes:
        name: in commands, tables and figures.
        changes: ``stage.setting``, or ``stage.setting.key``, to its value.
        align: share of the iterations that stage 3 takes, at the end.
        same_time: take as many iterations as the baseline's time allows.
    """

    name: str
    changes: dict[str, Any] = {}  # noqa: RUF012
    align: float = 0.0
    same_time: bool = False


class Claim(NamedTuple):
    """A claim that runs bear out or not: the figure of ``better`` is smaller than that of ``worse``.

    Attributes:
        text: the claim in words.
        paper: result of the paper.
        prototype: result of a single-seed prototype.
        better: variant and key of ``analysis.FIGURES``.
        worse: variant and key of ``analysis.FIGURES``.
        differs: False for the claim that the figures are equal, which runs can refute only.
    """

    text: str
    paper: str
    prototype: str
    better: tuple[str, str]
    worse: tuple[str, str]
    differs: bool = True


class Question(NamedTuple):
    """Variants that are compared with each other; those that equal the baseline are not run twice."""

    name: str
    title: str
    variants: tuple[Variant, ...]
    claims: tuple[Claim, ...]


def read_claim(entry: dict[str, Any]) -> Claim:
    """A claim of the YAML file."""
    figure = entry.get("figure", "distance")
    first, second = figure if isinstance(figure, list) else (figure, figure)
    sides = (entry["better"], first), (entry["worse"], second)
    return Claim(entry["claim"], entry["paper"], entry["prototype"], *sides, entry.get("differs", True))


def read_variant(name: str, entry: dict[str, Any]) -> Variant:
    """A variant of the YAML file."""
    changes = {key: value for key, value in entry.items() if "." in key}
    return Variant(name, changes, **{key: value for key, value in entry.items() if key not in changes})


QUESTIONS = tuple(
    Question(
        name,
        entry["title"],
        tuple(read_variant(*item) for item in entry["variants"].items()),
        tuple(read_claim(claim) for claim in entry["claims"]),
    )
    for name, entry in yaml.safe_load(Path(__file__).with_name("variants.yaml").read_text()).items()
)


def choose(names: str | list[str]) -> list[Question]:
    """The questions, with those variants that are named by their own name or by that of the question.

    Raises:
        ValueError: for an unknown name.
    """
    if names == "all":
        return list(QUESTIONS)
    known = [BASELINE, *(name for q in QUESTIONS for name in (q.name, *(variant.name for variant in q.variants)))]
    for name in names:
        if name not in known:
            raise ValueError(f"variants: there is no {name!r}; there are: {', '.join(known)}")
    questions = []
    for question in QUESTIONS:
        kept = tuple(v for v in question.variants if question.name in names or v.name in names)
        if kept:
            questions.append(question._replace(variants=kept))
    return questions
