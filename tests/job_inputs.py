"""Small inputs of jobs, made on the spot: pictures and speech as files, data URIs or whole payloads."""

from __future__ import annotations

import base64
import io
from typing import Any

import av
import numpy as np
import soundfile
from PIL import Image

SAMPLING_RATE = 16_000


def picture_bytes(height: int = 64, width: int = 64, kind: str = "PNG", white: slice | None = None) -> bytes:
    """A picture with a gradient, or a black one whose columns `white` are white."""
    if white is None:
        rows, columns = np.mgrid[:height, :width]
        pixels = np.stack([rows * 255 // height, columns * 255 // width, np.full_like(rows, 90)], axis=-1)
    else:
        pixels = np.zeros((height, width, 3))
        pixels[:, white] = 255
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(file, kind)
    return file.getvalue()


def speech_bytes(seconds: float, pitch: float = 150.0, kind: str = "WAV", pause: float = 0.0) -> bytes:
    """Something like speech: a hum of harmonics, four syllables a second; then so many seconds of silence."""
    times = np.arange(round(seconds * SAMPLING_RATE)) / SAMPLING_RATE
    hum = sum(np.sin(2 * np.pi * pitch * harmonic * times) / harmonic for harmonic in range(1, 8))
    waveform = 0.1 * hum * np.clip(np.sin(2 * np.pi * 4 * times), 0, None)
    file = io.BytesIO()
    waveform = np.pad(waveform, (0, round(pause * SAMPLING_RATE)))
    soundfile.write(file, waveform, SAMPLING_RATE, format=kind, subtype="PCM_16")
    return file.getvalue()


def scenes_bytes(lengths: list[int], height: int = 64, width: int = 64) -> bytes:
    """An MP4 of 25 fps whose scenes, of as many frames as given, differ in their colours."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=25, width=width, height=height, pix_fmt="yuv420p")
        for scene, length in enumerate(lengths):
            pixels = np.full((height, width, 3), 0, dtype=np.uint8)
            pixels[..., scene % 3] = 230
            pixels[: height // 2] = 255 * (scene % 2)
            for _ in range(length):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    return file.getvalue()


def data_uri(data: bytes, mime: str) -> str:
    """Bytes as a data URI."""
    return f"data:{mime};base64,{base64.b64encode(data).decode()}"


def picture_uri(**options: Any) -> str:
    """`picture_bytes` as a data URI."""
    return data_uri(picture_bytes(**options), "image/png")


def speech_uri(seconds: float, pitch: float = 150.0, pause: float = 0.0) -> str:
    """`speech_bytes` as a data URI."""
    return data_uri(speech_bytes(seconds, pitch, pause=pause), "audio/wav")


def small_job(**changes: Any) -> dict[str, Any]:
    """A job of chunks of 5 frames and 2 steps, its result on the volume."""
    job = {
        "prompt": "A woman talks",
        "cond_video": picture_uri(),
        "cond_audio": {"person1": speech_uri(0.2)},
        "frame_num": 5,
        "sample_steps": 2,
        "sample_text_guide_scale": 1.0,
        "sample_audio_guide_scale": 2.0,
        "output_config": {"store": "volume"},
    } | changes
    # A clip is one chunk, beside which it would have no effect.
    return ({"motion_frame": 1} if job.get("mode") == "streaming" else {}) | job
