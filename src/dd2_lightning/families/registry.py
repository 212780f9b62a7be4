"""The families of teachers, by name. A new family is one folder beside this file and one line here.

A user's teacher is named by where its class is imported from, ``my_module.MyTeacher``, and needs no line. Importing
this module imports the sampling settings of the families and no torch: the rest of a family is looked up when used.
"""

from dataclasses import dataclass
from functools import reduce
from importlib import import_module, resources
from operator import or_
from typing import TYPE_CHECKING, Any

from dd2_lightning.sampling import Sampling

if TYPE_CHECKING:
    from dd2_lightning.families.release import Release
    from dd2_lightning.models.teacher import Teacher


@dataclass(frozen=True)
class Family:
    """A family, whose folder is ``families/NAME``."""

    name: str  # what artifacts and configs call it
    teacher_class: str  # in ``model.py``
    sampling_class: str | None = None  # in ``sampling.py``; None where the family has the common settings only
    # whether weights were published: there are ``cards.yaml``, and ``RELEASE`` in ``release.py``
    published: bool = False

    @property
    def folder(self) -> str:
        return f"dd2_lightning.families.{self.name}"

    @property
    def teacher(self) -> "type[Teacher]":
        return getattr(import_module(f"{self.folder}.model"), self.teacher_class)

    @property
    def sampling(self) -> type[Sampling]:
        if self.sampling_class is None:
            return Sampling
        return getattr(import_module(f"{self.folder}.sampling"), self.sampling_class)

    @property
    def release(self) -> "Release":
        """How published files are read."""
        return import_module(f"{self.folder}.release").RELEASE

    @property
    def card(self) -> str:
        """The text of ``cards.yaml``: what was published, where and under what licence."""
        return resources.files(self.folder).joinpath("cards.yaml").read_text()


FAMILIES = {
    family.name: family
    for family in (
        Family("var", "VARTeacher", "VARSampling", published=True),
        Family("llamagen", "LlamaGenTeacher", "LlamaGenSampling", published=True),
        Family("table", "TableTeacher"),
    )
}

if TYPE_CHECKING:
    AnySampling = Sampling
else:
    AnySampling = reduce(or_, (family.sampling for family in FAMILIES.values()), Sampling)
    """The common sampling settings, or those of any family: what a config may give."""


def published_family(name: str) -> Family:
    """A family of which weights were published; a ``ValueError`` if there are none."""
    published = [family.name for family in FAMILIES.values() if family.published]
    if name not in published:
        raise ValueError(f"no weights of family '{name}' are known; there are: {', '.join(published)}")
    return FAMILIES[name]


def family_of(teacher: "Teacher") -> str:
    """The name of a teacher's family: the short one, or ``module.Class``; a ``ValueError`` if that does not import."""
    kind = type(teacher)
    for family in FAMILIES.values():
        if kind is family.teacher:
            return family.name
    path = f"{kind.__module__}.{kind.__qualname__}"
    if family_class(path) is not kind:
        raise ValueError(f"{path} is not the class of this teacher: define it in a module of its own")
    return path


def family_class(name: str) -> "type[Teacher]":
    """The teacher's class of a family, or of a user's, ``module.Class``; a ``ValueError`` if there is none."""
    from dd2_lightning.models.teacher import Teacher

    if name in FAMILIES:
        return FAMILIES[name].teacher
    module, _, attribute = name.rpartition(".")
    if not module:
        raise ValueError(f"unknown family '{name}'; there are: {', '.join(FAMILIES)}, or your own: module.Class")
    try:
        kind = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"family '{name}' cannot be imported ({error}); is its module on PYTHONPATH?") from error
    if not (isinstance(kind, type) and issubclass(kind, Teacher)):
        raise ValueError(f"family '{name}' is not a subclass of Teacher")
    return kind


def teacher_from_config(family: str, architecture: dict[str, Any]) -> "Teacher":
    """A teacher with fresh weights; a ``ValueError`` names what is wrong with the family or its sizes."""
    return family_class(family).from_config(architecture)


def build_meta(family: str, architecture: dict[str, Any]) -> "Teacher":
    """A teacher of these sizes without weights, as :func:`teacher_from_config`: its tensors are on the meta device."""
    import torch

    with torch.device("meta"):
        return teacher_from_config(family, architecture)
