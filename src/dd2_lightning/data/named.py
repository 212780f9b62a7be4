"""Image data modules by name and settings, as ``config.json`` and the configs of evaluations hold them."""

from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from dd2_lightning.data.images import ImageData
from dd2_lightning.errors import ArtifactError, DD2Error

Named = dict[str, Any] | str
"""A class: its name, or ``{"class_path", "init_args"}``. Without a dot it is one of :mod:`dd2_lightning.data`."""


def make_named(named: Named, room: str, what: str) -> Any:
    """Make an object of a class by its name and settings; ``what`` begins the message of a ``ValueError``.

    Names without a dot are those of the module ``room``.
    """
    name, settings = (named, {}) if isinstance(named, str) else (named.get("class_path"), named.get("init_args", {}))
    if not isinstance(name, str) or not isinstance(settings, dict):
        raise ValueError(f"{what}: give the name of a class, or class_path and init_args, got {named}")
    try:
        return resolve_name(name if "." in name else f"{room}.{name}")(**settings)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise ValueError(f"{what} '{name}' cannot be made ({error}); is its module on PYTHONPATH?") from error


def describe_images(data: object) -> dict[str, Any]:
    """``{"data": …}`` of the images of a run, for ``config.json``; empty for data of another kind."""
    if not isinstance(data, ImageData):
        return {}
    settings = {key: value for key, value in data.hparams.items() if not key.startswith("_")}
    return {"data": {"class_path": f"{type(data).__module__}.{type(data).__qualname__}", "init_args": settings}}


def images_of(teacher: Path, config: dict[str, Any]) -> ImageData:
    """The images that a teacher was trained on, loaded, as the ``config.json`` of its directory says."""
    if "data" not in config:
        path = teacher / "config.json"
        raise ArtifactError(f"{path} does not say which images the teacher was trained on: name them in data")
    return open_images(config["data"])


def open_images(named: Named) -> ImageData:
    """The images of a run, loaded."""
    data = make_named(named, "dd2_lightning.data", "data")
    if not isinstance(data, ImageData):
        raise ValueError(f"data: {type(data).__name__} has no images; take DigitsData, or an ImageData of your own")
    try:
        data.prepare_data()
        data.setup()
    except DD2Error as error:
        raise DD2Error(f"data: {error}") from error
    return data
