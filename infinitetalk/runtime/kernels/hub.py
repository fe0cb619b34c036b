"""Attention by kernels that were fetched from the Hugging Face Hub: a build is a Python package in a folder.

Hugging Face's `kernels` package would fetch and load them; only the loading is needed here, which Python does itself.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from importlib.util import module_from_spec, spec_from_file_location
from types import ModuleType

import torch
from diffusers.models.attention_dispatch import _HUB_KERNELS_REGISTRY, AttentionBackendName
from diffusers.models.transformers.transformer_wan import WanAttention
from torch import Tensor, nn

from infinitetalk.weights.hub_kernels import Fetched

#: For each kernel: its name in diffusers, which knows how to call it over several GPUs, and what its function must be
#: told beside query, key and value of (batch, tokens, heads, width).
CALLS: dict[str, tuple[AttentionBackendName, dict[str, str]]] = {
    "sage_hub": (AttentionBackendName.SAGE_HUB, {"tensor_layout": "NHD"}),
    "flash_3_hub": (AttentionBackendName._FLASH_3_HUB, {}),
}

_FUNCTIONS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {}


@torch.library.custom_op("infinitetalk::hub_attention", mutates_args=())
def hub_attention(query: Tensor, key: Tensor, value: Tensor, name: str) -> Tensor:
    """Attention by a kernel in force, as one operation that torch's compiler calls and does not look into.

    Args:
        query, key, value: (batch, tokens, heads, width).
        name: of the kernel, with its commit.

    Returns:
        (batch, tokens of the query, heads, width).
    """
    return _FUNCTIONS[name](query, key, value).contiguous()


@hub_attention.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, name: str) -> Tensor:
    return query.new_empty(query.shape)


def use_hub_attention(fetched: Fetched, transformer: nn.Module) -> None:
    """Makes the transformer's self-attention and its attention to text and image use a fetched kernel.

    Raises:
        ImportError, OSError, AttributeError: it cannot be loaded here.
    """
    backend, options = CALLS[fetched.kernel.name]
    known = _HUB_KERNELS_REGISTRY[backend]
    _FUNCTIONS[fetched.name] = partial(getattr(load(fetched), known.function_attr), **options)
    known.kernel_fn = partial(_attend, fetched.name)
    for module in transformer.modules():
        if isinstance(module, WanAttention):
            # diffusers' own method would ask for the `kernels` package.
            module.processor._attention_backend = backend


def _attend(name: str, q: Tensor, k: Tensor, v: Tensor, **_: object) -> Tensor:
    """What diffusers calls. Its other arguments are what kernels take for granted: no mask, the usual scale."""
    return torch.ops.infinitetalk.hub_attention(q, k, v, name)


def load(fetched: Fetched) -> ModuleType:
    """The kernel's package, under a name that no other has.

    Raises:
        ImportError, OSError: it cannot be loaded here.
    """
    module_name = f"infinitetalk_{fetched.kernel.name}_{fetched.commit}"
    if module_name in sys.modules:
        return sys.modules[module_name]
    # Older builds have the package in a folder of its own.
    inits = [fetched.folder / "__init__.py", *sorted(fetched.folder.glob("*/__init__.py"))]
    init = next((file for file in inits if file.is_file()), None)
    spec = None if init is None else spec_from_file_location(module_name, init)
    if spec is None or spec.loader is None:
        raise ImportError(f"{fetched.name} holds no Python package")
    # In a pack, bytecode beside it would be code that the manifest does not list: the next start would refuse it.
    sys.dont_write_bytecode = True
    module = module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[module_name]
        raise
    return module
