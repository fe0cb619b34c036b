"""The worker as Runpod runs it: `handler.py` under the SDK, its jobs from a local queue."""

import json
from collections.abc import Iterator

import numpy as np
import pytest

from schemas import Progress, Stage
from tests.hostile import nested
from tests.job_inputs import data_uri, picture_uri, scenes_bytes, small_job, speech_uri
from tools.worker_process import JOB_TIMEOUT_S, Worker, running_worker


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    with running_worker(tmp_path_factory.mktemp("worker")) as worker:
        yield worker


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"cond_audio": None}, "E_INPUT_VALIDATION", "give either cond_audio"),
        (
            {"cond_video": data_uri(b"only words, which are neither a picture nor a video", "image/png")},
            "E_INPUT_VALIDATION",
            "cond_video: ",
        ),
        ({"frame_num": 80}, "E_INPUT_VALIDATION", "frame_num must be 4n+1, e.g. 77 or 81"),
    ],
    ids=["no speech", "no picture", "80 frames"],
)
def test_a_broken_input_is_answered_at_once(worker, changes, code, words):
    job, failure = worker.refusal(small_job(**changes))
    # Idle machines answer within half a second; a model takes longer than this to load, not to speak of evaluations.
    assert job.seconds < 5.0
    assert failure.error.code == code
    assert failure.error.retryable is False
    assert words in failure.error.message


@pytest.mark.parametrize(
    "job_input",
    ["text", [], {"batch": []}, {"frames": 81}, {"prompt": nested(900)}, nested(900)],
    ids=["text", "list", "empty batch", "unknown field", "nested prompt", "nested input"],
)
def test_an_input_of_another_shape_is_a_coded_failure(worker, job_input):
    job, failure = worker.refusal(job_input)
    assert failure.error.code == "E_INPUT_VALIDATION"
    told = json.dumps([job.output, job.error])
    assert "Traceback" not in told
    assert "infinitetalk/" not in told


def test_a_job_shows_its_stages_in_order_and_ends_with_its_video(worker):
    job, result = worker.success(small_job())
    progress = [Progress.model_validate(message, strict=False) for message in job.progress]
    stages = [message.stage for message in progress]
    order = list(Stage)
    assert [message.seq for message in progress] == list(range(1, len(progress) + 1))
    assert sorted(stages, key=order.index) == stages
    assert {Stage.SAMPLING, Stage.DECODE, Stage.COMPLETED} <= set(stages)
    assert [message.pct for message in progress] == sorted(message.pct for message in progress)
    steps = [message for message in progress if message.details]
    # The last step's message may give way to the decoding that follows at once.
    assert [message.details["step"] for message in steps] in ([1], [1, 2])
    assert all(message.eta_s is not None for message in steps)
    assert job.posts_after_end == 0
    assert worker.queue.unauthorised == 0

    assert result.job_id == job.id
    assert (result.video.num_frames, result.video.fps, result.model) == (5, 25, "tiny-random")
    assert set(result.timings) == {f"{stage}_ms" for stage in order[:-1]} | {"total_ms"}
    assert abs(sum(result.timings.values()) - 2 * result.timings["total_ms"]) < 20
    assert result.params["sample_shift"] == 7
    assert result.warnings == []
    assert worker.frames(result).shape == (5, result.video.height, result.video.width, 3)
    assert (worker.volume / result.video.thumbnail_path).read_bytes()[:2] == b"\xff\xd8"


def test_the_seed_decides_and_a_random_one_is_named(worker):
    _, first = worker.success(small_job())
    _, again = worker.success(small_job())
    _, random = worker.success(small_job(base_seed=-1))
    _, random_again = worker.success(small_job(base_seed=random.params["base_seed"]))
    assert np.array_equal(worker.frames(first), worker.frames(again))
    assert not np.array_equal(worker.frames(first), worker.frames(random))
    assert np.array_equal(worker.frames(random), worker.frames(random_again))


@pytest.mark.parametrize(
    ("changes", "num_frames", "warned"),
    [
        ({"cond_audio": {"person1": speech_uri(0.16), "person2": speech_uri(0.2, 220)}}, 5, False),
        (
            {
                "cond_audio": {"person1": speech_uri(0.16), "person2": speech_uri(0.16, 220)},
                "audio_type": "add",
                "frame_num": 9,
                "bbox": {"person1": [0, 0, 30, 64], "person2": [34, 0, 64, 64]},
            },
            8,
            False,
        ),
        (
            {
                "cond_audio": {"person1": speech_uri(0.2), "person2": None},
                "mask": {"person1": picture_uri(white=slice(0, 30)), "person2": picture_uri(white=slice(34, 64))},
            },
            5,
            False,
        ),
        ({"cond_audio": {"person1": speech_uri(0.2), "person2": None, "person3": None}}, 5, True),
    ],
    ids=["para", "add with boxes", "silent with masks", "three"],
)
def test_several_speakers(changes, num_frames, warned, worker):
    _, result = worker.success(small_job(**changes))
    assert result.video.num_frames == len(worker.frames(result)) == num_frames
    assert bool(result.warnings) == warned


def test_streaming_goes_on_to_the_end_of_the_speech(worker):
    speech = speech_uri(0.68)
    job, result = worker.success(
        small_job(mode="streaming", frame_num=9, motion_frame=5, cond_audio={"person1": speech})
    )
    assert result.video.num_frames == len(worker.frames(result)) == 17
    steps = [message["details"] for message in job.progress if message["details"]]
    assert sorted({step["chunk"] for step in steps}) == [1, 2, 3]
    assert {step["num_chunks"] for step in steps} == {3}


def test_a_source_video_is_cut_at_its_scenes_without_losing_a_frame(worker):
    source = worker.volume / "scenes.mp4"
    source.parent.mkdir(exist_ok=True)
    source.write_bytes(scenes_bytes([22, 22]))
    request = small_job(
        mode="streaming",
        cond_video="scenes.mp4",
        scene_seg=True,
        cond_audio={"person1": speech_uri(1.56)},
        frame_num=17,
        motion_frame=9,
    )
    job, result = worker.success(request)
    frames = worker.frames(result)
    assert result.video.num_frames == len(frames) == 39
    # 22 frames are two chunks of 17 that share 9, and the 17 frames of the second scene are one.
    assert {message["details"]["num_chunks"] for message in job.progress if message["details"]} == {3}
    # Colours follow each scene's own first frame, and the second scene is the brighter one.
    brightness = frames.mean(axis=(1, 2, 3))
    assert brightness[:22].max() < brightness[22:].min()


def test_a_small_video_comes_inline(worker):
    _, result = worker.success(small_job(output_config={"store": "inline"}))
    assert result.video.path is None
    assert result.video.data is not None and result.video.thumbnail_data is not None


def test_guidance_and_teacache_count_their_evaluations(worker):
    _, plain = worker.success(small_job(sample_text_guide_scale=5.0))
    _, cached = worker.success(small_job(sample_steps=8, use_teacache=True, use_apg=True))
    assert (plain.evaluations, plain.evaluations_skipped) == (6, 0)
    assert cached.evaluations + cached.evaluations_skipped == 16


def test_a_cancelled_job_stops_and_the_next_one_is_served(worker):
    long = small_job(mode="streaming", sample_steps=50, cond_audio={"person1": speech_uri(8)})
    job_id = worker.queue.post(long)
    worker.queue.wait_until(job_id, lambda job: len(job.progress) > 6, JOB_TIMEOUT_S)
    cancelled = worker.queue.cancel(job_id)
    worker.wait_for_event("job.stopped", job_id=job_id)
    # Messages may be under way when the worker hears of it; none is sent once the job has stopped.
    under_way = cancelled.posts_after_end
    _, result = worker.success(small_job())
    assert result.video.num_frames == 5
    assert cancelled.posts_after_end == under_way
    assert not (worker.volume / "infinitetalk/jobs" / f"{job_id}.mp4").exists()


def test_nothing_temporary_is_left_after_all_these_jobs(worker):
    assert list(worker.temporary.glob("infinitetalk-*")) == []


def test_the_worker_pings_the_queue(worker):
    assert worker.queue.pings > 0
