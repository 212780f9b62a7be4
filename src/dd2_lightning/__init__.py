"""Distilled Decoding 2: one-step generators from autoregressive image models.

::

    import dd2_lightning as dd2

    teacher = dd2.load_teacher("runs/var/teacher")
    generator = dd2.load_generator("runs/var/csd")
    images = generator.decode(generator.sample(labels))
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dd2_lightning.artifacts import load_generator, load_init, load_teacher, write_teacher
    from dd2_lightning.families.llamagen.sampling import LlamaGenSampling
    from dd2_lightning.families.var.sampling import VARSampling
    from dd2_lightning.sampling import Sampling

try:
    __version__ = version("dd2-lightning")
except PackageNotFoundError:  # a source tree that is not installed
    __version__ = "0"

_PUBLIC = {
    "LlamaGenSampling": "dd2_lightning.families.llamagen.sampling",
    "Sampling": "dd2_lightning.sampling",
    "VARSampling": "dd2_lightning.families.var.sampling",
    "load_generator": "dd2_lightning.artifacts",
    "load_init": "dd2_lightning.artifacts",
    "load_teacher": "dd2_lightning.artifacts",
    "write_teacher": "dd2_lightning.artifacts",
}

__all__ = [
    "LlamaGenSampling",
    "Sampling",
    "VARSampling",
    "__version__",
    "load_generator",
    "load_init",
    "load_teacher",
    "write_teacher",
]


def __getattr__(name: str) -> Any:
    """Import the public names at their first use, so that ``dd2 --help`` is quick."""
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'dd2_lightning' has no attribute '{name}'")
