"""Sizes of a family's networks: numbers, booleans and lists that JSON can hold, checked where they enter."""

from collections.abc import Callable
from dataclasses import MISSING, asdict, dataclass, fields
from types import NoneType
from typing import Any, ClassVar, Self, get_args

from torch import nn

from dd2_lightning.models.convnets import GROUP


def is_positive(value: Any, *types: type) -> bool:
    """Whether this is a number above 0 of one of the types, and no boolean."""
    is_number = isinstance(value, types) and not isinstance(value, bool)
    return is_number and value > 0


KINDS: dict[Any, tuple[str, Callable[[Any], bool]]] = {
    int: ("a positive integer", lambda value: is_positive(value, int)),
    float: ("a positive number", lambda value: is_positive(value, int, float)),
    bool: ("true or false", lambda value: isinstance(value, bool)),
    tuple[int, ...]: (
        "a list of positive integers",
        lambda value: isinstance(value, (list, tuple)) and len(value) > 0 and all(is_positive(v, int) for v in value),
    ),
}
"""Types of fields to what their values must be, in words and as a test."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Base of the frozen dataclasses in which families keep their sizes; a field's type is in ``KINDS``, or optional.

    A ``ValueError`` names the key of a value that its type does not allow, or that makes no model.
    """

    FAMILY: ClassVar[str]  # the family's name in messages

    def __post_init__(self):
        for field in fields(self):
            value, kinds = getattr(self, field.name), get_args(field.type)
            optional = NoneType in kinds
            if optional and value is None:
                continue
            wanted, fits = KINDS[next(kind for kind in kinds if kind is not NoneType) if optional else field.type]
            if not fits(value):
                raise ValueError(f"'{field.name}' must be {wanted}, got {value!r}")
            if isinstance(value, list):
                object.__setattr__(self, field.name, tuple(value))

    def check_multiple(self, key: str, of: str) -> None:
        """Refuse a size that is no multiple of another, unless that is None."""
        value, divisor = getattr(self, key), getattr(self, of)
        if divisor is not None and value % divisor:
            raise ValueError(f"'{key}' must be a multiple of '{of}', got {value} and {divisor}")

    @classmethod
    def from_dict(cls, config: dict[str, Any]) -> Self:
        """Read them from JSON values; a ``ValueError`` names a key that is unknown, missing or out of range."""
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
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


@dataclass(frozen=True, kw_only=True)
class ImageModelSizes(Sizes):
    """Sizes that a transformer over the tokens of images has in every family."""

    codes: int  # V
    token_dim: int  # C
    num_classes: int  # classes without the null class
    width: int  # of the transformer
    depth: int  # its blocks
    heads: int  # attention heads
    ch: int  # base width of the tokenizer's encoder and decoder, a multiple of 4
    num_res_blocks: int  # residual blocks a level of the encoder; the decoder has one more
    image_channels: int = 3  # channels of an image
    # False leaves out the tokenizer's encoder and decoder: the teacher can be distilled, not decode images
    pixels: bool = True

    def __post_init__(self):
        super().__post_init__()
        self.check_multiple("width", "heads")
        if self.ch % GROUP:
            raise ValueError(f"'ch' must be a multiple of {GROUP}, the channels of a group of GroupNorm, got {self.ch}")


def count_parameters(*modules: nn.Module) -> int:
    """Number of parameters of modules together; shared ones count once."""
    return sum({parameter: parameter.numel() for module in modules for parameter in module.parameters()}.values())
