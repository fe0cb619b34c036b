"""A stand-in for the Hugging Face Hub, and the command that fetches from it."""

import json
import os
import subprocess
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path

from tests.serving import serving

#: The only commit of every repository.
COMMIT = "b" * 40


@contextmanager
def serve_hub(files: dict[str, bytes]) -> Iterator[tuple[str, list[str]]]:
    """A stand-in for the hub with one commit of every repository; yields its address and the files it was asked for."""
    fetched: list[str] = []

    class Hub(BaseHTTPRequestHandler):
        def _reply(self, body: bytes, **headers: str) -> None:
            self.send_response(200)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def do_GET(self) -> None:
            if "/resolve/" in self.path:
                name = self.path.split("/resolve/")[1].split("/", 1)[1]
                if self.command == "GET":
                    fetched.append(name)
                self._reply(files[name], X_Repo_Commit=COMMIT, ETag=f'"{zlib.crc32(name.encode()):x}"')
            elif "/tree/" in self.path:
                tree = [{"type": "file", "path": name, "size": len(data), "oid": name} for name, data in files.items()]
                self._reply(json.dumps(tree).encode(), Content_Type="application/json")
            else:
                siblings = [{"rfilename": name} for name in files]
                answer = {"id": "x/y", "modelId": "x/y", "sha": COMMIT, "siblings": siblings}
                self._reply(json.dumps(answer).encode(), Content_Type="application/json")

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with serving(Hub) as server:
        yield f"http://127.0.0.1:{server.server_port}", fetched


def fetching(address: str, folder: Path, *names: str) -> subprocess.CompletedProcess[str]:
    """The command that fetches from the hub at this address, when it has ended."""
    return subprocess.run(
        [sys.executable, "-m", "infinitetalk.weights", "download", *names, "--folder", folder],
        env={**os.environ, "HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"},
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
