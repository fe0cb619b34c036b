"""Time and memory of loading a checkpoint: our loader against `cat` and two other ways.

    python benchmarks/cold_start.py [--gigabytes 4] [--runs 5] [--folder /tmp] [--ways ours …]

Makes a transformer of that size in bfloat16, in the converted layout and as one original shard set, and loads it in a
separate process for each measurement. Loading ends when a checksum has read every parameter once in its final place.
`cat` only reads the same bytes. Peak memory is the process's largest resident set, minus that before loading. The files
are deleted.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection
from pathlib import Path

SELF = Path(__file__).resolve()
DIM, HEADS, FFN_DIM = 2048, 16, 8192
#: Parameters of one block of this width.
LINEAR_PARAMETERS = (10 * DIM + 2 * FFN_DIM) * DIM + (2 * DIM + 2 * 768) * DIM
WAYS = ("cat", "ours", "from_pretrained", "reference")


def config(num_layers: int) -> dict[str, object]:
    """Arguments of the transformer's constructor."""
    return {
        "num_attention_heads": HEADS,
        "attention_head_dim": DIM // HEADS,
        "ffn_dim": FFN_DIM,
        "num_layers": num_layers,
        "added_kv_proj_dim": DIM,
    }


def make_checkpoint(folder: Path, num_layers: int, parts: Collection[str] = ("base", "whole")) -> None:
    """Writes a random transformer: `base/` and `adapter.safetensors` in final dtypes, `whole/` for diffusers.

    Args:
        parts: which of the two forms to write.
    """
    import torch

    from infinitetalk.network.transformer import InfiniteTalkTransformer3DModel
    from infinitetalk.weights.convert import Entry, write_safetensors
    from infinitetalk.weights.names import is_adapter_name

    with torch.device("meta"):
        transformer = InfiniteTalkTransformer3DModel(**config(num_layers))
    wide = set(transformer._keep_in_fp32_modules)
    noise = torch.randn(1 << 20, generator=torch.Generator().manual_seed(0)) * 0.02
    entries = []
    for name, parameter in transformer.named_parameters():
        dtype = torch.float32 if wide & set(name.split(".")) else torch.bfloat16

        def make(shape: torch.Size = parameter.shape, dtype: torch.dtype = dtype) -> torch.Tensor:
            return noise.repeat(-(-shape.numel() // len(noise)))[: shape.numel()].view(shape).to(dtype)

        entries.append(Entry(name, dtype, tuple(parameter.shape), make))
    base = [entry for entry in entries if not is_adapter_name(entry.name)]
    adapter = [entry for entry in entries if is_adapter_name(entry.name)]
    if "base" in parts:
        write_safetensors(folder / "base" / "transformer" / "diffusion_pytorch_model.safetensors", base)
        write_safetensors(folder / "adapter.safetensors", adapter)
        (folder / "base" / "transformer" / "config.json").write_text(json.dumps(config(num_layers)))
    if "whole" in parts:
        write_safetensors(folder / "whole" / "diffusion_pytorch_model.safetensors", entries)
        (folder / "whole" / "config.json").write_text(
            json.dumps({"_class_name": "InfiniteTalkTransformer3DModel", **config(num_layers)})
        )


def checkpoint_files(folder: Path) -> list[Path]:
    """The files that loading reads: base and adapter."""
    return [folder / "base" / "transformer" / "diffusion_pytorch_model.safetensors", folder / "adapter.safetensors"]


def load(way: str, folder: Path) -> None:
    """Loads in this process and prints seconds, peak bytes and a checksum as JSON."""
    import torch

    from infinitetalk.network.transformer import InfiniteTalkTransformer3DModel
    from infinitetalk.runtime.choice import NetworkChoice
    from infinitetalk.runtime.models import TransformerLoader
    from infinitetalk.weights.layouts import CheckpointPaths

    torch.set_num_threads(os.cpu_count() or 1)
    before = peak_bytes()
    begin = time.perf_counter()
    if way == "ours":
        adapter = folder / "adapter.safetensors"
        paths = CheckpointPaths(folder / "base", {"single": adapter}, folder)
        transformer = TransformerLoader(paths, torch.device("cpu")).load(NetworkChoice(torch.bfloat16))
    elif way == "from_pretrained":
        transformer = InfiniteTalkTransformer3DModel.from_pretrained(folder / "whole", torch_dtype=torch.bfloat16)
    else:
        from safetensors.torch import load_file

        # Like the published code: the module in float32, cast; every file into one dict; load_state_dict.
        sizes = json.loads((folder / "base" / "transformer" / "config.json").read_text())
        transformer = InfiniteTalkTransformer3DModel(**sizes).to(torch.bfloat16)
        state_dict = {}
        for file in checkpoint_files(folder):
            state_dict.update(load_file(file))
        transformer.load_state_dict(state_dict)
    checksum = sum(int(parameter.data.view(-1).view(torch.int64).sum()) for parameter in transformer.parameters())
    seconds = time.perf_counter() - begin
    print(json.dumps({"seconds": seconds, "peak": peak_bytes() - before, "checksum": checksum}))


def peak_bytes() -> int:
    """The largest resident set of this process so far."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def measure(way: str, folder: Path, drop: bool) -> dict[str, float]:
    """One measurement in a separate process; `drop` first removes the files from the page cache."""
    if drop:
        drop_caches(folder)
    if way == "cat":
        begin = time.perf_counter()
        with Path("/dev/null").open("wb") as nowhere:
            subprocess.run(["cat", *map(str, checkpoint_files(folder))], check=True, stdout=nowhere)
        return {"seconds": time.perf_counter() - begin, "peak": 0}
    command = [sys.executable, str(SELF), "--load", way, "--folder", str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(SELF.parents[1])}
    finished = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return json.loads(finished.stdout.splitlines()[-1])


def drop_caches(folder: Path) -> None:
    """Drops the cached pages of the checkpoint's files, and of no others."""
    for file in folder.rglob("*.safetensors"):
        drop_pages(file)


def drop_pages(file: Path) -> None:
    """Drops the cached pages of one file."""
    descriptor = os.open(file, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def main() -> None:
    """Measures every way and prints a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--gigabytes", type=float, default=4.0)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--ways", nargs="+", choices=WAYS[1:], default=WAYS[1:], help="beside cat")
    parser.add_argument("--load", choices=WAYS)
    options = parser.parse_args()
    if options.load:
        load(options.load, options.folder)
        return
    ways = ("cat", *options.ways)
    sys.path.insert(0, str(SELF.parents[1]))
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        make_checkpoint(folder, round(options.gigabytes * 1e9 / (2 * LINEAR_PARAMETERS)))
        size = sum(file.stat().st_size for file in checkpoint_files(folder))
        print(f"checkpoint: {size / 1e9:.2f} GB; medians of {options.runs} runs")
        for drop in (False, True):
            print(f"page cache {'dropped' if drop else 'warm'}:")
            # Interleaved, so that other load on the machine affects all ways alike.
            results = {way: [] for way in ways}
            for _ in range(options.runs):
                for way in ways:
                    results[way].append(measure(way, folder, drop))
            cat = statistics.median(result["seconds"] for result in results["cat"])
            for way in ways:
                seconds = statistics.median(result["seconds"] for result in results[way])
                peak = statistics.median(result["peak"] for result in results[way]) / size
                print(f"  {way:16} {seconds:6.2f} s  {seconds / cat:5.2f} x cat  peak {peak:4.2f} x model")
            checksums = {result["checksum"] for way in WAYS[1:3] for result in results.get(way, ())}
            assert len(checksums) <= 1, "ours and from_pretrained differ"


if __name__ == "__main__":
    main()
