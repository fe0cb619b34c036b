"""Text to speech with Kokoro: one speaker, or several who take turns."""

import json
import pickle
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import librosa
import numpy as np
import torch
from torch import Tensor

from infinitetalk.errors import GenerationStopped, SynthesisError, SynthesisSetupError
from infinitetalk.media.speech import SAMPLING_RATE

#: Sampling rate of Kokoro's waveforms, in Hz.
KOKORO_SAMPLING_RATE = 24_000
#: Model name for Kokoro's library, which downloads nothing because model and voices are given.
REPOSITORY = "hexgrad/Kokoro-82M"
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "kokoro-v1_0.pth"
VOICES_FOLDER = "voices"
#: Key in a tiny model's config.json: its weights are generated from this seed instead of read from a file.
SEED_KEY = "random_weights_seed"
#: Kokoro draws the phases of its sound sources at random; every piece of speech uses this seed.
SOURCE_SEED = 0

#: Number of rows of a voice, and so the largest number of phonemes in one piece of speech.
MAX_PHONEMES = 510
#: Numbers in a row of a voice: the style of its timbre, then the style of its prosody.
STYLE_SIZE = 256
#: Characters after which speech may be cut, best first.
PAUSES = (".!?…", ";:,—", " ")

#: First letter of a voice (its language) → the language's name in espeak.
ESPEAK_LANGUAGES = {
    "a": "en-us",
    "b": "en-gb",
    "e": "es",
    "f": "fr-fr",
    "h": "hi",
    "i": "it",
    "p": "pt-br",
}
#: First letter of a voice → the packages that the published model also needs for its language, and the command that
#: installs them. misaki would download the English one at run time.
LANGUAGE_PACKAGES = {
    "a": (("en_core_web_sm",), "python -m spacy download en_core_web_sm"),
    "b": (("en_core_web_sm",), "python -m spacy download en_core_web_sm"),
    "z": (("jieba", "pypinyin", "cn2an"), 'pip install "misaki[zh]"'),
}

TINY_WARNING = (
    "speech comes from the embedded tiny Kokoro model, which has random weights: it has the length of the text, "
    "but no words can be heard in it"
)
TINY_VOICES = ("af_heart", "am_adam", "am_michael", "bf_emma", "bm_george", "ef_dora")
TINY_SEED = 82
# Kokoro's decoder fixes most sizes, so the tiny model still has 58 million parameters.
TINY_CONFIG = {
    "n_token": 198,
    "hidden_dim": 512,
    "style_dim": STYLE_SIZE // 2,
    "n_layer": 1,
    "max_dur": 8,
    "dropout": 0.0,
    "n_mels": 80,
    "text_encoder_kernel_size": 3,
    "istftnet": {
        "upsample_kernel_sizes": [20, 12],
        "upsample_rates": [10, 6],
        "gen_istft_hop_size": 5,
        "gen_istft_n_fft": 20,
        "resblock_dilation_sizes": [[1, 1, 1]],
        "resblock_kernel_sizes": [3],
        "upsample_initial_channel": 512,
    },
    "plbert": {
        "hidden_size": 32,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": MAX_PHONEMES + 2,
        "num_hidden_layers": 1,
        "embedding_size": 16,
    },
}

_MARKER = re.compile(r"\(s(\d+)\)", re.IGNORECASE)
_VOICE = re.compile(r"(?:(?:.*/)?voices/)?([A-Za-z0-9][A-Za-z0-9_-]*?)(?:\.pt)?")


@dataclass(frozen=True)
class TextTurn:
    """The text of one speaker until the next one speaks. `speaker` is counted from 0."""

    speaker: int
    text: str


def split_turns(text: str, num_speakers: int) -> list[TextTurn]:
    """Splits a text into turns: one turn for one speaker, "(s1) … (s2) …" for several. White space is normalised.

    A speaker without a turn stays silent.

    Raises:
        SynthesisError: the text or a turn is empty, there is text before the first marker, a marker names a speaker who
            does not exist, or the text of a single speaker has markers.
    """
    if any(unicodedata.category(character) in ("Cc", "Cs") and not character.isspace() for character in text):
        raise SynthesisError("the text has control characters: remove them")
    even = " ".join(text.split())
    # Text before the first marker, then number and text of each turn.
    before, *parts = _MARKER.split(even)
    if num_speakers == 1:
        if parts:
            raise SynthesisError(
                f'the text has turns, such as "(s{parts[0][:9]})", but one voice: give a second voice or remove the '
                "markers"
            )
        return [TextTurn(0, _spoken(before, "the text"))]
    if not parts or before:
        raise SynthesisError(
            'the text of several speakers must begin with a marker and have one before each turn: "(s1) … (s2) …"'
        )
    turns = []
    for number, words in zip(parts[::2], parts[1::2], strict=True):
        if not 1 <= int(number[:9]) <= num_speakers:
            raise SynthesisError(f'the text has a turn "(s{number[:9]})", but speakers are 1 to {num_speakers}')
        turns.append(TextTurn(int(number) - 1, _spoken(words, f'the turn "(s{number})"')))
    return turns


def voice_name(voice: str) -> str:
    """The name of a voice given as "am_adam", "am_adam.pt" or "…/voices/am_adam.pt"; folders are ignored.

    Raises:
        SynthesisError: it has another form.
    """
    if not (match := _VOICE.fullmatch(voice)):
        raise SynthesisError('a voice must be a name such as "am_adam", or "…/voices/am_adam.pt"')
    return match[1]


def split_phonemes(phonemes: str) -> list[str]:
    """Pieces of at most `MAX_PHONEMES` characters, cut at the best pause within reach; only spaces are dropped."""
    pieces = []
    text, begin = phonemes.strip(), 0
    while len(text) - begin > MAX_PHONEMES:
        reach = begin + MAX_PHONEMES
        ends = (max(text.rfind(mark, begin, reach) for mark in marks) + 1 for marks in PAUSES)
        end = next((end for end in ends if end), reach)
        pieces.append(text[begin:end].strip())
        begin = end
        while text[begin].isspace():
            begin += 1
    return [*pieces, text[begin:]]


class SpeechSynthesiser:
    """Kokoro from a folder in its published layout: config.json, kokoro-v1_0.pth, voices/*.pt.

    Kokoro's library and the weights are loaded on first use; nothing is ever downloaded.

    Args:
        folder: the weights; for a folder made by `make_tiny_kokoro` the warnings say so.
        device: where the network runs.

    Attributes:
        warnings: warnings about this model for users.

    Raises:
        SynthesisSetupError: the folder lacks a file, or its config.json cannot be read.
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        for name in (CONFIG_FILE, WEIGHTS_FILE, VOICES_FOLDER):
            if not (folder / name).exists():
                raise SynthesisSetupError(f"the Kokoro folder lacks {name}: it must hold the published layout")
        try:
            self._config: dict[str, Any] = json.loads((folder / CONFIG_FILE).read_text())
        except ValueError as error:
            raise SynthesisSetupError(f"{CONFIG_FILE} of the Kokoro folder is not JSON: download it again") from error
        self._folder = folder
        self._device = device
        self._is_tiny = SEED_KEY in self._config
        self._model: Any = None
        self._pipelines: dict[str, Any] = {}
        self.warnings = [TINY_WARNING] if self._is_tiny else []

    @property
    def voices(self) -> list[str]:
        """Names of the voices."""
        return sorted(path.stem for path in (self._folder / VOICES_FOLDER).glob("*.pt"))

    def check(self, text: str, voices: Sequence[str]) -> None:
        """Checks quickly whether `speak` would accept these.

        Raises:
            SynthesisError: the text or a voice cannot be spoken.
            SynthesisSetupError: a package for a voice's language is not installed.
        """
        split_turns(text, len(voices))
        for voice in voices:
            name = voice_name(voice)
            if name not in self.voices:
                raise SynthesisError(f'there is no voice "{name[:64]}": choose one of {", ".join(self.voices)}')
            languages = set(ESPEAK_LANGUAGES) if self._is_tiny else ESPEAK_LANGUAGES.keys() | LANGUAGE_PACKAGES.keys()
            if name[0] not in languages:
                raise SynthesisError(
                    f'voices of the language "{name[0]}" cannot be spoken: choose one with a name that starts with '
                    f"{', '.join(sorted(languages))}"
                )
            if not self._is_tiny:
                _require_packages(name[0])

    def speak(
        self,
        text: str,
        voices: Sequence[str],
        max_seconds: float | None = None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> list[np.ndarray]:
        """Speaks a text; the same text and voices give the same samples.

        Args:
            text: the text; with several voices, turns as in "(s1) … (s2) …".
            voices: name of each speaker's voice, see `voice_name`.
            max_seconds: the speech is cut here, and the pieces after it are not computed.
            should_stop: called before each piece of up to `MAX_PHONEMES` phonemes.

        Returns:
            A track for each voice: float32 (samples,), mono, 16 kHz, of equal lengths, exactly zero while others speak.

        Raises:
            SynthesisError: the text or a voice cannot be spoken.
            SynthesisSetupError: weights or packages for a voice's language are missing or broken.
            GenerationStopped: `should_stop` returned True.
        """
        self.check(text, voices)
        names = [voice_name(voice) for voice in voices]
        max_samples = None if max_seconds is None else round(max_seconds * SAMPLING_RATE)
        pieces: list[tuple[int, np.ndarray]] = []
        num_samples = 0
        for turn in split_turns(text, len(voices)):
            for phonemes in self._pronounce(turn, names[turn.speaker]):
                if should_stop():
                    raise GenerationStopped
                if max_samples is not None and num_samples >= max_samples:
                    break
                piece = self._synthesise(phonemes, names[turn.speaker])
                pieces.append((turn.speaker, piece))
                num_samples += len(piece)
        tracks = [
            np.concatenate([piece if speaker == index else np.zeros_like(piece) for speaker, piece in pieces])
            for index in range(len(voices))
        ]
        return [track[:max_samples] for track in tracks]

    def _pronounce(self, turn: TextTurn, voice: str) -> list[str]:
        phonemes, _ = self._pipeline(voice[0]).g2p(turn.text)
        if not any(character.isalpha() for character in phonemes):
            raise SynthesisError(f'"{turn.text[:40]}" has nothing that can be spoken: write it in words')
        return split_phonemes(phonemes)

    def _synthesise(self, phonemes: str, voice: str) -> np.ndarray:
        pipeline = self._pipeline(voice[0])
        with torch.random.fork_rng():
            torch.manual_seed(SOURCE_SEED)
            (result,) = pipeline.generate_from_tokens(phonemes, self._read_voice(voice))
        return librosa.resample(
            result.audio.numpy(), orig_sr=KOKORO_SAMPLING_RATE, target_sr=SAMPLING_RATE, res_type="soxr_hq"
        )

    def _read_voice(self, voice: str) -> Tensor:
        try:
            return torch.load(self._folder / VOICES_FOLDER / f"{voice}.pt", map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise SynthesisSetupError(f"{VOICES_FOLDER}/{voice}.pt cannot be read: download it again") from error

    def _pipeline(self, language: str) -> Any:
        """Kokoro's pipeline of a language; the pipelines of all languages share the network."""
        if language not in self._pipelines:
            self._pipelines[language] = self._make_pipeline(language)
        return self._pipelines[language]

    def _make_pipeline(self, language: str) -> Any:
        # Imported late: it takes seconds, and imports spaCy and transformers.
        from kokoro import KPipeline
        from loguru import logger
        from misaki.espeak import EspeakG2P

        # Kokoro logs the spoken text, in its own format.
        logger.disable("kokoro")
        if self._model is None:
            self._model = self._load_model()
        if self._is_tiny:
            # Any language of espeak will do here, because the pronunciation is replaced.
            pipeline = KPipeline("e", repo_id=REPOSITORY, model=self._model)
            pipeline.g2p = EspeakG2P(ESPEAK_LANGUAGES[language])
            return pipeline
        return KPipeline(language, repo_id=REPOSITORY, model=self._model)

    def _load_model(self) -> Any:
        from kokoro import KModel

        try:
            with torch.random.fork_rng():
                torch.manual_seed(self._config.get(SEED_KEY, SOURCE_SEED))
                model = KModel(REPOSITORY, config=self._config, model=str(self._folder / WEIGHTS_FILE))
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, AssertionError, KeyError, TypeError) as error:
            raise SynthesisSetupError(
                f"{WEIGHTS_FILE} of the Kokoro folder cannot be read, or does not fit its {CONFIG_FILE}: "
                "download both again"
            ) from error
        return model.to(self._device).eval()


def make_tiny_kokoro(folder: Path) -> None:
    """Writes Kokoro's layout with random voices (3 MB) and no weights: loading generates them from a seed."""
    voices = folder / VOICES_FOLDER
    voices.mkdir(parents=True, exist_ok=True)
    for index, name in enumerate(TINY_VOICES):
        generator = torch.Generator().manual_seed(TINY_SEED + index)
        torch.save(torch.randn(MAX_PHONEMES, 1, STYLE_SIZE, generator=generator), voices / f"{name}.pt")
    # If the weights of a part are missing, Kokoro's loader leaves the part as initialised.
    torch.save({}, folder / WEIGHTS_FILE)
    vocabulary = {symbol: number for number, symbol in enumerate(_phoneme_symbols(), start=1)}
    config = TINY_CONFIG | {"vocab": vocabulary, SEED_KEY: TINY_SEED}
    (folder / CONFIG_FILE).write_text(json.dumps(config))


def _phoneme_symbols() -> str:
    """The characters of espeak's and misaki's pronunciations: Latin letters, the IPA block, marks and punctuation."""
    latin = "".join(chr(code) for first in "Aa" for code in range(ord(first), ord(first) + 26))
    ipa = "".join(chr(code) for code in range(0x250, 0x2B0))
    return f'{latin}{ipa}æçðøħŋœβθχᵊᵻʰʲʷˈˌː\u0303 ;:,.!?—…"()“”'


def _spoken(text: str, place: str) -> str:
    if not text.strip():
        raise SynthesisError(f"{place} is empty: write what is said")
    return text.strip()


def _require_packages(language: str) -> None:
    packages, command = LANGUAGE_PACKAGES.get(language, ((), ""))
    for package in packages:
        try:
            metadata.distribution(package)
        except metadata.PackageNotFoundError as error:
            raise SynthesisSetupError(
                f'voices of the language "{language}" need the package {package}, which is not installed: '
                f"run {command} where the worker runs"
            ) from error
