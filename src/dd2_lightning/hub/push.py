"""Publishing a run on the Hugging Face Hub: a self-contained directory in one commit."""

from pathlib import Path
from typing import Any

from dd2_lightning.errors import ArtifactError, first_line
from dd2_lightning.hub.export import Contents, collect
from dd2_lightning.remote import NAME, http_status


def push_to_hub(run: str | Path, repo: str, private: bool = False, dry_run: bool = False, **options: Any) -> Contents:
    """Publish a run as ``user/name``, and return the files that were, or would be, published.

    A repository is created if it is not there; otherwise its files of the same names are replaced. A ``dry_run``
    contacts nobody. The ``options`` are those of :func:`~dd2_lightning.hub.export.collect`.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, get_token

    found = NAME.fullmatch(repo)
    if found is None or found["revision"]:
        raise ValueError(f"--repo must be user/name, got '{repo}'")
    repo = found["repo"]
    if not dry_run and get_token() is None:
        raise ArtifactError("--repo: publishing needs a token that may write: hf auth login, or set HF_TOKEN")
    contents = collect(run, repo, **options)
    if dry_run:
        return contents
    try:
        api = HfApi()
        api.create_repo(repo, private=private, exist_ok=True)
        files = [CommitOperationAdd(name, content) for name, content in contents.items()]
        api.create_commit(repo, files, commit_message="Upload with dd2-lightning")
    except Exception as error:  # the client lets exceptions of its HTTP library through, and those change
        raise ArtifactError(f"--repo: {repo} was not published: {reason(error)}") from error
    return contents


def reason(error: Exception) -> str:
    """Why the Hub did not take a commit, in one line."""
    status = http_status(error)
    if status == 401:
        return "the Hub does not know this token (hf auth login, or HF_TOKEN)"
    if status == 403:
        return "this token may not write there; choose your own name, or a token with that right"
    if status is None:
        return f"the Hub cannot be reached ({first_line(error)})"
    return f"the Hub answered {status} ({first_line(error)})"
