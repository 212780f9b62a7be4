"""The families of teachers, by name. A new family is one file beside this one and one line here.

A user's own is named by where it is imported from, ``my_module.MyTeacher``, and needs no line.
"""

from importlib import import_module
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
    """The name that a teacher's family is stored under: the short one, or where its class is imported from.

    Raises:
        ValueError: for a class that cannot be imported by its name.
    """
    kind = type(teacher)
    for name, family in FAMILIES.items():
        if kind is family:
            return name
    path = f"{kind.__module__}.{kind.__qualname__}"
    if family_class(path) is not kind:
        raise ValueError(f"{path} is not the class of this teacher: define it in a module of its own")
    return path


def family_class(name: str) -> type[CodebookTeacher]:
    """The class of a family.

    Args:
        name: a key of ``FAMILIES``, or where to import a subclass of :class:`CodebookTeacher` from.

    Raises:
        ValueError: if there is no such family.
    """
    if name in FAMILIES:
        return FAMILIES[name]
    module, _, attribute = name.rpartition(".")
    if not module:
        raise ValueError(f"unknown family '{name}'; there are: {', '.join(FAMILIES)}, or your own: module.Class")
    try:
        kind = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"family '{name}' cannot be imported ({error}); is its module on PYTHONPATH?") from error
    if not (isinstance(kind, type) and issubclass(kind, CodebookTeacher)):
        raise ValueError(f"family '{name}' is not a subclass of CodebookTeacher")
    return kind


def teacher_from_config(family: str, architecture: dict[str, Any]) -> CodebookTeacher:
    """A teacher with fresh weights.

    Raises:
        ValueError: for an unknown family, or sizes that the family refuses (the message names the key).
    """
    return family_class(family).from_config(architecture)
