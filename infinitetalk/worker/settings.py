"""The worker's settings, read from the environment. `infinitetalk.weights.settings` has the settings of the weights."""

from __future__ import annotations

import logging
import os
import warnings
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AliasChoices, Field, SecretStr
from pydantic_settings import SettingsConfigDict

from infinitetalk.recipes import RECIPES, Recipe
from infinitetalk.weights.settings import WeightsSettings
from schemas import RecipeName

CHECKOUT = Path(__file__).parents[2]
MEGABYTE = 1_000_000
QUIET = {
    "RUNPOD_LOG_LEVEL": "INFO",
    "TRANSFORMERS_VERBOSITY": "error",
    "DIFFUSERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}
"""Environment variables that make the libraries' logs quieter."""
ALLOCATION = {"PYTORCH_ALLOC_CONF": "expandable_segments:True,pinned_max_cached_size_mb:1"}
"""How torch takes memory. Of a GPU: in segments that grow, since tensors of many sizes follow each other. Of the CPU:
pinned memory above 1 MB is neither rounded up to a power of two, which would make streamed weights half as large again,
nor kept once it is free. (`pinned_max_round_threshold_mb` alone would be wrong: torch 2.13 then answers a request with
any kept block of the same power of two, even with a smaller one.)"""


class Settings(WeightsSettings):
    """Settings by environment variable: the field's name in capitals, or the names listed with it."""

    model_config = SettingsConfigDict(
        env_ignore_empty=True, populate_by_name=True, extra="ignore", use_attribute_docstrings=True, frozen=True
    )

    infinitetalk_model: Literal["talker", "tiny", "published"] | None = None
    """"published": the checkpoints in CKPT_DIR and FLASHTALK_DIR; the worker stops if both are missing. "talker": the
    embedded small model that talks. "tiny": a small model with random weights, made by the worker. Unset: published if
    CKPT_DIR or FLASHTALK_DIR is set, else talker."""

    tiny_dir: Path | None = None
    """Folder in which the random model is made when it is first needed; unset: checkpoints/ of the checkout."""

    device: str | None = None
    """Torch device; unset: cuda if there is a GPU, else cpu."""

    gpus_per_job: Annotated[int, Field(ge=1)] | None = None
    """Number of GPUs that make a video together, with one process each; unset: all GPUs of the worker."""

    gpu_price_per_s: Annotated[float, Field(gt=0)] | None = None
    """Price of a second of one GPU in dollars, for the estimate of a dry run and the log line of a finished job. Unset:
    no price is told."""

    git_commit: str | None = None
    """Git commit of the worker's code, for results, logs and files; set in the image when it is built. Unset: they name
    the hash of the code."""

    kernels: str | None = None
    """Kernels that compute: "published" for the arithmetic of the published model, "auto" for the fastest by a trial at
    the first start on each kind of machine, or names from docs/performance.md, separated by commas. Unset: auto on a
    GPU, published on a CPU."""

    output_dir: Path = Path("outputs")
    """Root of the store "volume"; in the image, the network volume. Inputs may be paths below it."""

    s3_endpoint: Annotated[str | None, Field(validation_alias=AliasChoices("s3_endpoint", "BUCKET_ENDPOINT_URL"))] = (
        None
    )
    """Address of the S3-compatible store; the host's name may begin with the bucket. Also BUCKET_ENDPOINT_URL."""

    s3_region: str | None = None
    """Region of the store. Unset: the region in its host's name, else us-east-1."""

    s3_access_key: Annotated[
        str | None, Field(validation_alias=AliasChoices("s3_access_key", "BUCKET_ACCESS_KEY_ID"))
    ] = None
    """Access key id. Also BUCKET_ACCESS_KEY_ID."""

    s3_secret_key: Annotated[
        SecretStr | None, Field(validation_alias=AliasChoices("s3_secret_key", "BUCKET_SECRET_ACCESS_KEY"))
    ] = None
    """Secret access key. Also BUCKET_SECRET_ACCESS_KEY."""

    s3_bucket: str | None = None
    """Name of the bucket. Unset: the bucket at the start of the host's name in S3_ENDPOINT."""

    s3_public_base: str | None = None
    """Public address of the bucket's root; results then have addresses {base}/{key} instead of presigned ones."""

    s3_url_expiry_s: Annotated[int, Field(ge=1, le=7 * 24 * 3600)] = 7 * 24 * 3600
    """Lifetime of presigned addresses in seconds; seven days at most."""

    serve_examples: bool = False
    """Inputs may be paths below the checkout's examples/; always allowed without a queue. Set by `make serve`."""

    max_image_bytes: Annotated[int, Field(ge=1)] = 50 * MEGABYTE
    """Largest image taken as input, in bytes."""

    max_audio_bytes: Annotated[int, Field(ge=1)] = 200 * MEGABYTE
    """Largest audio file taken as input, in bytes."""

    max_video_bytes: Annotated[int, Field(ge=1)] = 1000 * MEGABYTE
    """Largest video taken as input, in bytes."""

    max_result_bytes: Annotated[int, Field(ge=1)] = 10 * MEGABYTE
    """Largest result as JSON, in bytes; Runpod drops larger results of /run."""

    connect_timeout_s: Annotated[float, Field(gt=0)] = 10.0
    """Time limit in seconds for connecting to an input's or the store's address."""

    read_timeout_s: Annotated[float, Field(gt=0)] = 30.0
    """Longest silence of an address in seconds."""

    store_timeout_s: Annotated[float, Field(gt=0)] = 600.0
    """Time limit in seconds of a store that a job names, for the job's result and for each file of its saved state."""

    download_timeout_s: Annotated[float, Field(gt=0)] = 600.0
    """Time limit in seconds for one download, or for sending one file to an address of the store "put"."""

    download_attempts: Annotated[int, Field(ge=1)] = 4
    """Number of attempts at a download whose error may be transient."""

    max_batch_items: Annotated[int, Field(ge=1, le=50)] = 20
    """Largest number of items in a batch."""

    default_recipe: RecipeName | None = None
    """Recipe of jobs that name none. A job that it cannot serve is made by "quality", with a warning. Unset: jobs have
    the published defaults."""

    provenance: bool = True
    """Mark videos, thumbnails and previews as made by AI in their metadata, with software, version and model; see
    docs/provenance.md."""

    c2pa_certificate: str | None = None
    """Certificate that signs videos and thumbnails with Content Credentials (C2PA): PEM or the path of a PEM file, the
    certificate first, then those that lead to its root. Unset: nothing is signed. See docs/provenance.md."""

    c2pa_private_key: SecretStr | None = None
    """Key of C2PA_CERTIFICATE without a password: PEM or the path of a PEM file."""

    job_timeout_s: Annotated[float, Field(gt=0)] | None = None
    """Time limit of a job in seconds; a job's own policy.executionTimeout may be shorter. Unset: no limit."""

    stop_timeout_s: Annotated[float, Field(gt=0)] = 120.0
    """Seconds after which the worker ends itself if a job does not stop when told to."""

    shutdown_grace_s: Annotated[float, Field(ge=0)] = 10.0
    """Seconds between SIGTERM and the worker's end; a job that needs more time is left to the next worker."""

    delivery_timeout_s: Annotated[float, Field(gt=0)] = 600.0
    """Seconds after which the worker gives up sending a result to a queue that does not take it."""

    resume: bool = True
    """Save each finished chunk of a job on the volume or in the bucket, so that another worker can continue the job."""

    resume_ttl_s: Annotated[float, Field(ge=0)] = 24 * 3600.0
    """Seconds after which saved chunks are ignored and removed; Runpod forgets a job after a day."""

    resume_secret: SecretStr | None = None
    """Key that signs the saved state of unfinished jobs; the same for all workers of an endpoint. Unset: derived from
    S3_SECRET_KEY. Without either, state is saved unsigned on the volume, and not at all in a store that a job names."""

    min_temporary_bytes: Annotated[int, Field(ge=0)] = 1000 * MEGABYTE
    """Free bytes in the temporary folder without which the worker does not start."""

    progress_interval_s: Annotated[float, Field(ge=0)] = 1.0
    """Least number of seconds between two progress messages."""

    webhook_get_job: Annotated[str | None, Field(validation_alias="RUNPOD_WEBHOOK_GET_JOB")] = None
    """Address from which jobs are taken; set by Runpod."""

    webhook_post_output: Annotated[str | None, Field(validation_alias="RUNPOD_WEBHOOK_POST_OUTPUT")] = None
    """Address to which progress and results are sent; set by Runpod."""

    @property
    def model(self) -> Literal["talker", "tiny", "published"]:
        """The model to load."""
        return self.infinitetalk_model or ("published" if self.ckpt_dir or self.flashtalk_dir else "talker")

    def price_of(self, gpu_seconds: float) -> float | None:
        """Dollars for so many seconds of one GPU; None if no price is set."""
        return None if self.gpu_price_per_s is None else gpu_seconds * self.gpu_price_per_s

    @property
    def recipe(self) -> Recipe | None:
        """The recipe of jobs that name none."""
        return None if self.default_recipe is None else RECIPES[self.default_recipe]

    @property
    def input_roots(self) -> list[tuple[Path, Path]]:
        """Pairs of a folder that relative paths start from and a folder that inputs must be below.

        The checkout's examples are allowed only on the machine of the person who runs the worker.
        """
        roots = [(folder.resolve(), folder.resolve()) for folder in (self.output_dir, self.volume_dir)]
        if self.serve_examples or self.webhook_get_job is None:
            roots.append((CHECKOUT, CHECKOUT / "examples"))
        return roots


def default_environment() -> None:
    """Sets environment variables that libraries read on import: quieter logs, and how torch takes memory. What the
    environment says already stays.

    By default the SDK prints every payload. Other libraries warn about kernels and file formats that are not used.
    """
    # torch's older name for the same, which an operator may have set.
    is_set = "PYTORCH_CUDA_ALLOC_CONF" in os.environ
    for name, value in (QUIET if is_set else QUIET | ALLOCATION).items():
        os.environ.setdefault(name, value)
    for name in ("torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # A small image can make Pillow warn about each of 65,535 tags.
    warnings.filterwarnings("ignore", module=r"PIL\.")
