"""The documented training runs from nothing to weights that the worker's loading code takes, and can be interrupted."""

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from infinitetalk.embedded.tiny import TALKER_FLASHTALK_FOLDER, TALKER_FOLDER, paths_in, talker_paths
from infinitetalk.encoders.vae import encode_frames
from infinitetalk.network.transformer import InfiniteTalkTransformer3DModel
from infinitetalk.runtime.choice import NetworkChoice
from infinitetalk.runtime.models import Models
from infinitetalk.runtime.networks import Networks
from infinitetalk.weights.layouts import CheckpointPaths
from infinitetalk.weights.names import is_adapter_name
from tools.espeak import Utterance, say
from tools.talker import loop
from tools.talker.data import FLASHTALK_CLIPS, GUIDED_CLIPS, SPEECH_FRAMES, Clip, ClipMaker
from tools.talker.distil import distil
from tools.talker.export import original_names
from tools.talker.jobs import HELD_OUT_SEED
from tools.talker.loop import TrainingLoop
from tools.talker.networks import HALF_PATCH, double_vae, make_transformer, make_vae
from tools.talker.rule import SAMPLES_A_FRAME
from tools.talker.train import SEED
from tools.talker.train_transformer import flow_matching_loss, predict_velocity, train_transformer
from tools.talker.voices import HELD_OUT_VOICES, TRAINING_VOICES, random_speech

REPOSITORY = Path(__file__).parents[1]
FEW = (
    "--picture-steps 1 --clip-steps 2 --chunk-steps 1 --speech-steps 1 --clips 2 --silent-clips 1 --silence-steps 1 "
    "--flashtalk-clips 2 --flashtalk-silent-clips 1 --sharp-clip-steps 1 --sharp-chunk-steps 2 --flashtalk-steps 1"
)


@pytest.fixture(scope="module")
def talker() -> Networks:
    return networks_of(talker_paths())


def networks_of(paths: CheckpointPaths) -> Networks:
    """A checkpoint's networks on the CPU."""
    return Models(paths, torch.device("cpu")).prepare(NetworkChoice(torch.float32))


@pytest.fixture(scope="module")
def maker(talker: Networks) -> ClipMaker:
    return ClipMaker(talker.vae, talker.audio_encoder, talker.image_encoder, GUIDED_CLIPS)


@pytest.fixture(scope="module")
def flashtalk_maker(talker: Networks) -> ClipMaker:
    return ClipMaker(talker.vae, talker.audio_encoder, talker.image_encoder, FLASHTALK_CLIPS)


@pytest.mark.parametrize("voice", ["en-us+f3", "en-us+m5"])
def test_a_text_is_said_the_same_whatever_was_said_before(voice):
    hello, other = (Utterance(text, voice, 160, 50) for text in ("Hello there", "Something else"))
    first = say([hello], seed=1)[0]
    assert np.frombuffer(first, np.int16).std() > 100
    time.sleep(1.1)
    say([other], seed=1)
    assert say([hello], seed=1)[0] == first


def test_what_is_said_follows_from_the_seed():
    first, again, other = (random_speech(np.random.default_rng(seed), TRAINING_VOICES, 16_000) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_voice_that_is_not_there_is_refused():
    with pytest.raises(subprocess.CalledProcessError):
        say([Utterance("Hello", "en-us+nobody", 160, 50)], seed=1)


def test_no_voice_of_the_measures_is_one_of_the_training():
    assert not set(TRAINING_VOICES) & set(HELD_OUT_VOICES)


def noisy_steps(path: Path, until: int) -> dict[str, Tensor]:
    """Average weights after a training by noise, of which only the steps before `until` are made now."""
    path.parent.mkdir(exist_ok=True)
    torch.manual_seed(1)
    network = nn.Linear(4, 4)
    training = TrainingLoop(path, network, 6, SEED, learning_rate=0.1, muon_prefix="weight")
    for generator in training:
        if training.step == until:
            break
        wanted = torch.randn(4) + float(generator.random())
        training.learn((network(torch.randn(4)) - wanted).square().sum())
    return training.average


def test_a_training_that_was_interrupted_ends_as_one_that_was_not(tmp_path, monkeypatch):
    whole = noisy_steps(tmp_path / "a" / "noise.pt", 6)
    monkeypatch.setattr(loop, "SAVE_EVERY_S", 0.0)
    broken_off = noisy_steps(tmp_path / "b" / "noise.pt", 3)
    resumed = noisy_steps(tmp_path / "b" / "noise.pt", 6)
    assert not torch.equal(broken_off["weight"], whole["weight"])
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())
    kept = torch.load(tmp_path / "b" / "noise.pt")
    assert kept["step"] == 6
    assert all(torch.equal(tensor, kept["average"][name]) for name, tensor in whole.items())


def distance_to_clean(transformer: InfiniteTalkTransformer3DModel, clip: Clip, noise_level: float = 0.8) -> float:
    """Of what one step down the velocity makes of a clip in noise."""
    clean = clip.latents.float()[None]
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(3))
    noisy = clean.lerp(noise, noise_level)
    num_given = clip.given.shape[1]
    noisy[:, :, :num_given] = clip.given
    with torch.no_grad():
        velocity = predict_velocity(transformer, clip, noisy, noise_level, clip.windows(), clip.regions())
    return float((noisy - noise_level * velocity - clean)[:, :, num_given:].square().mean())


def test_a_clip_of_the_training_teaches_the_transformer(tmp_path, maker: ClipMaker):
    clip = maker.make(SEED, 2)
    torch.manual_seed(SEED)
    transformer = make_transformer()
    before = distance_to_clean(transformer, clip)
    train_transformer(tmp_path, [clip], 40, SEED)
    transformer.load_state_dict(torch.load(tmp_path / "transformer.pt")["average"])
    assert distance_to_clean(transformer, clip) <= 0.75 * before


@pytest.mark.parametrize("field", ["speech", "reference", "image_embeds", "given", "weights"])
def test_all_that_a_clip_holds_counts_in_its_loss(field: str, talker: Networks, maker: ClipMaker):
    clip = maker.make(SEED, 2)
    changed = replace(clip, **{field: getattr(clip, field).roll(1, -2)})
    losses = []
    for each in (clip, clip, changed):
        torch.manual_seed(SEED)
        with torch.no_grad():
            losses.append(flow_matching_loss(talker.transformer, each, np.random.default_rng(SEED), audio_dropout=0.0))
    assert losses[0] == losses[1] != losses[2]


def test_in_a_silent_clip_nobody_speaks(maker: ClipMaker):
    spoken, silent = maker.make(SEED, 2), maker.make(SEED, 2, is_silent=True)
    nothing = maker.speech_encoder(np.zeros(SPEECH_FRAMES * SAMPLES_A_FRAME, np.float32))
    expected = nothing.rows(torch.arange(SPEECH_FRAMES)).half()
    assert all(torch.equal(voice, expected) for voice in silent.speech)
    assert not torch.equal(spoken.latents, silent.latents)
    assert torch.equal(spoken.reference, silent.reference)


def test_without_speech_the_talker_expects_closed_mouths(talker: Networks, maker: ClipMaker):
    """Whose distance to a clip in noise, told no speech, is less where mouths are closed than where they speak."""
    losses = {}
    for is_silent in (True, False):
        clips = [maker.make(HELD_OUT_SEED, number, is_silent) for number in range(4)]
        generator = np.random.default_rng(SEED)
        torch.manual_seed(SEED)
        with torch.no_grad():
            losses[is_silent] = sum(flow_matching_loss(talker.transformer, clip, generator, 1.0) for clip in clips)
    assert losses[True] < 0.5 * losses[False]


@torch.no_grad()
def test_the_vae_of_twice_the_size_starts_as_the_one_of_half_the_size():
    torch.manual_seed(SEED)
    half = make_vae(HALF_PATCH).eval()
    whole = double_vae(half).eval()
    video = torch.rand(1, 3, 9, 64, 32) * 2 - 1
    latents = half.encode(F.avg_pool3d(video, (1, 2, 2))).latent_dist.mode()
    torch.testing.assert_close(whole.encode(video).latent_dist.mode(), latents, atol=1e-5, rtol=0)
    larger = half.decode(latents).sample.repeat_interleave(2, dim=3).repeat_interleave(2, dim=4)
    torch.testing.assert_close(whole.decode(latents).sample, larger, atol=1e-5, rtol=0)


def test_a_clip_of_flashtalk_is_a_chunk_of_one_speaker(flashtalk_maker: ClipMaker):
    clips = [flashtalk_maker.make(SEED, number) for number in range(4)]
    assert {clip.latents.shape[1] for clip in clips} == {9}
    assert {clip.given.shape[1] for clip in clips} == {1, 2}
    assert all(len(clip.speech) == 1 for clip in clips)


def test_what_a_clip_shows_can_be_drawn_larger(flashtalk_maker: ClipMaker, talker: Networks):
    clip, drawing = flashtalk_maker.make_with_drawing(SEED, 1)
    again = encode_frames(talker.vae, drawing.video()[:, :, drawing.past :])[0]
    torch.testing.assert_close(again.half(), clip.latents)
    large, small = drawing.at_full_size().video(), drawing.video()
    assert large.shape[-1] == 2 * small.shape[-1]
    assert (F.avg_pool3d(large, (1, 2, 2)) - small).abs().mean() < 0.02


def test_a_few_steps_of_distillation_bring_the_answer_from_noise_nearer(tmp_path, flashtalk_maker: ClipMaker):
    clip = flashtalk_maker.make(SEED, 1)
    torch.manual_seed(SEED)
    transformer = make_transformer()
    torch.save({"average": transformer.state_dict()}, tmp_path / "silence.pt")
    before = distance_to_clean(transformer, clip, 1.0)
    distil(tmp_path, [clip], [clip], 40, SEED)
    transformer.load_state_dict(torch.load(tmp_path / "flashtalk.pt")["average"])
    assert distance_to_clean(transformer, clip, 1.0) <= 0.75 * before


def test_every_parameter_of_the_base_model_has_an_original_name():
    ours = {name for name in make_transformer().state_dict() if not is_adapter_name(name)}
    names = original_names(num_layers=4)
    assert set(names) == ours
    assert len(set(names.values())) == len(names)


def train(folder: Path, output: Path, transformer_steps: int) -> str:
    command = [sys.executable, "-m", "tools.talker.train", "--folder", str(folder), "--output", str(output)]
    command += ["--flashtalk-output", str(output.with_name("flashtalk"))]
    command += [*FEW.split(), "--transformer-steps", str(transformer_steps)]
    return subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, text=True, timeout=600).stdout


@pytest.mark.long
def test_a_training_of_a_few_steps_writes_a_checkpoint_that_loads_and_goes_on_where_it_was(tmp_path):
    folder, output = tmp_path / "training", tmp_path / "talker"
    train(folder, output, transformer_steps=1)
    first = networks_of(paths_in(output)).transformer.state_dict()
    train(folder, output, transformer_steps=2)
    second = networks_of(paths_in(output))
    assert any(not torch.equal(tensor, first[name]) for name, tensor in second.transformer.state_dict().items())
    assert torch.load(folder / "transformer.pt")["step"] == 2
    assert torch.load(folder / "silence.pt")["step"] == 1

    def files(root: Path) -> set[str]:
        return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}

    assert files(output) == files(TALKER_FOLDER)
    assert files(output.with_name("flashtalk")) == files(TALKER_FLASHTALK_FOLDER)
