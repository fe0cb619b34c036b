"""One video from a job's parameters to its result, stage by stage."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from torch import Tensor

from infinitetalk.encoders.wav2vec2 import SpeechEmbeddings
from infinitetalk.errors import CheckpointError, GenerationStopped
from infinitetalk.generation.ahead import run_ahead
from infinitetalk.generation.arriving import DecodingEndedError
from infinitetalk.generation.pipeline import DecodedChunk, Step
from infinitetalk.media.decode import MediaInfo
from infinitetalk.media.encode import EVEN, EncodedSound, PartEncoder, join_parts, write_thumbnail
from infinitetalk.media.provenance import Mark
from infinitetalk.media.speech import VIDEO_FPS, mix_tracks
from infinitetalk.recipes import RECIPES
from infinitetalk.runtime.device_errors import as_library_error
from infinitetalk.runtime.memory import DoesNotFitError
from infinitetalk.runtime.networks import Networks
from infinitetalk.worker.engine import (
    Engine,
    FilmWork,
    Overlap,
    Scene,
    Stretch,
    VideoRequest,
    face_detector,
    first_frame,
    needs_faces,
    plan_scenes,
    plan_stretches,
    region_overlaps,
    speaker_places,
    speaker_regions,
)
from infinitetalk.worker.errors import (
    TELLS_OF_WORKER,
    MachineError,
    is_device_error,
    is_disk_full,
    is_machine_error,
    job_error,
)
from infinitetalk.worker.job.advice import (
    cut_prompts,
    cut_speech,
    flat_chunks,
    mixed_arithmetic,
    not_drawn,
    own_size,
    shared_regions,
    unused_fields,
    warnings_of,
)
from infinitetalk.worker.job.bill import Bill
from infinitetalk.worker.job.clock import StageClock
from infinitetalk.worker.job.context import JobContext
from infinitetalk.worker.job.failure import log_failure, log_stop, timeout_error
from infinitetalk.worker.job.film import (
    Film,
    FilmReader,
    Frame,
    add_film_sound,
    check_film_sound,
    film_facts,
    film_work,
    frame_speakers,
    frame_warnings,
    open_film,
    seen_by_model,
)
from infinitetalk.worker.job.inputs import (
    MIN_SPEECH_FRAMES,
    SPOKEN_CHARACTERS_PER_S,
    JobMedia,
    count_rows,
    download,
    make_tracks,
    speech_seconds,
)
from infinitetalk.worker.job.preview import HlsPreview, Preview
from infinitetalk.worker.job.recipe import ChosenRecipe, choose_recipe
from infinitetalk.worker.job.result import (
    kept_size,
    plan_facts,
    resolved_parameters,
    versions,
    video_facts,
    weights_hash,
)
from infinitetalk.worker.job.resume import (
    THUMBNAIL_FILE,
    ChunkPart,
    Rendering,
    TaskState,
    part_file,
    rendering_fingerprint,
    request_fingerprint,
    seed_of,
)
from infinitetalk.worker.job.timeline import late_begins, told_stretches, unused_entries
from infinitetalk.worker.logs import job_logger
from infinitetalk.worker.machine.checks import machine_problem
from infinitetalk.worker.release import SOFTWARE, release_of
from infinitetalk.worker.stores.base import Artifacts, Store
from infinitetalk.worker.stores.registry import make_store
from infinitetalk.worker.traffic.fetch import Media, naming
from schemas import Failure, OutputConfig, Plan, RecipeCost, SingleJob, Stage, Success, Video

BEFORE_TENSORS = (Stage.VALIDATION, Stage.DOWNLOAD)
"""Stages in which the model is not used."""


def make_video(context: JobContext, item_id: str | None, job: SingleJob, clock: StageClock) -> Success | Plan | Failure:
    """Makes one video, or plans it; every error becomes a coded failure.

    Args:
        item_id: id of the batch item; None for a single job.

    Raises:
        GenerationStopped: the job was cancelled, or is left to the next worker.
    """
    job_id, engine, stop = context.job_id, context.resources.engine, context.stop
    logger = job_logger(job_id) if item_id is None else job_logger(job_id).bind(item_id=item_id)
    bill = Bill(clock, context.resources.settings)
    bill.use(engine)
    try:
        chosen = choose_recipe(job, context.resources.settings.recipe)
        bill.recipe = chosen.job.recipe
        chosen = replace(chosen, job=engine.equip(chosen.job))
        output_config = job.output_config or OutputConfig()
        store = make_store(output_config, context.s3_config, context.resources.settings, context.num_inline, stop)
        # A job's temporary files are removed with the folder.
        with TemporaryDirectory(prefix="infinitetalk-") as folder:
            return VideoJob(context, item_id, chosen, store, Path(folder), bill, logger).run()
    except GenerationStopped:
        if not stop.timed_out:
            log_stop(stop, bill, logger)
            raise
        failure = Failure(job_id=job_id, error=log_failure(timeout_error(stop.time_limit_s), bill, logger))
    except Exception as error:
        cause = find_cause(as_library_error(error), context, logger)
        failure = Failure(job_id=job_id, error=log_failure(cause, bill, logger))
    # Outside the except clause, so that the exception and the tensors of its frames have been freed. In the first two
    # stages there are no tensors, and recovering would take half a second.
    if clock.stage not in BEFORE_TENSORS:
        engine.recover()
    return failure


def find_cause(error: Exception, context: JobContext, logger: Any) -> Exception:
    """The cause of a job's failure: its own error, or a failed machine that produced the error.

    A worker on a failed machine is marked as broken and takes no other job.
    """
    engine = context.resources.engine
    if is_device_error(error) or (is_machine_error(error) and not is_disk_full(error)):
        engine.health.mark_broken()
        return error
    problem = machine_problem(context.resources.settings.min_temporary_bytes)
    if problem is None:
        return error
    engine.health.mark_broken()
    logger.error("machine.failed", exc_info=problem)
    if job_error(error, Stage.SAMPLING).code in TELLS_OF_WORKER:
        return error
    machine_error = MachineError()
    machine_error.__cause__ = error
    return machine_error


@dataclass(frozen=True)
class Inputs:
    """The inputs of a video's generation.

    Attributes:
        media: the job's media as local files.
        seen: the source, with the size of the part of it that is generated.
        regions: each speaker's region, bool (speakers, height, width) of the source; None: side by side.
        scenes: of the generated video.
        film: the film whose frames, or whose times, the video has; None: the model's alone.
        tracks: each speaker's track of the sound, float32 (samples,) at 16 kHz.
        sound: the video's sound, float32 (samples,) at 16 kHz.
        encoded_sound: the same, encoded.
        num_generated: number of frames that are generated.
        num_shown: number of frames of the video.
        speech: each speaker's embeddings.
        networks: the networks, prepared for the job.
    """

    media: JobMedia
    seen: Media
    regions: Tensor | None
    scenes: Sequence[Scene]
    film: Film | None
    tracks: list[np.ndarray]
    sound: np.ndarray
    encoded_sound: EncodedSound
    num_generated: int
    num_shown: int
    speech: list[SpeechEmbeddings]
    networks: Networks


class VideoJob:
    """One video being made.

    Args:
        context: the context of the video's job.
        item_id: id of the batch item; None for a single job.
        chosen: the job, and the recipe by which it is made.
        store: takes the result.
        folder: folder for temporary files.
        bill: counts what the video costs.
        logger: a logger whose lines carry the ids of job and item.
    """

    def __init__(
        self,
        context: JobContext,
        item_id: str | None,
        chosen: ChosenRecipe,
        store: Store,
        folder: Path,
        bill: Bill,
        logger: Any,
    ) -> None:
        self.context = context
        self.item_id = item_id
        self.chosen = chosen
        self.job = chosen.job
        self.store = store
        self.folder = folder
        self.bill = bill
        self.clock = bill.clock
        self.logger = logger

    @property
    def engine(self) -> Engine:
        """The worker's engine."""
        return self.context.resources.engine

    @property
    def name(self) -> str:
        """Name of the video's files, without extension."""
        job_id = self.context.job_id
        return job_id if self.item_id is None else f"{job_id}-{self.item_id}"

    @cached_property
    def mark(self) -> Mark | None:
        """The mark of the video as made by AI; None if the worker marks none.

        Raises:
            CheckpointError: the model could not be found.
        """
        settings = self.context.resources.settings
        if not settings.provenance:
            return None
        return Mark(SOFTWARE, release_of(settings), self.engine.model_name_for(self.job), self.job.keeps_film)

    @cached_property
    def request(self) -> str:
        """Fingerprint of the request: parameters, weights and versions.

        Raises:
            CheckpointError: a file of the weights is damaged.
        """
        weights = self.engine.weights_for(self.job)
        self.bill.weights = weights_hash(weights)
        return request_fingerprint(self.context.job_id, self.job, weights, versions())

    def run(self) -> Success | Plan:
        """Makes the video, or plans it.

        Raises:
            WorkerError, LibraryError: the job, its store or the worker has a fault.
            GenerationStopped: the job was cancelled, is out of time, or is left to the next worker.
        """
        with self._open_preview() as preview:
            warnings = self._check()
            if self.job.dry_run:
                return self._plan(warnings)
            states, stop = self.context.resources.states, self.context.stop
            state = states.open(self.context.job_id, self.name, self.request, self.store, self.logger)
            self.bill.earlier = state.spent
            if (earlier := self._earlier_result(state)) is not None:
                self.bill.log("repeated", self.logger)
                return earlier
            self.store.remember(self.name)
            if self.item_id is not None and stop.is_draining and state.objects is not None:
                raise GenerationStopped
            try:
                result = self._make(state, preview, warnings)
            except Exception:
                if self.clock.stage not in BEFORE_TENSORS:
                    state.save_spent(self.bill.job_spent)
                raise
        state.save_result(result, self.bill.job_spent)
        self.bill.log("completed", self.logger)
        return result

    def _open_preview(self) -> Preview:
        """The preview that the job asks for, which may be none. Progress events carry its address once it has one."""
        objects, job = self.store.objects, self.job
        if job.dry_run or job.output_config is None or not job.output_config.preview:
            return Preview()
        assert objects is not None
        return HlsPreview(objects, self.name, job.chunk_frame_num, self.folder, self.clock.has_preview, self.logger)

    def _check(self) -> list[str]:
        """Checks everything that needs no download; returns the warnings that follow from the job's parameters.

        Raises:
            WorkerError: a LoRA is missing or unfit, the job's text cannot be spoken, or the store would refuse the
                result.
            CheckpointError: the worker cannot speak.
            GenerationStopped: the job was cancelled.
        """
        job, engine = self.job, self.engine
        lora_warnings = engine.check_loras(job, self.context.stop)
        if job.tts_audio is not None:
            with naming("tts_audio"), engine.reading_weights():
                engine.synthesiser.check(job.tts_audio.text, job.tts_audio.voices)
        self.store.check()
        return self.chosen.warnings + warnings_of(job, engine, lora_warnings)

    def _earlier_result(self, state: TaskState) -> Success | None:
        """The result of an earlier run of the job, with new addresses; None if there is none or the store no longer
        has its files."""
        result = state.result
        if result is None or result.job_id != self.context.job_id:
            return None
        places = self.store.places(self.name, result.video.bytes)
        if places is None:
            return None
        return result.model_copy(update={"video": result.video.model_copy(update=places)})

    def _plan(self, warnings: list[str]) -> Plan:
        """Plans the job: downloads and examines its media, but does not speak its text.

        Args:
            warnings: the warnings that follow from the job's parameters.

        Raises:
            WorkerError: a medium cannot be downloaded or decoded, or does not suit the job.
            RegionError: a box or mask does not fit the source.
            CheckpointError: the model could not be found.
            DoesNotFitError: no mode fits the GPU's memory.
            GenerationStopped: the job was cancelled.
        """
        job, engine, stop = self.job, self.engine, self.context.stop
        media, regions, frame = self._download()
        seen = seen_by_model(media.source, frame)
        if job.tts_audio is None:
            tracks = make_tracks(job, media, engine, stop)
            num_rows, speech_s = count_rows(tracks.sound), speech_seconds(job, media, tracks.sound)
            encoded_sound = EncodedSound(mix_tracks(tracks.sound))
            self.store.check_size(lambda: encoded_sound.num_bytes(min(job.frame_limit, num_rows)))
        else:
            num_rows = max(round(len(job.tts_audio.text) / SPOKEN_CHARACTERS_PER_S * VIDEO_FPS), MIN_SPEECH_FRAMES)
            speech_s = num_rows / VIDEO_FPS
        scenes = plan_scenes(job, media.source, num_rows, stop)
        facts = film_facts(job, media.source, frame, scenes, media.warnings, stop)
        film = film_work(job, media.source, frame, facts, min(job.frame_limit, num_rows))
        check_film_sound(job, media.source)
        self.clock.enter(Stage.LOAD)
        stretches = plan_stretches(job, scenes)
        later_sources = [later.info for later in media.later_sources]
        video = engine.plan(job, seen.info, scenes, stop, later_sources, film)
        warnings = warnings + media.warnings
        warnings += self._losses(
            media, region_overlaps(job, regions), speech_s, video.num_chunks, video.num_frames, stretches
        )
        if job.tts_audio is not None:
            warnings.append("the length is estimated from the text; it is known only after the text is spoken")
        recipes, left_out = self._recipe_costs(seen.info, later_sources, scenes, film)
        self.bill.model = engine.model_name_for(job)
        plan = Plan(
            job_id=self.context.job_id,
            speakers=speaker_places(job, regions, media.source.info.height, media.source.info.width),
            params=resolved_parameters(job, job.base_seed),
            model=self.bill.model,
            worker=release_of(self.context.resources.settings),
            warnings=warnings + left_out,
            recipes=recipes,
            timeline=told_stretches(job, stretches),
            voices=engine.voices,
            **plan_facts(video, self.context.resources.settings) | kept_size(frame, media.source.info),
        )
        self.clock.enter(Stage.COMPLETED)
        self.bill.log("planned", self.logger)
        return plan

    def _recipe_costs(
        self, source: MediaInfo, later_sources: Sequence[MediaInfo], scenes: Sequence[Scene], film: FilmWork | None
    ) -> tuple[list[RecipeCost], list[str]]:
        """The cost of the video by each recipe that this worker can run the job with; the other recipes that it has
        the weights for, each with the reason, as warnings.

        Raises:
            GenerationStopped: the job was cancelled.
        """
        sent, engine = self.chosen.sent, self.engine
        costs, left_out = [], []
        for recipe in RECIPES.values():
            if not recipe.serves(len(sent.speakers)) or engine.lacks(recipe) is not None:
                continue
            try:
                job = engine.equip(sent.by_recipe(recipe))
                video = engine.plan(job, source, scenes, self.context.stop, later_sources, film)
            except (CheckpointError, DoesNotFitError) as error:
                left_out.append(f'recipes leaves out "{recipe.name}": {error}')
                continue
            facts = plan_facts(video, self.context.resources.settings)
            costs.append(
                RecipeCost(
                    recipe=recipe.name,
                    **{field: facts[field] for field in ("evaluations", "estimate_s", "estimate_usd")},
                    leave_out=sorted(sent.contradictions(recipe)),
                )
            )
        return costs, left_out

    def _make(self, state: TaskState, preview: Preview, warnings: list[str]) -> Success:
        inputs = self._prepare()
        fingerprint = rendering_fingerprint(self.request, inputs.media.paths)
        rendering = self._restore(state, fingerprint)

        def keep() -> bool:
            self.store.check_size(lambda: inputs.encoded_sound.num_bytes(inputs.num_shown) + rendering.picture_bytes)
            return state.save_rendering(rendering, fingerprint, self.bill.job_spent)

        preview.begin(inputs.sound, self.mark)
        warnings = warnings + inputs.media.warnings
        with inputs.encoded_sound.ahead(inputs.num_shown):
            self._render(inputs, rendering, preview, keep)
        overlaps = region_overlaps(self.job, inputs.regions)
        speech_s = speech_seconds(self.job, inputs.media, inputs.tracks)
        stretches: list[Stretch] = []
        if self.job.changes:
            stretches = plan_stretches(self.job, inputs.scenes)
        num_chunks, num_frames = len(rendering.parts), inputs.num_generated
        warnings += self._losses(inputs.media, overlaps, speech_s, num_chunks, num_frames, stretches)
        warnings += flat_chunks([part.is_flat for part in rendering.parts])
        warnings += mixed_arithmetic([part.arithmetic for part in rendering.parts])
        return self._finish(inputs, rendering, warnings)

    def _download(self) -> tuple[JobMedia, Tensor | None, Frame | None]:
        """Downloads the job's media; returns them, the speakers' regions, bool (speakers, height, width) of the source,
        and the part of a film that is generated."""
        job, clock = self.job, self.clock
        clock.enter(Stage.DOWNLOAD)
        media = download(job, self.folder, self.context.resources.settings, clock.count_bytes, self.context.stop)
        is_talker, faces = self.context.resources.settings.model == "talker", None
        if is_talker or needs_faces(job):
            picture = first_frame(media.source, self.folder)
            media.warnings.extend(not_drawn(picture) if is_talker else [])
            faces = face_detector().find(picture) if needs_faces(job) else None
        regions = speaker_regions(job, media.source.info, media.masks, faces, media.warnings)
        if not job.keeps_film:
            return media, regions, None
        assert regions is not None and faces is not None
        frame = frame_speakers(job, media.source, regions, faces, self.engine, self.context.stop)
        media.warnings.extend(frame_warnings(job, frame, media.source, media.masks))
        return media, regions, frame

    def _prepare(self) -> Inputs:
        """Downloads the media, embeds the speech and prepares the networks for the job.

        Raises:
            WorkerError: a medium cannot be downloaded or decoded, or does not suit the job or its store.
            RegionError: a box or mask does not fit the source.
            CheckpointError: a network or a LoRA cannot be loaded.
            DoesNotFitError: no mode fits the GPU's memory.
            GenerationStopped: the job was cancelled.
        """
        job, engine, stop = self.job, self.engine, self.context.stop
        media, regions, frame = self._download()
        self.clock.enter(Stage.EMBEDDING)
        tracks = make_tracks(job, media, engine, stop)
        num_rows = count_rows(tracks.sound)
        num_frames = min(job.frame_limit, num_rows)
        scenes = plan_scenes(job, media.source, num_rows, stop)
        film = open_film(job, media.source, media.masks, frame, scenes, media.warnings, stop)
        sound = add_film_sound(job, media.source, mix_tracks(tracks.sound), media.warnings)
        encoded_sound = EncodedSound(sound, EVEN if film is None else film.clock.timing)
        num_shown = num_frames if film is None else len(film.clock.generated)
        self.store.check_size(lambda: encoded_sound.num_bytes(num_shown))
        speech = engine.embed(job, tracks.voices, stop)
        self.bill.model = engine.model_name_for(job)
        self.clock.enter(Stage.LOAD)
        seen = seen_by_model(media.source, frame)
        return Inputs(
            media=media,
            seen=seen,
            regions=regions,
            scenes=scenes,
            film=film,
            tracks=tracks.sound,
            sound=sound,
            encoded_sound=encoded_sound,
            num_generated=num_frames,
            num_shown=num_shown,
            speech=speech,
            networks=engine.prepare(job, seen.info, stop),
        )

    def _restore(self, state: TaskState, fingerprint: str) -> Rendering:
        """The unfinished video of another worker, or a new rendering if there is none. Enters sampling."""
        rendering = state.restore(fingerprint, self.folder)
        if rendering is None:
            seed = seed_of(self.name) if self.job.base_seed == -1 else self.job.base_seed
            rendering = Rendering(seed, self.folder / THUMBNAIL_FILE)
        num_done = len(rendering.parts)
        self.clock.begin_sampling(num_done)
        if num_done:
            self.logger.info("job.resumed", details={"chunks": num_done})
        return rendering

    def _render(self, inputs: Inputs, rendering: Rendering, preview: Preview, keep: Callable[[], bool]) -> None:
        """Generates the missing chunks. Each chunk is finished, encoded, published and saved while the next is made.

        Args:
            rendering: the video so far; complete at the end.
            preview: publishes each chunk.
            keep: stores the rendering for another worker after each chunk; returns whether it did.

        Raises:
            GenerationStopped: the job was cancelled, or the worker will end before the job is finished.
            RegionError: a speaker's region cannot be used.
            EncodeError: a chunk could not be encoded.
            WorkerError: `keep` raised it.
        """
        stop, clock = self.context.stop, self.clock
        regions, networks, film = inputs.regions, inputs.networks, inputs.film
        part = None if film is None else film.part
        if part is not None and regions is not None:
            regions = part.view.cut_regions(regions)
        request = VideoRequest(
            self.job,
            rendering.seed,
            inputs.seen,
            inputs.speech,
            regions,
            self.folder,
            networks,
            inputs.scenes,
            inputs.media.later_sources,
            part,
        )
        arithmetic = str(self.engine.arithmetic(networks.choice))
        num_done, chunk_state = len(rendering.parts), rendering.chunk_state

        def end_step(step: Step) -> None:
            self.bill.count_step(step)
            clock.end_step(step)

        def generate(should_stop: Callable[[], bool]) -> Iterator[DecodedChunk]:
            for chunk in self.engine.generate(request, should_stop, end_step, num_done, chunk_state, is_beside=True):
                clock.next_chunk()
                yield chunk

        preview.publish(rendering.parts)
        with (
            nullcontext() if film is None or num_done == len(film.ends) else film.reader(num_done, stop) as reader,
            closing(run_ahead(generate, self.engine.thread, stop)) as chunks,
        ):
            for decoded in chunks:
                self.bill.references_encoded += decoded.has_encoded_reference
                try:
                    self._add(rendering, request, decoded, arithmetic, film, reader)
                except DecodingEndedError:
                    # The next item, of which there is none, raises the reason.
                    continue
                preview.publish(rendering.parts)
                if keep() and not stop.leaves_time_for(clock.eta_s):
                    raise GenerationStopped
        preview.publish(rendering.parts, is_complete=True)

    def _add(
        self,
        rendering: Rendering,
        request: VideoRequest,
        decoded: DecodedChunk,
        arithmetic: str,
        film: Film | None,
        reader: FilmReader | None,
    ) -> None:
        """Finishes a chunk, encodes its frames as they come, and adds it to the rendering; the thumbnail is the first
        chunk's first frame. A film's frames come only when the chunk is finished.

        Args:
            request: of which the chunk is.
            arithmetic: how this worker computed the chunk.
            film: the film whose frames, or whose times, the video has.
            reader: reads its own frames.

        Raises:
            DecodingEndedError: its frames could not be decoded.
            EncodeError: they could not be encoded.
            GenerationStopped: the job was cancelled.
        """
        file = self.folder / part_file(len(rendering.parts))
        if film is None or reader is None:
            with PartEncoder(file, *decoded.resolution) as encoder:
                chunk = self.engine.finish(request, decoded, encoder.write)
                num_frames = encoder.close()
            first = chunk.frames[0]
        else:
            chunk = self.engine.finish(request, decoded, lambda frames: None)
            remaining = film.frames(len(rendering.parts), chunk.frames, reader)
            first = next(remaining)
            height, width, _ = first.shape
            with PartEncoder(file, height, width, film.clock.timing.rate) as encoder:
                for frame in chain([first], remaining):
                    encoder.write(frame[None])
                num_frames = encoder.close()
        if not rendering.parts:
            write_thumbnail(first, rendering.thumbnail, self.mark)
            rendering.height, rendering.width = first.shape[:2]
        self.bill.video_s += len(chunk.frames) / VIDEO_FPS
        part = ChunkPart(file, num_frames, chunk.evaluations, chunk.evaluations_skipped, arithmetic, chunk.is_flat)
        rendering.parts.append(part)
        rendering.chunk_state = None if chunk.state is None else chunk.state.to_bytes()

    def _finish(self, inputs: Inputs, rendering: Rendering, warnings: list[str]) -> Success:
        """Joins the video's parts and sound, stores it, and describes it.

        Args:
            warnings: warnings for the client.

        Raises:
            EncodeError: the parts could not be joined.
            WorkerError: the store did not take the result.
            GenerationStopped: the job was cancelled.
        """
        clock, folder = self.clock, self.folder
        clock.enter(Stage.MUX)
        artifacts = Artifacts(folder / "video.mp4", rendering.thumbnail, folder / "metadata.json", self.request)
        join_parts([part.path for part in rendering.parts], inputs.encoded_sound, artifacts.video, self.mark)
        credentials = self.context.resources.credentials
        if credentials is not None and self.mark is not None:
            credentials.sign(artifacts.video, "video/mp4", self.mark)
            credentials.sign(artifacts.thumbnail, "image/jpeg", self.mark)
        facts = video_facts(artifacts.video, rendering, inputs.encoded_sound.timing)
        source = inputs.media.source.info
        about: dict[str, Any] = {
            "params": resolved_parameters(self.job, rendering.seed),
            "model": self.engine.model_name_for(self.job),
            "worker": release_of(self.context.resources.settings),
            "memory_mode": self.engine.memory_mode(inputs.networks.choice),
            "evaluations": rendering.evaluations,
            "evaluations_skipped": rendering.evaluations_skipped,
            "speakers": speaker_places(self.job, inputs.regions, source.height, source.width),
            "warnings": warnings,
        }

        clock.enter(Stage.UPLOAD)
        metadata = {
            "job_id": self.context.job_id,
            "item_id": self.item_id,
            **about,
            "speakers": [place.model_dump() for place in about["speakers"]],
            "request": self.request,
            "seed": rendering.seed,
            "weights": self.bill.weights,
            "digital_source_type": None if self.mark is None else self.mark.source_type,
            "signed_by": None if credentials is None else credentials.signer,
            "video": facts,
            "timings": self.bill.job_spent.timings,
            "versions": versions(),
        }
        artifacts.metadata.write_text(json.dumps(metadata, indent=2, ensure_ascii=False), encoding="utf-8")
        places = self.store.save(self.name, artifacts, clock.count_bytes, self.context.stop)
        clock.enter(Stage.COMPLETED)
        about["warnings"] += self.store.warnings
        video = Video.model_validate(facts | places)
        return Success(job_id=self.context.job_id, video=video, timings=self.bill.job_spent.timings, **about)

    def _losses(
        self,
        media: JobMedia,
        overlaps: Sequence[Overlap],
        speech_s: float,
        num_chunks: int,
        num_frames: int,
        stretches: Sequence[Stretch],
    ) -> list[str]:
        """Warnings about the input that the video does not use.

        Args:
            overlaps: the overlap of every two speakers' regions.
            speech_s: length of all of the speech in seconds.
            num_chunks, num_frames: length of the video, in generated frames.
            stretches: which chunks take which prompt and picture, if these change.
        """
        job, engine, stop, info = self.job, self.engine, self.context.stop, media.source.info
        return [
            *own_size(job, info, engine.frame_size(job, info.height, info.width, stop)),
            *unused_entries(job, stretches, num_frames),
            *late_begins(job, num_frames),
            *cut_speech(job, speech_s, is_estimate=job.tts_audio is not None),
            *cut_prompts(job, lambda prompt: engine.count_tokens(job, prompt, stop)),
            *shared_regions(overlaps),
            *unused_fields(job, media.source.info.kind == "image", num_chunks, self.context.s3_config),
        ]
