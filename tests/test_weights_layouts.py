"""Every published layout: loaded small, with its true names, and held against the plainest way to load the same."""

import errno
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPVisionModel, UMT5EncoderModel, Wav2Vec2FeatureExtractor

from infinitetalk.embedded.tiny import _image_encoder, _speech_encoder, _text_encoder, ensure_tiny_model, talker_paths
from infinitetalk.encoders.vae import decode_latents, encode_frames
from infinitetalk.network.transformer import InfiniteTalkTransformer3DModel
from infinitetalk.runtime import models as loaders
from infinitetalk.runtime.choice import NetworkChoice
from infinitetalk.runtime.memory import MemoryMode
from infinitetalk.runtime.models import Models
from infinitetalk.weights.layouts import CheckpointPaths, text_encoder_part
from infinitetalk.weights.networks import (
    empty_text_encoder,
    load_audio_encoder,
    load_image_encoder,
    load_text_encoder,
    load_transformer_parameters,
    load_vae,
)
from tests import checkpoint_factory as factory

CPU = torch.device("cpu")
SINGLE, MULTI = NetworkChoice(torch.float32), NetworkChoice(torch.float32, adapter="multi")
BASE_SIZES = (
    "num_attention_heads",
    "attention_head_dim",
    "in_channels",
    "text_dim",
    "freq_dim",
    "ffn_dim",
    "num_layers",
    "image_dim",
    "added_kv_proj_dim",
)
GOLDEN = Path(__file__).parents[2] / "shared" / "golden"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> CheckpointPaths:
    folder = tmp_path_factory.mktemp("original")
    return paths_of(factory.save_original_base(folder / "Wan2.1-I2V-14B-480P"), factory.save_adapters(folder / "it"))


def paths_of(base: Path, adapters: Path, **others: Path) -> CheckpointPaths:
    return CheckpointPaths(
        base=base,
        adapters=factory.adapter_files(adapters),
        wav2vec2=base / "wav2vec2",
        **others,
    )


def with_transformer(paths: CheckpointPaths, file: Path) -> CheckpointPaths:
    return CheckpointPaths(paths.base, paths.adapters, paths.wav2vec2, transformer=file)


def adapters_of(paths: CheckpointPaths) -> Path:
    return paths.adapters["single"].parents[1]


def load_float32(paths: CheckpointPaths, quantisation: str | None = None) -> InfiniteTalkTransformer3DModel:
    return factory.load_transformer(paths, quantisation=quantisation)


def assert_same(loaded: InfiniteTalkTransformer3DModel, plain: InfiniteTalkTransformer3DModel) -> None:
    """Equal parameters, and outputs that differ only by what the alignment of memory does to sums."""
    for name, parameter in plain.named_parameters():
        assert torch.equal(loaded.get_parameter(name), parameter), name
    torch.testing.assert_close(factory.evaluate(loaded), factory.evaluate(plain), atol=1e-5, rtol=1e-5)


# Transformer.


def test_the_original_layout_gives_what_the_plainest_loading_gives(original: CheckpointPaths) -> None:
    assert_same(load_float32(original), factory.plain_transformer())


def test_the_diffusers_layout_gives_what_the_plainest_loading_gives(original: CheckpointPaths, tmp_path: Path) -> None:
    sizes = factory.plain_transformer().config
    base = WanTransformer3DModel(**{name: sizes[name] for name in BASE_SIZES})
    base.load_state_dict(factory.diffusers_names(factory.base_tensors()))
    base.save_pretrained(tmp_path / "base" / "transformer", max_shard_size="2MB")
    assert len(list((tmp_path / "base" / "transformer").glob("*.safetensors"))) > 1
    loaded = load_float32(paths_of(tmp_path / "base", adapters_of(original)))
    assert_same(loaded, factory.plain_transformer())


def test_norms_modulation_and_time_embedding_run_in_float32_and_the_rest_in_bfloat16(
    original: CheckpointPaths,
) -> None:
    transformer = factory.load_transformer(original, dtype=torch.bfloat16)
    plain = factory.plain_transformer()
    wide = ("norm2", "norm_x", "scale_shift_table", "time_embedder", "time_proj", "norm1")
    for name, parameter in transformer.named_parameters():
        expected = torch.float32 if set(wide) & set(name.split(".")) else torch.bfloat16
        assert parameter.dtype == expected, name
        assert torch.equal(parameter, plain.get_parameter(name).to(expected)), name
    assert factory.evaluate(transformer, torch.bfloat16).isfinite().all()


def test_the_published_reference_is_met_from_original_files(original: CheckpointPaths) -> None:
    if not GOLDEN.exists():
        pytest.skip("the reference vectors are not at ../shared/golden")
    case = load_file(GOLDEN / "case06_dit_single.safetensors")

    def given(name: str, *shape: int) -> Tensor:
        random = factory.np.random.RandomState(factory.zlib.crc32(f"input/case06/{name}".encode()) & 0x7FFFFFFF)
        return torch.from_numpy(random.standard_normal(shape).astype("float32"))[None]

    transformer = load_float32(original)
    with torch.no_grad():
        output = transformer(
            hidden_states=torch.cat([given("x", 16, 5, 12, 8), given("y", 20, 5, 12, 8)], dim=1),
            timestep=torch.tensor([937.5]),
            encoder_hidden_states=F.pad(given("context", 10, 64), (0, 0, 0, 6)),
            encoder_hidden_states_image=given("clip", 1, 257, 1280)[0],
            encoder_hidden_states_audio=given("audio1", 17, 5, 12, 768),
        ).sample[0]
    torch.testing.assert_close(output, case["out_0"], atol=2e-4, rtol=1e-3)


def test_the_adapter_follows_the_number_of_speakers_over_one_base_model(original: CheckpointPaths) -> None:
    models = Models(original, CPU)
    base_weight = models.transformer(SINGLE).get_parameter("blocks.0.attn1.to_q.weight")
    tensors = {**factory.base_tensors(), **factory.adapter_tensors("multi")}
    assert_same(models.transformer(MULTI), factory.plain_transformer(tensors))
    assert models.transformer(MULTI).get_parameter("blocks.0.attn1.to_q.weight") is base_weight
    assert_same(models.transformer(SINGLE), factory.plain_transformer())


def test_an_adapter_whose_loading_is_broken_off_serves_no_job(
    original: CheckpointPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = Models(original, CPU)
    assert_same(models.transformer(SINGLE), factory.plain_transformer())

    def load_half(transformer: nn.Module, sources: dict[str, Any], *arguments: Any) -> None:
        half = dict(list(sources.items())[: len(sources) // 2])
        load_transformer_parameters(transformer, half, *arguments)
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr("infinitetalk.runtime.models.load_transformer_parameters", load_half)
        with pytest.raises(OSError):
            models.transformer(MULTI)
    assert_same(models.transformer(SINGLE), factory.plain_transformer())


def test_a_job_for_two_loads_its_adapter_alone(original: CheckpointPaths, tmp_path: Path) -> None:
    paths = replace(original, adapters=original.adapters | {"single": tmp_path / "missing"})
    assert factory.evaluate(Models(paths, CPU).transformer(MULTI)).isfinite().all()


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_a_single_fp8_file_stays_fp8_or_becomes_wide(original: CheckpointPaths, tmp_path: Path, prefix: str) -> None:
    numbers = factory.save_fp8(tmp_path / "wan_fp8_e4m3fn.safetensors", factory.base_tensors(), prefix)
    check_quantised(original, tmp_path / "wan_fp8_e4m3fn.safetensors", numbers, "fp8")


def test_a_scaled_fp8_file_stays_fp8_or_becomes_wide(original: CheckpointPaths, tmp_path: Path) -> None:
    numbers = factory.save_scaled_fp8(tmp_path / "wan_fp8_scaled.safetensors", factory.base_tensors())
    check_quantised(original, tmp_path / "wan_fp8_scaled.safetensors", numbers, "fp8")


@pytest.mark.parametrize("four_bits", [False, True], ids=["Q8_0", "Q4_K_M"])
def test_a_gguf_file_stays_quantised_or_becomes_wide(
    original: CheckpointPaths, tmp_path: Path, four_bits: bool
) -> None:
    numbers = factory.save_gguf(tmp_path / "wan.gguf", factory.base_tensors(), four_bits)
    # diffusers widens GGUF's blocks to float16 in each layer.
    check_quantised(original, tmp_path / "wan.gguf", numbers, "int8", tolerance=5e-3)


def check_quantised(
    original: CheckpointPaths, file: Path, numbers: dict[str, Tensor], quantisation: str, tolerance: float = 1e-4
) -> None:
    """Holds both ways to load a quantised file against a network filled with the numbers that it stands for."""
    paths = with_transformer(original, file)
    # The adapter is quantised while it is read where its file is not: left wide here.
    plain = factory.plain_transformer({**numbers, **factory.adapter_tensors()})
    expected = factory.evaluate(plain)
    torch.testing.assert_close(factory.evaluate(load_float32(paths)), expected, atol=1e-5, rtol=1e-5)

    kept = load_float32(paths, quantisation)
    assert kept.blocks[0].ffn.net[2].weight.__class__.__name__ in ("Float8Tensor", "GGUFParameter")
    for name, parameter in kept.named_parameters():
        if "audio_cross_attn" in name and name.endswith("weight"):
            plain.get_parameter(name).data = parameter.dequantize()
    torch.testing.assert_close(factory.evaluate(kept), factory.evaluate(plain), atol=tolerance, rtol=tolerance)


def test_quantised_and_wide_adapters_load_from_single_files(original: CheckpointPaths, tmp_path: Path) -> None:
    fp8, gguf = tmp_path / "adapter_fp8.safetensors", tmp_path / "adapter.gguf"
    for file, numbers in (
        (fp8, factory.save_fp8(fp8, factory.adapter_tensors())),
        (gguf, factory.save_gguf(gguf, factory.adapter_tensors(), four_bits=False)),
    ):
        paths = replace(original, adapters={"single": file})
        expected = factory.evaluate(factory.plain_transformer({**factory.base_tensors(), **numbers}))
        torch.testing.assert_close(factory.evaluate(load_float32(paths)), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_the_published_quantised_transformer_runs_as_quanto_made_it(
    original: CheckpointPaths, tmp_path: Path, kind: str
) -> None:
    quantised = tmp_path / "quant_models"
    plain = {}
    for adapter in ("single", "multi"):
        numbers = factory.save_quanto(
            quantised / f"infinitetalk_{adapter}_{kind}.safetensors",
            quantised / f"infinitetalk_{adapter}_{kind}.json",
            {**factory.base_tensors(), **factory.adapter_tensors(adapter)},
            kind,
        )
        plain[adapter] = factory.evaluate(factory.plain_transformer(numbers))
    paths = paths_of(original.base, tmp_path / "no adapters are needed", quantised=quantised)
    models = Models(paths, CPU)
    assert not torch.allclose(plain["multi"], plain["single"], atol=1e-2)
    for adapter, expected in plain.items():
        transformer = models.transformer(NetworkChoice(torch.float32, MemoryMode(kind), adapter))
        torch.testing.assert_close(factory.evaluate(transformer), expected, atol=1e-4, rtol=1e-4)
    wide = factory.evaluate(factory.plain_transformer())
    assert (plain["single"] - wide).norm() < 0.1 * wide.norm()


@pytest.mark.parametrize(("quantisation", "error"), [("fp8", 1 / 16), ("int8", 1 / 254)])
def test_wide_weights_are_quantised_while_they_are_read(
    original: CheckpointPaths, quantisation: str, error: float
) -> None:
    transformer = load_float32(original, quantisation)
    plain = factory.plain_transformer()
    for name in ("blocks.1.attn2.to_k.weight", "blocks.0.audio_cross_attn.kv_linear.weight"):
        wide, narrow = plain.get_parameter(name), transformer.get_parameter(name)
        assert narrow.qdata.element_size() == 1
        largest = wide.abs().amax(dim=1, keepdim=True)
        allowed = wide.abs() * error + largest * 2**-15 if quantisation == "fp8" else largest * error * 1.001
        assert ((narrow.dequantize() - wide).abs() <= allowed).all()
    assert transformer.get_parameter("proj_out.weight").dtype == torch.float32
    expected = factory.evaluate(plain)
    assert (factory.evaluate(transformer) - expected).norm() < 0.05 * expected.norm()


# Text encoder.


def original_text_encoder(tensors: dict[str, Tensor], ids: Tensor) -> Tensor:
    """The published encoder's arithmetic: ids (n,) without padding to (n, dim)."""
    hidden_states = tensors["token_embedding.weight"][ids]
    heads = factory.TEXT_HEADS
    distance = torch.arange(len(ids))[None] - torch.arange(len(ids))[:, None]
    magnitude = distance.abs()
    far = 8 + (torch.log(magnitude.clamp(min=1) / 8) / torch.log(torch.tensor(128 / 8)) * 8).long()
    buckets = (distance > 0) * 16 + torch.where(magnitude < 8, magnitude, far.clamp(max=15))

    def norm(states: Tensor, weight: Tensor) -> Tensor:
        return states * torch.rsqrt(states.square().mean(-1, keepdim=True) + 1e-6) * weight

    for layer in range(factory.TEXT_LAYERS):
        block = {name: tensors[f"blocks.{layer}.{name}"] for name in names_below(tensors, f"blocks.{layer}.")}
        normed = norm(hidden_states, block["norm1.weight"])
        query, key, value = (
            (normed @ block[f"attn.{name}.weight"].T).unflatten(1, (heads, -1)).transpose(0, 1) for name in "qkv"
        )
        bias = block["pos_embedding.embedding.weight"][buckets].permute(2, 0, 1)
        attended = (query @ key.transpose(1, 2) + bias).softmax(-1) @ value
        hidden_states = hidden_states + attended.transpose(0, 1).flatten(1) @ block["attn.o.weight"].T
        normed = norm(hidden_states, block["norm2.weight"])
        gate = F.gelu(normed @ block["ffn.gate.0.weight"].T, approximate="tanh")
        hidden_states = hidden_states + (gate * (normed @ block["ffn.fc1.weight"].T)) @ block["ffn.fc2.weight"].T
    return norm(hidden_states, tensors["norm.weight"])


def names_below(tensors: dict[str, Tensor], prefix: str) -> list[str]:
    return [name.removeprefix(prefix) for name in tensors if name.startswith(prefix)]


IDS = torch.tensor([5, 17, 200, 3, 3, 44, 301, 9, 12, 77, 1])


def test_the_original_text_encoder_computes_what_was_published(original: CheckpointPaths) -> None:
    tensors = {name: tensor.bfloat16().float() for name, tensor in factory.text_encoder_tensors().items()}
    text_encoder = load_text_encoder(original, CPU, torch.float32)
    with torch.no_grad():
        loaded = text_encoder(IDS[None]).last_hidden_state[0]
    torch.testing.assert_close(loaded, original_text_encoder(tensors, IDS), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_the_published_quantised_text_encoder_runs_as_quanto_made_it(
    original: CheckpointPaths, tmp_path: Path, kind: str
) -> None:
    numbers = factory.save_quanto(
        tmp_path / f"t5_{kind}.safetensors", tmp_path / f"t5_map_{kind}.json", factory.text_encoder_tensors(), kind
    )
    paths = paths_of(original.base, tmp_path, quantised=tmp_path)
    text_encoder = load_text_encoder(paths, CPU, torch.float32, kind)
    with torch.no_grad():
        loaded = text_encoder(IDS[None]).last_hidden_state[0]
    torch.testing.assert_close(loaded, original_text_encoder(numbers, IDS), atol=1e-3, rtol=1e-3)
    assert text_encoder.encoder.block[0].layer[1].DenseReluDense.wo.weight.qdata.element_size() == 1


def test_the_diffusers_encoders_load_as_transformers_loads_them(tmp_path: Path) -> None:
    torch.manual_seed(5)
    _text_encoder().save_pretrained(tmp_path / "text_encoder")
    _image_encoder().save_pretrained(tmp_path / "image_encoder")
    (tmp_path / "transformer").mkdir()
    plain_text = UMT5EncoderModel.from_pretrained(tmp_path / "text_encoder")
    plain_image = CLIPVisionModel.from_pretrained(tmp_path / "image_encoder")
    text = load_text_encoder(paths_of(tmp_path, tmp_path), CPU, torch.float32)
    image = load_image_encoder(tmp_path, CPU)
    pixels = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(text(IDS[None]).last_hidden_state, plain_text(IDS[None]).last_hidden_state)
        loaded, plain = (model(pixels, output_hidden_states=True).hidden_states[-2] for model in (image, plain_image))
    torch.testing.assert_close(loaded, plain)


# Image encoder.


def original_image_encoder(tensors: dict[str, Tensor], pixels: Tensor) -> Tensor:
    """The published vision tower up to its last layer but one: (1, 3, side, side) to (tokens, dim)."""
    dim = factory.CLIP_DIM

    def norm(states: Tensor, name: str) -> Tensor:
        return F.layer_norm(states, (dim,), tensors[f"{name}.weight"], tensors[f"{name}.bias"], 1e-5)

    patches = F.conv2d(pixels, tensors["visual.patch_embedding.weight"], stride=factory.CLIP_PATCH)[0]
    hidden_states = torch.cat([tensors["visual.cls_embedding"][0], patches.flatten(1).T])
    hidden_states = norm(hidden_states + tensors["visual.pos_embedding"][0], "visual.pre_norm")
    for layer in range(factory.CLIP_LAYERS - 1):
        name = f"visual.transformer.{layer}"
        weights = {part: tensors[f"{name}.{part}"] for part in names_below(tensors, f"{name}.")}
        packed = F.linear(
            norm(hidden_states, f"{name}.norm1"), weights["attn.to_qkv.weight"], weights["attn.to_qkv.bias"]
        )
        query, key, value = packed.view(len(packed), 3, factory.CLIP_HEADS, -1).permute(1, 2, 0, 3)
        attended = F.scaled_dot_product_attention(query, key, value).transpose(0, 1).flatten(1)
        hidden_states = hidden_states + F.linear(attended, weights["attn.proj.weight"], weights["attn.proj.bias"])
        inner = F.gelu(F.linear(norm(hidden_states, f"{name}.norm2"), weights["mlp.0.weight"], weights["mlp.0.bias"]))
        hidden_states = hidden_states + F.linear(inner, weights["mlp.2.weight"], weights["mlp.2.bias"])
    return hidden_states


def test_the_original_image_encoder_computes_what_was_published(original: CheckpointPaths) -> None:
    tensors = {name: tensor.half().float() for name, tensor in factory.clip_tensors().items()}
    image_encoder = load_image_encoder(original.base, CPU)
    pixels = torch.randn(1, 3, factory.CLIP_SIDE, factory.CLIP_SIDE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        loaded = image_encoder(pixels, output_hidden_states=True).hidden_states[-2][0]
    torch.testing.assert_close(loaded, original_image_encoder(tensors, pixels), atol=1e-4, rtol=1e-4)


# VAE.


def test_the_original_vae_meets_the_published_reference(original: CheckpointPaths) -> None:
    if not GOLDEN.exists():
        pytest.skip("the reference vectors are not at ../shared/golden")
    case = load_file(GOLDEN / "case14_vae.safetensors")
    vae = load_vae(original.base, CPU)
    random = factory.np.random.RandomState(factory.zlib.crc32(b"input/case14/clip") & 0x7FFFFFFF)
    clip = torch.from_numpy(random.standard_normal((1, 3, 9, 48, 32)).astype("float32") * 0.5).clamp(-1, 1)
    latents = encode_frames(vae, clip)
    torch.testing.assert_close(latents[0], case["latent_clip9"], atol=2e-4, rtol=1e-3)
    random = factory.np.random.RandomState(factory.zlib.crc32(b"input/case14/z") & 0x7FFFFFFF)
    video = decode_latents(vae, torch.from_numpy(random.standard_normal((1, 16, 3, 6, 4)).astype("float32")))
    torch.testing.assert_close(video[0], case["video_z"], atol=2e-4, rtol=1e-3)


def test_the_diffusers_vae_loads_as_diffusers_loads_it(original: CheckpointPaths, tmp_path: Path) -> None:
    vae = load_vae(original.base, CPU)
    vae.save_pretrained(tmp_path / "vae")
    (tmp_path / "transformer").mkdir()
    frames = torch.rand(1, 3, 5, 32, 32) * 2 - 1
    plain = AutoencoderKLWan.from_pretrained(tmp_path / "vae")
    torch.testing.assert_close(encode_frames(load_vae(tmp_path, CPU), frames), encode_frames(plain, frames))


# Speech.


@pytest.mark.parametrize("pickled", [True, False], ids=["pytorch_model.bin", "model.safetensors"])
def test_the_speech_encoder_loads_from_either_file(tmp_path: Path, pickled: bool) -> None:
    torch.manual_seed(7)
    model = _speech_encoder().eval()
    if pickled:
        factory.save_pickled_wav2vec2(tmp_path, model)
    else:
        model.save_pretrained(tmp_path)
    Wav2Vec2FeatureExtractor(sampling_rate=16000).save_pretrained(tmp_path)
    loaded, _ = load_audio_encoder(tmp_path, CPU)
    waveform = torch.randn(1, 4000)
    with torch.no_grad():
        torch.testing.assert_close(
            loaded(waveform).last_hidden_state, model(waveform).last_hidden_state, atol=1e-5, rtol=1e-5
        )


# All of them.


def test_the_text_encoder_is_whole_although_another_thread_reads_the_speech_encoder() -> None:
    """As when a job's speech is embedded while the worker still loads."""
    paths = talker_paths()
    part = text_encoder_part(paths, None)
    is_over = threading.Event()

    def read_speech_encoders() -> None:
        while not is_over.is_set():
            load_audio_encoder(paths.wav2vec2, CPU)

    reader = threading.Thread(target=read_speech_encoders)
    reader.start()
    try:
        for _ in range(20):
            empty_text_encoder(paths, part)
    finally:
        is_over.set()
        reader.join()


def test_networks_load_when_first_needed_and_the_tiny_checkpoint_loads_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []
    names = ("audio_encoder", "text_encoder", "image_encoder", "vae", "transformer_parameters")
    for name in names:
        load = getattr(loaders, f"load_{name}")

        def load_and_note(*arguments: Any, name: str = name, load: Callable[..., Any] = load) -> Any:
            loaded.append(name)
            return load(*arguments)

        monkeypatch.setattr(loaders, f"load_{name}", load_and_note)
    models = Models(ensure_tiny_model(tmp_path / "tiny"), CPU)
    assert models.tokenizer is models.tokenizer
    assert len(models.transformer_shapes) > 100
    assert loaded == []
    assert models.image_encoder is models.image_encoder
    assert loaded == ["image_encoder"]
    networks = models.prepare(SINGLE)
    assert sorted(loaded) == sorted(names)
    again = models.prepare(MULTI)
    assert sorted(loaded) == sorted((*names, "transformer_parameters")), "the adapter alone is read"
    assert again.transformer is networks.transformer


def test_a_whole_original_checkpoint_makes_prompts_and_pictures(original: CheckpointPaths) -> None:
    models = Models(original, CPU)
    assert models.prompt_encoder(SINGLE)("A woman speaks.").shape == (1, 512, factory.TEXT_DIM)
    assert models.image_encoder(torch.zeros(1, 3, 64, 64)).shape == (1, 5, factory.CLIP_DIM)
    assert models.vae(SINGLE).config.base_dim == 8


def test_a_whole_file_with_base_and_adapter_needs_no_adapter_file(original: CheckpointPaths, tmp_path: Path) -> None:
    save_file({**factory.base_tensors(), **factory.adapter_tensors()}, tmp_path / "merged.safetensors")
    paths = CheckpointPaths(original.base, {}, tmp_path, transformer=tmp_path / "merged.safetensors")
    assert_same(load_float32(paths), factory.plain_transformer())
