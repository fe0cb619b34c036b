"""A CUDA device for fake tensors, on a build of torch that has none."""

from __future__ import annotations

import ctypes
import functools
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch

DEVICE = torch.device("cuda", 0)

#: In-place operations on fake CUDA tensors ask for CUDA's device guard, which a build for the CPU lacks. This one does
#: nothing.
_GUARD = """
#include <c10/core/impl/DeviceGuardImplInterface.h>
static c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::CUDA> guard;
extern "C" void install() {
  c10::impl::device_guard_impl_registry[static_cast<size_t>(c10::DeviceType::CUDA)].store(&guard);
}
"""


def compiler() -> str | None:
    """A C++ compiler of this machine."""
    return next((path for name in ("g++", "c++", "clang++") if (path := shutil.which(name))), None)


def missing() -> str | None:
    """Why nothing can be rehearsed here; None where it can."""
    if torch.backends.cuda.is_built() or compiler() is not None:
        return None
    return "there is no C++ compiler (Debian and Ubuntu: apt-get install g++)"


@functools.cache
def install_device_guard() -> None:
    """Gives a build for the CPU a device guard for CUDA, which stays until the process ends; about 6 s.

    Raises:
        RuntimeError: there is no C++ compiler.
    """
    if torch.backends.cuda.is_built():
        return
    found = compiler()
    if found is None:
        raise RuntimeError(missing())
    torch_folder = Path(torch.__file__).parent
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder) / "guard.cpp", Path(folder) / "guard.so"
        source.write_text(_GUARD, encoding="utf-8")
        include, libraries = f"-I{torch_folder}/include", f"-L{torch_folder}/lib"
        options = ("-shared", "-fPIC", "-std=c++20", "-O1", include)
        subprocess.run([found, *options, str(source), "-o", str(library), libraries, "-lc10"], check=True)
        ctypes.CDLL(str(library)).install()
