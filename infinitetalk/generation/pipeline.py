"""Generates video from an image or video, speech and a prompt, chunk by chunk."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from infinitetalk.encoders.vae import decode_in_groups, decode_latents, encode_frames
from infinitetalk.encoders.wav2vec2 import SpeechEmbeddings
from infinitetalk.generation.arriving import ArrivingFrames
from infinitetalk.generation.chunks import ChunkGrid, ChunkPlan
from infinitetalk.generation.color import frames_at_once, match_color_
from infinitetalk.generation.crossfade import cross_fade
from infinitetalk.generation.references import EncodedReference, EncodedReferences, reference_key
from infinitetalk.generation.sampling import (
    ChunkConditions,
    GenerationSettings,
    SampledChunk,
    Sampler,
    chunk_noise,
    make_sampler,
    sample_chunk,
)
from infinitetalk.generation.timeline import Change, in_force
from infinitetalk.media.sizes import choose_resolution, resize_and_crop
from infinitetalk.media.speech import VIDEO_FPS
from infinitetalk.network.protocols import Denoiser
from infinitetalk.network.regions import default_regions, latent_regions
from infinitetalk.runtime.networks import Networks
from infinitetalk.runtime.streams import beside

if TYPE_CHECKING:
    from infinitetalk.media.decode import Source

#: The source's own frames of a chunk's `num_frames` frames at 25 fps, the last one repeated where it has ended: uint8
#: (3, h, w) each.
Footage = Callable[[ChunkPlan], Iterator[Tensor]]

#: Largest standard deviation, in levels, of a frame of one colour, and the stride of the sampled pixels.
FLAT_DEVIATION, FLAT_STRIDE = 2.0, 4


@dataclass(frozen=True)
class Step:
    """A sampling step that has just ended; chunks and steps are counted from 1.

    `evaluations` is the number of network evaluations that the step computed; TeaCache may have skipped others.
    """

    chunk: int
    num_chunks: int
    step: int
    num_steps: int
    evaluations: int


@dataclass(frozen=True)
class ChunkState:
    """The state needed to continue after a chunk.

    Attributes:
        next_chunk: index of the next chunk.
        motion_latents: (1, 16, n, h, w) on the CPU, of the frames that it takes over.
        held_frames: uint8 (num_held_frames, height, width, 3), not yet shown: they fade into the next chunk's frames.
    """

    next_chunk: int
    motion_latents: Tensor
    held_frames: np.ndarray

    def to_bytes(self) -> bytes:
        """As a safetensors file."""
        tensors = {
            "next_chunk": torch.tensor(self.next_chunk),
            "motion_latents": self.motion_latents.contiguous(),
            "held_frames": torch.from_numpy(self.held_frames).contiguous(),
        }
        return safetensors.torch.save(tensors)

    @classmethod
    def from_bytes(cls, data: bytes) -> ChunkState:
        """The inverse of `to_bytes`."""
        tensors = safetensors.torch.load(data)
        return cls(int(tensors["next_chunk"]), tensors["motion_latents"], tensors["held_frames"].numpy())


@dataclass(frozen=True)
class Chunk:
    """One finished chunk: the frames to show, on the CPU, and the state for the next chunk.

    Attributes:
        plan: its place in the video.
        num_chunks: number of chunks in the whole video.
        frames: uint8 (T, height, width, 3), to show next: the faded frames that were held for the fade into this chunk,
            and the new ones, except those held for the fade into the next.
        state: to continue from; None after the last chunk.
        evaluations, evaluations_skipped: network evaluations made, and skipped by TeaCache.
        is_flat: whether most of the generated frames are of one colour and the source is not.
    """

    plan: ChunkPlan
    num_chunks: int
    frames: np.ndarray
    state: ChunkState | None
    evaluations: int
    evaluations_skipped: int
    is_flat: bool


@dataclass(frozen=True)
class Control:
    """Where the generation of a video begins, and who follows it.

    Attributes:
        state: the state after the last existing chunk, to continue from; None: from the video's start.
        should_stop: is called before every network evaluation; true ends the generation by `GenerationStopped`.
        on_step: is called after every sampling step.
        is_beside: whether chunks are finished in another thread while the iterator is advanced. The last chunk then
            comes before it is decoded, and its frames arrive as they are decoded.
    """

    state: ChunkState | None = None
    should_stop: Callable[[], bool] = lambda: False
    on_step: Callable[[Step], None] = lambda step: None
    is_beside: bool = False


UNCONTROLLED = Control()


@dataclass(frozen=True)
class Conditions:
    """The inputs of a video.

    Attributes:
        source: the image or video; if it changes, the first one, which gives the video its shape.
        speech: embeddings of each speaker, all of the same length.
        prompt_embeds: (1, text_len, text_dim); if the prompt changes, of the first one.
        negative_prompt_embeds: the same; None if the settings do not use them.
        regions: bool (speakers, source.height, source.width), each speaker's region; None for the default columns.
        footage: reads all of a source video's frames of a chunk, for settings by which sampling starts from them.
        changes: later prompts and sources, in the order of their frames.
    """

    source: Source
    speech: Sequence[SpeechEmbeddings]
    prompt_embeds: Tensor
    negative_prompt_embeds: Tensor | None
    regions: Tensor | None = None
    footage: Footage | None = None
    changes: Sequence[Change[Tensor]] = ()

    @property
    def all_changes(self) -> list[Change[Tensor]]:
        """What is in force from the start, as a change at frame 0, and the changes."""
        return [Change(0, self.prompt_embeds, self.source, 0), *self.changes]


@dataclass(frozen=True)
class Reference:
    """A reference frame and the network's inputs made from it.

    Attributes:
        frame: uint8 (3, h, w), as the source returns it.
        image_embeds: (1, image_tokens, image_dim).
        latents: (1, 16, t, h, w), of the frame followed by grey frames.
        is_new: whether it was encoded now, and not kept from an earlier video.
    """

    frame: Tensor
    image_embeds: Tensor
    latents: Tensor
    is_new: bool = True


@dataclass(frozen=True)
class Video:
    """The data that all chunks of one video share.

    Attributes:
        conditions, settings: as given.
        grid, plans: the video's chunks.
        height, width: in pixels.
        regions: bool (speakers + 1, height / 8, width / 8) on the model's device; None for one speaker.
        color_references: float (1, 3, 1, height, width) in [-1, 1], each source's first frame, by the source's `id`.
    """

    conditions: Conditions
    settings: GenerationSettings
    grid: ChunkGrid
    plans: list[ChunkPlan]
    height: int
    width: int
    regions: Tensor | None
    color_references: dict[int, Tensor]

    def color_reference(self, plan: ChunkPlan) -> Tensor:
        """The frame whose colours a chunk gets: float (1, 3, 1, height, width) in [-1, 1]."""
        return self.color_references[id(in_force(self.conditions.all_changes, plan.start).source)]

    def num_held_frames(self, plan: ChunkPlan) -> int:
        """Number of a chunk's frames that are not shown with it but held for the fade into the next chunk."""
        return 0 if plan is self.plans[-1] else self.plans[plan.index + 1].num_held_frames


class DecodedChunk:
    """A chunk from which the next one can begin; its frames are decoded, but have not all the source's colours yet.

    Of a video's last chunk, which no next one waits for, the frames may still arrive.

    Args:
        finisher: finishes the video's chunks.
        plan: its place in the video.
        reference: its reference.
        sampled: its latents, and the evaluations made for them.
        frames: its decoded frames. Frames that the next chunk takes over have the source's colours.
        motion_latents: of these frames; None after the last chunk.
        is_arriving: whether the frames arrive while the chunk is finished.

    Attributes:
        evaluations: network evaluations made.
        has_encoded_reference: whether its reference frame was encoded for it.
        resolution: height and width of its frames.
    """

    def __init__(
        self,
        finisher: Finisher,
        plan: ChunkPlan,
        reference: Reference,
        has_encoded_reference: bool,
        sampled: SampledChunk,
        frames: ArrivingFrames,
        motion_latents: Tensor | None,
        is_arriving: bool = False,
    ) -> None:
        self.plan, self.reference, self.sampled, self.motion_latents = plan, reference, sampled, motion_latents
        self.evaluations = sampled.evaluations
        self.has_encoded_reference = has_encoded_reference
        self.is_arriving = is_arriving
        self.resolution = finisher.resolution
        self._finisher = finisher
        self._frames = frames
        self._chunk: Chunk | None = None

    @torch.no_grad()
    def finish(self, is_beside: bool = False, on_frames: Callable[[np.ndarray], None] = lambda frames: None) -> Chunk:
        """The finished chunk. A video's chunks must be finished in their order; another thread may do it, and must if
        the frames arrive meanwhile.

        Args:
            is_beside: on a GPU, does not wait for what the device was given to do since, such as the next chunk's
                steps, and runs beside it.
            on_frames: takes the frames to show, uint8 (n, height, width, 3), as soon as they are finished; if the chunk
                is finished already, all at once.

        Raises:
            DecodingEndedError: the frames have not all arrived.
        """
        if self._chunk is None:
            # The groups are large and must not stay on the GPU while the next chunk is sampled.
            self._chunk = self._finisher.finish(self, self._frames, is_beside, on_frames)
        else:
            on_frames(self._chunk.frames)
        return self._chunk


class Finisher:
    """Finishes the chunks of a video in their order: colours, bytes on the CPU, and the fade from chunk to chunk.

    Args:
        video: the video.
        held_frames: uint8 (n, height, width, 3), the frames that fade into the first chunk.

    Attributes:
        resolution: height and width of the video.
    """

    def __init__(self, video: Video, held_frames: np.ndarray) -> None:
        self.resolution = video.height, video.width
        self._video = video
        self._held_frames = held_frames

    def correct(self, frames: Tensor, plan: ChunkPlan) -> None:
        """Gives frames (1, 3, n, height, width) of a chunk its source's colours, where they are."""
        match_color_(frames, self._video.color_reference(plan), self._video.settings.color_correction_strength)

    def finish(
        self,
        chunk: DecodedChunk,
        groups: ArrivingFrames,
        is_beside: bool,
        on_frames: Callable[[np.ndarray], None],
    ) -> Chunk:
        """The frames to show and the state for the next chunk, with the arguments of `DecodedChunk.finish`."""
        video, plan, motion_latents = self._video, chunk.plan, chunk.motion_latents
        num_uncorrected = plan.num_frames - (0 if motion_latents is None else video.grid.motion_frame)
        joined = JoinedFrames(self._held_frames, plan)
        num_shown_frames = joined.num_frames - video.num_held_frames(plan)
        num_decoded = num_given = 0
        for decoded, begin in groups:
            with beside(begin) if is_beside else nullcontext():
                if num_decoded < num_uncorrected:
                    self.correct(decoded[:, :, : num_uncorrected - num_decoded], plan)
                joined.add(decoded[0])
            num_decoded += decoded.shape[2]
            if (num_ready := min(joined.num_ready, num_shown_frames)) > num_given:
                on_frames(joined.frames[num_given:num_ready])
                num_given = num_ready
        frames = joined.frames
        state = None
        if motion_latents is not None:
            # A copy, so that the state does not keep the whole chunk alive.
            self._held_frames = frames[num_shown_frames:].copy()
            state = ChunkState(plan.index + 1, motion_latents.cpu(), self._held_frames)
        return Chunk(
            plan=plan,
            num_chunks=len(video.plans),
            frames=frames[:num_shown_frames],
            state=state,
            evaluations=chunk.sampled.evaluations,
            evaluations_skipped=chunk.sampled.evaluations_skipped,
            # The first frame of the first chunk is the source's, whatever the network does.
            is_flat=is_flat(frames[max(plan.num_held_frames, 1) :], chunk.reference.frame),
        )


class InfiniteTalkPipeline:
    """Generates video with the networks of one checkpoint.

    Args:
        networks: the networks.
        references: references that these networks, or others with the same weights, have encoded; further ones are
            added.
    """

    def __init__(self, networks: Networks, references: EncodedReferences | None = None) -> None:
        self.networks = networks
        self._encoded_references = EncodedReferences() if references is None else references

    def __call__(
        self,
        source: Source,
        speech: Sequence[SpeechEmbeddings],
        prompt: str,
        settings: GenerationSettings,
        negative_prompt: str | None = None,
        regions: Tensor | None = None,
        state: ChunkState | None = None,
        should_stop: Callable[[], bool] = lambda: False,
        on_step: Callable[[Step], None] = lambda step: None,
        footage: Footage | None = None,
        changes: Sequence[Change[str]] = (),
    ) -> Iterator[Chunk]:
        """Generate a video, chunk by chunk.

        Args:
            source: the image or video of the speakers.
            speech: embeddings of each speaker, one row per video frame, all of the same length.
            prompt: describes the video.
            negative_prompt: describes what the video must not show; None: the family's default.
            settings: how to generate.
            regions: bool (speakers, source.height, source.width), each speaker's region; by default, columns from left
                to right.
            state: the state after the last existing chunk, to continue from.
            should_stop: called before every network evaluation.
            on_step: called after every sampling step.
            footage: reads all frames of a chunk of a source video; needed where the settings' strength is below 1.
            changes: later prompts and sources, in the order of their frames. A chunk takes what is in force at its
                first frame; its frames get the colours of its source.

        Raises:
            GenerationStopped: `should_stop` returned True.
            RegionError: a speaker's region vanishes at the model's resolution.
            NotFiniteError: a step has produced numbers that are not finite.
            ValueError: the number of frames held in `state` differs from the settings; the speakers' embeddings differ
                in length; there are several speakers, and the family knows only one; footage is needed and missing.
        """
        conditions = self.embed_prompts(source, speech, prompt, settings, negative_prompt, regions, footage, changes)
        return self.generate(conditions, settings, Control(state, should_stop, on_step))

    def embed_prompts(
        self,
        source: Source,
        speech: Sequence[SpeechEmbeddings],
        prompt: str,
        settings: GenerationSettings,
        negative_prompt: str | None = None,
        regions: Tensor | None = None,
        footage: Footage | None = None,
        changes: Sequence[Change[str]] = (),
    ) -> Conditions:
        """The inputs of a video, with the arguments of `__call__`; each prompt is embedded once."""
        embed = cache(self.networks.prompt_encoder)
        if negative_prompt is None:
            negative_prompt = self.networks.family.defaults.negative_prompt
        return Conditions(
            source=source,
            speech=speech,
            prompt_embeds=embed(prompt),
            negative_prompt_embeds=embed(negative_prompt) if settings.needs_negative_prompt else None,
            regions=regions,
            footage=footage,
            changes=[
                Change(change.start, embed(change.prompt), change.source, change.source_start) for change in changes
            ],
        )

    def generate(
        self,
        conditions: Conditions,
        settings: GenerationSettings,
        control: Control = UNCONTROLLED,
    ) -> Iterator[Chunk]:
        """Like `__call__`, with embedded prompts."""
        for chunk in self.decoded_chunks(conditions, settings, control):
            yield chunk.finish()

    @torch.no_grad()
    def decoded_chunks(
        self,
        conditions: Conditions,
        settings: GenerationSettings,
        control: Control = UNCONTROLLED,
    ) -> Iterator[DecodedChunk]:
        """Like `generate`, but each chunk comes as soon as the next one can begin, and must be finished."""
        state = control.state
        video = self.set_up(conditions, settings)
        reference: Reference | None = None
        motion_latents, held_frames = None, np.empty((0, video.height, video.width, 3), dtype=np.uint8)
        if state is not None:
            check_state(state, video)
            motion_latents, held_frames = state.motion_latents.to(self.networks.device), state.held_frames
        finisher = Finisher(video, held_frames)

        for plan in video.plans[0 if state is None else state.next_chunk :]:
            taken = in_force(conditions.all_changes, plan.start)
            frame = taken.source.frame_at((plan.start - taken.source_start) / VIDEO_FPS)
            is_other = reference is None or reference.frame is not frame
            if reference is None or is_other:
                reference = self.encode_reference(frame, video.height, video.width, plan.num_frames)
            if motion_latents is None:
                motion_latents = reference.latents[:, :, :1]
            report = partial(_report_step, control.on_step, plan.index + 1, len(video.plans), settings.num_steps)
            told = self.chunk_conditions(video, plan, reference, motion_latents)
            sampled = self.sample(plan, told, settings, control.should_stop, report)
            has_encoded_reference = is_other and reference.is_new
            if control.is_beside and plan is video.plans[-1]:
                frames = ArrivingFrames()
                # Whoever waits for the frames must also learn that this iterator was closed before it made them.
                with frames.ended():
                    yield DecodedChunk(finisher, plan, reference, has_encoded_reference, sampled, frames, None, True)
                    decode_in_groups(self.networks.vae, sampled.latents, frames.put)
                return
            # Only the chunk holds its decoded frames, and only until it is finished.
            chunk = self.decode_chunk(video, plan, reference, has_encoded_reference, sampled, finisher)
            motion_latents = chunk.motion_latents
            yield chunk

    def set_up(self, conditions: Conditions, settings: GenerationSettings) -> Video:
        """Prepares the data that all chunks of a video share.

        Raises:
            RegionError: a speaker's region vanishes at the model's resolution.
            ValueError: the speakers' embeddings differ in length; there are several, and the family knows only one.
        """
        family = self.networks.family
        if len(conditions.speech) > 1 and "multi" not in family.adapters:
            raise ValueError(f"there are {len(conditions.speech)} speakers; {family.model_name} knows only one")
        num_rows = {len(embeddings) for embeddings in conditions.speech}
        if len(num_rows) > 1:
            raise ValueError(f"the speakers' embeddings have {sorted(num_rows)} rows; they must have the same number")
        height, width = self.choose_resolution(conditions.source, settings)
        grid = settings.grid(family)
        return Video(
            conditions=conditions,
            settings=settings,
            grid=grid,
            plans=grid.plans(min(settings.max_frame_num, *num_rows)),
            height=height,
            width=width,
            regions=self.place_speakers(conditions, height, width),
            color_references={
                id(change.source): self.to_pixels(change.source.frame_at(0.0), height, width)
                for change in conditions.all_changes
            },
        )

    def chunk_conditions(
        self, video: Video, plan: ChunkPlan, reference: Reference, motion_latents: Tensor
    ) -> ChunkConditions:
        """The network's conditions for one chunk."""
        conditions = video.conditions
        windows = [embeddings.rows(video.grid.window_rows(plan, len(embeddings))) for embeddings in conditions.speech]
        nag, device = video.settings.nag_in_force, self.networks.device
        mask = first_frame_mask(reference.latents, self.networks.family.vae_scale_factor_temporal)
        return ChunkConditions(
            prompt_embeds=in_force(conditions.all_changes, plan.start).prompt,
            negative_prompt_embeds=conditions.negative_prompt_embeds,
            image_embeds=reference.image_embeds,
            condition=torch.cat([mask, reference.latents], dim=1),
            motion_latents=motion_latents,
            audio_windows=torch.stack(windows).to(device),
            regions=video.regions,
            nag_strengths=None if nag is None else nag.strengths(device),
            source_latents=self.encode_footage(video, plan) if video.settings.starts_from_source else None,
        )

    def encode_footage(self, video: Video, plan: ChunkPlan) -> Tensor:
        """Latents (1, 16, t, h, w) of the source video's own frames of a chunk.

        Raises:
            ValueError: there is no footage.
        """
        if video.conditions.footage is None:
            raise ValueError(f"strength is {video.settings.strength}; below 1, footage must be given")
        frames = [resize_and_crop(frame, video.height, video.width) for frame in video.conditions.footage(plan)]
        pixels = torch.empty(1, 3, len(frames), video.height, video.width, device=self.networks.device)
        for index, frame in enumerate(frames):
            pixels[0, :, index] = self._levels_to_pixels(frame)[0, :, 0]
        return encode_frames(self.networks.vae, pixels)

    def make_sampler(self, settings: GenerationSettings) -> Sampler:
        """The stepper, guidance and caches of one chunk."""
        return make_sampler(settings, self.networks.family)

    def sample(
        self,
        plan: ChunkPlan,
        conditions: ChunkConditions,
        settings: GenerationSettings,
        should_stop: Callable[[], bool],
        on_step: Callable[[int, int], None],
    ) -> SampledChunk:
        """Samples a chunk, from noise to latents."""
        denoiser: Denoiser = self.networks.transformer
        shape = (1, self.networks.family.latent_channels, *conditions.condition.shape[2:])
        draw_noise = partial(self.draw_noise, settings.seed, plan.index, shape)
        return sample_chunk(denoiser, draw_noise, conditions, self.make_sampler(settings), should_stop, on_step)

    def decode(self, sampled: SampledChunk) -> Tensor:
        """A chunk's frames: float32 (1, 3, num_frames, height, width) in [-1, 1]."""
        return decode_latents(self.networks.vae, sampled.latents)

    def decode_chunk(
        self,
        video: Video,
        plan: ChunkPlan,
        reference: Reference,
        has_encoded_reference: bool,
        sampled: SampledChunk,
        finisher: Finisher,
    ) -> DecodedChunk:
        """Decodes a sampled chunk as far as the next one needs it: the frames that it takes over are encoded."""
        decoded = self.decode(sampled)
        motion_latents = None
        if plan is not video.plans[-1]:
            motion_frames = decoded[:, :, -video.grid.motion_frame :]
            finisher.correct(motion_frames, plan)
            motion_latents = encode_frames(self.networks.vae, motion_frames)
        frames = ArrivingFrames()
        frames.put(decoded)
        frames.end(are_all=True)
        return DecodedChunk(finisher, plan, reference, has_encoded_reference, sampled, frames, motion_latents)

    def choose_resolution(self, source: Source, settings: GenerationSettings) -> tuple[int, int]:
        """(height, width) in pixels of the video made from a source."""
        networks, size, resolution = self.networks, settings.size, settings.resolution
        return choose_resolution(networks.family, size, resolution, source.height, source.width, networks.size_scale)

    def place_speakers(self, conditions: Conditions, height: int, width: int) -> Tensor | None:
        """Regions at latent size, bool (speakers + 1, height / 8, width / 8); None for one speaker."""
        num_speakers = len(conditions.speech)
        if num_speakers == 1:
            return None
        source = conditions.source
        regions = conditions.regions
        if regions is None:
            regions = default_regions(num_speakers, source.height, source.width)
        factor = self.networks.family.vae_scale_factor_spatial
        return latent_regions(regions, height, width, factor).to(self.networks.device)

    def to_pixels(self, frame: Tensor, height: int, width: int) -> Tensor:
        """uint8 (3, h, w) → float (1, 3, 1, height, width) in [-1, 1] on the model's device."""
        return self._levels_to_pixels(resize_and_crop(frame, height, width))

    def _levels_to_pixels(self, picture: Tensor) -> Tensor:
        return (picture.to(self.networks.device) / 127.5 - 1.0)[None, :, None]

    def encode_reference(self, frame: Tensor, height: int, width: int, num_frames: int) -> Reference:
        """Encode a reference frame for a chunk of `num_frames` frames of height x width pixels, unless that was done
        before."""
        picture = resize_and_crop(frame, height, width)
        key = reference_key(picture, num_frames, self._encoding_arithmetic)
        if (kept := self._encoded_references.get(key)) is not None:
            device = self.networks.device
            return Reference(frame, kept.image_embeds.to(device), kept.latents.to(device), is_new=False)
        pixels = self._levels_to_pixels(picture)
        grey = pixels.new_zeros(1, 3, num_frames - 1, height, width)
        reference = Reference(
            frame=frame,
            image_embeds=self.networks.image_encoder(pixels[:, :, 0]),
            latents=encode_frames(self.networks.vae, torch.cat([pixels, grey], dim=2)),
        )
        self._encoded_references.put(key, EncodedReference(reference.image_embeds.cpu(), reference.latents.cpu()))
        return reference

    @property
    def _encoding_arithmetic(self) -> str:
        choice = self.networks.choice
        tiles = ", in tiles" if choice.memory.vae_tiling else ""
        return f"{self.networks.family.name}, {choice.kernels.vae}{tiles}"

    def draw_noise(self, seed: int, chunk: int, shape: tuple[int, ...], draw: int) -> Tensor:
        """One random draw of a chunk, on the model's device."""
        return chunk_noise(seed, chunk, draw, shape).to(self.networks.device)


def check_state(state: ChunkState, video: Video) -> None:
    """Checks that a video can continue from a state.

    Raises:
        ValueError: the number of frames held in the state differs from the settings.
    """
    num_held_frames = video.plans[state.next_chunk].num_held_frames
    if len(state.held_frames) != num_held_frames:
        raise ValueError(
            f"the state holds {len(state.held_frames)} frames for the fade into the next chunk, the settings ask for "
            f"{num_held_frames}: use the settings with which the state was made"
        )


def _report_step(
    on_step: Callable[[Step], None], chunk: int, num_chunks: int, num_steps: int, step: int, evaluations: int
) -> None:
    on_step(Step(chunk, num_chunks, step, num_steps, evaluations))


def to_frames(video: Tensor) -> np.ndarray:
    """float (3, T, height, width) in [-1, 1] → uint8 (T, height, width, 3) on the CPU."""
    frames = torch.empty(*video.shape[1:], 3, dtype=torch.uint8, device=video.device)
    # On a CPU, one frame at a time takes a quarter of the time of all frames at once.
    count = frames_at_once(video.device)
    for pixels, group in zip(video.split(count, dim=1), frames.split(count), strict=True):
        levels = pixels.add(1.0).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)
        torch.stack(levels.unbind(), dim=-1, out=group)
    return frames.cpu().numpy()


def is_flat(frames: np.ndarray, source: Tensor) -> bool:
    """Whether more than half of the frames, uint8 (T, height, width, 3), are each of one colour and the source's frame,
    uint8 (3, h, w), is not."""
    flat = sum(_deviation(frame) < FLAT_DEVIATION for frame in frames)
    return 2 * flat > len(frames) and _deviation(source.permute(1, 2, 0).numpy()) > 2 * FLAT_DEVIATION


def _deviation(pixels: np.ndarray) -> float:
    """The largest standard deviation of a channel, in levels, of an image (height, width, 3)."""
    return float(pixels[::FLAT_STRIDE, ::FLAT_STRIDE].std(axis=(0, 1), dtype=np.float32).max())


class JoinedFrames:
    """A chunk's frames from the start of its fade, with the fade applied.

    Args:
        held_frames: uint8 (num_held_frames, height, width, 3), the last frames of the previous chunk.
        plan: the chunk.

    Attributes:
        num_frames: how many they will be: held and new ones.
        frames: uint8 (num_frames, height, width, 3).
        num_ready: the number of frames that are done.
    """

    def __init__(self, held_frames: np.ndarray, plan: ChunkPlan) -> None:
        self.num_frames = plan.num_held_frames + plan.num_new_frames
        self.frames = np.empty((self.num_frames, *held_frames.shape[1:]), np.uint8)
        self.num_ready = 0
        self._held_frames = held_frames
        self._num_fade_frames = plan.num_fade_frames
        self._num_joined = 0
        self._num_skipped = plan.num_motion_frames - plan.num_held_frames

    def add(self, video: Tensor) -> None:
        """Adds the chunk's next decoded frames, float (3, n, height, width) in [-1, 1]."""
        skipped = min(self._num_skipped, video.shape[1])
        self._num_skipped -= skipped
        wanted = video[:, skipped : skipped + self.num_frames - self._num_joined]
        if not wanted.shape[1]:
            return
        self.frames[self._num_joined : self._num_joined + wanted.shape[1]] = to_frames(wanted)
        self._num_joined += wanted.shape[1]
        if self._num_joined < self._num_fade_frames:
            return
        if self.num_ready < self._num_fade_frames:
            fading = self.frames[: self._num_fade_frames]
            fading[:] = cross_fade(self._held_frames[: self._num_fade_frames], fading)
        self.num_ready = self._num_joined


def first_frame_mask(latents: Tensor, num_channels: int) -> Tensor:
    """Mask channels that mark the given video frames: ones at latent frame 0, zeros elsewhere.

    Args:
        latents: (1, 16, t, h, w).
        num_channels: one for each video frame of a latent frame.

    Returns:
        (1, num_channels, t, h, w).
    """
    mask = latents.new_zeros(1, num_channels, *latents.shape[2:])
    mask[:, :, 0] = 1.0
    return mask
