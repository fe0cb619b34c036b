"""Jobs whose speech is a text: Kokoro's own pipeline on the tiny model, and what is said where it cannot speak."""

from pathlib import Path
from typing import Any

import pytest

from infinitetalk.media.tts import make_tiny_kokoro
from infinitetalk.worker.engine import Engine
from infinitetalk.worker.settings import Settings
from schemas import ErrorCode, Failure, Stage, Success
from tests.job_inputs import small_job
from tests.local_jobs import LocalWorker


def spoken(text: str, voice: str = "am_adam", second_voice: str | None = None, **changes: Any) -> dict[str, Any]:
    """A job whose speech is a text."""
    tts_audio = {"text": text, "human1_voice": voice} | ({"human2_voice": second_voice} if second_voice else {})
    return {"id": "job-1", "input": small_job(cond_audio=None, tts_audio=tts_audio, **changes)}


def refusal(worker: LocalWorker, job: dict[str, Any]) -> Failure:
    """How a job fails before anything is fetched."""
    failure = Failure.model_validate(worker.run(job), strict=False)
    assert failure.error.at_stage == Stage.VALIDATION
    assert str(worker.volume.parent) not in failure.error.message
    return failure


def test_one_speaker_speaks_a_text_with_a_voice_named_by_its_file(local_worker: LocalWorker) -> None:
    answer = local_worker.run(spoken("Hello.", "weights/Kokoro-82M/voices/am_adam.pt", frame_num=9))
    result = Success.model_validate(answer, strict=False)
    assert 5 <= result.video.num_frames <= 9
    assert "no words can be heard" in result.warnings[0]
    assert result.params["tts_audio"]["human1_voice"] == "weights/Kokoro-82M/voices/am_adam.pt"


def test_two_speakers_take_turns(local_worker: LocalWorker) -> None:
    answer = local_worker.run(spoken("(s1) Hi. (s2) Hello.", "am_adam", "bf_emma"))
    assert Success.model_validate(answer, strict=False).video.num_frames == 5


@pytest.mark.parametrize(
    ("job", "words"),
    [
        (spoken("Hello.", "am_nobody"), 'tts_audio: there is no voice "am_nobody": choose one of af_heart, am_adam'),
        (spoken("Hello.", "../../etc/passwd"), "tts_audio: a voice must be a name"),
        (spoken("(s1) Hello."), "but one voice: give a second voice"),
        (spoken("Hello.", "am_adam", "bf_emma"), "must begin with a marker and have one before each turn"),
    ],
)
def test_a_text_or_voice_that_cannot_be_spoken_is_refused_before_anything_is_fetched(
    job: dict[str, Any], words: str, local_worker: LocalWorker
) -> None:
    error = refusal(local_worker, job).error
    assert (error.code, error.retryable) == (ErrorCode.INPUT_VALIDATION, False)
    assert words in error.message


def worker_of(local_worker: LocalWorker, **changes: Any) -> LocalWorker:
    """Another worker, which has never loaded its model."""
    settings = local_worker.settings.model_copy(update=changes)
    return LocalWorker(settings, Engine(settings), local_worker.volume)


def test_published_weights_without_what_a_language_needs_say_what_to_install(
    local_worker: LocalWorker, tmp_path: Path
) -> None:
    folder = tmp_path / "Kokoro-82M"
    make_tiny_kokoro(folder)
    config = folder / "config.json"
    config.write_text(config.read_text().replace("random_weights_seed", "no_seed"))
    error = refusal(worker_of(local_worker, kokoro_dir=folder), spoken("Hello.")).error
    assert (error.code, error.retryable) == (ErrorCode.PIPELINE_LOAD, False)
    assert "python -m spacy download en_core_web_sm" in error.message


def test_a_published_model_without_kokoro_says_what_the_operator_sets(local_worker: LocalWorker) -> None:
    folders = dict.fromkeys(("ckpt_dir", "infinitetalk_dir", "wav2vec_dir"), local_worker.volume)
    error = refusal(worker_of(local_worker, infinitetalk_model="published", **folders), spoken("Hello.")).error
    assert error.code == ErrorCode.PIPELINE_LOAD
    assert "KOKORO_DIR" in error.message


def test_the_setting_for_kokoro_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    make_tiny_kokoro(tmp_path / "kokoro")
    (tmp_path / "kokoro" / "voices" / "af_heart.pt").unlink()
    monkeypatch.setenv("KOKORO_DIR", str(tmp_path / "kokoro"))
    assert "af_heart" not in Engine(Settings(infinitetalk_model="tiny")).synthesiser.voices
