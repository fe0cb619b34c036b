"""The public reference implementation, from a checkout of MeiGen-AI/InfiniteTalk that REFERENCE_DIR names.

Its modules are imported unchanged. Stubs replace GPU libraries that they import but do not use here, and their
attention uses the same torch kernel as ours.
"""

import importlib
import os
import sys
import types
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from infinitetalk.network.transformer import InfiniteTalkTransformer3DModel
from infinitetalk.weights.names import transformer_module_name

VARIABLE = "REFERENCE_DIR"
UNSET = f"{VARIABLE} is not set"


def reference_folder() -> Path | None:
    """The checkout, or None if the variable is not set.

    Raises:
        ValueError: the folder does not hold the reference implementation.
    """
    if not os.environ.get(VARIABLE):
        return None
    folder = Path(os.environ[VARIABLE])
    if not (folder / "wan" / "modules" / "multitalk_model.py").is_file():
        raise ValueError(f"{VARIABLE} is {folder}, which holds no wan/modules/multitalk_model.py; clone it there")
    return folder


def import_reference(name: str) -> Any:
    """A module of the reference, such as "wan.modules.multitalk_model"."""
    folder = reference_folder()
    if folder is None:
        raise ValueError(UNSET)
    if "wan" not in sys.modules:
        _stand_in("xfuser.core.distributed", get_sequence_parallel_rank=None, get_sequence_parallel_world_size=None)
        sys.modules["xfuser.core.distributed"].get_sp_group = None  # type: ignore[attr-defined]
        _stand_in("xformers.ops", memory_efficient_attention=_attention)
        _stand_in("torchvision")
        # Packages without their __init__, which would import every model.
        for package in ("wan", "wan.modules", "wan.utils"):
            _stand_in(package).__path__ = [str(folder / package.replace(".", "/"))]
    return importlib.import_module(name)


def build_reference(transformer: InfiniteTalkTransformer3DModel) -> torch.nn.Module:
    """The reference's network with the sizes and the weights of ours, in float32."""
    module = import_reference("wan.modules.multitalk_model")
    module.flash_attention = lambda q, k, v, **_: _attention(q, k, v)
    import_reference("wan.utils.multitalk_utils").torch_gc = lambda: None
    config = transformer.config
    dim = config.num_attention_heads * config.attention_head_dim
    network = module.WanModel(
        model_type="i2v",
        patch_size=config.patch_size,
        text_len=512,
        in_dim=config.in_channels,
        dim=dim,
        ffn_dim=config.ffn_dim,
        freq_dim=config.freq_dim,
        text_dim=config.text_dim,
        out_dim=config.out_channels,
        num_heads=config.num_attention_heads,
        num_layers=config.num_layers,
        intermediate_dim=config.audio_intermediate_dim,
        output_dim=config.audio_output_dim,
        context_tokens=config.audio_context_tokens,
        weight_init=False,
    )
    weights = transformer.state_dict()
    network.load_state_dict({name: weights[_our_name(name)] for name in network.state_dict()})
    network.disable_teacache()
    return network.eval()


def reference_inputs(given: dict[str, Tensor], regions: Tensor | None) -> dict[str, Any]:
    """The inputs of our `forward`, converted to the reference's, which needs region masks for one speaker too."""
    latents = given["hidden_states"][0]
    tokens = latents.shape[1] * latents.shape[2] * latents.shape[3] // 4
    return {
        "x": [latents[:16]],
        "y": [latents[16:]],
        "t": given["timestep"],
        "context": [given["encoder_hidden_states"][0]],
        "seq_len": tokens,
        "clip_fea": given["encoder_hidden_states_image"],
        "audio": given["encoder_hidden_states_audio"],
        "ref_target_masks": torch.ones(3, *latents.shape[2:]) if regions is None else regions.float(),
    }


def _our_name(name: str) -> str:
    module, _, parameter = name.rpartition(".")
    if name.endswith("modulation"):
        return transformer_module_name(name)
    return f"{transformer_module_name(module)}.{parameter}"


def _attention(query: Tensor, key: Tensor, value: Tensor, **_: object) -> Tensor:
    query, key, value = (part.transpose(1, 2) for part in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value).transpose(1, 2)


def _stand_in(name: str, **attributes: object) -> types.ModuleType:
    """Creates a stub module of this name with the given attributes, and stubs of every package above it."""
    parent, _, child = name.rpartition(".")
    module = types.ModuleType(name)
    module.__dict__.update(attributes)
    sys.modules[name] = module
    if parent:
        setattr(sys.modules.get(parent) or _stand_in(parent), child, module)
    return module
