"""Text to speech: turns, voices and the tracks that come out of a real Kokoro pipeline of random weights."""

import json
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from infinitetalk.errors import CheckpointError, GenerationStopped, SynthesisError, SynthesisSetupError
from infinitetalk.media.speech import SAMPLING_RATE
from infinitetalk.media.tts import (
    MAX_PHONEMES,
    SEED_KEY,
    TINY_VOICES,
    WEIGHTS_FILE,
    SpeechSynthesiser,
    TextTurn,
    make_tiny_kokoro,
    split_phonemes,
    split_turns,
    voice_name,
)

CPU = torch.device("cpu")


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Kokoro's many small steps take several times longer on two threads of a busy machine."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kokoro")
    make_tiny_kokoro(folder)
    return folder


@pytest.fixture(scope="module")
def synthesiser(tiny_folder: Path) -> SpeechSynthesiser:
    return SpeechSynthesiser(tiny_folder, CPU)


@pytest.fixture
def published_folder(tiny_folder: Path, tmp_path: Path) -> Path:
    """As a folder of the published weights looks: nothing says that they are random."""
    folder = tmp_path / "published"
    shutil.copytree(tiny_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    del config[SEED_KEY]
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError(f"the network was used: {arguments[1:]}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def test_one_speaker_says_the_whole_text() -> None:
    assert split_turns(" Hello,\n  world. ", 1) == [TextTurn(0, "Hello, world.")]


def test_markers_say_whose_turn_it_is() -> None:
    text = "(s1) Hello. (s2) Hi (there)!\n(S2)Again. (s1) Bye."
    assert split_turns(text, 2) == [
        TextTurn(0, "Hello."),
        TextTurn(1, "Hi (there)!"),
        TextTurn(1, "Again."),
        TextTurn(0, "Bye."),
    ]


@pytest.mark.parametrize(
    ("text", "num_speakers", "complaint"),
    [
        ("  \n ", 1, "is empty"),
        ("(s1) Hello.", 1, "one voice"),
        ("Hello.", 2, "must begin with a marker"),
        ("Well, (s1) hello. (s2) Hi.", 2, "must begin with a marker"),
        ("(s1) Hello. (s3) Hi.", 2, r'"\(s3\)", but speakers are 1 to 2'),
        ("(s0) Hello. (s1) Hi.", 2, r'"\(s0\)", but speakers are 1 to 2'),
        (f"(s{'9' * 5000}) Hello.", 2, r'"\(s999999999\)"'),
        ("(s1) (s2) Hi.", 2, r'the turn "\(s1\)" is empty'),
        ("Hello\0world", 1, "control characters"),
        ("Hello \ud800", 1, "control characters"),
    ],
)
def test_a_text_that_says_not_who_speaks_what_is_refused(text: str, num_speakers: int, complaint: str) -> None:
    with pytest.raises(SynthesisError, match=complaint):
        split_turns(text, num_speakers)


@pytest.mark.parametrize(
    "voice",
    ["am_adam", "am_adam.pt", "voices/am_adam.pt", "weights/Kokoro-82M/voices/am_adam.pt", "/etc/voices/am_adam"],
)
def test_a_voice_is_known_by_its_name_alone(voice: str) -> None:
    assert voice_name(voice) == "am_adam"


@pytest.mark.parametrize(
    "voice", ["", ".", "..", "../am_adam", "/etc/passwd", "am_adam,af_heart", "voices/", "am_adam\n", "am\0", "am_*"]
)
def test_what_is_no_voice_name_is_refused(voice: str) -> None:
    with pytest.raises(SynthesisError, match='must be a name such as "am_adam"'):
        voice_name(voice)


def test_an_unknown_voice_is_answered_with_those_there_are(synthesiser: SpeechSynthesiser) -> None:
    with pytest.raises(SynthesisError, match='no voice "am_adm": choose one of af_heart, am_adam, am_michael'):
        synthesiser.check("Hello.", ["am_adm"])
    assert synthesiser.voices == sorted(TINY_VOICES)


def test_long_speech_is_cut_at_pauses_and_loses_nothing() -> None:
    sentences = "ə" * 300 + ". " + "ɪ" * 300 + ", " + "ʊ" * 300 + " " + "æ" * 600 + "!"
    pieces = split_phonemes(sentences)
    assert [len(piece) for piece in pieces] == [301, 301, 300, MAX_PHONEMES, 91]
    assert "".join(pieces) == sentences.replace(" ", "")


def test_speech_is_mono_16_khz_and_the_same_each_time(synthesiser: SpeechSynthesiser) -> None:
    state = torch.random.get_rng_state()
    (track,) = synthesiser.speak("Hello.", ["am_adam"])
    assert track.dtype == np.float32
    assert track.ndim == 1
    assert np.isfinite(track).all()
    assert 0.2 * SAMPLING_RATE < len(track) < 3 * SAMPLING_RATE
    torch.manual_seed(1)
    (again,) = synthesiser.speak("Hello.", ["weights/voices/am_adam.pt"])
    np.testing.assert_array_equal(again, track)
    (other,) = synthesiser.speak("Hello.", ["af_heart"])
    assert len(other) != len(track) or not np.allclose(other, track, atol=1e-3)
    torch.random.set_rng_state(state)
    synthesiser.speak("Hi.", ["am_adam"])
    assert torch.equal(torch.random.get_rng_state(), state)


def test_speakers_take_turns_on_tracks_of_equal_length(synthesiser: SpeechSynthesiser) -> None:
    first, second = synthesiser.speak("(s1) Hi. (s2) Hello. (s1) Bye.", ["am_adam", "bf_emma"])
    assert first.shape == second.shape
    assert not np.any((first != 0) & (second != 0))
    (hi,) = synthesiser.speak("Hi.", ["am_adam"])
    (hello,) = synthesiser.speak("Hello.", ["bf_emma"])
    (bye,) = synthesiser.speak("Bye.", ["am_adam"])
    np.testing.assert_array_equal(first + second, np.concatenate([hi, hello, bye]))


def test_a_speaker_without_a_turn_is_silent(synthesiser: SpeechSynthesiser) -> None:
    first, second = synthesiser.speak("(s2) Hi.", ["am_adam", "bf_emma"])
    assert not first.any()
    assert second.any()


def test_speech_is_cut_at_the_longest_the_video_can_be(synthesiser: SpeechSynthesiser) -> None:
    (whole,) = synthesiser.speak("Hello.", ["am_adam"])
    tracks = synthesiser.speak("(s1) Hello. (s2) Never heard.", ["am_adam", "bf_emma"], max_seconds=0.3)
    np.testing.assert_array_equal(tracks[0], whole[: round(0.3 * SAMPLING_RATE)])
    assert not tracks[1].any()


def test_speech_stops_when_asked_to(synthesiser: SpeechSynthesiser) -> None:
    with pytest.raises(GenerationStopped):
        synthesiser.speak("Hello.", ["am_adam"], should_stop=lambda: True)


def test_a_text_of_punctuation_alone_is_refused(synthesiser: SpeechSynthesiser) -> None:
    with pytest.raises(SynthesisError, match="nothing that can be spoken"):
        synthesiser.speak("… !", ["am_adam"])


def test_the_tiny_model_warns_that_it_says_no_words(synthesiser: SpeechSynthesiser, published_folder: Path) -> None:
    assert "random" in synthesiser.warnings[0]
    assert SpeechSynthesiser(published_folder, CPU).warnings == []


@pytest.mark.usefixtures("no_network")
def test_english_without_its_package_names_what_to_install(published_folder: Path) -> None:
    with pytest.raises(SynthesisSetupError, match="python -m spacy download en_core_web_sm"):
        SpeechSynthesiser(published_folder, CPU).speak("Hello.", ["am_adam"])
    assert issubclass(SynthesisSetupError, CheckpointError)


@pytest.mark.usefixtures("no_network")
def test_published_weights_speak_without_the_network(published_folder: Path) -> None:
    (track,) = SpeechSynthesiser(published_folder, CPU).speak("Sí.", ["ef_dora"])
    assert track.any()


def test_chinese_without_its_packages_names_what_to_install(published_folder: Path) -> None:
    shutil.copyfile(published_folder / "voices" / "am_adam.pt", published_folder / "voices" / "zm_yunxi.pt")
    with pytest.raises(SynthesisSetupError, match=r"misaki\[zh\]"):
        SpeechSynthesiser(published_folder, CPU).speak("你好", ["zm_yunxi"])


def test_a_language_that_cannot_be_spoken_is_refused(published_folder: Path) -> None:
    shutil.copyfile(published_folder / "voices" / "am_adam.pt", published_folder / "voices" / "jf_alpha.pt")
    with pytest.raises(SynthesisError, match='language "j" cannot be spoken'):
        SpeechSynthesiser(published_folder, CPU).check("こんにちは", ["jf_alpha"])


def test_a_folder_without_weights_says_which_file_it_lacks(published_folder: Path) -> None:
    (published_folder / WEIGHTS_FILE).unlink()
    with pytest.raises(SynthesisSetupError, match=f"lacks {WEIGHTS_FILE}") as failure:
        SpeechSynthesiser(published_folder, CPU)
    assert str(published_folder) not in str(failure.value)


@pytest.mark.parametrize("file", ["config.json", WEIGHTS_FILE, "voices/ef_dora.pt"])
def test_a_broken_file_is_named(published_folder: Path, file: str) -> None:
    (published_folder / file).write_bytes(b"cut short")
    with pytest.raises(SynthesisSetupError, match=file) as failure:
        SpeechSynthesiser(published_folder, CPU).speak("Sí.", ["ef_dora"])
    assert str(published_folder) not in str(failure.value)
