"""Uploads a pack to a repository of the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Callable
from glob import escape
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError

from infinitetalk.errors import CheckpointError
from infinitetalk.weights.download import HUB_ERRORS
from infinitetalk.weights.manifest import MANIFEST_FILE, check_sizes, read_manifest

#: What the hub itself puts into a new repository.
OF_THE_HUB = ".gitattributes"


def push(folder: Path, repo_id: str, on_part: Callable[[str], None] = lambda part: None) -> str:
    """Uploads a pack's files, the manifest last, so that no worker takes half a pack for a whole one. The repository
    must be new, empty, or a pack, which is replaced. It becomes private if it does not exist yet.

    Args:
        on_part: called with whom the repository is open to.

    Returns:
        The repository's address.

    Raises:
        CheckpointError: the folder is no complete pack, the repository holds something else, or the hub refused it.
    """
    manifest = read_manifest(folder)
    check_sizes(folder, manifest)
    paths = [file.path for file in manifest.files]
    api = HfApi()
    try:
        address = api.create_repo(repo_id, private=True, exist_ok=True)
        info = api.model_info(repo_id)
        held = {file.rfilename for file in info.siblings or ()}
        others = held.difference(paths, [OF_THE_HUB])
        if others and MANIFEST_FILE not in held:
            raise CheckpointError(
                f"{repo_id} holds files that are no pack, such as {min(others)}, and a pack would replace them; "
                "give a new repository"
            )
        on_part(f"the repository is {'private' if info.private else 'public'}")
        api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            allow_patterns=[escape(path) for path in paths],
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
    except HUB_ERRORS as error:
        raise CheckpointError(
            f"{repo_id} did not take the pack; check that HF_TOKEN may write there and that the hub can "
            f"be reached, and run "
            f"`python -m infinitetalk.weights pack --out {folder} --push {repo_id}`: it goes on where it stopped"
        ) from error
    return str(address)
