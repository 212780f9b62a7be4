"""The families of teachers, by name. A new family is one file beside this one and one line here."""

from typing import Any

from dd2_lightning.models.llamagen import LlamaGenSampling, LlamaGenTeacher
from dd2_lightning.models.table import TableTeacher
from dd2_lightning.models.teacher import CodebookTeacher
from dd2_lightning.models.var import VARSampling, VARTeacher
from dd2_lightning.sampling import Sampling

FAMILIES: dict[str, type[CodebookTeacher]] = {"var": VARTeacher, "llamagen": LlamaGenTeacher, "table": TableTeacher}

AnySampling = Sampling | VARSampling | LlamaGenSampling
"""Settings as a config may give them: the common ones, or those with what one family adds."""


def family_of(teacher: CodebookTeacher) -> str:
    """The name that a teacher's family is stored under."""
    return next(name for name, family in FAMILIES.items() if isinstance(teacher, family))


def teacher_from_config(family: str, architecture: dict[str, Any]) -> CodebookTeacher:
    """A teacher with fresh weights.

    Raises:
        ValueError: for an unknown family, or sizes that the family refuses (the message names the key).
    """
    if family not in FAMILIES:
        raise ValueError(f"unknown family '{family}'; there are: {', '.join(FAMILIES)}")
    return FAMILIES[family].from_config(architecture)
