"""The embedded talker by FlashTalk's recipe: four evaluations a chunk, and the mouth still follows the speech."""

import numpy as np
import pytest

from infinitetalk.embedded.tiny import talker_flashtalk_paths
from infinitetalk.weights.layouts import transformer_parts
from tools.talker.jobs import Example, ExampleMaker, TalkerWorker
from tools.talker.measure import best_lag, correlation, read_openings


@pytest.fixture(scope="module")
def maker(tmp_path_factory: pytest.TempPathFactory) -> ExampleMaker:
    return ExampleMaker(tmp_path_factory.mktemp("flashtalk"))


@pytest.fixture(scope="module")
def worker(maker: ExampleMaker) -> TalkerWorker:
    return TalkerWorker(maker.folder)


@pytest.fixture(scope="module")
def spoken(maker: ExampleMaker) -> Example:
    return maker.make(0, seconds=3.24)


@pytest.fixture(scope="module")
def mouth(worker: TalkerWorker, spoken: Example) -> np.ndarray:
    frames = worker.frames(spoken, recipe="flashtalk")
    assert frames.shape == (81, 128, 128, 3)
    return read_openings(frames)[0, 1:]


def test_one_file_holds_the_base_model_and_the_adapter() -> None:
    base, adapter = transformer_parts(talker_flashtalk_paths(), "single", None)
    assert base.label == adapter.label == "diffusion_pytorch_model.safetensors"
    assert base.sources and adapter.sources


def test_the_mouth_follows_the_speech_with_four_evaluations_a_chunk(mouth: np.ndarray, spoken: Example) -> None:
    rule = spoken.rules[0].opening[1:]
    assert correlation(mouth, rule) >= 0.8
    assert best_lag(mouth, rule) == 0


def test_silence_shuts_the_mouth_without_guidance(mouth: np.ndarray, maker: ExampleMaker, worker: TalkerWorker) -> None:
    silent = read_openings(worker.frames(maker.make(0, seconds=3.24, silent=True), recipe="flashtalk"))[0, 1:]
    assert silent.mean() <= 0.5 * mouth.mean()
    assert silent.var() <= 0.1 * mouth.var()


def test_its_family_is_flashtalk_with_latents_of_16_pixels() -> None:
    family = talker_flashtalk_paths().family
    assert (family.name, family.side_multiple) == ("flashtalk", 32)
