"""Downloads the files of the published checkpoints that the worker reads, and finds them in the Hugging Face cache."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from httpx2 import HTTPError
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

from infinitetalk.errors import CheckpointError
from infinitetalk.family import Repository

#: Folder of LoRAs among those of the repositories.
LORAS_FOLDER = "loras"
#: What huggingface_hub raises if the hub refuses or cannot be reached: its own errors, and those of its client.
HUB_ERRORS = (HTTPError, OSError)


def download(repository: Repository, folder: Path) -> Path:
    """Downloads the missing files of a repository below `folder`, with a progress bar; partial files are resumed.

    Returns:
        The folder for the repository's setting; that of LoRAs is common to all of them.

    Raises:
        CheckpointError: the repository cannot be reached.
    """
    if repository.setting == "LORA_DIR":
        folder = folder / LORAS_FOLDER
    target = folder / repository.name
    try:
        snapshot_download(repository.repo_id, local_dir=target, allow_patterns=list(repository.patterns))
    except HUB_ERRORS as error:
        raise CheckpointError(
            f"{repository.repo_id} could not be fetched; received files are kept, run the command again"
        ) from error
    return {"QUANT_DIR": target / "quant_models", "LORA_DIR": folder}.get(repository.setting, target)


def cached_folder(repo_id: str, cache: Path) -> Path | None:
    """The folder of a repository in a Hugging Face cache, at the commit of its main branch; None if it is not cached
    or no repository can have this name.

    Nothing is downloaded.
    """
    try:
        return Path(snapshot_download(repo_id, cache_dir=cache, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        return None


def cached_repositories(cache: Path) -> Iterator[str]:
    """Names, OWNER/NAME, of the repositories of models in a Hugging Face cache."""
    for folder in sorted(cache.glob("models--*--*")):
        yield folder.name.removeprefix("models--").replace("--", "/", 1)
