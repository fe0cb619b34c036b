"""Locations of the weights, from environment variables."""

from __future__ import annotations

from pathlib import Path

from pydantic_settings import BaseSettings, SettingsConfigDict


class WeightsSettings(BaseSettings):
    """Locations of the weights, from environment variables named like the fields, in capitals."""

    model_config = SettingsConfigDict(env_ignore_empty=True, extra="ignore", use_attribute_docstrings=True, frozen=True)

    ckpt_dir: Path | None = None
    """Folder of the base model, Wan 2.1 I2V-14B, original or Diffusers."""

    infinitetalk_dir: Path | None = None
    """Folder of the adapters: single/ and multi/."""

    flashtalk_dir: Path | None = None
    """Folder of SoulX-FlashTalk-14B, as published or converted."""

    wav2vec_dir: Path | None = None
    """Folder of chinese-wav2vec2-base."""

    quant_dir: Path | None = None
    """Folder of InfiniteTalk's published quantised files, quant_models."""

    transformer_file: Path | None = None
    """A single file to take InfiniteTalk's transformer from: fp8, scaled fp8 or GGUF."""

    lora_dir: Path | None = None
    """Folder of LoRA files; unset: those of all packs, and weights/loras on the volume and in the image."""

    kokoro_dir: Path | None = None
    """Folder of Kokoro-82M."""

    kernels_dir: Path | None = None
    """Folder of kernels that `python -m infinitetalk.weights download` has fetched from the Hugging Face Hub; unset:
    those of packs, then weights/kernels on the volume and in the image."""

    volume_dir: Path = Path("/runpod-volume")
    """Network volume; weights may be on it, and inputs may be paths below it."""
