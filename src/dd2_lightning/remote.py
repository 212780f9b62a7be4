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
        from huggingface_hub import errors

        try:
            return Path(huggingface_hub.hf_hub_download(self.repo, filename, revision=self.revision))
        except errors.RepositoryNotFoundError as error:
            reader = "your token" if huggingface_hub.get_token() else "everybody"
            reason = (
                f"{self.repo} is neither a directory here nor a model on the Hub that {reader} can read; "
                "hf auth login, or HF_TOKEN, gives access to private ones"
            )
            raise ArtifactError(f"{purpose}: {reason}") from error
        except errors.RevisionNotFoundError as error:
            raise ArtifactError(f"{purpose}: {self.repo} on the Hub has no revision '{self.revision}'") from error
        except errors.LocalEntryNotFoundError as error:
            reason = first_line(error.__cause__ or error)
            raise ArtifactError(
                f"{purpose}: {self} is no directory here, not in the Hub's cache, and the Hub cannot be reached "
                f"({reason})"
            ) from error
        except errors.EntryNotFoundError as error:
            what = "is no model of dd2-lightning" if filename == "config.json" else "was published without this part"
            raise ArtifactError(f"{purpose}: {self} {what}: it has no {filename}") from error
        except Exception as error:  # the client lets exceptions of its HTTP library through, and those change
            raise ArtifactError(f"{purpose}: {self} could not be fetched ({first_line(error)})") from error
