"""Readers of weights: what each takes to bring one file of a checkpoint from the disk into a network.

    python -m benchmarks.readers [--gigabytes 4] [--runs 3] [--folder /tmp] [--readers ours …]

Makes a transformer of that size in bfloat16 as one safetensors file (flashpack gets a file of its own format), and
fills an empty network from it, in a separate process for each measurement and with the readers in turn. The clock
starts when the libraries are imported and the network stands on the meta device; it ends when a checksum has read every
parameter once in its final place: the GPU, if there is one, else memory. Packages that are not installed, and readers
that need a GPU, are rows UNMEASURED. Memory is the largest resident set minus that before. The files are deleted.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.cold_start import LINEAR_PARAMETERS, config, drop_pages, make_checkpoint, peak_bytes
from benchmarks.measure import as_table, machine
from infinitetalk.network.transformer import InfiniteTalkTransformer3DModel
from infinitetalk.weights.files import open_file
from infinitetalk.weights.loading import load_parameters
from infinitetalk.weights.sources import TensorSource

CHECKOUT = Path(__file__).parents[1]
TENSORS, PACKED = "diffusion_pytorch_model.safetensors", "model.flashpack"


@dataclass(frozen=True)
class Reader:
    """A way to fill a network from a file.

    Attributes:
        package: what must be installed; None: this project's own requirements.
        fill: fills a network on the meta device from a file, on a device; what it returns must be kept as long as the
            network, which may share its memory.
        needs_gpu: whether it reads to a GPU only.
        file: name of the file that it reads.
    """

    package: str | None
    fill: Callable[[nn.Module, Path, torch.device], Any]
    needs_gpu: bool = False
    file: str = TENSORS

    def obstacle(self) -> str | None:
        """Why it cannot be measured here; None: it can."""
        if self.package is not None and importlib.util.find_spec(self.package) is None:
            return f"package {self.package} is not installed"
        return "needs a GPU" if self.needs_gpu and not torch.cuda.is_available() else None


def ours(network: nn.Module, path: Path, device: torch.device) -> None:
    """This project's loader."""
    file = open_file(path)
    sources = {name: TensorSource(file, name, header.shape) for name, header in file.headers.items()}
    float32_modules = InfiniteTalkTransformer3DModel._keep_in_fp32_modules
    load_parameters(network, sources, device, torch.bfloat16, float32_modules)


def safetensors_own(network: nn.Module, path: Path, device: torch.device) -> None:
    """safetensors' own function, as diffusers and transformers use it."""
    from safetensors.torch import load_file

    assign(network, load_file(path, device=str(device)))


def fastsafetensors(network: nn.Module, path: Path, device: torch.device) -> Any:
    """One buffer for the file, read by 16 threads; GPUDirect Storage only where it is set up, so it is off."""
    from fastsafetensors import SafeTensorsFileLoader

    loader = SafeTensorsFileLoader(None, str(device), nogds=True)
    loader.add_filenames({0: [str(path)]})
    buffer = loader.copy_files_to_device()
    assign(network, {name: buffer.get_tensor(name) for name in loader.get_keys()})
    return loader, buffer


def flashpack(network: nn.Module, path: Path, device: torch.device) -> None:
    """A format of its own: one block of each dtype, which the parameters are views of."""
    from flashpack import assign_from_file

    assign_from_file(network, str(path), device=device)


def runai_streamer(network: nn.Module, path: Path, device: torch.device) -> None:
    """Threads in C++ that read pieces; each tensor is given out as soon as it is complete."""
    from runai_model_streamer import SafetensorsStreamer

    with SafetensorsStreamer() as streamer:
        streamer.stream_file(str(path))
        assign(network, ((name, tensor.to(device)) for name, tensor in streamer.get_tensors()))


def instanttensor(network: nn.Module, path: Path, device: torch.device) -> None:
    """Direct reads into pinned buffers; to a GPU only."""
    from instanttensor import safe_open

    with safe_open(str(path), framework="pt", device=device) as opened:
        assign(network, opened.tensors())


READERS = {
    "ours": Reader(None, ours),
    "safetensors": Reader(None, safetensors_own),
    "fastsafetensors": Reader("fastsafetensors", fastsafetensors),
    "flashpack": Reader("flashpack", flashpack, file=PACKED),
    "runai-model-streamer": Reader("runai_model_streamer", runai_streamer),
    "instanttensor": Reader("instanttensor", instanttensor, needs_gpu=True),
}


def assign(network: nn.Module, tensors: dict[str, Tensor] | Iterator[tuple[str, Tensor]]) -> None:
    """Makes tensors the network's parameters, without a copy."""
    for name, tensor in tensors.items() if isinstance(tensors, dict) else tensors:
        path, _, leaf = name.rpartition(".")
        setattr(network.get_submodule(path), leaf, nn.Parameter(tensor, requires_grad=False))


def empty_network(folder: Path) -> nn.Module:
    """The checkpoint's network on the meta device."""
    sizes = json.loads((folder / "config.json").read_text())
    sizes.pop("_class_name")
    with torch.device("meta"):
        return InfiniteTalkTransformer3DModel(**sizes).requires_grad_(False)


def fill(reader: str, folder: Path) -> None:
    """Fills a network in this process and prints seconds, processor seconds, peak bytes and a checksum as JSON."""
    torch.set_num_threads(os.cpu_count() or 1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.zeros(1, device=device)
    network = empty_network(folder)
    way = READERS[reader]
    if way.package is not None:
        importlib.import_module(way.package)
    before, processor, begin = peak_bytes(), time.process_time(), time.perf_counter()
    kept = way.fill(network, folder / way.file, device)
    checksum = sum(int(parameter.data.view(-1).view(torch.int64).sum()) for parameter in network.parameters())
    measured = {
        "seconds": time.perf_counter() - begin,
        "processor": time.process_time() - processor,
        "peak": peak_bytes() - before,
        "checksum": checksum,
    }
    del kept
    print(json.dumps(measured))


def measure(reader: str, folder: Path, drop: bool) -> dict[str, float]:
    """One measurement in a separate process; `drop` first removes the file from the page cache."""
    file = folder / READERS[reader].file
    if drop:
        drop_pages(file)
    else:
        # Another reader, or the lack of memory, may have dropped it.
        subprocess.run(["cat", str(file)], check=True, stdout=subprocess.DEVNULL)
    command = [sys.executable, "-m", "benchmarks.readers", "--fill", reader, "--folder", str(folder)]
    finished = subprocess.run(command, check=True, capture_output=True, text=True, cwd=CHECKOUT)
    measured: dict[str, float] = json.loads(finished.stdout.splitlines()[-1])
    return measured


def cat(folder: Path, drop: bool) -> dict[str, float]:
    """Only reads the bytes."""
    if drop:
        drop_pages(folder / TENSORS)
    before, begin = os.times(), time.perf_counter()
    subprocess.run(["cat", str(folder / TENSORS)], check=True, stdout=subprocess.DEVNULL)
    after = os.times()
    processor = after.children_user + after.children_system - before.children_user - before.children_system
    return {"seconds": time.perf_counter() - begin, "processor": processor, "peak": 0}


def pack_for_flashpack(folder: Path) -> None:
    """Writes the checkpoint anew in flashpack's format."""
    from flashpack import pack_to_file
    from safetensors.torch import load_file

    pack_to_file(load_file(folder / TENSORS), str(folder / PACKED), target_dtype=None)


def main() -> None:
    """Measures every reader and prints a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.readers", description="Compare readers of weights.")
    parser.add_argument("--gigabytes", type=float, default=4.0)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="on the disk to measure")
    parser.add_argument("--readers", nargs="+", choices=READERS, default=list(READERS), help="beside cat")
    parser.add_argument("--fill", choices=READERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.fill:
        fill(options.fill, options.folder)
        return
    obstacles = {name: READERS[name].obstacle() for name in options.readers}
    able = [name for name, obstacle in obstacles.items() if obstacle is None]
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        num_layers = max(round(options.gigabytes * 1e9 / (2 * LINEAR_PARAMETERS)), 1)
        make_checkpoint(Path(name), num_layers, parts=("whole",))
        folder = Path(name) / "whole"
        if "flashpack" in able:
            pack_for_flashpack(folder)
        size = (folder / TENSORS).stat().st_size
        results: dict[tuple[str, bool], list[dict[str, float]]] = {}
        for drop in (False, True):
            # In turn, so that other load on the machine affects all readers alike.
            for _ in range(options.runs):
                results.setdefault(("cat", drop), []).append(cat(folder, drop))
                for reader in able:
                    results.setdefault((reader, drop), []).append(measure(reader, folder, drop))
    checksums = {run["checksum"] for runs in results.values() for run in runs if "checksum" in run}
    assert len(checksums) <= 1, "the readers differ in what they read"
    print(f"{machine()}\n{size / 1e9:.2f} GB, {config(num_layers)}; medians of {options.runs} runs\n")
    rows = []
    for reader in ("cat", *options.readers):
        if obstacles.get(reader) is not None:
            rows.append((reader, f"UNMEASURED: {obstacles[reader]}", "", "", "", ""))
            continue

        def median(drop: bool, what: str, reader: str = reader) -> float:
            return statistics.median(run[what] for run in results[reader, drop])

        times = [f"{median(drop, what):.2f}" for drop in (False, True) for what in ("seconds", "processor")]
        rows.append((reader, *times, "" if reader == "cat" else f"{median(True, 'peak') / size:.2f}"))
    headings = ("reader", "page cache warm, s", "processor s", "dropped, s", "processor s", "peak memory, × file")
    print(as_table(rows, headings))


if __name__ == "__main__":
    main()
