"""Distilled Decoding 2: one-step generators from autoregressive image models.

::

    import dd2_lightning as dd2

    teacher = dd2.load_teacher("runs/var/teacher")
    generator = dd2.load_generator("runs/var/csd")  # or "user/name", a model on the Hub
    images = generator.decode(generator.sample(labels))
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from dd2_lightning.families.llamagen.sampling import LlamaGenSampling
from dd2_lightning.families.var.sampling import VARSampling
from dd2_lightning.sampling import Sampling

if TYPE_CHECKING:
    from dd2_lightning.artifacts import load_generator, load_init, load_teacher, write_teacher
    from dd2_lightning.hub.export import export
    from dd2_lightning.hub.push import push_to_hub

try:
    __version__ = version("dd2-lightning")
except PackageNotFoundError:  # a source tree that is not installed
    __version__ = "0"

__all__ = [
    "LlamaGenSampling",
    "Sampling",
    "VARSampling",
    "__version__",
    "export",
    "load_generator",
    "load_init",
    "load_teacher",
    "push_to_hub",
    "write_teacher",
]


def __getattr__(name: str) -> Any:
    """Import what needs torch at its first use, so that ``dd2 --help`` is quick."""
    if name not in __all__:
        raise AttributeError(f"module 'dd2_lightning' has no attribute '{name}'")
    home = {"export": "hub.export", "push_to_hub": "hub.push"}.get(name, "artifacts")
    return getattr(import_module(f"dd2_lightning.{home}"), name)


def __dir__() -> list[str]:
    """The public names."""
    return __all__
