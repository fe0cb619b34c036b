"""The networks that generate a video, ready to be called."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from infinitetalk.encoders.image import ImageEncoder
from infinitetalk.encoders.text import PromptEncoder
from infinitetalk.encoders.vae import Vae
from infinitetalk.encoders.wav2vec2 import SpeechEncoder
from infinitetalk.family import Family
from infinitetalk.network.protocols import Denoiser
from infinitetalk.runtime.choice import NetworkChoice


@dataclass(frozen=True)
class Networks:
    """Networks in the state that a choice describes.

    Weights are shared between preparations: these networks stay in this state until others are prepared from the same
    checkpoint. The caller must drop its networks before it prepares new ones; otherwise two transformers would be in
    memory, and only one may fit.

    Attributes:
        choice: the choice that they were prepared for.
        device: where they run.
        family: the checkpoint's family.
        size_scale: factor on the published resolutions, 1 for the published model.
        transformer: predicts the velocity of latents.
        vae: frames to latents and back.
        prompt_encoder: prompts to embeddings.
        image_encoder: a reference frame to features.
        audio_encoder: speech to embeddings.
    """

    choice: NetworkChoice
    device: torch.device
    family: Family
    size_scale: float
    transformer: Denoiser
    vae: Vae
    prompt_encoder: PromptEncoder
    image_encoder: ImageEncoder
    audio_encoder: SpeechEncoder
