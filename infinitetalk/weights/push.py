"""Uploads a pack to a repository of the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

from infinitetalk.errors import CheckpointError
from infinitetalk.weights.manifest import MANIFEST_FILE, check_sizes, read_manifest


def push(folder: Path, repo_id: str) -> str:
    """Uploads a pack, the manifest last, so that no worker takes half a pack for a whole one. What the repository held
    before is removed. The repository becomes private if it does not exist yet.

    Returns:
        The repository's address.

    Raises:
        CheckpointError: the folder is no complete pack, or the hub refused it.
    """
    check_sizes(folder, read_manifest(folder))
    api = HfApi()
    try:
        address = api.create_repo(repo_id, private=True, exist_ok=True)
        api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            ignore_patterns=[MANIFEST_FILE, ".*"],
            delete_patterns="*",
            commit_message="The pack's files",
        )
        api.upload_file(
            path_or_fileobj=folder / MANIFEST_FILE,
            path_in_repo=MANIFEST_FILE,
            repo_id=repo_id,
            commit_message="The pack's manifest",
        )
    except HFValidationError as error:
        raise CheckpointError(f"{repo_id!r} is no name of a repository; give OWNER/NAME") from error
    except (HfHubHTTPError, LocalTokenNotFoundError, OSError) as error:
        raise CheckpointError(
            f"{repo_id} did not take the pack; check that HF_TOKEN may write there, and run "
            f"`python -m infinitetalk.weights pack --out {folder} --push {repo_id}`: it goes on where it stopped"
        ) from error
    return str(address)
