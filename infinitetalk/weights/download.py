"""Fetching the published checkpoints: only the files that the worker reads, into folders or the Hugging Face cache."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from infinitetalk.errors import CheckpointError


@dataclass(frozen=True)
class Repository:
    """A repository and the files of it that are needed.

    Attributes:
        repo_id: on Hugging Face.
        setting: the setting that its folder goes into.
        patterns: of files.
    """

    repo_id: str
    setting: str
    patterns: tuple[str, ...]


REPOSITORIES = {
    "base-480": Repository(
        "Wan-AI/Wan2.1-I2V-14B-480P",
        "CKPT_DIR",
        ("config.json", "diffusion_pytorch_model*", "models_*.pth", "Wan2.1_VAE.pth", "google/umt5-xxl/*"),
    ),
    "base-720": Repository(
        "Wan-AI/Wan2.1-I2V-14B-720P",
        "CKPT_DIR",
        ("config.json", "diffusion_pytorch_model*", "models_*.pth", "Wan2.1_VAE.pth", "google/umt5-xxl/*"),
    ),
    "adapter": Repository(
        "MeiGen-AI/InfiniteTalk",
        "INFINITETALK_DIR",
        ("single/infinitetalk.safetensors", "multi/infinitetalk.safetensors"),
    ),
    "int8": Repository("MeiGen-AI/InfiniteTalk", "QUANT_DIR", ("quant_models/*int8*",)),
    "fp8": Repository("MeiGen-AI/InfiniteTalk", "QUANT_DIR", ("quant_models/*fp8*",)),
    "wav2vec2": Repository(
        "TencentGameMate/chinese-wav2vec2-base",
        "WAV2VEC_DIR",
        ("config.json", "preprocessor_config.json", "pytorch_model.bin"),
    ),
    "kokoro": Repository("hexgrad/Kokoro-82M", "KOKORO_DIR", ("config.json", "kokoro-v1_0.pth", "voices/*.pt")),
}
DEFAULT_NAMES = ("base-480", "adapter", "wav2vec2")


def download(name: str, folder: Path) -> Path:
    """Fetches what is missing of a repository below `folder`, with a progress bar; a file cut off is gone on with.

    Returns:
        The repository's folder.

    Raises:
        CheckpointError: the repository cannot be reached.
    """
    repository = REPOSITORIES[name]
    target = folder / repository.repo_id.rpartition("/")[2]
    try:
        snapshot_download(repository.repo_id, local_dir=target, allow_patterns=list(repository.patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(
            f"{repository.repo_id} could not be fetched; what has arrived is kept, run the command again"
        ) from error
    return target / "quant_models" if repository.setting == "QUANT_DIR" else target


def cached_folder(repo_id: str, cache: Path) -> Path | None:
    """The folder of a repository in a Hugging Face cache, at the commit of its main branch; None where it is not there.

    Nothing is fetched.
    """
    try:
        return Path(snapshot_download(repo_id, cache_dir=cache, local_files_only=True))
    except LocalEntryNotFoundError:
        return None
