"""Videos that come out of the worker: every kind of source and speaker, exact in frames, its sound in its place."""

import io
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from schemas import Success
from tests.job_inputs import SAMPLING_RATE, data_uri, picture_bytes, picture_uri, small_job, speech_uri
from tests.media_factory import make_numbered_video
from tools.worker_process import Worker, running_worker

BURST_S = 0.1
SYNC_TOLERANCE_S = 0.040


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    with running_worker(tmp_path_factory.mktemp("worker")) as worker:
        yield worker


def bursts_uri(seconds: float, instants: list[float]) -> str:
    """Silence with short bursts of a tone that begin at the given instants, as a data URI."""
    waveform = np.zeros(round(seconds * SAMPLING_RATE))
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(round(BURST_S * SAMPLING_RATE)) / SAMPLING_RATE)
    for instant in instants:
        begin = round(instant * SAMPLING_RATE)
        waveform[begin : begin + len(tone)] = tone
    file = io.BytesIO()
    soundfile.write(file, waveform, SAMPLING_RATE, format="WAV", subtype="PCM_16")
    return data_uri(file.getvalue(), "audio/wav")


def read_sound(path: Path) -> tuple[np.ndarray, int]:
    """The sound of an MP4 as a player hears it: samples (n,) from instant 0, and their rate."""
    with av.open(str(path)) as container:
        frames = [(frame.pts * frame.time_base, frame.to_ndarray().mean(axis=0)) for frame in container.decode(audio=0)]
        rate = container.streams.audio[0].rate
    samples = np.concatenate([samples for _, samples in frames])
    begin = round(float(frames[0][0]) * rate)
    return (samples[-begin:] if begin < 0 else np.pad(samples, (begin, 0))), rate


def onsets(samples: np.ndarray, rate: int) -> list[float]:
    """Instants, in seconds, at which sound begins after at least a burst's length of silence."""
    loud = np.flatnonzero(np.abs(samples) > 0.2 * np.abs(samples).max())
    starts = loud[np.flatnonzero(np.diff(loud, prepend=-rate) > BURST_S * rate)]
    return [start / rate for start in starts]


def assert_sound_in_place(worker: Worker, result: Success, instants: list[float]) -> None:
    samples, rate = read_sound(worker.volume / result.video.path)
    assert onsets(samples, rate) == pytest.approx(instants, abs=SYNC_TOLERANCE_S)
    assert abs(len(samples) / rate - result.video.num_frames / 25) < SYNC_TOLERANCE_S


SPEAKERS = {
    "para": ({"cond_audio": {"person1": (0.6, [0.1]), "person2": (0.8, [0.3])}}, 20, [0.1, 0.3]),
    "add": (
        {"audio_type": "add", "cond_audio": {"person1": (0.6, [0.1]), "person2": (0.8, [0.3])}},
        35,
        [0.1, 0.9],
    ),
    "one silent": ({"cond_audio": {"person1": (0.6, [0.1]), "person2": None}}, 15, [0.1]),
    "bbox": (
        {
            "cond_audio": {"person1": (0.6, [0.1]), "person2": (0.6, [0.3])},
            "bbox": {"person1": [2, 2, 30, 60], "person2": [34, 2, 62, 60]},
        },
        15,
        [0.1, 0.3],
    ),
    "mask": (
        {
            "cond_audio": {"person1": (0.6, [0.1]), "person2": (0.6, [0.3])},
            "mask": {
                "person1": data_uri(picture_bytes(white=slice(0, 30)), "image/png"),
                "person2": data_uri(picture_bytes(white=slice(34, 64)), "image/png"),
            },
        },
        15,
        [0.1, 0.3],
    ),
    "three": (
        {"cond_audio": {"person1": (0.6, [0.1]), "person2": (0.6, [0.3]), "person3": (0.6, [])}},
        15,
        [0.1, 0.3],
    ),
}


@pytest.mark.parametrize(("changes", "num_frames", "instants"), SPEAKERS.values(), ids=SPEAKERS)
def test_several_speakers_are_heard_where_they_speak(
    changes: dict, num_frames: int, instants: list[float], worker: Worker
) -> None:
    cond_audio = {name: None if sound is None else bursts_uri(*sound) for name, sound in changes["cond_audio"].items()}
    _, result = worker.success(small_job(mode="streaming", **{**changes, "cond_audio": cond_audio}))
    assert worker.frames(result).shape[0] == result.video.num_frames == num_frames
    assert_sound_in_place(worker, result, instants)


@pytest.mark.parametrize("rate", ["24000/1001", "30", "60"])
@pytest.mark.parametrize("source_s", [0.3, 2.0], ids=["source shorter", "source longer"])
def test_a_source_video_of_any_rate_gives_the_speechs_frames(
    rate: str, source_s: float, worker: Worker, tmp_path: Path
) -> None:
    numerator, _, denominator = rate.partition("/")
    num_source_frames = round(source_s * int(numerator) / int(denominator or 1))
    make_numbered_video(tmp_path / "source.mp4", range(num_source_frames), rate)
    job = small_job(
        mode="streaming",
        cond_video=data_uri((tmp_path / "source.mp4").read_bytes(), "video/mp4"),
        cond_audio={"person1": bursts_uri(0.84, [0.1, 0.7])},
    )
    _, result = worker.success(job)
    assert worker.frames(result).shape[0] == result.video.num_frames == 21
    assert_sound_in_place(worker, result, [0.1, 0.7])


@pytest.mark.parametrize("seconds", [7, pytest.param(30, marks=pytest.mark.long)])
def test_speech_streams_without_losing_a_frame_or_its_place(seconds: int, worker: Worker) -> None:
    instants = [0.5, seconds / 2, seconds - 0.5]
    job = small_job(
        mode="streaming",
        cond_audio={"person1": bursts_uri(seconds + 0.2, instants)},
        frame_num=81,
        motion_frame=9,
        sample_steps=1,
        sample_audio_guide_scale=1.0,
    )
    _, result = worker.success(job)
    assert worker.frames(result).shape[0] == result.video.num_frames == 25 * seconds + 5
    assert_sound_in_place(worker, result, instants)


def test_max_frame_num_ends_a_stream(worker: Worker) -> None:
    job = small_job(mode="streaming", max_frame_num=12, cond_audio={"person1": bursts_uri(1.0, [0.1])})
    _, result = worker.success(job)
    assert worker.frames(result).shape[0] == result.video.num_frames == 12
    assert_sound_in_place(worker, result, [0.1])


def test_a_clip_is_as_long_as_speech_shorter_than_a_chunk(worker: Worker) -> None:
    _, result = worker.success(small_job(cond_audio={"person1": bursts_uri(0.2, [0.05])}))
    assert worker.frames(result).shape[0] == result.video.num_frames == 5


@pytest.mark.parametrize(
    ("boxes", "word"),
    [
        ({"person1": [2, 2, 30, 60], "person2": [34, 2, 900, 60]}, "person2"),
        ({"person1": [2, 2, 30, 60], "person2": [34, 2, 34, 60]}, "person2"),
        ({"person1": [2, 2, 30, 60]}, "bbox"),
        ({"person1": [2, 2, 30, 60], "person2": [34, 2, 62, 60], "person3": [1, 1, 9, 9]}, "bbox"),
    ],
    ids=["outside", "empty", "too few", "too many"],
)
def test_boxes_that_cannot_be_served_are_refused(boxes: dict, word: str, worker: Worker) -> None:
    cond_audio = {"person1": speech_uri(0.4), "person2": speech_uri(0.4)}
    _, failure = worker.refusal(small_job(cond_video=picture_uri(), cond_audio=cond_audio, bbox=boxes))
    assert failure.error.code == "E_INPUT_VALIDATION"
    assert word in failure.error.message


@pytest.mark.parametrize(
    ("changes", "mode"),
    [
        ({"num_persistent_param_in_dit": 0}, "float32, with 0 parameters kept and the others streamed"),
        ({"offload_model": True}, "float32, with 0 parameters kept and the others streamed, text encoder streamed"),
    ],
    ids=["blocks", "all"],
)
def test_streamed_weights_give_the_same_frames(changes: dict, mode: str, worker: Worker) -> None:
    _, plain = worker.success(small_job())
    _, streamed = worker.success(small_job(**changes))
    assert (plain.memory_mode, streamed.memory_mode) == ("float32", mode)
    assert np.array_equal(worker.frames(plain), worker.frames(streamed))


def test_quantised_weights_are_named_in_the_result_and_change_little(worker: Worker) -> None:
    _, plain = worker.success(small_job())
    _, quantised = worker.success(small_job(quant="int8"))
    assert quantised.memory_mode == "int8"
    difference = worker.frames(plain).astype(int) - worker.frames(quantised)
    assert 0 < np.abs(difference).mean() < 5
