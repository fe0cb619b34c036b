"""A job's warnings: lost input, fields without effect, and likely flaws of the result."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

import numpy as np

from infinitetalk.embedded.drawn import looks_drawn
from infinitetalk.encoders.text import TEXT_LENGTH
from infinitetalk.generation.guidance import GuidanceScales
from infinitetalk.media.decode import MediaInfo
from infinitetalk.media.sizes import cropped_share
from infinitetalk.media.speech import QUIET_LUFS, SILENCE_LUFS, TARGET_LUFS, VIDEO_FPS
from infinitetalk.media.tts import split_turns
from infinitetalk.network.teacache import WARM_UP_STEPS
from infinitetalk.recipes import STEP_DISTILLED
from infinitetalk.worker.engine import Engine, Overlap, Scene, chunk_grid, generation_settings, negative_prompt_of
from schemas import LONGEST_VIDEO, STORES, OutputConfig, S3Config, SingleJob

SHARED_FRACTION = 0.01
"""Share of the smaller region above which an overlap is reported; touching edges share less."""

CROPPED_SHARE = 0.15
"""Share of the source's pixels that a job's own size may cut off without a warning: the tables cut off up to as many
of usual shapes."""

FEW_STEPS = 12
"""At most this many steps are too few for the model without a step-distilled LoRA."""

TRAINED_SPEAKERS = 2

NO_SPEECH = (
    "has no speech in the part used, but music or noise: the mouth stays closed; if it does have speech, leave out "
    "speech.gate"
)


def cut_speech(job: SingleJob, seconds: float, is_estimate: bool) -> list[str]:
    """A warning if the video ends before the speech.

    Args:
        seconds: length of all of the speech.
        is_estimate: whether the length is estimated from a text.
    """
    # Up to a hundredth of a frame is a rounding error.
    num_frames = math.floor(seconds * VIDEO_FPS + 0.01)
    if num_frames <= job.frame_limit:
        return []
    if job.mode == "clip":
        setting = f'frame_num {job.frame_num} in mode "clip"; mode "streaming" takes longer speech'
    elif num_frames <= LONGEST_VIDEO:
        enough = min(math.ceil(1.2 * num_frames), LONGEST_VIDEO) if is_estimate else num_frames
        setting = f"max_frame_num {job.max_frame_num}; {enough} would hold all of it"
    else:
        setting = f"max_frame_num {job.max_frame_num}; at most {LONGEST_VIDEO} is allowed, send the rest separately"
    about = "about " if is_estimate else ""
    kept = job.frame_limit / VIDEO_FPS
    return [f"the speech is cut from {about}{round(seconds, 2):.10g} s to {round(kept, 2):.10g} s by {setting}"]


def own_size(job: SingleJob, source: MediaInfo, resolution: tuple[int, int]) -> list[str]:
    """Warnings about a resolution that the job names itself: the model may be one of another scale, and the source is
    cropped to it.

    Args:
        resolution: (height, width) in pixels that the model generates.
    """
    if job.resolution is None:
        return []
    (height, width), (own_height, own_width) = resolution, job.resolution
    found = []
    if resolution != job.resolution:
        found.append(
            f"size {own_width}x{own_height} is {width}x{height} here: this worker's small model scales all sizes"
        )
    cropped = cropped_share(source.height, source.width, own_height, own_width)
    if cropped > CROPPED_SHARE and not job.keeps_film:
        found.append(
            f"size {own_width}x{own_height} cuts off {cropped:.0%} of the source's {source.width}x{source.height} "
            "pixels: the video shows its centre; a size of the source's shape shows all of it"
        )
    return found


def cut_prompts(job: SingleJob, count_tokens: Callable[[str], int]) -> list[str]:
    """A warning for each prompt that is longer than the model reads."""
    entries = job.prompts
    prompts = {
        "prompt" if len(entries) == 1 else f"prompt.{index}": entry.prompt for index, entry in enumerate(entries)
    }
    if uses_negative_prompt(job):
        prompts["negative_prompt"] = negative_prompt_of(job)
    return [
        f"{field} has {tokens} tokens; the model reads the first {TEXT_LENGTH}"
        for field, prompt in prompts.items()
        if (tokens := count_tokens(prompt)) > TEXT_LENGTH
    ]


def unused_fields(job: SingleJob, is_picture: bool, num_chunks: int, s3_config: S3Config | None) -> list[str]:
    """A warning for each field that the job sets but that does not change its video.

    Args:
        is_picture: whether the source is an image.
        num_chunks: number of chunks of the video.
        s3_config: the job's own store, if it names one.
    """
    one_chunk = num_chunks == 1
    one_step = job.sample_steps == 1
    voices = len(job.speakers) if job.cond_audio is None else sum(map(bool, job.cond_audio.values()))
    one_speaker = len(job.speakers) == 1
    settings = generation_settings(job, 0, Scene(0, 1))
    text_scale = f"sample_text_guide_scale {job.sample_text_guide_scale:g}"
    differences = GuidanceScales(job.sample_text_guide_scale, job.sample_audio_guide_scale).differences
    #: A field, whether it has no effect, and the reason.
    rules = [
        ("audio_type", job.tts_audio is not None, "with tts_audio: its speakers take turns"),
        ("audio_type", job.audio_type == "add" and job.cond_audio is not None and voices == 1, "with one voice"),
        ("speech", job.gates_speech and job.tts_audio is not None, "with tts_audio: all of it is speech"),
        ("bbox", one_speaker and not job.keeps_film, "with one speaker"),
        ("mask", one_speaker and not job.keeps_film, "with one speaker"),
        (
            "bbox_order",
            job.bbox is None or (one_speaker and not job.keeps_film),
            "without a bbox of several speakers",
        ),
        ("dub", _dubs_nothing(job), 'with keep "none" and strength 1'),
        ("output", is_picture and job.output is not None and job.output.fps == "source", "on an image's frame times"),
        ("regions", one_speaker, "with one speaker"),
        ("regions", job.bbox is not None or job.mask is not None, "with bbox or mask"),
        ("scene_seg", is_picture, "with an image"),
        ("max_frame_num", job.mode == "clip", 'in mode "clip"'),
        ("motion_frame", one_chunk, "in a video of one chunk"),
        ("crossfade_frame", one_chunk, "in a video of one chunk"),
        ("sample_shift", one_step, "with one step"),
        ("negative_prompt", not uses_negative_prompt(job), negative_prompt_reason(job)),
        ("nag", job.nag is not None and job.nag.scale == 1, "with scale 1"),
        ("nag", settings.guides_text, f"with {text_scale}: guidance uses the negative prompt"),
        ("use_teacache", settings.num_steps <= WARM_UP_STEPS, f"with {WARM_UP_STEPS} steps or fewer"),
        ("teacache_thresh", not job.use_teacache, "without use_teacache"),
        ("use_apg", not differences, "with both guidance scales 1"),
        ("apg_momentum", not job.use_apg, "without use_apg"),
        ("apg_momentum", job.use_apg and settings.num_steps == 1, "with one step"),
        ("apg_norm_threshold", not job.use_apg, "without use_apg"),
    ]
    found = [f"{field} has no effect {reason}" for field, unused, reason in rules if unused and _is_set(job, field)]
    if job.dub is not None and not job.keeps_film and not _dubs_nothing(job):
        told = sorted(job.dub.model_fields_set & {"margin", "feather"})
        found += [f'dub.{field} has no effect with dub.keep "none"' for field in told]
    fade = chunk_grid(job).fade_length
    if not one_chunk and _is_set(job, "crossfade_frame") and fade < job.crossfade_frame:
        found.append(
            f"crossfade_frame {job.crossfade_frame} is {fade} here: a fade is no longer than motion_frame "
            f"{job.motion_frame} rounded down to 4n+1"
        )
    if job.strength < 1 and not settings.starts_from_source:
        found.append(
            f"dub.strength {job.strength:g} has no effect with sample_steps {job.sample_steps}: it leaves out less "
            "than half a step"
        )
    found += [f"LoRA {lora.name} has no effect with scale 0" for lora in job.loras if lora.scale == 0]
    return found + _unused_voices(job) + _unused_places(job.output_config or OutputConfig(), s3_config)


def not_drawn(first_frame: np.ndarray) -> list[str]:
    """A warning if the tiny talker is given a picture that does not look drawn.

    Args:
        first_frame: of the source, uint8 (height, width, 3).
    """
    if looks_drawn(first_frame):
        return []
    return [
        "cond_video looks like a photograph, and this worker has only its embedded model, the tiny talker: it animates "
        "drawn faces and distorts photographs; for these, the worker needs the weights of InfiniteTalk"
    ]


def _dubs_nothing(job: SingleJob) -> bool:
    """Whether the job's dubbing keeps nothing and makes everything anew, which is what happens without it."""
    return job.dub is not None and job.dub.keep == "none" and job.dub.strength == 1


def uses_negative_prompt(job: SingleJob) -> bool:
    """Whether the job's guidance, or its normalised attention guidance, uses a negative prompt."""
    return generation_settings(job, 0, Scene(0, 1)).needs_negative_prompt


def negative_prompt_reason(job: SingleJob) -> str:
    """Why the job uses no negative prompt."""
    without = "without nag" if job.nag is None else "nag.scale 1"
    return f"with sample_text_guide_scale {job.sample_text_guide_scale:g} {'and ' if job.nag else ''}{without}"


def _is_set(job: Any, field: str) -> bool:
    """Whether a model's field was given a value other than its default."""
    return field in job.model_fields_set and getattr(job, field) != type(job).model_fields[field].default


def _unused_voices(job: SingleJob) -> list[str]:
    """A warning for each voice that has no turn in the text."""
    if job.tts_audio is None:
        return []
    voices = job.tts_audio.voices
    heard = {turn.speaker for turn in split_turns(job.tts_audio.text, len(voices))}
    return [
        f"tts_audio.human{index + 1}_voice has no effect: the text has no turn (s{index + 1})"
        for index in range(len(voices))
        if index not in heard
    ]


def _unused_places(output_config: OutputConfig, s3_config: S3Config | None) -> list[str]:
    """A warning for each setting of a store that the result does not go to."""
    store = output_config.store
    found = []
    if not STORES[store] and _is_set(output_config, "prefix"):
        found.append(f'output_config.prefix has no effect with store "{store}"')
    if store != "s3" and s3_config is not None:
        found.append(f's3Config has no effect with store "{store}"')
    return found


def shared_regions(overlaps: Sequence[Overlap]) -> list[str]:
    """A warning for each two speakers whose regions are the same or overlap."""
    found = []
    for overlap in overlaps:
        if overlap.is_same:
            found.append(
                f"{overlap.one} and {overlap.other} have the same region: the lips of both follow both voices there"
            )
        elif overlap.fraction > SHARED_FRACTION:
            found.append(
                f"the regions of {overlap.one} and {overlap.other} overlap by {overlap.fraction:.0%} of the smaller "
                "one: lips there may follow the wrong voice"
            )
    return found


def mixed_arithmetic(arithmetics: Sequence[str]) -> list[str]:
    """A warning if chunks were made by workers that compute differently.

    Args:
        arithmetics: each chunk's arithmetic, in order.
    """
    runs = [(arithmetic, len(list(chunks))) for arithmetic, chunks in groupby(arithmetics)]
    if len(runs) < 2:
        return []
    parts, first = [], 1
    for arithmetic, count in runs[:-1]:
        last = first + count - 1
        chunks = f"chunk {first} was" if count == 1 else f"chunks {first} to {last} were"
        parts.append(f"{chunks} made in {arithmetic}")
        first = last + 1
    return [
        f"{', '.join(parts)}, the rest in {runs[-1][0]}: another worker continued the job, and details may change there"
    ]


def flat_chunks(are_flat: list[bool]) -> list[str]:
    """A warning that names the chunks, counted from 1, that are one colour although the source is not."""
    numbers = [str(number) for number, is_flat in enumerate(are_flat, start=1) if is_flat]
    if not numbers:
        return []
    chunks = f"chunk{'s' if len(numbers) > 1 else ''} {', '.join(numbers)} of {len(are_flat)}"
    return [
        f"{chunks}: nothing but one colour, unlike the source. Look at the video: a source whose first frame is "
        "one colour needs a lower color_correction_strength; guidance scales and scales of LoRAs may be too high"
    ]


def warnings_of(job: SingleJob, engine: Engine, lora_warnings: list[str]) -> list[str]:
    """Warnings about likely flaws of the result that follow from the job's parameters.

    Args:
        lora_warnings: warnings about the files of the job's LoRAs.
    """
    warnings = [] if job.tts_audio is None else list(engine.synthesiser.warnings)
    warnings += lora_warnings
    if len(job.speakers) > TRAINED_SPEAKERS:
        warnings.append(
            f"{len(job.speakers)} speakers: no checkpoint is trained for more than {TRAINED_SPEAKERS}; "
            "lips may follow the wrong speaker"
        )
    return warnings + (step_warnings(job) if engine.checkpoint.is_published else [])


def step_warnings(job: SingleJob) -> list[str]:
    """Warnings if the steps or guidance do not suit the published model with the job's LoRAs."""
    if job.family.renoising is not None:
        return []
    is_distilled = any(name in lora.name.lower() for lora in job.loras for name in STEP_DISTILLED)
    if not is_distilled and job.sample_steps <= FEW_STEPS:
        return [
            f"{job.sample_steps} steps without a step-distilled LoRA: the video will lack detail; use 40 steps, or "
            'such a LoRA (FusionX, lightx2v) in "loras"'
        ]
    if is_distilled and job.sample_text_guide_scale > 1:
        return [
            f"sample_text_guide_scale {job.sample_text_guide_scale:g} with a step-distilled LoRA: colours will be "
            "harsh, and each step takes one more evaluation; use 1"
        ]
    return []


def loudness_warnings(loudness: float) -> list[str]:
    """Warnings about speech of a loudness in LUFS."""
    if abs(loudness) > SILENCE_LUFS:
        return ["is silent in the part used: the mouth stays closed; send a recording with audible speech"]
    if loudness < QUIET_LUFS:
        return [
            f"is very quiet ({loudness:.0f} LUFS): it was made {TARGET_LUFS - loudness:.0f} dB louder, and its noise "
            "with it"
        ]
    return []
