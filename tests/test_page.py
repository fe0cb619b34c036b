"""The page, from click to playing video, in a headless Chromium against `make serve`."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from playwright.sync_api import sync_playwright

CHECKOUT = Path(__file__).parents[1]
MEDIA = CHECKOUT / "examples/media"
PAGE_PYTHON = CHECKOUT / ".venv-page/bin/python"
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
START_TIMEOUT_S = 90

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on the PATH"),
    pytest.mark.skipif(not PAGE_PYTHON.exists(), reason="the page's packages are not there: run make page once"),
]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until_served(address: str) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        try:
            requests.get(address, timeout=5)
            return
        except requests.ConnectionError:
            time.sleep(0.2)
    raise AssertionError(f"{address} does not answer")


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """Of the page, whose endpoint runs beside it."""
    endpoint_port, page_port = free_port(), free_port()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RUNPOD_")}
    environment |= {"OUTPUT_DIR": str(tmp_path / "outputs"), "INFINITETALK_MODEL": "tiny", "PROGRESS_INTERVAL_S": "0"}
    endpoint = [sys.executable, "-m", "infinitetalk.worker.local_endpoint", "--port", str(endpoint_port)]
    url = f"http://127.0.0.1:{endpoint_port}/v2/local"
    page = [str(PAGE_PYTHON), "examples/app.py", "--url", url, "--port", str(page_port)]
    with (tmp_path / "log").open("wb") as log:
        processes = [
            subprocess.Popen(command, cwd=CHECKOUT, env=environment, stdout=log, stderr=log)
            for command in (endpoint, page)
        ]
    try:
        wait_until_served(f"{url}/health")
        wait_until_served(f"http://127.0.0.1:{page_port}")
        yield f"http://127.0.0.1:{page_port}"
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(30)
        print((tmp_path / "log").read_text()[-5000:])


def test_a_click_turns_a_picture_and_a_voice_into_a_video_that_plays(address):
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--autoplay-policy=no-user-gesture-required"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        page = browser.new_page(viewport={"width": 1280, "height": 1100})
        page.goto(address)
        page.set_input_files("#source input[type=file]", MEDIA / "portrait.jpg")
        page.wait_for_selector("#preview img")
        page.set_input_files("#voice1 input[type=file]", MEDIA / "speech.wav")
        page.wait_for_selector("#voice1 audio", state="attached")
        page.fill("#frames input", "17")
        page.fill("#frame_num input[type=number]", "17")

        page.click("#preview img", position={"x": 40, "y": 20})
        # The first corner has no mark of its own to wait for.
        page.wait_for_timeout(1500)
        page.click("#preview img", position={"x": 150, "y": 180})
        page.wait_for_function("document.querySelector('#box1 textarea, #box1 input').value.split(',').length == 4")

        page.click("#generate")
        page.wait_for_selector("#video video", timeout=120_000)
        assert "completed" in page.inner_text("#status")
        page.wait_for_function("document.querySelector('#video video').currentTime > 0.1")
        assert page.evaluate("document.querySelector('#video video').videoWidth") == 128
        browser.close()
