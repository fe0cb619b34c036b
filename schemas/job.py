"""A job's input: one video (`SingleJob`) or several (`BatchJob`), and the result's destination (`OutputConfig`)."""

from __future__ import annotations

import re
from collections.abc import Collection
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    PlainValidator,
    StringConstraints,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import PydanticKnownError

from infinitetalk.family import INFINITETALK, Family
from infinitetalk.recipes import RECIPES, Recipe
from schemas.addresses import MAX_ADDRESS_CHARACTERS, check_address
from schemas.base import Published, StrictModel, choice
from schemas.dub import AudioMix, Dub, Output
from schemas.timeline import (
    BoundedTurn,
    MediaText,
    PictureFrom,
    PictureMedia,
    Prompt,
    PromptFrom,
    Script,
    Voice,
    VoiceFrom,
    turns_of,
)

DEFAULT_PREFIX = "infinitetalk/jobs"
_DEFAULTS = INFINITETALK.defaults
MAX_SPEAKERS = 8
LONGEST_VIDEO = 90_000
"""Largest number of video frames: an hour."""
FEWEST_FRAMES, MOST_FRAMES = 5, 401
"""Limits of the number of video frames of a chunk."""

SHORTEST_SIDE, LONGEST_SIDE, MOST_PIXELS = 128, 2048, 1920 * 1088
"""Limits of a job's own resolution: sides, and pixels altogether. A GPU's memory may allow less."""

LARGEST_SEED = 2**53 - 1
"""The largest integer that every JSON client represents exactly."""

OWN_ENDINGS = (".mp4", ".jpg", ".json", ".preview")
"""Endings of the files and folders that jobs create."""

STORES = {"s3": True, "volume": True, "inline": False, "put": False}
"""The names of stores, and whether each keeps files below a prefix, where a preview can also be stored."""

NO_PREVIEW = (
    'takes output_config.preview with 25 frames a second only: set output {"fps": "model"}, or leave preview out'
)

SAFE_NAME = r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}"


def check_safe_name(name: str) -> str:
    """Checks a job's or an item's id, which becomes part of a file name and of an S3 key.

    Raises:
        ValueError: it is not 1 to 128 letters, digits, "-", "_" or "." (not leading).
    """
    if not re.fullmatch(SAFE_NAME, name):
        raise ValueError('must be 1 to 128 letters, digits, "-", "_" or "." and may not begin with "."')
    return name


def check_prefix(prefix: str) -> str:
    """Checks a prefix below which the result is stored; it cannot lead out of its root.

    Raises:
        ValueError: it is absolute, has an empty, "." or ".." component, a backslash or a control character, or a
            component that could be the name of a job's file or of the worker's own folder.
    """
    if not prefix.isprintable() or "\\" in prefix:
        raise ValueError("must not contain control characters or backslashes")
    components = prefix.split("/")
    if any(component in ("", ".", "..") for component in components):
        raise ValueError('must be names joined by single "/" without a leading or trailing "/", "." or ".."')
    if any(component.startswith(".") or component.lower().endswith(OWN_ENDINGS) for component in components):
        raise ValueError(f'must not have names that begin with "." or end in {", ".join(OWN_ENDINGS)}')
    return prefix


def check_name(name: Any, names: Collection[str]) -> str:
    """Checks that a name is one of several.

    Raises:
        PydanticKnownError: it is not.
    """
    if isinstance(name, str) and name in names:
        return name
    *others, last = map(repr, names)
    raise PydanticKnownError("literal_error", {"expected": f"{', '.join(others)} or {last}"})


def check_size_name(name: Any) -> str:
    """Checks the name of a table of resolutions.

    Raises:
        PydanticKnownError: there is none of this name.
    """
    if isinstance(name, str) and name in INFINITETALK.sizes:
        return name
    named = ", ".join(map(repr, INFINITETALK.sizes))
    raise PydanticKnownError("literal_error", {"expected": f'{named} or {{"width": …, "height": …}}'})


def check_endpoint(address: str) -> str:
    """Checks the address of a store, to which keys and queries are appended.

    Raises:
        ValueError: it has a query or a fragment.
    """
    if "?" in address or "#" in address:
        raise ValueError('must be the store\'s address alone, without "?" or "#" and what follows')
    return address


def check_frame_num(frame_num: int) -> int:
    """Checks the number of frames of a chunk: its first latent frame holds one video frame, every other one four.

    Raises:
        ValueError: the number is not 4n+1.
    """
    if frame_num % 4 != 1:
        below = frame_num - (frame_num - 1) % 4
        raise ValueError(f"must be 4n+1, e.g. {below} or {below + 4}, not {frame_num}")
    return frame_num


def check_is_by_speaker(given: Any) -> Any:
    """Checks that a value is an object, as it must be where each speaker has a value of its own.

    Raises:
        ValueError: it is something else, such as one speaker's media alone.
    """
    if not isinstance(given, dict):
        raise ValueError('must be an object with a value for each speaker: {"person1": …, "person2": …}')
    return given


def check_speakers(speakers: dict[str, Any]) -> dict[str, Any]:
    """Checks that speakers are named person1, person2, … without a gap; returns them in this order.

    Raises:
        ValueError: a name is missing or wrong, or there are more than `MAX_SPEAKERS` speakers.
    """
    expected = [f"person{number}" for number in range(1, len(speakers) + 1)]
    if not speakers or sorted(speakers) != sorted(expected) or len(speakers) > MAX_SPEAKERS:
        raise ValueError(f"must name its speakers person1, person2, … without a gap, 1 to {MAX_SPEAKERS} of them")
    return {name: speakers[name] for name in expected}


IS_BY_SPEAKER, NAMES_SPEAKERS = BeforeValidator(check_is_by_speaker), AfterValidator(check_speakers)
SPEAKER_NAMES = Published(
    {
        "propertyNames": {"pattern": f"^person[1-{MAX_SPEAKERS}]$"},
        "required": ["person1"],
        "dependentRequired": {f"person{number}": [f"person{number - 1}"] for number in range(2, MAX_SPEAKERS + 1)},
    }
)
"""What `check_speakers` checks."""

ONE_SPEAKS = Published({"not": {"additionalProperties": {"type": "null"}}})
"""At least one speaker has a value that is not null."""

FRAMES = Published({"enum": list(range(FEWEST_FRAMES, MOST_FRAMES + 1, 4))})
"""What `check_frame_num` checks, which JSON Schema has no shorter way to say."""

Address = Annotated[
    str, StringConstraints(strip_whitespace=True, max_length=MAX_ADDRESS_CHARACTERS), AfterValidator(check_address)
]
StoreName = Annotated[
    str, PlainValidator(partial(check_name, names=STORES)), WithJsonSchema({"enum": list(STORES), "type": "string"})
]
RecipeName = Annotated[
    str, PlainValidator(partial(check_name, names=RECIPES)), WithJsonSchema({"enum": list(RECIPES), "type": "string"})
]
BoundingBox = Annotated[list[float], Field(min_length=4, max_length=4)]


Side = Annotated[int, Field(ge=SHORTEST_SIDE, le=LONGEST_SIDE, multiple_of=INFINITETALK.side_multiple)]


class FrameSize(StrictModel):
    """A resolution of the video in place of a table's, at most 1920x1088 pixels altogether."""

    width: Side
    """Pixels of a row, a multiple of 16."""

    height: Side
    """Number of rows, a multiple of 16."""

    @model_validator(mode="after")
    def check_pixels(self) -> FrameSize:
        """Checks the number of pixels.

        Raises:
            ValueError: there are more than `MOST_PIXELS`.
        """
        if (pixels := self.width * self.height) > MOST_PIXELS:
            raise ValueError(f"has {pixels:,} pixels; at most {MOST_PIXELS:,} are allowed, e.g. 1920x1088")
        return self


SizeName = Annotated[
    str,
    PlainValidator(check_size_name),
    WithJsonSchema({"enum": list(INFINITETALK.sizes), "type": "string"}),
]


class OutputConfig(StrictModel):
    """The destination of the video and its thumbnail."""

    model_config = ConfigDict(
        json_schema_extra={
            "allOf": [
                # check_addresses
                {
                    "if": {"properties": {"store": {"const": "put"}}, "required": ["store"]},
                    "then": {
                        "properties": {"video_url": {"type": "string"}, "thumbnail_url": {"type": "string"}},
                        "required": ["video_url", "thumbnail_url"],
                    },
                    "else": {"properties": {"video_url": {"type": "null"}, "thumbnail_url": {"type": "null"}}},
                },
                # check_preview
                {
                    "if": {"properties": {"preview": {"const": True}}, "required": ["preview"]},
                    "then": {"properties": {"store": {"enum": [name for name, keeps in STORES.items() if keeps]}}},
                },
            ]
        }
    )

    store: StoreName = "s3"
    """"s3": an S3-compatible store (the job's s3Config, else the worker's settings). "volume": the worker's output
    folder, on Runpod the network volume. "inline": base64 in the result, for small videos only. "put": the addresses
    video_url and thumbnail_url."""

    prefix: Annotated[str, StringConstraints(min_length=1, max_length=512), AfterValidator(check_prefix)] = (
        DEFAULT_PREFIX
    )
    """Folder or key prefix of "s3" and "volume": the video becomes {prefix}/{job_id}.mp4, the thumbnail
    {prefix}/{job_id}.jpg; {prefix}/{job_id}.json says how they were made."""

    video_url: Address | None = None
    """Store "put": presigned address for a PUT of the MP4 with Content-Type video/mp4."""

    thumbnail_url: Address | None = None
    """Store "put": presigned address for a PUT of the JPEG with Content-Type image/jpeg."""

    preview: bool = False
    """Publish finished chunks while the job runs, as HLS below {prefix}/{job_id}.preview/; progress gives the
    playlist's address. For the stores "s3" and "volume"."""

    @model_validator(mode="after")
    def check_preview(self) -> OutputConfig:
        """Checks that the store can hold a preview.

        Raises:
            ValueError: it cannot.
        """
        if self.preview and not STORES[self.store]:
            fit = " or ".join(f'"{name}"' for name, has_prefix in STORES.items() if has_prefix)
            raise ValueError(f'preview needs store {fit}; with store "{self.store}" leave it out')
        return self

    @model_validator(mode="after")
    def check_addresses(self) -> OutputConfig:
        """Checks that both addresses are given with the store "put", and none with another store.

        Raises:
            ValueError: an address is missing, or given for another store.
        """
        addresses = [self.video_url, self.thumbnail_url]
        if self.store == "put" and None in addresses:
            raise ValueError('with store "put" needs video_url and thumbnail_url, presigned for PUT')
        if self.store != "put" and addresses != [None, None]:
            raise ValueError('takes video_url and thumbnail_url with store "put" only')
        return self


class S3Config(StrictModel):
    """A store named by the job itself: Runpod's `s3Config`, beside `input`."""

    endpoint_url: Annotated[Address, AfterValidator(check_endpoint), Field(alias="endpointUrl")]
    """Address of the S3-compatible store."""

    access_id: Annotated[str, StringConstraints(strip_whitespace=True), Field(alias="accessId", pattern=r"^[!-~]+$")]
    """Access key id."""

    access_secret: Annotated[
        str, StringConstraints(strip_whitespace=True, min_length=1), Field(alias="accessSecret", repr=False)
    ]
    """Secret access key."""

    bucket_name: Annotated[str, Field(alias="bucketName", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{1,254}$")]
    """Name of the bucket."""

    region: Annotated[str, Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9-]{0,38}[A-Za-z0-9])?$")] | None = None
    """Region of the store; null: the region in its host's name, else the region in the store's answer, else
    us-east-1."""


class TtsAudio(StrictModel):
    """Speech made from text by Kokoro."""

    text: Annotated[str, StringConstraints(min_length=1, max_length=5000)]
    """The text to speak; two speakers take turns with "(s1) … (s2) …"."""

    human1_voice: Annotated[str, StringConstraints(min_length=1, max_length=256)]
    """Voice of person1: a name such as "am_adam", or …/voices/am_adam.pt below the worker's Kokoro folder."""

    human2_voice: Annotated[str, StringConstraints(min_length=1, max_length=256)] | None = None
    """Voice of person2; null with one speaker."""

    @property
    def voices(self) -> list[str]:
        """The voice of each speaker."""
        return [self.human1_voice] if self.human2_voice is None else [self.human1_voice, self.human2_voice]


class SpeechOptions(StrictModel):
    """How speech is told from other sounds."""

    gate: Literal["auto", "off"] = "off"
    """"auto": only speech, found by a detector, moves the mouths and counts for the loudness; music and noise are heard
    but move nothing. "off": all sound counts as speech, as in the published code."""


class Lora(StrictModel):
    """One LoRA file applied to the base model."""

    name: Annotated[str, StringConstraints(min_length=1, max_length=256)]
    """File below the worker's LORA_DIR."""

    scale: Annotated[float, Field(ge=-4, le=4)] = 1.0
    """Strength with which it is applied."""


class Nag(StrictModel):
    """Normalised attention guidance: makes the negative prompt work without text guidance, for recipes of few steps."""

    scale: Annotated[float, Field(ge=1, le=50)] = 11.0
    """How far attention to the text moves away from the negative prompt; 1: not at all."""

    tau: Annotated[float, Field(ge=1, le=20)] = 2.5
    """Largest growth of what a token reads from the text, by its norm."""

    alpha: Annotated[float, Field(gt=0, le=1)] = 0.25
    """Share of the moved value in the result."""


class SingleJob(StrictModel):
    """One talking video: its speech, its source image or video, and the parameters of its generation."""

    # What check_combinations checks, as far as JSON Schema can say it.
    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [
                {"required": [speech], "properties": {speech: {"type": "object"}}}
                for speech in ("cond_audio", "tts_audio")
            ],
            "not": {
                "required": ["bbox", "mask"],
                "properties": {"bbox": {"type": "object"}, "mask": {"type": "object"}},
            },
            # check_script
            "if": {"properties": {"audio_type": {"const": "script"}}, "required": ["audio_type"]},
            "then": {"properties": {"script": {"type": "array"}}, "required": ["script"]},
            "else": {"properties": {"script": {"type": "null"}}},
        }
    )

    prompt: Prompt
    """Description of the video; only its first 512 tokens count. Or several: [{"from_s": 0, "prompt": …}, {"from_s": 8,
    "prompt": …}]; each chunk takes the one that is in force at its first frame."""

    cond_video: PictureMedia
    """Image or video of the speakers: http(s) URL, data URI, base64, or a path below the worker's volume. With a video,
    each chunk's reference is the video's frame at the chunk's start. Or several: [{"from_s": 0, "media": …}, …], taken
    like several prompts; the first one's shape is the result's, and bbox and mask are of the first one."""

    cond_audio: Annotated[dict[str, Voice | None], IS_BY_SPEAKER, NAMES_SPEAKERS, SPEAKER_NAMES, ONE_SPEAKS] | None = (
        None
    )
    """Speech of each speaker: {"person1": media, "person2": media, …}, audio or a video with sound, in the same
    forms as cond_video; null keeps a speaker silent, and at least one must speak. {"media": media, "from_s": 2.5}
    begins later. Give this or tts_audio."""

    tts_audio: TtsAudio | None = None
    """Text to be spoken. Give this or cond_audio."""

    audio_type: Literal["para", "add", "script"] = "para"
    """Order of several speakers: all from the start ("para"), one after the other ("add"), or by turns ("script")."""

    script: Script | None = None
    """Who speaks when: [{"speaker": "person1", "from_s": 0, "to_s": 4}, …]. In each turn the speaker's own sound goes
    on from where its last turn ended. Without to_s, a turn lasts until the next one begins, and the last one as long as
    the sound. For audio_type "script"."""

    speech: SpeechOptions | None = None
    """{"gate": "auto"}: mouths rest where the sound is music or noise. Null: {"gate": "off"}."""

    bbox: Annotated[dict[str, BoundingBox], IS_BY_SPEAKER, NAMES_SPEAKERS, SPEAKER_NAMES] | None = None
    """Each speaker's box: {"person1": [x_min, y_min, x_max, y_max], …} in pixels of the upright source.
    Null: side by side, left to right. Give this or mask."""

    bbox_order: Literal["xy", "yx"] = "xy"
    """"xy": [x_min, y_min, x_max, y_max]; "yx": [y_min, x_min, y_max, x_max], as in the published code."""

    mask: Annotated[dict[str, MediaText], IS_BY_SPEAKER, NAMES_SPEAKERS, SPEAKER_NAMES] | None = None
    """Each speaker's mask: an image that is white where the speaker is; where dub keeps a film, also a video that says
    it of each frame. Give this or bbox."""

    regions: Literal["halves", "faces"] = "halves"
    """Places of several speakers without bbox and mask: "halves", side by side; "faces", the faces found in cond_video
    (in a video's first frame), left to right; of faces one above the other, from the top."""

    loras: list[Lora] = Field(default_factory=list, max_length=8)
    """LoRA files to apply to the base model."""

    scene_seg: bool = False
    """Split a source video into its scenes and generate each of them with its own part of the speech."""

    dub: Dub | None = None
    """What stays of cond_video; null: nothing, and the frames are generated whole."""

    output: Output | None = None
    """Frame times and size of the result; null: the model's, or cond_video's where dub keeps something."""

    audio_mix: AudioMix | None = None
    """What is heard beside the speech; null: nothing."""

    dry_run: bool = False
    """Return only a plan of the job."""

    recipe: RecipeName | None = None
    """Named way to make the video: it sets the fields that the job leaves out, and needs its own weights. A dry run
    lists those that the worker can run, with their cost. Null: the worker's DEFAULT_RECIPE."""

    size: Annotated[
        Annotated[SizeName, choice("name")] | Annotated[FrameSize, choice("pixels")],
        Discriminator(lambda size: "<pixels>" if isinstance(size, dict | FrameSize) else "<name>"),
    ] = Field(_DEFAULTS.size, validate_default=True)
    """Table of resolutions: the one nearest to the source's aspect ratio is used. Or a resolution of your own,
    {"width": 832, "height": 480}: multiples of 16 from 128 to 2048, at most 1920x1088 pixels; the source is cropped to
    it."""

    mode: Literal["clip", "streaming"] = "clip"
    """"clip": at most frame_num frames, by most recipes one chunk. "streaming": as many chunks as the speech needs, at
    most max_frame_num frames."""

    frame_num: Annotated[int, Field(ge=FEWEST_FRAMES, le=MOST_FRAMES), AfterValidator(check_frame_num), FRAMES] = (
        _DEFAULTS.frame_num
    )
    """Number of video frames of a chunk, 4n+1, at 25 per second."""

    max_frame_num: Annotated[int, Field(ge=1, le=LONGEST_VIDEO)] = _DEFAULTS.max_frame_num
    """Largest number of video frames in streaming mode, at 25 per second (90,000 are an hour)."""

    sample_steps: Annotated[int, Field(ge=1, le=200)] = _DEFAULTS.num_inference_steps
    """Number of sampling steps of a chunk. This default and the others are those of recipe "quality"."""

    sample_shift: Annotated[float, Field(ge=0.01, le=100)] | None = None
    """Shift of the noise schedule; null: the recipe's, else 7 for infinitetalk-480, 11 for infinitetalk-720;
    a resolution of your own has the nearest table's."""

    sample_text_guide_scale: Annotated[float, Field(ge=0, le=50)] = _DEFAULTS.text_guide_scale
    """Strength of the prompt's guidance; 1 saves a third of the work and turns the negative prompt off,
    unless nag is on."""

    sample_audio_guide_scale: Annotated[float, Field(ge=0, le=50)] = _DEFAULTS.audio_guide_scale
    """Strength of the speech's guidance."""

    motion_frame: Annotated[int, Field(ge=1, le=400)] = _DEFAULTS.motion_frame
    """Number of video frames of one chunk from which the next one continues (streaming); less than frame_num."""

    crossfade_frame: Annotated[int, Field(ge=0, le=25)] = _DEFAULTS.crossfade_frame
    """Number of video frames of the fade from one chunk into the next (streaming), at most motion_frame rounded down to
    4n+1; 0: a cut, as in the published code."""

    negative_prompt: Annotated[str, StringConstraints(max_length=5000)] | None = None
    """Description of things that the video should not show; null: the published model's default. It needs text guidance
    or nag."""

    nag: Nag | None = None
    """Normalised attention guidance, which makes the negative prompt work with sample_text_guide_scale 1, as in recipes
    of few steps; it adds 2 to 7 % to an evaluation. {} takes its defaults; null: off."""

    color_correction_strength: Annotated[float, Field(ge=0, le=1)] = _DEFAULTS.color_correction_strength
    """How far each frame's colours are moved towards the reference frame's, 0 to 1."""

    use_teacache: bool = False
    """Reuse the network's last output if it would hardly change."""

    teacache_thresh: Annotated[float, Field(gt=0, le=10)] = _DEFAULTS.teacache_threshold
    """TeaCache: the accumulated relative change above which the network runs again."""

    use_apg: bool = False
    """Adaptive projected guidance instead of plain guidance."""

    apg_momentum: Annotated[float, Field(ge=-1, le=1)] = _DEFAULTS.apg_momentum
    """APG: momentum of the running average of the guidance."""

    apg_norm_threshold: Annotated[float, Field(gt=0, le=10_000)] = _DEFAULTS.apg_norm_threshold
    """APG: largest norm of the guidance."""

    base_seed: Annotated[int, Field(ge=-1, le=LARGEST_SEED)] = 42
    """Seed of the noise; -1: derived from the job's id. The result's params contain the seed used."""

    num_persistent_param_in_dit: Annotated[int, Field(ge=0)] | None = None
    """Number of parameters of the transformer that stay on the GPU; null: the worker chooses."""

    offload_model: bool | None = None
    """Move networks off the GPU when they are not in use; null: the worker chooses."""

    quant: Literal["fp8", "int8"] | None = None
    """Quantised weights; null: the worker chooses."""

    output_config: OutputConfig | None = None
    """Destination of the result; null: s3, prefix infinitetalk/jobs."""

    @model_validator(mode="after")
    def check_combinations(self) -> SingleJob:
        """Checks the rules that span fields.

        Raises:
            ValueError: a combination of fields cannot be served.
        """
        if (self.cond_audio is None) == (self.tts_audio is None):
            raise ValueError(
                'needs speech: give either cond_audio, e.g. {"person1": "https://…/voice.wav"}, or tts_audio'
            )
        if self.cond_audio is not None and all(media is None for media in self.cond_audio.values()):
            raise ValueError("needs speech: at least one speaker of cond_audio must have audio instead of null")
        if self.bbox is not None and self.mask is not None:
            raise ValueError("takes bbox or mask, not both")
        for field, places in (("bbox", self.bbox), ("mask", self.mask)):
            if places is not None and set(places) != set(self.speakers):
                has = f"has {', '.join(self.speakers)}; {field} has {', '.join(places)}"
                told = f"tts_audio {has}" if self.tts_audio else f"cond_audio, where null keeps a speaker silent, {has}"
                raise ValueError(f"needs one {field} for each speaker: {told}")
        if self.mode == "streaming" and self.motion_frame >= self.frame_num:
            raise ValueError(
                f"needs motion_frame smaller than frame_num in streaming mode, "
                f"not {self.motion_frame} of {self.frame_num}"
            )
        self._check_dub()
        return self

    @model_validator(mode="after")
    def check_script(self) -> SingleJob:
        """Checks that there is a script if the speakers take turns by one, and that it is of these speakers.

        Raises:
            ValueError: the script is missing, has no use, or does not fit the speakers.
        """
        if (self.audio_type == "script") != (self.script is not None):
            raise ValueError(
                'needs a script with audio_type "script", e.g. [{"speaker": "person1", "from_s": 0}, {"speaker": '
                '"person2", "from_s": 4}], and takes none with another audio_type'
            )
        later = [name for name, voice in self.voices.items() if voice is not None and voice.from_s > 0]
        if later and self.audio_type != "para":
            raise ValueError(f'takes from_s of cond_audio.{later[0]} with audio_type "para" only')
        if self.script is None:
            return self
        if self.cond_audio is None:
            raise ValueError('takes a script with cond_audio only; a text has its turns in itself: "(s1) … (s2) …"')
        for index, turn in enumerate(self.script):
            if self.cond_audio.get(turn.speaker) is None:
                speak = ", ".join(name for name, media in self.cond_audio.items() if media is not None)
                raise ValueError(f"has a turn of {turn.speaker} in script.{index}; those with sound are {speak}")
        return self

    @model_validator(mode="after")
    def check_scenes(self) -> SingleJob:
        """Checks that only one source is split into scenes.

        Raises:
            ValueError: there are several.
        """
        if self.scene_seg and len(self.pictures) > 1:
            raise ValueError("takes scene_seg with one cond_video only, not with a list: leave out one of them")
        return self

    @property
    def prompts(self) -> list[PromptFrom]:
        """The prompts, in the order of their times; the first is in force from the start."""
        return [PromptFrom(from_s=0.0, prompt=self.prompt)] if isinstance(self.prompt, str) else self.prompt

    @property
    def pictures(self) -> list[PictureFrom]:
        """The images or videos, in the order of their times; the first is in force from the start."""
        if isinstance(self.cond_video, str):
            return [PictureFrom(from_s=0.0, media=self.cond_video)]
        return self.cond_video

    @property
    def changes(self) -> bool:
        """Whether the prompt or the picture changes."""
        return len(self.prompts) > 1 or len(self.pictures) > 1

    @property
    def voices(self) -> dict[str, VoiceFrom | None]:
        """The sound of each speaker of cond_audio, and when it begins; None for a silent speaker."""
        return {
            name: VoiceFrom(media=voice) if isinstance(voice, str) else voice
            for name, voice in (self.cond_audio or {}).items()
        }

    @property
    def turns(self) -> list[BoundedTurn]:
        """The turns of the script; none without one."""
        return turns_of(self.script or [])

    def _check_dub(self) -> None:
        """Checks what is to be kept of the film.

        Raises:
            ValueError: a combination of fields cannot be served.
        """
        if len(self.pictures) > 1 and (self.dub is not None or self.audio_mix is not None or self.shows_film_times):
            raise ValueError(
                'takes dub, audio_mix and output.fps "source" with one cond_video only: send each film of the list as '
                "a job of its own"
            )
        size = None if self.output is None else self.output.size
        if self.keeps_film and size == "model":
            raise ValueError(
                'takes output.size "model" with dub.keep "none" only: what is kept has the film\'s own size'
            )
        if not self.keeps_film and size == "source":
            raise ValueError('takes output.size "source" with dub.keep "face" or "all" only')
        if self.keeps_film and self.scene_seg:
            raise ValueError("takes dub.keep or scene_seg, not both: send each scene of the film as a job of its own")
        if self.shows_film_times and self.output_config is not None and self.output_config.preview:
            raise ValueError(NO_PREVIEW)

    @property
    def keeps_film(self) -> bool:
        """Whether something of the source's own frames is shown."""
        return self.dub is not None and self.dub.keep != "none"

    @property
    def shows_film_times(self) -> bool:
        """Whether the result's frames have the times of a source video's frames."""
        fps = None if self.output is None else self.output.fps
        return fps == "source" or (fps is None and self.keeps_film)

    @property
    def speakers(self) -> list[str]:
        """Names of the speakers, person1 first."""
        if self.cond_audio is not None:
            return list(self.cond_audio)
        assert self.tts_audio is not None
        return [f"person{number}" for number, _ in enumerate(self.tts_audio.voices, start=1)]

    @property
    def gates_speech(self) -> bool:
        """Whether only speech moves the mouths."""
        return self.speech is not None and self.speech.gate == "auto"

    @property
    def frame_limit(self) -> int:
        """The largest number of video frames that the mode allows."""
        return self.frame_num if self.mode == "clip" else self.max_frame_num

    @property
    def strength(self) -> float:
        """How much of a source video is made anew, above 0 to 1."""
        return 1.0 if self.dub is None else self.dub.strength

    @property
    def resolution(self) -> tuple[int, int] | None:
        """(height, width) in pixels that the job names itself; None: a table's."""
        return (self.size.height, self.size.width) if isinstance(self.size, FrameSize) else None

    @property
    def size_table(self) -> str:
        """Name of the table of resolutions that sets the default shift and TeaCache's values: of the job's own
        resolution, the nearest table."""
        if isinstance(self.size, FrameSize):
            return self.family.nearest_size(self.size.height, self.size.width)
        return self.size

    @property
    def shift(self) -> float:
        """`sample_shift`, or the default of the size's table."""
        return self.family.size(self.size_table).shift if self.sample_shift is None else self.sample_shift

    @property
    def family(self) -> Family:
        """The model family that makes the job's video."""
        return INFINITETALK if self.recipe is None else RECIPES[self.recipe].family

    @property
    def chunk_frame_num(self) -> int:
        """Number of video frames of a chunk: the recipe's if it is fixed, else `frame_num`."""
        fixed = None if self.recipe is None else RECIPES[self.recipe].fixed_value("frame_num")
        return self.frame_num if fixed is None else int(fixed)

    def by_recipe(self, recipe: Recipe) -> SingleJob:
        """The job with a recipe's values: in fields that the job leaves out, and in those that the recipe fixes.

        In mode "clip" frame_num stays the job's, since it limits the video and not the chunk. Fields that the recipe
        sets do not count as set by the job.
        """
        values = {
            field: value
            for field, value in recipe.values.items()
            if field in recipe.fixed or field not in self.model_fields_set or getattr(self, field) is None
        }
        if self.mode == "clip":
            values.pop("frame_num", None)
        fields = dict(self) | values | {"recipe": recipe.name}
        return self.model_construct(_fields_set=set(self.model_fields_set), **fields)

    def contradictions(self, recipe: Recipe) -> dict[str, tuple[Any, Any]]:
        """The job's own values that a recipe cannot run with: field -> (the job's value, the recipe's)."""
        given = {field: getattr(self, field) for field in self.model_fields_set if field in recipe.fixed}
        if self.mode == "clip":
            given.pop("frame_num", None)
        return recipe.contradictions(given)


class BatchItem(SingleJob):
    """One job of a batch."""

    id: Annotated[
        str, StringConstraints(max_length=64), AfterValidator(check_safe_name), Published({"pattern": f"^{SAFE_NAME}$"})
    ]
    """Name of the item: its files are {prefix}/{job_id}-{id}.mp4, .jpg and .json."""


class BatchJob(StrictModel):
    """Several jobs that run one after the other."""

    batch: Annotated[list[BatchItem], Field(min_length=1)]
    """The items; their ids must differ, and their number must not exceed the worker's MAX_BATCH_ITEMS."""

    output_config: OutputConfig | None = None
    """Destination of the items' results, unless an item has its own; null: s3, prefix infinitetalk/jobs."""

    @model_validator(mode="after")
    def check_ids(self) -> BatchJob:
        """Checks that ids differ: items with equal ids would overwrite each other's files.

        Raises:
            ValueError: two items have the same id.
        """
        ids = [item.id for item in self.batch]
        if len(set(ids)) != len(ids):
            raise ValueError("needs different ids for the items of batch")
        return self

    @model_validator(mode="after")
    def check_previews(self) -> BatchJob:
        """Checks that no item that takes the batch's destination has frame times that a preview cannot have.

        Raises:
            ValueError: one has.
        """
        if self.output_config is not None and self.output_config.preview:
            for index, item in enumerate(self.batch):
                if item.output_config is None and item.shows_film_times:
                    raise ValueError(f"has batch.{index}, which {NO_PREVIEW}")
        return self


def parse_input(payload: Any) -> SingleJob | BatchJob:
    """The `input` of a job as a model.

    Raises:
        pydantic.ValidationError: the input is invalid; `explain` makes a message for the client from the error.
    """
    if isinstance(payload, dict) and "batch" in payload:
        return BatchJob.model_validate(payload)
    return SingleJob.model_validate(payload)
