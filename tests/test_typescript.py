"""The generated TypeScript types compile, and a compiler refuses with them what the interface refuses.

The compiler is `tsc` on the PATH; else it is fetched once by npm into .cache/; without either, the tests are skipped.
"""

import os
import shutil
import subprocess
import threading
import time
from pathlib import Path

import pytest

from schemas import parse_input
from tests import npm
from tools.queue_server import API_KEY, LocalQueue
from tools.typescript import type_of

CHECKOUT = Path(__file__).parents[1]
EXAMPLE = CHECKOUT / "examples/typescript/example.ts"
TYPES = CHECKOUT / "examples/typescript/infinitetalk.ts"
COMPILER = "typescript@5.9.3"
OPTIONS = ("--strict", "--target", "es2022", "--module", "esnext", "--moduleResolution", "bundler")
OPTIONS += ("--lib", "es2022,dom", "--rewriteRelativeImportExtensions")

WRONG = """\
import type { JobState, Request } from "./infinitetalk.ts";

const job = { prompt: "x", cond_video: "a.png", cond_audio: { person1: "a.wav" } };
export const right: Request = { input: { ...job, bbox: { person1: [0, 0, 5, 5] } }, policy: { ttl: 10000 } };
// @ts-expect-error: not a mode
export const mode: Request = { input: { ...job, mode: "film" } };
// @ts-expect-error: a box has four numbers
export const box: Request = { input: { ...job, bbox: { person1: [0, 0, 5] } } };
// @ts-expect-error: no such field
export const field: Request = { input: { prompt: "x", cond_video: "a.png", frame_nums: 81 } };
// @ts-expect-error: a number, not a text
export const frames: Request = { input: { ...job, frame_num: "81" } };
// @ts-expect-error: cond_video is required
export const missing: Request = { input: { prompt: "x" } };

export function output(state: JobState): unknown {
  // @ts-expect-error: only some states have an output
  state.output;
  return state.status === "COMPLETED" ? state.output.job_id : state.status === "FAILED" ? state.error : null;
}
"""


@pytest.fixture(scope="module")
def tsc() -> str:
    """The compiler."""
    if found := shutil.which("tsc"):
        return found
    return str(
        npm.fetched(COMPILER, "typescript", ".bin/tsc", "there is neither tsc nor npm on the PATH", "the compiler")
    )


def errors(tsc: str, file: Path, folder: Path) -> str:
    """What the compiler says about a file, which it compiles into a folder."""
    command = [tsc, *OPTIONS, "--outDir", str(folder), str(file)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300).stdout


def test_the_example_compiles_and_makes_a_video(tsc, tmp_path):
    assert errors(tsc, EXAMPLE, tmp_path) == ""
    (tmp_path / "package.json").write_text('{"type": "module"}')
    with LocalQueue() as queue:

        def work() -> None:
            while (payload := queue.take()) is None:
                time.sleep(0.01)
            parse_input(payload["input"])
            queue.report(payload["id"], {"output": {"status": "success", "video": {"path": "made/talk.mp4"}}})

        threading.Thread(target=work, daemon=True).start()
        environment = os.environ | {"ENDPOINT_URL": queue.endpoint.url, "RUNPOD_API_KEY": API_KEY, "STORE": "volume"}
        command = [shutil.which("node") or "node", "example.js"]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True, timeout=60
        )
        assert done.stdout == f"job {next(iter(queue.jobs))}\nmade/talk.mp4\n"


def test_the_compiler_refuses_what_is_not_of_the_interface(tsc, tmp_path):
    shutil.copy(TYPES, tmp_path)
    file = tmp_path / "wrong.ts"
    file.write_text(WRONG, encoding="utf-8")
    assert errors(tsc, file, tmp_path) == ""
    file.write_text(WRONG.replace("// @ts-expect-error", "//"), encoding="utf-8")
    assert errors(tsc, file, tmp_path).count("error TS") == WRONG.count("@ts-expect-error")


def test_a_schema_of_an_unknown_form_is_refused():
    with pytest.raises(ValueError, match="there is no TypeScript type"):
        type_of({"type": "string?"})
