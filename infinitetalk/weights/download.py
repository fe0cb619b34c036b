"""Downloads the files of the published checkpoints that the worker reads, and finds them in the Hugging Face cache."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from infinitetalk.errors import CheckpointError
from infinitetalk.family import Repository


def download(repository: Repository, folder: Path) -> Path:
    """Downloads the missing files of a repository below `folder`, with a progress bar; partial files are resumed.

    Returns:
        The repository's folder.

    Raises:
        CheckpointError: the repository cannot be reached.
    """
    target = folder / repository.repo_id.rpartition("/")[2]
    try:
        snapshot_download(repository.repo_id, local_dir=target, allow_patterns=list(repository.patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(
            f"{repository.repo_id} could not be fetched; received files are kept, run the command again"
        ) from error
    return target / "quant_models" if repository.setting == "QUANT_DIR" else target


def cached_folder(repo_id: str, cache: Path) -> Path | None:
    """The folder of a repository in a Hugging Face cache, at the commit of its main branch; None if it is not cached.

    Nothing is downloaded.
    """
    try:
        return Path(snapshot_download(repo_id, cache_dir=cache, local_files_only=True))
    except LocalEntryNotFoundError:
        return None
