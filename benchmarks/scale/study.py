"""The study's YAML file."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from benchmarks.training import Config, overridden, read_config
from dd2_lightning.data.named import Named
from dd2_lightning.errors import DD2Error, check_at_least_one, check_range

CONFIGS = Path(__file__).parents[2] / "configs"

METHODS = {"dd2": ("sequences", "init", "csd", "align"), "dd1": ("pairs", "dd1")}
"""Parts of a run by method, in order."""


@dataclass(frozen=True)
class Setting:
    """A teacher, and how it is distilled; ``settings.yaml`` explains the keys."""

    title: str
    teacher: str
    configs: str
    data: Named | None = None
    sampling: dict[str, Any] | None = None
    changes: dict[str, dict[str, Any]] = field(default_factory=dict)

    def config(self, stage: str) -> Config:
        """Model and data of a stage."""
        config = read_config(CONFIGS / f"{stage}_{self.configs}.yaml")
        sampling = {} if self.sampling is None else {"sampling": self.sampling}
        inside = {"teacher_sampling": self.sampling} if sampling and stage != "dd1" else {}
        return overridden(config, {**inside, **self.changes.get(stage, {})}, sampling)

    def teacher_sampling(self) -> dict[str, Any]:
        """Guidance and truncation that all are measured against."""
        return self.config("csd")["model"]["init_args"]["teacher_sampling"]


@dataclass(frozen=True)
class Study:
    """All settings and the time of a run; ``settings.yaml`` explains the keys."""

    seeds: list[int]
    seconds: float
    shares: dict[str, dict[str, float]]
    batch_size: int
    most: int
    points: int
    point_samples: int
    samples: int
    reference_samples: int
    settings: dict[str, Setting]

    def __post_init__(self):
        for name in ("batch_size", "most", "points", "point_samples", "samples", "reference_samples"):
            check_at_least_one("", **{name: getattr(self, name)})
        check_range("", "(0, inf)", seconds=self.seconds)
        for method in METHODS:
            shares = self.shares.get(method, {})
            if set(shares) - set(METHODS[method]) or abs(sum(shares.values()) - 1) > 1e-6:
                raise ValueError(f"shares.{method}: {', '.join(METHODS[method])} must sum to 1, got {shares}")

    def parts(self, method: str) -> dict[str, float]:
        """Shares of the time of a run's parts, in their order."""
        return {part: self.shares[method][part] for part in METHODS[method] if part in self.shares[method]}

    def setting(self, name: str) -> Setting:
        """The setting of this name."""
        if name not in self.settings:
            raise ValueError(f"there is no setting '{name}'; there are: {', '.join(self.settings)}")
        return self.settings[name]


def read_study(path: str | Path) -> Study:
    """Read the YAML file.

    Raises:
        DD2Error: if there is no such file, or keys are missing or unknown.
        ValueError: naming the file and the key whose value cannot be.
    """
    try:
        content = yaml.safe_load(Path(path).read_text())
        settings = {name: Setting(**entry) for name, entry in content.pop("settings").items()}
        return Study(**content, settings=settings)
    except (OSError, yaml.YAMLError, TypeError, KeyError, AttributeError) as error:
        raise DD2Error(f"{path} is no study of scale ({error})") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
