"""The two embedded models. Both are complete checkpoints of a few megabytes with the classes, file names and parameter
names of the real model. `tools.talker` has trained the tiny talker, and this package holds its weights. The other model
has random weights from a fixed seed for each family, and generates noise.

    python -m infinitetalk.embedded.tiny FOLDER
"""

import json
import shutil
import string
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from safetensors.torch import save_file
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    T5Tokenizer,
    UMT5Config,
    UMT5EncoderModel,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Model,
)

from infinitetalk.family import FAMILIES, FLASHTALK, INFINITETALK, Family
from infinitetalk.media.speech import SAMPLING_RATE
from infinitetalk.network.transformer import ADAPTER_PATTERNS, InfiniteTalkTransformer3DModel
from infinitetalk.weights.layouts import DESCRIPTION_FILE, CheckpointPaths

NAME = "tiny-random"
SEED = 2508
#: Increased whenever the same seed gives other weights, so that an older checkpoint is not used by mistake.
RECIPE = 1
#: Factor on the published resolutions: 640x640 becomes 64x64.
SIZE_SCALE = 0.1
DEFAULT_FOLDER = Path(__file__).parents[2] / "checkpoints" / f"{NAME}-{RECIPE}"

#: The tiny talker's checkpoint.
TALKER_FOLDER = Path(__file__).parent / "talker"
#: The transformer of the tiny talker by FlashTalk's recipe, in FlashTalk's published layout; the other parts are the
#: talker's.
TALKER_FLASHTALK_FOLDER = Path(__file__).parent / "flashtalk"
FLASHTALK_FILE = "diffusion_pytorch_model.safetensors"
#: Pixels of the tiny talker per latent, in each direction.
TALKER_SCALE_FACTOR = 16

TEXT_DIM = 64
IMAGE_DIM = 32
SPEECH_DIM = 32
#: The words that are single tokens.
WORDS = """a an the and or of in on at to for with by from is are was it he she they we you i this that his her
man woman person people child face voice talks speaks says sings smiles looks camera studio room light soft warm dark
bright background table microphone street night day hair eyes mouth hand wearing shirt jacket glasses close shot video
high quality natural slow motion news show podcast song music interview two speaker turns left right"""

HEADS, HEAD_DIM = 4, 32
DIM = HEADS * HEAD_DIM


def paths_in(folder: Path, family: Family = INFINITETALK) -> CheckpointPaths:
    """Locations of a tiny checkpoint's parts."""
    return CheckpointPaths(
        base=folder,
        adapters={kind: folder / "infinitetalk" / f"{kind}.safetensors" for kind in family.adapters},
        wav2vec2=folder / "wav2vec2",
        family=family,
    )


def talker_paths() -> CheckpointPaths:
    """Locations of the tiny talker's parts."""
    return replace(paths_in(TALKER_FOLDER), family=replace(INFINITETALK, vae_scale_factor_spatial=TALKER_SCALE_FACTOR))


def talker_flashtalk_paths() -> CheckpointPaths:
    """Locations of the parts of the tiny talker by FlashTalk's recipe; one file holds transformer and adapter."""
    transformer = TALKER_FLASHTALK_FOLDER / FLASHTALK_FILE
    return CheckpointPaths(
        base=TALKER_FOLDER,
        adapters={},
        wav2vec2=TALKER_FOLDER / "wav2vec2",
        transformer=transformer,
        family=replace(FLASHTALK, vae_scale_factor_spatial=TALKER_SCALE_FACTOR),
    )


def ensure_tiny_model(folder: Path = DEFAULT_FOLDER, family: Family = INFINITETALK) -> CheckpointPaths:
    """Make the checkpoint in `folder` unless it exists; safe if two processes do so at the same time.

    Those of other families than InfiniteTalk are made beside it.
    """
    if family is not INFINITETALK:
        folder = folder.with_name(f"{family.name}-{folder.name}")
    _make_once(folder, DESCRIPTION_FILE, partial(make_tiny_model, family=family))
    return paths_in(folder, family)


def ensure_tiny_kokoro(model_folder: Path = DEFAULT_FOLDER) -> Path:
    """Make a Kokoro beside the tiny model unless it exists, and return its folder; as safe as `ensure_tiny_model`."""
    # Imported late: speech from text needs libraries that the model itself does not.
    from infinitetalk.media.tts import CONFIG_FILE, make_tiny_kokoro

    folder = model_folder.with_name(f"kokoro-{model_folder.name}")
    _make_once(folder, CONFIG_FILE, make_tiny_kokoro)
    return folder


def make_tiny_model(folder: Path, family: Family = INFINITETALK) -> None:
    """Write a family's checkpoint into `folder`; the bytes are the same every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED + list(FAMILIES).index(family.name))
        _save_transformer(folder, family)
        _vae().save_pretrained(folder / "vae")
        _tokenizer().save_pretrained(folder / "tokenizer")
        _text_encoder().save_pretrained(folder / "text_encoder")
        _image_encoder().save_pretrained(folder / "image_encoder")
        _speech_encoder().save_pretrained(folder / "wav2vec2")
    Wav2Vec2FeatureExtractor(sampling_rate=SAMPLING_RATE).save_pretrained(folder / "wav2vec2")
    name = NAME if family is INFINITETALK else f"{NAME}-{family.name}"
    (folder / DESCRIPTION_FILE).write_text(json.dumps({"name": name, "size_scale": SIZE_SCALE}))


def _make_once(folder: Path, last_file: str, make: Callable[[Path], None]) -> None:
    """Lets `make` fill a temporary folder beside `folder` and renames it when complete; `last_file` marks that."""
    if (folder / last_file).exists():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    make(scratch)
    try:
        scratch.rename(folder)
    except OSError:
        # Another process was first: rename() cannot replace a folder that is not empty.
        shutil.rmtree(scratch)
        if not (folder / last_file).exists():
            raise


def _save_transformer(folder: Path, family: Family) -> None:
    """Saves the base model in the Diffusers layout, and the family's adapters separately."""
    (folder / "infinitetalk").mkdir(parents=True)
    sizes = {
        "num_attention_heads": HEADS,
        "attention_head_dim": HEAD_DIM,
        "in_channels": 36,
        "text_dim": TEXT_DIM,
        "freq_dim": 64,
        "ffn_dim": 2 * DIM,
        "num_layers": 2,
        "image_dim": IMAGE_DIM,
        "added_kv_proj_dim": DIM,
    }
    for kind in family.adapters:
        transformer = InfiniteTalkTransformer3DModel(
            **sizes,
            audio_channels=SPEECH_DIM,
            audio_intermediate_dim=64,
            audio_output_dim=64,
            audio_context_tokens=8,
        )
        tensors = transformer.state_dict()
        adapter = {name: tensors.pop(name) for name in list(tensors) if any(p in name for p in ADAPTER_PATTERNS)}
        save_file(adapter, folder / "infinitetalk" / f"{kind}.safetensors")
    base = WanTransformer3DModel(**sizes)
    base.load_state_dict(tensors)
    base.save_pretrained(folder / "transformer")


def _vae() -> AutoencoderKLWan:
    return AutoencoderKLWan(base_dim=8, num_res_blocks=1)


def _tokenizer() -> T5Tokenizer:
    """A unigram model of letters and some words, with scores that prefer a known word to its letters."""
    words = sorted({f"▁{word}" for word in WORDS.split()})
    characters = ["▁", *string.ascii_letters, *string.digits, *string.punctuation]
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces += [(word, -4.0) for word in words] + [(character, -6.0) for character in characters]
    return T5Tokenizer(vocab=pieces, extra_ids=0)


def _text_encoder() -> UMT5EncoderModel:
    config = UMT5Config(
        vocab_size=512, d_model=TEXT_DIM, d_kv=16, d_ff=128, num_layers=2, num_heads=4, dropout_rate=0.0
    )
    return UMT5EncoderModel(config)


def _image_encoder() -> CLIPVisionModel:
    config = CLIPVisionConfig(
        hidden_size=IMAGE_DIM, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2, patch_size=14
    )
    return CLIPVisionModel(config)


def _speech_encoder() -> Wav2Vec2Model:
    """wav2vec2 with twelve layers and the real model's kernels and strides, so that its timing is the same."""
    config = Wav2Vec2Config(
        hidden_size=SPEECH_DIM,
        intermediate_size=64,
        num_attention_heads=2,
        conv_dim=(SPEECH_DIM,) * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
    )
    return Wav2Vec2Model(config)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m infinitetalk.embedded.tiny FOLDER")
    ensure_tiny_model(Path(sys.argv[1]))
