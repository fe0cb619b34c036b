"""The worker's settings, read from the environment: those of the weights come from `infinitetalk.weights.settings`."""

from __future__ import annotations

import logging
import os
import warnings
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AliasChoices, Field, SecretStr
from pydantic_settings import SettingsConfigDict

from infinitetalk.weights.settings import WeightsSettings

CHECKOUT = Path(__file__).parents[2]
MEGABYTE = 1_000_000
QUIET = {
    "RUNPOD_LOG_LEVEL": "INFO",
    "TRANSFORMERS_VERBOSITY": "error",
    "DIFFUSERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}
"""What makes libraries' logs quieter."""


class Settings(WeightsSettings):
    """Settings by environment variable: the field's name in capitals, or the names listed with it."""

    model_config = SettingsConfigDict(
        env_ignore_empty=True, populate_by_name=True, extra="ignore", use_attribute_docstrings=True, frozen=True
    )

    infinitetalk_model: Literal["talker", "tiny", "published"] | None = None
    """"published": the checkpoint of CKPT_DIR, without which the worker stops. "talker": the embedded small model that
    talks. "tiny": one with random weights, made by the worker. Unset: published where CKPT_DIR is set, else talker."""

    tiny_dir: Path | None = None
    """Folder that the random model is made in when first asked for; unset: checkpoints/ of the checkout."""

    device: str | None = None
    """Torch device; unset: cuda where there is one, else cpu."""

    gpus_per_job: Annotated[int, Field(ge=1)] | None = None
    """GPUs that make a video together, a process for each; unset: all that the worker has."""

    output_dir: Path = Path("outputs")
    """Root of the store "volume"; the network volume in the image. Inputs may be paths below it."""

    s3_endpoint: Annotated[str | None, Field(validation_alias=AliasChoices("s3_endpoint", "BUCKET_ENDPOINT_URL"))] = (
        None
    )
    """Address of the S3-compatible store; the bucket may stand before its host's name. Also BUCKET_ENDPOINT_URL."""

    s3_region: str | None = None
    """Region of the store. Unset: the one that the name of its host tells, else us-east-1."""

    s3_access_key: Annotated[
        str | None, Field(validation_alias=AliasChoices("s3_access_key", "BUCKET_ACCESS_KEY_ID"))
    ] = None
    """Access key id. Also BUCKET_ACCESS_KEY_ID."""

    s3_secret_key: Annotated[
        SecretStr | None, Field(validation_alias=AliasChoices("s3_secret_key", "BUCKET_SECRET_ACCESS_KEY"))
    ] = None
    """Secret access key. Also BUCKET_SECRET_ACCESS_KEY."""

    s3_bucket: str | None = None
    """Name of the bucket. Unset: the one before the host's name in S3_ENDPOINT."""

    s3_public_base: str | None = None
    """Public address of the bucket's root; results are then given as {base}/{key} instead of presigned."""

    s3_url_expiry_s: Annotated[int, Field(ge=1, le=7 * 24 * 3600)] = 7 * 24 * 3600
    """Seconds that presigned addresses live; seven days at most."""

    serve_examples: bool = False
    """Inputs may be paths below the checkout's examples/, as they may without a queue; set by `make serve`."""

    max_image_bytes: Annotated[int, Field(ge=1)] = 50 * MEGABYTE
    """Largest picture taken as input."""

    max_audio_bytes: Annotated[int, Field(ge=1)] = 200 * MEGABYTE
    """Largest sound taken as input."""

    max_video_bytes: Annotated[int, Field(ge=1)] = 1000 * MEGABYTE
    """Largest video taken as input."""

    max_result_bytes: Annotated[int, Field(ge=1)] = 10 * MEGABYTE
    """Largest result as JSON; Runpod drops larger ones of /run."""

    connect_timeout_s: Annotated[float, Field(gt=0)] = 10.0
    """Seconds that connecting to an input's or the store's address may take."""

    read_timeout_s: Annotated[float, Field(gt=0)] = 30.0
    """Seconds that an address may stay silent."""

    store_timeout_s: Annotated[float, Field(gt=0)] = 600.0
    """Seconds that a store which a job names may take for the job's result, and for all that is kept of it at once."""

    download_timeout_s: Annotated[float, Field(gt=0)] = 600.0
    """Seconds that one download may take, or one file's way to an address that a job names for it."""

    download_attempts: Annotated[int, Field(ge=1)] = 4
    """Times that a download is tried while what stops it may pass."""

    max_batch_items: Annotated[int, Field(ge=1, le=50)] = 20
    """Items that a batch may have."""

    job_timeout_s: Annotated[float, Field(gt=0)] | None = None
    """Seconds that a job may take; a job's own policy.executionTimeout may be shorter. Unset: as many as it needs."""

    stop_timeout_s: Annotated[float, Field(gt=0)] = 120.0
    """Seconds after which a job that was told to end, and does not, ends the worker."""

    shutdown_grace_s: Annotated[float, Field(ge=0)] = 10.0
    """Seconds between SIGTERM and the worker's end; a job that needs longer is left to the next worker."""

    delivery_timeout_s: Annotated[float, Field(gt=0)] = 600.0
    """Seconds that a result is offered to a queue which does not take it."""

    resume: bool = True
    """What a job has made is stored as it grows, on the volume or in the bucket, so that another worker can go on from
    there."""

    resume_ttl_s: Annotated[float, Field(ge=0)] = 24 * 3600.0
    """Seconds after which that is ignored and removed; Runpod forgets a job after a day."""

    resume_secret: SecretStr | None = None
    """Signs what is stored of unfinished jobs; the same for all workers of an endpoint. Unset: made from S3_SECRET_KEY,
    where that is set; with neither, nothing is stored where a job names the store, and on the volume unsigned."""

    min_temporary_bytes: Annotated[int, Field(ge=0)] = 1000 * MEGABYTE
    """Free bytes that the temporary folder must have, or the worker does not start."""

    progress_interval_s: Annotated[float, Field(ge=0)] = 1.0
    """Seconds at least between two progress messages."""

    webhook_get_job: Annotated[str | None, Field(validation_alias="RUNPOD_WEBHOOK_GET_JOB")] = None
    """Where jobs are taken from; set by Runpod."""

    webhook_post_output: Annotated[str | None, Field(validation_alias="RUNPOD_WEBHOOK_POST_OUTPUT")] = None
    """Where progress and results go; set by Runpod."""

    @property
    def model(self) -> Literal["talker", "tiny", "published"]:
        """The model to load."""
        return self.infinitetalk_model or ("published" if self.ckpt_dir else "talker")

    @property
    def input_roots(self) -> list[tuple[Path, Path]]:
        """Folders that inputs may lie below, each after the folder that relative paths start from.

        The checkout's examples are served on the machine of the one who runs them only.
        """
        roots = [(folder.resolve(), folder.resolve()) for folder in (self.output_dir, self.volume_dir)]
        if self.serve_examples or self.webhook_get_job is None:
            roots.append((CHECKOUT, CHECKOUT / "examples"))
        return roots


def default_environment() -> None:
    """Sets what libraries read while they are imported: quieter logs, unless the environment says otherwise.

    The SDK's own default prints every payload. Others warn of kernels and file formats that are not in use.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    for name in ("torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # A small picture can make Pillow warn of each of 65,535 tags.
    warnings.filterwarnings("ignore", module=r"PIL\.")
