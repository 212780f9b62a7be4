"""Models on the Hugging Face Hub, by name: single files are fetched into the Hub's cache, at one commit."""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from dd2_lightning.errors import ArtifactError, first_line

PREFIX = "hf://"
NAME = re.compile(r"(hf:/{1,2})?(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>\S+))?")


@dataclass(frozen=True)
class HubModel:
    """A repository of the Hub, at a branch, tag or commit; the main branch if ``revision`` is None."""

    repo: str
    revision: str | None = None

    @classmethod
    def named(cls, name: str | Path) -> Self | None:
        """The model that ``user/name`` or ``user/name@revision`` means; None where it means a local directory.

        What exists here is local, and so is ``user/name`` where a directory ``user`` exists, so that a misspelt path
        asks no network. ``hf://user/name`` is always the Hub's.
        """
        found = NAME.fullmatch(str(name))
        if found is None or (not found[1] and (Path(name).exists() or Path(name).parent.is_dir())):
            return None
        return cls(found["repo"], found["revision"])

    def __str__(self) -> str:
        return f"{PREFIX}{self.repo}" + (f"@{self.revision}" if self.revision else "")

    def at(self, commit: str) -> Self:
        """The same model at a commit."""
        return replace(self, revision=commit)

    def fetch(self, filename: str, purpose: str) -> Path:
        """Path of a file in the Hub's cache, downloaded first where it is missing or, by a branch, outdated.

        An ``ArtifactError`` says why there is none; for messages, ``purpose`` is the setting that names the model.
        """
        import huggingface_hub

        try:
            return Path(huggingface_hub.hf_hub_download(self.repo, filename, revision=self.revision))
        except Exception as error:  # the client lets exceptions of its HTTP library through, and those change
            raise ArtifactError(f"{purpose}: {self.explain(error, filename)}") from error

    def explain(self, error: Exception, filename: str) -> str:
        """Why a file was not fetched, in one line."""
        from huggingface_hub import errors, get_token

        if isinstance(error, errors.RevisionNotFoundError):
            return f"{self.repo} on the Hub has no revision '{self.revision}'"
        if isinstance(error, errors.LocalEntryNotFoundError):
            why = first_line(error.__cause__ or error)
            return f"{self} is no directory here, not in the Hub's cache, and the Hub cannot be reached ({why})"
        if isinstance(error, errors.EntryNotFoundError):
            what = "is no model of dd2-lightning" if filename == "config.json" else "was published without this part"
            return f"{self} {what}: it has no {filename}"
        if isinstance(error, errors.RepositoryNotFoundError) or http_status(error) in (401, 403):
            reader = "your token" if get_token() else "everybody"
            return (
                f"{self.repo} is neither a directory here nor a model on the Hub that {reader} can read; "
                f"hf auth login, or HF_TOKEN, gives access to private ones"
            )
        return f"{self} could not be fetched ({first_line(error)})"


def at_revision(name: str | Path, revision: str | None) -> str | Path:
    """A model's name with a revision."""
    return name if revision is None else f"{name}@{revision}"


def http_status(error: Exception) -> int | None:
    """What a server answered; None if it did not."""
    return getattr(getattr(error, "response", None), "status_code", None)
