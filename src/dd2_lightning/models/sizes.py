"""Sizes of a family's networks: plain values that survive JSON, checked where they enter."""

from dataclasses import MISSING, asdict, fields
from types import NoneType
from typing import Any, ClassVar, Self, get_args

from torch import nn

from dd2_lightning.models.convnets import GROUPS


class Sizes:
    """Base of the frozen dataclasses in which families keep their sizes.

    Fields are of type ``int`` (a count, at least 1), ``float`` (above 0), ``bool``, ``tuple[int, ...]`` (counts, at
    least one), or an optional one of these.

    Attributes:
        FAMILY: the family's name in messages.

    Raises:
        ValueError: for a value that is none of these; the message names the key.
    """

    FAMILY: ClassVar[str]

    def __post_init__(self):
        for field in fields(self):
            value, kinds = getattr(self, field.name), get_args(field.type)
            if NoneType in kinds:
                if value is None:
                    continue
                kind = next(kind for kind in kinds if kind is not NoneType)
            else:
                kind = field.type
            wanted = _what_is_wrong(kind, value)
            if wanted:
                raise ValueError(f"'{field.name}' must be {wanted}, got {value!r}")
            if isinstance(value, list):
                object.__setattr__(self, field.name, tuple(value))

    def check_multiple(self, key: str, of: str | int, name: str = "") -> None:
        """Refuse ``key`` unless it is a multiple of another key, or of a number that ``name`` explains."""
        value, divisor = getattr(self, key), getattr(self, of) if isinstance(of, str) else of
        if value % divisor:
            if isinstance(of, str):
                raise ValueError(f"'{key}' must be a multiple of '{of}', got {value} and {divisor}")
            raise ValueError(f"'{key}' must be a multiple of {name}, got {value}")

    def check_ch(self) -> None:
        """Refuse a base width of the pixel networks that GroupNorm cannot group."""
        self.check_multiple("ch", GROUPS, f"the {GROUPS} groups of GroupNorm")

    @classmethod
    def from_dict(cls, config: dict[str, Any]) -> Self:
        """Read plain values.

        Raises:
            ValueError: for a key that is unknown or missing, or a value that is refused.
        """
        known = {field.name: field for field in fields(cls)}
        unknown = sorted(config.keys() - known.keys())
        if unknown:
            raise ValueError(f"unknown key '{unknown[0]}' for a {cls.FAMILY} teacher; there are: {', '.join(known)}")
        required = [name for name, field in known.items() if field.default is MISSING]
        missing = [name for name in required if name not in config]
        if missing:
            raise ValueError(f"a {cls.FAMILY} teacher needs '{missing[0]}'; required are: {', '.join(required)}")
        return cls(**config)

    def to_dict(self) -> dict[str, Any]:
        """Plain values that survive JSON."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


def _what_is_wrong(kind: Any, value: Any) -> str:
    """What a value of this kind must be, if it is not."""
    if kind == tuple[int, ...]:
        good = isinstance(value, (list, tuple)) and value and all(map(_is_count, value))
        return "" if good else "a list of positive integers"
    if kind is int:
        return "" if _is_count(value) else "a positive integer"
    if kind is bool:
        return "" if isinstance(value, bool) else "true or false"
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0
    return "" if good else "a positive number"


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


class Sized:
    """What teachers have in common that are built from :class:`Sizes` alone; their constructor sets ``sizes``.

    Attributes:
        sizes_type: the family's sizes.
        sizes: those of this teacher.
    """

    sizes_type: ClassVar[type[Sizes]]
    sizes: Sizes

    @property
    def config(self) -> dict[str, Any]:
        """Plain sizes, as :meth:`from_config` reads them."""
        return self.sizes.to_dict()

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """A teacher with fresh weights from plain sizes.

        Raises:
            ValueError: for sizes that do not make a model; the message names the key.
        """
        return cls(cls.sizes_type.from_dict(config))


def count_parameters(*modules: nn.Module) -> int:
    """Number of parameters of modules together; shared ones count once."""
    return sum({parameter: parameter.numel() for module in modules for parameter in module.parameters()}.values())
