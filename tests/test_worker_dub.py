"""Jobs that dub a film: its frames, their times and its sound stay, and its speakers' faces are generated.

Short form of `python -m benchmarks.dub`.
"""

import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import psutil
import pytest
import soundfile
import torch
from PIL import Image
from torch import Tensor

from benchmarks import dub as bench
from infinitetalk.dubbing.composite import lay_over
from infinitetalk.dubbing.view import window_around
from infinitetalk.errors import DecoderError, GenerationStopped, MediaError
from infinitetalk.generation.chunks import ChunkPlan
from infinitetalk.media.decode import MediaInfo, detect_scenes, even_frames, film_frames, film_times, probe, white_in
from infinitetalk.media.encode import PartEncoder
from infinitetalk.media.faces import Face
from infinitetalk.worker.engine import Engine, FilmWork, Scene, first_frame
from infinitetalk.worker.engine.footage import FootageReader
from infinitetalk.worker.job.film import FilmFacts, Frame, film_work, follow_mask
from infinitetalk.worker.job.resume import Rendering, TaskState
from infinitetalk.worker.traffic.fetch import Media
from schemas import SingleJob, parse_input
from tests.job_inputs import data_uri, picture_uri, scenes_bytes, small_job, speech_uri
from tests.local_jobs import LocalWorker, worker_on
from tests.media_factory import run_ffmpeg
from tools.talker.jobs import TalkerWorker

CHECKOUT = Path(__file__).parents[1]
FILM = "examples/media/drawn_video.mp4"

BORDER = np.ones((256, 256), bool)
"""What is no speaker's in the example's film."""
BORDER[16:, 24:-24] = False


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example's film for 1 s at 29.97 frames a second, with a tone of 440 Hz that begins 0.2 s late."""
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    frames = [frame for _, frame in zip(range(30), bench.read(CHECKOUT / FILM), strict=False)]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=bench.FILM_RATE, width=256, height=256, pix_fmt="yuv420p")
        stream.options = {"crf": "12"}
        sound = container.add_stream("aac", rate=48_000, layout="mono")
        for _, frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
        times = np.arange(48_000 * 8 // 10) / 48_000
        tone = av.AudioFrame.from_ndarray(
            (0.2 * np.sin(2 * np.pi * 440 * times))[None].astype(np.float32), "fltp", "mono"
        )
        tone.sample_rate, tone.pts = 48_000, 9_600
        container.mux(sound.encode(tone))
        container.mux(sound.encode(None))
    return path


def film_uri(film: Path) -> str:
    return data_uri(film.read_bytes(), "video/mp4")


def dub_job(film: Path, **changes: Any) -> dict[str, Any]:
    """A job that dubs 0.8 s of the film, in chunks of 9 frames."""
    job = {
        "cond_video": film_uri(film),
        "cond_audio": {"person1": speech_uri(0.8)},
        "mode": "streaming",
        "frame_num": 9,
        "dub": {"keep": "face", "margin": 0},
    }
    return small_job(**job | changes)


def run(worker: LocalWorker, job: dict[str, Any], **options: Any) -> dict[str, Any]:
    return worker.run({"id": "job", "input": job}, **options)


def shown(worker: LocalWorker, result: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """A result's frames and their times."""
    assert result.get("status") == "success", result
    frames = list(bench.read(worker.volume / result["video"]["path"]))
    return np.stack([frame for _, frame in frames]), np.array([time for time, _ in frames])


def again(film: Path, folder: Path, num_frames: int) -> np.ndarray:
    """The film's frames, encoded as the worker encodes them."""
    encoder = PartEncoder(folder / "again.mp4", 256, 256, bench.FILM_RATE)
    for _, (_, frame) in zip(range(num_frames), bench.read(film), strict=False):
        encoder.write(frame[None])
    encoder.close()
    return np.stack([frame for _, frame in bench.read(folder / "again.mp4")])


def test_a_dubbed_film_keeps_its_size_its_times_and_all_but_the_face(
    local_worker: LocalWorker, film: Path, tmp_path: Path
) -> None:
    result = run(local_worker, dub_job(film))
    frames, times = shown(local_worker, result)
    assert [result["video"][name] for name in ("width", "height", "fps", "num_frames")] == [256, 256, 29.97, 24]
    assert np.abs(times - np.arange(24) * 1001 / 30_000).max() < 1e-4
    assert result["video"]["duration_s"] == pytest.approx(0.8)
    assert [(place["speaker"], place["told_by"]) for place in result["speakers"]] == [("person1", "faces")]
    assert ["cut to 0.80 s, where the speech ends" in warning for warning in result["warnings"]] == [True]
    source = np.stack([frame for _, frame in bench.read(film)])[:24].astype(float)
    change = np.abs(frames - source).mean(axis=(0, 3))
    encoded = np.abs(again(film, tmp_path, 24) - source).mean(axis=(0, 3))
    assert change[BORDER].mean() < 1.3 * encoded[BORDER].mean()
    # The tiny model makes noise.
    assert change[100:180, 90:160].mean() > 5 * encoded[100:180, 90:160].mean()


def test_a_dubbed_film_may_have_25_frames_a_second(local_worker: LocalWorker, film: Path) -> None:
    frames, times = shown(local_worker, run(local_worker, dub_job(film, output={"fps": "model"})))
    assert np.allclose(times, np.arange(20) / 25) and frames.shape == (20, 256, 256, 3)


def test_a_plain_video_may_have_the_films_times(local_worker: LocalWorker, film: Path) -> None:
    result = run(local_worker, dub_job(film, dub=None, output={"fps": "source"}))
    frames, times = shown(local_worker, result)
    assert np.abs(times - np.arange(24) * 1001 / 30_000).max() < 1e-4 and frames.shape == (24, 64, 64, 3)


def test_a_dubbed_picture_keeps_its_size(local_worker: LocalWorker) -> None:
    job = small_job(cond_video=str(CHECKOUT / "examples/media/portrait.jpg"), dub={"keep": "face"})
    job["cond_video"] = data_uri((CHECKOUT / "examples/media/portrait.jpg").read_bytes(), "image/jpeg")
    frames, _ = shown(local_worker, run(local_worker, job))
    assert frames.shape == (5, 416, 416, 3)
    assert np.abs(frames[0, :60].astype(int) - frames[-1, :60]).mean() < 1


def test_a_strength_makes_its_share_of_the_steps_from_the_part_that_is_generated(
    local_worker: LocalWorker, film: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[np.ndarray] = []
    read = FootageReader.chunk

    def watch(reader: FootageReader, scene: Scene, plan: ChunkPlan) -> Iterator[Tensor]:
        for frame in read(reader, scene, plan):
            begun.append(frame.numpy())
            yield frame

    monkeypatch.setattr(FootageReader, "chunk", watch)
    whole = dub_job(film, sample_steps=4, bbox={"person1": [70, 70, 190, 190]})
    half = whole | {"dub": whole["dub"] | {"strength": 0.5}}
    # It teaches the worker's speed, by which the plan estimates.
    all_new = run(local_worker, whole)
    frames, _ = shown(local_worker, all_new)
    assert begun == []
    result = run(local_worker, half)
    num_begun = len(begun)
    plan = run(local_worker, half | {"dry_run": True})
    assert len(begun) == num_begun
    with monkeypatch.context() as slow:
        slow.setattr("infinitetalk.worker.engine.estimate.FOLLOWING_S_PER_PIXEL", 1e-3)
        slower = run(local_worker, half | {"dry_run": True})
    assert slower["estimate_s"] - plan["estimate_s"] == pytest.approx(24 * 256 * 256 * 1e-3, abs=2)
    assert result["evaluations"] == plan["evaluations"] == all_new["evaluations"] // 2
    # Sampling starts from the film's own pixels around the face: 9 frames of each chunk, in the generated size.
    assert (len(begun), {frame.shape for frame in begun}) == (plan["num_chunks"] * 9, {(3, 64, 64)})
    window = window_around([result["speakers"][0]["box"]], 0.0, (256, 256), (64, 64))
    left, top = window.x - window.width / 2, window.y - window.height / 2
    first = Image.fromarray(next(frame for _, frame in bench.read(film)))
    for box, is_seen in (((left, top, left + window.width, top + window.height), True), ((0, 0, 256, 256), False)):
        part = np.asarray(first.resize((64, 64), Image.Resampling.BOX, box)).transpose(2, 0, 1)
        assert (np.abs(begun[0].astype(int) - part).mean() < 6) == is_seen
    change = np.abs(shown(local_worker, result)[0].astype(int) - frames).mean(axis=(0, 3))
    assert change[BORDER].mean() < 1 and change[100:180, 90:160].mean() > 2


@pytest.mark.parametrize(
    ("num_times", "rate", "output", "num_shown"), [(10, 25, None, 50), (100, 50, None, 100), (100, 50, "model", 50)]
)
def test_an_estimate_counts_the_frames_that_are_shown_and_those_that_are_followed(
    num_times: int, rate: int, output: str | None, num_shown: int
) -> None:
    """A film that ends before the speech is shown on, as its last frame; its faces are followed no longer."""
    film = {"cond_video": "film.mp4", "cond_audio": {"person1": "speech.wav"}, "output": {"fps": output}}
    job = parse_input(small_job(**film, dub={"keep": "face"}))
    assert isinstance(job, SingleJob)
    source = Media(Path("film.mp4"), MediaInfo("video", 48, 64, num_times / rate, False))
    face = Face((8.0, 8.0, 24.0, 24.0), 0.9, np.zeros((6, 2), np.float32))
    frame = Frame(window_around([[0, 0, 64, 48]], 0.0, (48, 64), (48, 64)), 48, 64, torch.ones(1, 48, 64) > 0, [face])
    facts = FilmFacts([number / rate for number in range(num_times)], [30, 50])
    assert film_work(job, source, frame, facts, 50) == FilmWork(num_shown, num_times, 48 * 64, is_kept=True)


@pytest.mark.parametrize(("chunks_before", "strength"), [(1, 0.5), (2, 1.0)])
def test_a_dubbed_film_goes_on_in_another_worker_with_the_same_frames(
    chunks_before: int, strength: float, local_worker: LocalWorker, film: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = dub_job(film, dub={"keep": "face", "margin": 0, "strength": strength})
    whole, whole_times = shown(local_worker, run(local_worker, job))

    stored: list[int] = []
    save = TaskState.save_rendering

    def count(state: TaskState, rendering: Rendering, *others: Any) -> bool:
        stored.append(len(rendering.parts))
        return save(state, rendering, *others)

    with monkeypatch.context() as counting, pytest.raises(GenerationStopped):
        counting.setattr(TaskState, "save_rendering", count)
        local_worker.run({"id": "other", "input": job}, lambda: chunks_before in stored, keep=True)
    assert stored[-1] < 3
    result = local_worker.run({"id": "other", "input": job})
    frames, times = shown(local_worker, result)
    assert np.array_equal(frames, whole) and np.array_equal(times, whole_times)


def test_a_cancelled_job_lays_over_no_further_frame(local_worker: LocalWorker, film: Path) -> None:
    laid: list[int] = []

    def lay(*arguments: Any) -> None:
        laid.append(arguments[-1])
        lay_over(*arguments)

    with pytest.MonkeyPatch.context() as watching, pytest.raises(GenerationStopped):
        watching.setattr("infinitetalk.worker.job.film.lay_over", lay)
        local_worker.run({"id": "job", "input": dub_job(film)}, lambda: len(laid) > 0)
    assert laid == [0]


def test_a_cancelled_job_reads_no_further_times_of_a_film_or_mask(film: Path, tmp_path: Path) -> None:
    asked: list[bool] = []

    def should_stop() -> bool:
        asked.append(len(asked) == 3)
        return asked[-1]

    with pytest.raises(GenerationStopped):
        film_times(film, 1.0, 120, should_stop)
    assert len(asked) == 4
    mask = moving_mask(tmp_path / "mask.gif", BLACK, WHITE)
    seen: list[np.ndarray] = []

    def see(frame: np.ndarray) -> np.ndarray:
        seen.append(frame)
        return white_in(frame)

    with pytest.MonkeyPatch.context() as watching, pytest.raises(GenerationStopped):
        watching.setattr("infinitetalk.worker.job.film.white_in", see)
        follow_mask(mask, [0.0, 0.2, 0.36], lambda: len(seen) == 1)
    assert len(seen) == 1


def test_a_cancelled_job_waits_for_no_frame(film: Path, tmp_path: Path) -> None:
    """The film is long, and only its last frame is asked for."""
    run_ffmpeg("-stream_loop", "400", "-i", film, "-c", "copy", tmp_path / "long.mp4")
    asked: list[float] = []

    def stops_at_the_second_question() -> bool:
        asked.append(time.monotonic())
        return len(asked) > 1

    for read in (film_frames, even_frames):
        asked.clear()
        with (
            pytest.raises(GenerationStopped),
            read(tmp_path / "long.mp4", 9990, 1, should_stop=stops_at_the_second_question) as frames,
        ):
            next(frames)
        assert len(asked) == 2


def end_decoders() -> None:
    for child in psutil.Process().children():
        if "ffmpeg" in child.name():
            child.kill()


def test_the_end_of_a_decoder_is_not_taken_for_the_end_of_the_film(tmp_path: Path) -> None:
    """What a chunk that is sampled next would show is lost, and the job is sent again."""
    path = tmp_path / "film.mp4"
    run_ffmpeg("-f", "lavfi", "-i", "testsrc2=s=320x240:r=25:d=2", path)
    for read in (film_frames, even_frames):
        with pytest.raises(DecoderError, match="ended before it was done"), read(path, 0, 50) as frames:
            next(frames)
            end_decoders()
            for _ in frames:
                pass
            pytest.fail("the film seems to have ended")

    def should_stop() -> bool:
        end_decoders()
        return False

    with pytest.raises(DecoderError, match="ended before it was done"):
        detect_scenes(path, 50, should_stop)


def test_an_interlaced_film_that_changes_its_size_is_no_failure_of_the_worker(tmp_path: Path) -> None:
    """ffmpeg's filter refuses it, and another worker's would too."""
    for size in ("320x240", "640x480"):
        options = ("-c:v", "mpeg2video", "-flags", "+ildct+ilme", "-field_order", "tt", "-pix_fmt", "yuv420p")
        run_ffmpeg("-f", "lavfi", "-i", f"testsrc2=s={size}:r=25:d=1", *options, tmp_path / f"{size}.ts")
    film = tmp_path / "film.ts"
    film.write_bytes(b"".join((tmp_path / f"{size}.ts").read_bytes() for size in ("320x240", "640x480")))
    with pytest.raises(MediaError, match="cannot be read"):
        film_times(film, 2.0, 120)


def test_a_job_whose_decoder_is_ended_may_be_sent_again(
    local_worker: LocalWorker, film: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lay(*arguments: Any) -> None:
        end_decoders()
        lay_over(*arguments)

    monkeypatch.setattr("infinitetalk.worker.job.film.lay_over", lay)
    error = run(local_worker, dub_job(film))["error"]
    assert (error["code"], error["retryable"]) == ("E_FFMPEG", True), error


def test_a_mask_video_of_too_many_frames_is_refused(local_worker: LocalWorker) -> None:
    """It would cost more than the film."""
    frames = [white_at(8, 64, 128)] * 240
    job = small_job(
        cond_video=data_uri(bench.video_bytes(frames[:5]), "video/mp4"),
        mask={"person1": data_uri(bench.video_bytes(frames, Fraction(2000)), "video/mp4")},
        dub={"keep": "all"},
    )
    error = run(local_worker, job)["error"]
    assert error["code"] == "E_INPUT_VALIDATION"
    assert "mask.person1: The video has more than 120 frames a second" in error["message"]


def test_the_films_own_sound_is_mixed_under_the_speech_at_its_place(
    local_worker: LocalWorker, film: Path, tmp_path: Path
) -> None:
    def level(**changes: Any) -> tuple[float, float]:
        """Of 440 Hz, before the tone begins and while it lasts."""
        result = run(local_worker, dub_job(film, **changes))
        with av.open(str(local_worker.volume / result["video"]["path"])) as container:
            sound = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
        times = np.arange(len(sound)) / 48_000
        wave = np.exp(2j * np.pi * 440 * times)
        parts = [(times > 0.02) & (times < 0.17), (times > 0.25) & (times < 0.7)]
        before, during = (2 * abs((sound[part] * wave[part]).mean()) for part in parts)
        return before, during

    _, alone = level()
    before, during = level(audio_mix={"source": -6.0})
    assert during - alone == pytest.approx(0.2 * 10 ** (-6 / 20), rel=0.15)
    assert before < 0.25 * during


def test_a_dry_run_says_what_is_generated_and_what_comes_out(local_worker: LocalWorker, film: Path) -> None:
    plan = run(local_worker, dub_job(film, dry_run=True))
    assert plan["status"] == "planned", plan
    assert (plan["width"], plan["height"]) == (256, 256)
    assert plan["speakers"][0]["told_by"] == "faces"
    result = run(local_worker, dub_job(film))
    assert result["evaluations"] == plan["evaluations"]
    cut = [[warning for warning in each["warnings"] if "are cut to 0.80 s" in warning] for each in (plan, result)]
    assert cut[0] == cut[1] and len(cut[0]) == 1


def fast_video_uri(rate: int) -> str:
    frames = [np.full((64, 64, 3), level, np.uint8) for level in range(240)]
    return data_uri(bench.video_bytes(frames, Fraction(rate)), "video/mp4")


REFUSED: dict[str, tuple[Callable[[Path], dict[str, Any]], str]] = {
    "no face": (
        lambda film: small_job(cond_video=picture_uri(), dub={"keep": "face"}),
        "0 faces found in cond_video for 1 speakers: dub.keep needs a place for each; give bbox or mask",
    ),
    "no sound": (
        lambda film: small_job(audio_mix={"source": -3.0}),
        "audio_mix.source needs a cond_video with sound",
    ),
    "too fast": (
        lambda film: dub_job(film, cond_video=fast_video_uri(500), dub=None, output={"fps": "source"}),
        "more than 120 frames a second",
    ),
    "one pixel": (
        lambda film: small_job(
            cond_video=picture_uri(height=1, width=1), bbox={"person1": [0, 0, 1, 1]}, dub={"keep": "all"}
        ),
        "cond_video is 1x1: with dub.keep at least 2x2",
    ),
    "model's size": (
        lambda film: dub_job(film, output={"size": "model"}),
        'output.size "model" with dub.keep "none" only',
    ),
    "film's size": (
        lambda film: small_job(output={"size": "source"}),
        'output.size "source" with dub.keep "face" or "all" only',
    ),
    "scenes": (lambda film: dub_job(film, scene_seg=True), "takes dub.keep or scene_seg, not both"),
    "preview": (
        lambda film: dub_job(film, output_config={"store": "volume", "preview": True}),
        "takes output_config.preview with 25 frames a second only",
    ),
    "unknown": (lambda film: dub_job(film, dub={"keep": "mouth"}), "dub.keep"),
    "feather": (lambda film: dub_job(film, dub={"feather": -1}), "dub.feather"),
    "gain": (lambda film: dub_job(film, audio_mix={"source": 40}), "audio_mix.source"),
}


@pytest.mark.parametrize("dry_run", [False, True])
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_dubbed_is_refused_with_what_to_change(
    name: str, dry_run: bool, local_worker: LocalWorker, film: Path
) -> None:
    make, words = REFUSED[name]
    result = run(local_worker, make(film) | {"dry_run": dry_run})
    assert result["error"]["code"] == "E_INPUT_VALIDATION" and words in result["error"]["message"]


@pytest.mark.parametrize("dry_run", [False, True])
@pytest.mark.parametrize(("box", "share"), [([0, 20, 128, 50], 0.33), ([40, 20, 104, 50], 0.66), ([48, 20, 80, 50], 1)])
def test_a_size_of_another_shape_than_the_regions_warns_or_is_refused(
    box: list[int], share: float, dry_run: bool, local_worker: LocalWorker
) -> None:
    """Of a film of 128x64, a part of 43x64 is generated."""
    job = small_job(
        cond_video=picture_uri(height=64, width=128),
        bbox={"person1": box},
        dub={"keep": "all", "margin": 0},
        size={"width": 256, "height": 512},
        dry_run=dry_run,
    )
    result = run(local_worker, job)
    words = f"size 256x512: only {share:.0%} of the place of person1 lies in the part of cond_video that is generated"
    if share < 0.5:
        assert result["error"]["code"] == "E_INPUT_VALIDATION"
        assert words in result["error"]["message"] and "Way out: set a size of about" in result["error"]["message"]
    else:
        assert sum(words in warning for warning in result["warnings"]) == (share < 0.95), result["warnings"]


@pytest.mark.parametrize("dry_run", [False, True])
def test_scenes_are_detected_once_and_the_first_frame_is_read_once(
    dry_run: bool, tiny_engine: Engine, tmp_path: Path, film: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def counting(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any) -> Any:
            calls.append(name)
            return call(*arguments)

        return counted

    monkeypatch.setattr("infinitetalk.worker.engine.scenes.detect_scenes", counting("scenes", detect_scenes))
    monkeypatch.setattr("infinitetalk.worker.job.video.first_frame", counting("first", first_frame))
    # The embedded talker's worker also looks whether the first frame is a photograph.
    worker = worker_on(tmp_path / "volume", tiny_engine, infinitetalk_model="talker")
    plain = dub_job(film, dub={"keep": "none"}, output={"fps": "source"}, scene_seg=True, dry_run=dry_run)
    assert "error" not in (result := run(worker, plain)), result
    assert calls == ["first", "scenes"]
    if dry_run:
        assert "error" not in (result := run(worker, dub_job(film, dry_run=True))), result
        assert calls == ["first", "scenes", "first"]


def test_a_region_without_a_face_stays_in_place_with_a_warning(local_worker: LocalWorker) -> None:
    cond_video = data_uri(scenes_bytes([5]), "video/mp4")
    job = small_job(cond_video=cond_video, bbox={"person1": [8, 8, 56, 56]}, dub={"keep": "face"})
    result = run(local_worker, job)
    assert [warning for warning in result["warnings"] if "no face was found in the region of person1" in warning]
    assert shown(local_worker, result)[0].shape == (5, 64, 64, 3)


def test_a_mask_video_moves_the_region(local_worker: LocalWorker) -> None:
    """In a film in which nothing moves, what is generated is where the mask's white is."""
    height, width, lefts = 64, 128, [8 + 4 * number for number in range(15)]
    y, x = np.mgrid[:height, :width]
    still = np.stack([60 + y, 60 + x, 200 - y], axis=-1).astype(np.uint8)
    job = small_job(
        cond_video=data_uri(bench.video_bytes([still] * len(lefts)), "video/mp4"),
        cond_audio={"person1": speech_uri(0.6)},
        mode="streaming",
        frame_num=9,
        mask={"person1": data_uri(bench.video_bytes([white_at(left, height, width) for left in lefts]), "video/mp4")},
        dub={"keep": "all", "margin": 0, "feather": 2},
    )
    frames, _ = shown(local_worker, run(local_worker, job))
    changed = np.abs(frames.astype(int) - still).max(axis=3) > 25
    centres = [columns.mean() for columns in (frame.nonzero()[1] for frame in changed) if len(columns)]
    assert len(centres) == len(lefts)
    assert np.polyfit(np.arange(len(centres)), centres, 1)[0] == pytest.approx(4, abs=0.6)


def moving_mask(path: Path, ground: tuple[int, ...], square: tuple[int, ...], **options: Any) -> Media:
    """A GIF in which a square of 24 pixels moves 4 to the right each frame."""
    pictures = []
    for number in range(10):
        picture = Image.new("RGBA", (96, 64), ground)
        picture.paste(square, (4 + 4 * number, 20, 28 + 4 * number, 44))
        pictures.append(picture)
    pictures[0].save(path, "GIF", save_all=True, append_images=pictures[1:], duration=40, disposal=2, **options)
    return Media(path, probe(path))


WHITE, BLACK, RED, CLEAR = (255, 255, 255, 255), (0, 0, 0, 255), (255, 0, 0, 255), (0, 0, 0, 0)


@pytest.mark.parametrize("ground", [BLACK, CLEAR])
def test_a_mask_video_moves_on_black_and_on_transparent_ground(ground: tuple[int, ...], tmp_path: Path) -> None:
    mask = moving_mask(tmp_path / "mask.gif", ground, WHITE)
    motion = follow_mask(mask, [number / 25 for number in range(10)], lambda: False)
    assert motion.centres[:, 0] == pytest.approx([16 + 4 * number for number in range(10)])


def test_a_mask_video_without_white_is_refused(tmp_path: Path) -> None:
    mask = moving_mask(tmp_path / "mask.gif", CLEAR, RED)
    with pytest.raises(MediaError, match="The first frame is white nowhere"):
        follow_mask(mask, [0.0], lambda: False)


def white_at(left: int, height: int, width: int) -> np.ndarray:
    """A black frame with a white square of 40 pixels."""
    frame = np.zeros((height, width, 3), np.uint8)
    frame[12:52, left : left + 40] = 255
    return frame


@pytest.mark.slow
def test_on_the_talker_dubbed_mouths_follow_their_voices_and_the_film_stays(tmp_path: Path) -> None:
    film = bench.make_film(tmp_path, 2.0, bench.SMALL)
    worker = TalkerWorker(tmp_path)
    feather = bench.SMALL[2] / 8
    changes = {"dub": {"keep": "face", "margin": 0, "feather": feather}, "bbox": film.bbox()}
    result = worker.run(bench.job_input(film, tmp_path, **changes))
    found = bench.measure(film, tmp_path / result["video"]["path"], tmp_path, "face", feather)
    assert np.abs(found.times - found.film_times[: len(found.times)]).max() < 1e-3
    assert found.psnr > found.psnr_encoded - 1
    assert min(found.mouths) > 0.7 and max(found.others) < min(found.mouths) - 0.3
    assert found.seam < 1.2
    assert abs(found.end_s) < 0.02
    assert soundfile.info(film.voices[0]).duration == pytest.approx(result["video"]["duration_s"], abs=0.04)
