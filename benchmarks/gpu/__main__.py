"""Run the groups, print each figure when it is measured, and keep all of them in a file.

python -m benchmarks.gpu [--output FILE] [--groups evaluations,vae] [--rows kernels,LoRA] [--limit-s 360] [--small]
"""

import argparse
import json
import os
import queue
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.rows import Figure, Group, wait_for_word
from benchmarks.measure import machine

#: Group → seconds after which it is ended; the most valuable group comes first.
GROUPS = {
    "evaluations": 150.0,
    "chunks": 100.0,
    "vae": 75.0,
    "compiled": 150.0,
    "kernels": 75.0,
    "talker": 75.0,
    "memory": 75.0,
    "several": 150.0,
}


def load_group(name: str) -> Group[Any]:
    """A group by its name; its module is imported here."""
    import importlib

    group: Group[Any] = importlib.import_module(f"benchmarks.gpu.{name}").GROUP
    return group


class GroupProcess:
    """A group in a separate process, which does its imports before its turn comes."""

    def __init__(self, name: str, small: bool, wanted: str) -> None:
        self.name = name
        command = [sys.executable, "-m", "benchmarks.gpu", "--child", name, "--rows", wanted]
        self._process = subprocess.Popen(
            [*command, "--small"] if small else command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTORCH_ALLOC_CONF": "expandable_segments:True"},
        )
        self._lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def figures(self, limit_s: float) -> Iterator[Figure]:
        """The group's figures as they are measured. If the group ends early or takes too long, the last figure names
        the current row."""
        assert self._process.stdin is not None
        deadline = time.monotonic() + limit_s
        row = "its preparation"
        try:
            self._process.stdin.write("go\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            yield Figure(self.name, None, detail="its process ended while it imported what it needs")
            return
        while True:
            try:
                line = self._lines.get(timeout=max(deadline - time.monotonic(), 0.0))
            except queue.Empty:
                self.end()
                yield Figure(f"{self.name}, {row}", None, detail=f"ended after {limit_s:.0f} s; later rows not run")
                return
            if line is None:
                break
            if not line.startswith("{"):
                continue
            told = json.loads(line)
            kind = told.pop("kind")
            if kind == "row":
                row = told["name"]
            elif kind == "figure":
                yield Figure(**told)
        status = self._process.wait()
        if status != 0:
            yield Figure(f"{self.name}, {row}", None, detail=f"its process ended with {status}; later rows not run")

    def end(self) -> None:
        """Ends the process, whatever it is doing."""
        self._process.kill()
        self._process.wait()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put(None)


class Report:
    """All figures so far, in a file that is complete after each figure."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._began = time.monotonic()
        self._content: dict[str, Any] = {"machine": machine(), "versions": versions(), "figures": []}

    def add(self, group: str, figure: Figure) -> None:
        """Print and save a figure."""
        at_s = round(time.monotonic() - self._began, 1)
        print(f"[{at_s:6.1f} s] {group}: {figure}", flush=True)
        self._content["figures"].append({"group": group, "at_s": at_s, **asdict(figure)})
        scratch = self._path.with_name(f".{self._path.name}.part")
        scratch.write_text(json.dumps(self._content, indent=1))
        scratch.replace(self._path)


def versions() -> dict[str, str]:
    """Versions of the software and the driver that affect the figures."""
    import diffusers
    import torchao
    import transformers

    found = {
        name: module.__version__
        for name, module in (
            ("torch", torch),
            ("diffusers", diffusers),
            ("transformers", transformers),
            ("torchao", torchao),
        )
    }
    if torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability()
        found |= {
            "cuda": str(torch.version.cuda),
            "cudnn": str(torch.backends.cudnn.version()),
            "sm": f"{major}.{minor}",
        }
        query = ["nvidia-smi", "--query-gpu=driver_version,power.limit,clocks.max.sm", "--format=csv,noheader"]
        found["driver, power limit, most clock"] = subprocess.run(query, capture_output=True, text=True).stdout.strip()
    return found


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description="Measure the published sizes.")
    parser.add_argument("--output", type=Path, default=Path("gpu.json"), help="the file (gpu.json)")
    parser.add_argument("--groups", default=",".join(GROUPS), help="in this order")
    parser.add_argument("--rows", default="", help="only those whose names hold one of these")
    parser.add_argument("--limit-s", type=float, default=360.0, help="after which no group is begun (360)")
    parser.add_argument("--small", action="store_true", help="small networks, to test the benchmark itself")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    small = options.small or not torch.cuda.is_available()
    if options.child:
        group = load_group(options.child)
        wait_for_word()
        group.run(small, [part for part in options.rows.split(",") if part])
        return
    if small:
        print("Small networks: the figures test the benchmark and say nothing of a GPU.")
    report = Report(options.output)
    print(f"{machine()}\n", flush=True)
    begin = time.monotonic()
    names = options.groups.split(",")
    process = GroupProcess(names[0], small, options.rows)
    for name, following in zip(names, [*names[1:], None], strict=True):
        left_s = options.limit_s - (time.monotonic() - begin)
        if left_s <= 0:
            report.add(name, Figure(name, None, detail=f"no time was left of {options.limit_s:.0f} s"))
            continue
        # The next group does its imports while this one measures.
        ahead = None if following is None else GroupProcess(following, small, options.rows)
        for figure in process.figures(left_s if small else min(left_s, GROUPS[name])):
            report.add(name, figure)
        if ahead is not None:
            process = ahead
    process.end()
    print(f"\n{time.monotonic() - begin:.0f} s in all; the figures are in {options.output}")


if __name__ == "__main__":
    main()
