"""The page: what it sends and shows, against `make serve`; and from click to playing video, in a headless Chromium."""

import importlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import av
import pytest
import requests
from playwright.sync_api import Browser, Page, sync_playwright

from infinitetalk.embedded import tiny
from infinitetalk.embedded.tiny import TALKER_FOLDER
from infinitetalk.recipes import RECIPES
from schemas import SingleJob, parse_input
from schemas.dub import Dub
from schemas.job import FrameSize, Nag
from schemas.timeline import VoiceFrom
from tests import npm
from tests.page_fields import FIELDS, FILM, MEDIA, ONE_VOICE, TWO_PEOPLE, TWO_VOICES

CHECKOUT = Path(__file__).parents[1]
PAGE_PYTHON = CHECKOUT / ".venv-page/bin/python"
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
START_TIMEOUT_S = 90
VIDEO_TIMEOUT_MS = 120_000
POLL_S = 0.1
AXE = "axe-core@4.14.1"
AXE_TAGS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]

SCRIPT = {"audio_type": "script", "script": "0 s: person1\n0.2 s: person2"}
PATHS = {
    "picture": ONE_VOICE,
    "video": ONE_VOICE | FILM,
    "two speakers": TWO_PEOPLE | TWO_VOICES,
    "two speakers in turns": TWO_PEOPLE | TWO_VOICES | {"audio_type": "add"},
    "two speakers by a script": TWO_PEOPLE | TWO_VOICES | SCRIPT,
    "text": {"text": "Welcome to our show."},
    "text of two speakers": TWO_PEOPLE | {"text": "(s1) Welcome. (s2) Thank you.", "speaker2": "af_heart"},
}

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on the PATH")
needs_packages = pytest.mark.skipif(
    not PAGE_PYTHON.exists(), reason="the page's packages are not there: run make page once"
)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def served(command: list[str], address: str, log: Path, **environment: str) -> Iterator[None]:
    """A process that answers at an address; its log is printed when it ends."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RUNPOD_")}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=CHECKOUT, env=inherited | environment, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            assert time.monotonic() < deadline and process.poll() is None, f"{address} does not answer"
            try:
                requests.get(address, timeout=5)
                break
            except requests.ConnectionError:
                time.sleep(0.2)
        yield
    finally:
        process.terminate()
        process.wait(30)
        print(log.read_text()[-5000:])


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a local endpoint."""
    folder = tmp_path_factory.mktemp("endpoint")
    port = free_port()
    url = f"http://127.0.0.1:{port}/v2/local"
    environment = {"OUTPUT_DIR": str(folder / "outputs"), "INFINITETALK_MODEL": "tiny", "PROGRESS_INTERVAL_S": "0"}
    command = [sys.executable, "-m", "tools.local_endpoint", "--port", str(port)]
    with served(command, f"{url}/health", folder / "log", **environment):
        yield url


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The page's functions, imported as the page imports them: from its own folder."""
    monkeypatch.syspath_prepend(CHECKOUT / "examples")
    return importlib.import_module("page")


@pytest.fixture
def client(page: ModuleType, endpoint: str) -> Any:
    """The page's client."""
    return page.InfiniteTalkClient(endpoint, inline_bytes=0)


@pytest.fixture
def address(endpoint: str, tmp_path: Path) -> Iterator[str]:
    """Of the page itself."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    command = [str(PAGE_PYTHON), "examples/app.py", "--url", endpoint, "--port", str(port)]
    with served(command, address, tmp_path / "log"):
        yield address


@pytest.fixture
def browser() -> Iterator[Browser]:
    arguments = ["--no-sandbox", "--autoplay-policy=no-user-gesture-required"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        browser.close()


def sent(page: ModuleType, client: Any, job: dict[str, Any]) -> Iterator[Any]:
    """What a tab shows of a job that it sends."""
    tabs = page.Tabs()
    tabs.begin("tab")
    return page.run(client, job, POLL_S, tabs, "tab")


@pytest.mark.parametrize("changes", PATHS.values(), ids=PATHS)
def test_what_is_filled_in_becomes_a_video(changes, page, client):
    job = page.job_input(client, FIELDS | changes)
    parse_input(job)
    *followed, last = sent(page, client, job)
    assert "completed 100 %" in last.status
    assert "by tiny-random" in last.status
    assert ("Places of the speakers" in last.status) == (changes.get("regions") == "boxes")
    with av.open(last.video) as container:
        assert sum(1 for _ in container.decode(video=0)) == 9
    assert {shown.job_id for shown in followed} == {last.job_id}
    assert all(shown.video is None for shown in followed)
    # Its id finds it again, in another tab or after a reload.
    *_, found = page.attach(client, last.job_id, POLL_S, page.Tabs(), "another tab")
    assert Path(found.video).read_bytes() == Path(last.video).read_bytes()


def test_a_recipe_takes_the_place_of_the_parameters_that_it_sets(page, client):
    job = page.job_input(client, FIELDS | ONE_VOICE | {"recipe": "quality"})
    assert job["recipe"] == "quality"
    assert not job.keys() & RECIPES["quality"].values.keys()
    streaming = FIELDS | ONE_VOICE | {"mode": "streaming"}
    assert page.job_input(client, streaming).keys() > RECIPES["quality"].values.keys()


def test_prices_are_those_of_the_endpoints_recipes(page, client):
    job = page.job_input(client, FIELDS | ONE_VOICE | {"frame_num": 81})
    plan = page.plan_of(client, job, POLL_S)
    # Seconds are told once the endpoint has made a chunk, which an earlier test may have asked for.
    first, *lines = re.sub(r", about \d+ s", "", page.prices(plan)).split("<br>")
    assert first.startswith("81 frames of 64x64, 3.24 s; 1 chunks, 1 evaluations by tiny-random")
    assert lines[0] == "  recipe quality: 1 evaluations"
    assert lines[-1] == "Seconds and dollars are estimated."
    assert "Model <b>tiny-random</b>: the embedded model with random weights" in page.model_banner(plan)


def test_a_plan_tells_the_faces_that_it_found_and_they_are_drawn_as_long_as_they_are_true(page, client):
    places = importlib.import_module("places")
    fields = FIELDS | TWO_VOICES | {"source": str(MEDIA / "two_people.jpg"), "regions": "faces"}
    plan = page.plan_of(client, page.job_input(client, fields), POLL_S)
    told = places.Told(places.basis(fields), plan["speakers"])
    left, right = places.drawn_boxes(fields, told)
    assert left[0] < left[2] <= right[0] < right[2], "person1 is on the left"
    assert f"person1: x {left[0]} to {left[2]}" in page.prices(plan)
    assert page.prices(plan).count("a face that was found") == 2
    for changed in ({"regions": "halves"}, {"voice2": None}, {"source": FIELDS["source"]}, {"keep": "face"}):
        assert places.drawn_boxes(fields | changed, told) == [None, None]


def test_recipes_are_listed_with_what_the_job_would_cost_by_each(page):
    costs = [
        {"recipe": "quality", "evaluations": 120, "estimate_s": 91.6, "estimate_usd": 0.254},
        {"recipe": "flashtalk", "evaluations": 20},
    ]
    plan = {"evaluations": 32, "estimate_s": 20.2, "recipes": costs}
    shown = {value: label for label, value in page.recipe_choices(plan, is_of_this_job=True)}
    assert list(shown) == ["", *RECIPES]
    assert shown[""] == "as set below: about 20 s, estimated"
    assert shown["quality"] == "quality: about 92 s, $0.25, estimated"
    assert shown["flashtalk"] == "flashtalk: 20 evaluations"
    assert shown["lora-8"] == "lora-8: not at this endpoint"
    # Another job's costs say nothing of this one.
    assert dict(page.recipe_choices(plan, is_of_this_job=False)).keys() >= {"as set below", "quality"}
    assert [label for label, _ in page.recipe_choices(None, is_of_this_job=False)][1:] == list(RECIPES)


def test_the_endpoints_model_and_voices_are_told_and_asked_for_once(page, client, endpoint):
    model = page.EndpointModel(client, POLL_S)
    banners = {model.ask()[0] for _ in range(3)}
    assert len(banners) == 1
    assert 'class="model embedded"' in banners.pop()
    _, plan = model.ask()
    assert "am_adam" in plan["voices"]
    assert "has no words" in page.voice_note(plan)
    assert "cannot speak a text" in page.voice_note(plan | {"voices": []})
    assert page.voice_note(plan | {"model": "InfiniteTalk"}) == ""
    nowhere = page.EndpointModel(page.InfiniteTalkClient("http://127.0.0.1:9/v2/local"), POLL_S)
    banner, plan = nowhere.ask()
    assert plan is None and "The model is unknown: http://127.0.0.1:9/v2/local does not answer" in banner


def test_a_deployed_endpoint_is_not_asked_for_its_model_which_would_start_a_worker(page):
    deployed = page.InfiniteTalkClient("https://api.example.com/v2/endpoint")
    banner, plan = page.EndpointModel(deployed, POLL_S).ask()
    assert plan is None and "Prices tells which model" in banner


def test_a_sample_of_a_voice_says_what_is_wrong_with_it(page, tmp_path):
    assert page.VoiceSamples.read(tmp_path).of("am_adam") == (None, page.NO_SAMPLES)
    index = {"samples": {"am_adam": "am_adam.wav"}, "warnings": ["spoken by random weights"]}
    (tmp_path / page.SAMPLES_INDEX).write_text(json.dumps(index))
    samples = page.VoiceSamples.read(tmp_path)
    assert samples.of("am_adam") == (str(tmp_path / "am_adam.wav"), "The sample: spoken by random weights.")
    assert samples.of("<b>") == (None, "There is no sample of &lt;b&gt;.")
    assert samples.of("") == (None, "")


class Playlist(BaseHTTPRequestHandler):
    """A playlist that has one segment more each time."""

    def do_GET(self) -> None:
        self.server.asked += 1
        segments = "".join(f"#EXTINF:1.000,\n{number}.ts\n" for number in range(self.server.asked))
        body = f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n{segments}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Logs nothing."""


def test_a_short_preview_is_played_as_a_complete_one_and_a_longer_one_as_it_grows(page):
    with ThreadingHTTPServer(("127.0.0.1", 0), Playlist) as server:
        server.asked = 0
        threading.Thread(target=server.serve_forever, daemon=True).start()
        root = f"http://127.0.0.1:{server.server_port}"
        address, short = f"{root}/talk.preview/index.m3u8", page.ShortPreview()
        for number in (1, 2):
            copy = Path(short.playable(address).removeprefix("/gradio_api/file="))
            assert copy.is_relative_to(page.PREVIEWS)
            lines = copy.read_text().splitlines()
            assert [line for line in lines if line[0] != "#"] == [f"{root}/talk.preview/{i}.ts" for i in range(number)]
            assert lines[-1] == "#EXT-X-ENDLIST"
        assert short.playable(address) == short.playable(address) == address
        assert server.asked == 3
        server.shutdown()
    # The browser may reach what the page does not.
    assert page.ShortPreview().playable(address) == address


def test_an_embedded_model_has_a_banner_and_a_published_one_its_name(page):
    recipes = [{"recipe": "quality"}, {"recipe": "lora-8"}]
    plans = {name: {"model": name, "recipes": recipes} for name in (*page.EMBEDDED, "InfiniteTalk <14B>")}
    told = {name: page.model_banner(plan) for name, plan in plans.items()}
    assert [name for name in told if "embedded" in told[name]] == list(page.EMBEDDED)
    assert "InfiniteTalk &lt;14B&gt;" in told["InfiniteTalk <14B>"]
    assert all("Recipes: quality, lora-8." in banner for banner in told.values())


def test_the_page_knows_the_embedded_models_by_their_names(page):
    talker = json.loads((TALKER_FOLDER / "infinitetalk.json").read_text(encoding="utf-8"))["name"]
    assert set(page.EMBEDDED) == {talker, tiny.NAME}


def test_every_parameter_has_the_interfaces_own_description(page):
    fields = {name for name in FIELDS if name in SingleJob.model_fields}
    assert len(fields) > 20
    for name in fields:
        assert page.help_of(name) == " ".join(SingleJob.model_fields[name].description.split())
    within = {"dub.keep": Dub, "nag.scale": Nag, "size.width": FrameSize, "cond_audio.from_s": VoiceFrom}
    for name, model in within.items():
        assert page.help_of(name) == " ".join(model.model_fields[name.partition(".")[2]].description.split())
    with pytest.raises(KeyError, match=r"dub\.feet"):
        page.help_of("dub.feet")


def test_the_page_and_the_client_know_every_recipe(page):
    assert tuple(RECIPES) == importlib.import_module("infinitetalk_client").RECIPES


def test_a_text_takes_the_place_of_voices(page, client):
    job = page.job_input(
        client, FIELDS | TWO_VOICES | {"text": "(s1) Welcome. (s2) Thank you.", "speaker2": "af_heart"}
    )
    assert job["tts_audio"] == {
        "text": "(s1) Welcome. (s2) Thank you.",
        "human1_voice": "am_adam",
        "human2_voice": "af_heart",
    }
    assert "cond_audio" not in job


def test_a_cancelled_job_is_shown_as_such(page, client):
    job = page.job_input(client, FIELDS | ONE_VOICE | {"frame_num": 81, "sample_steps": 200})
    for shown in sent(page, client, job):
        assert shown.video is None
        if "sampling" in shown.status:
            client.cancel(shown.job_id)
    assert "CANCELLED: the job was cancelled" in shown.status


def test_a_job_that_is_cancelled_before_it_is_sent_is_not_sent(page, client):
    tabs = page.Tabs()
    tabs.begin("tab")
    page.cancel(client, tabs, "tab")
    (shown,) = page.run(client, {"prompt": "x"}, POLL_S, tabs, "tab")
    assert "cancelled before it was sent" in shown.status
    assert shown.job_id is None


def test_a_job_that_is_cancelled_while_it_is_being_sent_is_cancelled(page, client):
    tabs = page.Tabs()
    tabs.begin("tab")
    submit = client.submit

    def submit_while_cancel_is_clicked(job: dict[str, Any]) -> str:
        job_id = submit(job)
        page.cancel(client, tabs, "tab")
        return job_id

    client.submit = submit_while_cancel_is_clicked
    *_, shown = page.run(client, {"prompt": "x"}, POLL_S, tabs, "tab")
    assert "CANCELLED" in shown.status


def test_a_job_can_be_cancelled_from_the_first_thing_that_is_shown(page, client):
    job = page.job_input(client, FIELDS | ONE_VOICE | {"frame_num": 81, "sample_steps": 200})
    tabs = page.Tabs()
    tabs.begin("tab")
    states = page.run(client, job, POLL_S, tabs, "tab")
    assert "queued" in next(states).status
    page.cancel(client, tabs, "tab")
    assert "CANCELLED" in list(states)[-1].status


def test_a_tab_that_came_back_to_a_job_cancels_it(page, client):
    job_id = client.submit(page.job_input(client, FIELDS | ONE_VOICE | {"frame_num": 81, "sample_steps": 200}))
    tabs = page.Tabs()
    states = page.attach(client, job_id, POLL_S, tabs, "another tab")
    assert next(states).job_id == job_id
    page.cancel(client, tabs, "another tab")
    assert "CANCELLED" in list(states)[-1].status


def test_a_tab_has_one_job_at_a_time_and_tabs_have_one_each(page):
    tabs = page.Tabs()
    tabs.begin("first")
    tabs.begin("second")
    with pytest.raises(ValueError, match="this tab has a job that has not ended"):
        tabs.begin("first")
    tabs.cancel("first")
    assert (tabs.is_cancelled("first"), tabs.is_cancelled("second")) == (True, False)
    tabs.end("first")
    tabs.begin("first")
    assert not tabs.is_cancelled("first")


def test_an_address_with_an_unknown_job_is_told(page, client):
    for unknown in ("absent", "../../files/x"):
        *_, shown = page.attach(client, unknown, POLL_S, page.Tabs(), "tab")
        assert f"has no job {unknown}" in shown.status


def test_a_refused_job_is_shown_with_its_code_and_as_text(page, client):
    job = page.job_input(client, FIELDS | ONE_VOICE) | {"<i>": 1}
    *_, shown = sent(page, client, job)
    assert "E_INPUT_VALIDATION" in shown.status
    assert "&lt;i&gt;" in shown.status and "<i>" not in shown.status
    assert shown.video is None


def test_an_endpoint_that_does_not_answer_is_told(page):
    nowhere = page.InfiniteTalkClient("http://127.0.0.1:9/v2/local")
    (shown,) = sent(page, nowhere, {"prompt": "A person talks"})
    assert "<b>http://127.0.0.1:9/v2/local does not answer</b>" in shown.status
    assert (shown.video, shown.job_id) == (None, None)


class OnPage:
    """The page in a browser, with a picture and a voice chosen."""

    def __init__(self, browser: Browser, address: str, width: int = 1280) -> None:
        self.page = browser.new_page(viewport={"width": width, "height": 1100})
        self.page.goto(address)
        self.page.click("#parameters button")
        self.page.set_input_files("#source input[type=file]", MEDIA / "portrait.jpg")
        self.page.wait_for_selector("#preview img")
        self.page.set_input_files("#voice1 input[type=file]", MEDIA / "speech.wav")
        self.page.wait_for_selector("#voice1 audio", state="attached")

    def choose(self, name: str) -> None:
        """Chooses another source, and waits until it is shown."""
        before = self.page.get_attribute("#preview img", "src")
        self.page.click("#source button[aria-label='Clear']")
        self.page.set_input_files("#source input[type=file]", MEDIA / name)
        shown = (
            "before => { const image = document.querySelector('#preview img'); return image && image.src != before }"
        )
        self.page.wait_for_function(shown, arg=before)

    def click_corner(self, x: int, y: int) -> None:
        """Clicks into the picture and waits until it is drawn anew."""
        before = self.page.get_attribute("#preview img", "src")
        self.page.click("#preview img", position={"x": x, "y": y})
        self.page.wait_for_function("before => document.querySelector('#preview img').src != before", arg=before)


@needs_chromium
@needs_packages
def test_a_click_turns_a_picture_and_a_voice_into_a_video_that_plays(address, browser):
    on_page = OnPage(browser, address)
    page = on_page.page
    page.fill("#frames input", "17")
    page.fill("#frame_num input[type=number]", "17")
    page.set_input_files("#voice2 input[type=file]", MEDIA / "speech2.wav")
    page.wait_for_selector("#voice2 audio", state="attached")

    page.click("#directing button")
    for corner in ((40, 20), (150, 180), (160, 20), (250, 180)):
        on_page.click_corner(*corner)
    for number in (1, 2):
        box = f"document.querySelector('#box{number} textarea, #box{number} input')"
        page.wait_for_function(f"{box}?.value.split(',').length == 4")
    assert page.is_checked("#regions input[value=boxes]")

    page.click("#generate")
    page.wait_for_selector("#video video", timeout=VIDEO_TIMEOUT_MS)
    status_has(page, "person2: x")
    assert "your box" in page.inner_text("#status")
    page.wait_for_function("document.querySelector('#status').innerText.includes('completed')")
    page.wait_for_function("document.querySelector('#video video').currentTime > 0.1")
    assert page.evaluate("document.querySelector('#video video').videoWidth") == 64


@needs_chromium
@needs_packages
def test_what_a_film_can_have_is_asked_for_a_film_and_a_line_that_cannot_be_read_is_named(address, browser):
    on_page = OnPage(browser, address)
    page = on_page.page
    page.click("#directing button")
    page.get_by_role("tab", name="Film").click()
    page.wait_for_selector("#keep")
    assert page.query_selector("#strength") is None and page.query_selector("#margin") is None
    on_page.choose("talk.mp4")
    page.wait_for_selector("#strength")
    page.check("#keep input[value=face]")
    page.wait_for_selector("#margin")
    page.get_by_role("tab", name="Changes").click()
    page.fill("#later_prompts textarea", "8 s: She laughs\nShe looks away")
    page.click("#prices")
    page.wait_for_function("document.body.innerText.includes(\"line 2: 'She looks away' needs seconds\")")
    page.fill("#later_prompts textarea", "2 s: She laughs")
    # The plan finds the speaker's face in the film, and the page draws it.
    before = page.get_attribute("#preview img", "src")
    page.click("#prices")
    status_has(page, "a face that was found")
    page.wait_for_function("before => document.querySelector('#preview img').src != before", arg=before)


@needs_chromium
@needs_packages
def test_a_click_cancels_the_job(address, browser):
    page = OnPage(browser, address).page
    page.fill("#sample_steps input[type=number]", "80")
    page.click("#generate")
    page.wait_for_function("document.querySelector('#status').innerText.includes('sampling')", timeout=VIDEO_TIMEOUT_MS)
    page.click("#cancel")
    page.wait_for_function("document.querySelector('#status').innerText.includes('CANCELLED')")


@needs_chromium
@needs_packages
def test_what_has_been_made_plays_while_the_job_goes_on(address, browser):
    page = OnPage(browser, address).page
    page.fill("#frames input", "113")
    page.fill("#frame_num input[type=number]", "17")
    page.fill("#sample_steps input[type=number]", "40")
    page.click("#generate")
    # The first chunk plays alone, as a playlist that is complete.
    page.wait_for_selector("#growing video[src*='/1.m3u8']", timeout=VIDEO_TIMEOUT_MS)
    page.wait_for_function("document.querySelector('#growing video').currentTime > 0.1")
    page.wait_for_selector("#growing video:not([src*='gradio_api'])", timeout=VIDEO_TIMEOUT_MS)
    page.wait_for_function("document.querySelector('#growing video').currentTime > 0.1")
    assert "completed" not in page.inner_text("#status")
    page.wait_for_selector("#video video", timeout=VIDEO_TIMEOUT_MS)
    assert page.query_selector("#growing video") is None


def status_has(page: Page, words: str) -> None:
    """Waits until the page's status has these words."""
    page.wait_for_function("words => document.querySelector('#status')?.innerText.includes(words)", arg=words)


@needs_chromium
@needs_packages
def test_a_reload_and_a_second_tab_find_the_job_again(address, browser):
    page = OnPage(browser, address).page
    page.set_default_timeout(VIDEO_TIMEOUT_MS)
    # Many chunks: the job must last until two more pages have loaded.
    page.fill("#frame_num input[type=number]", "17")
    page.fill("#sample_steps input[type=number]", "80")
    page.click("#generate")
    status_has(page, "sampling")
    page.wait_for_function("location.search.includes('job=')")
    page.reload()
    status_has(page, "sampling")
    second = browser.new_page()
    second.set_default_timeout(VIDEO_TIMEOUT_MS)
    second.goto(page.url)
    status_has(second, "sampling")
    second.click("#cancel")
    status_has(second, "CANCELLED")
    status_has(page, "CANCELLED")


@needs_chromium
@needs_packages
def test_cancel_works_from_the_first_second(address, browser):
    page = OnPage(browser, address).page
    page.set_default_timeout(VIDEO_TIMEOUT_MS)
    page.fill("#sample_steps input[type=number]", "80")
    page.click("#generate")
    page.click("#cancel")
    page.wait_for_function("/CANCELLED|cancelled before it was sent/.test(document.querySelector('#status').innerText)")


@needs_chromium
@needs_packages
def test_two_users_have_their_jobs_at_once(address, browser):
    first, second = (OnPage(browser, address).page for _ in range(2))
    for page in (first, second):
        page.set_default_timeout(VIDEO_TIMEOUT_MS)
        page.fill("#sample_steps input[type=number]", "200")
        page.click("#generate")
    # One worker makes one job at a time; both tabs are told of their own, and neither waits for the other's.
    status_has(first, "sampling")
    status_has(second, "queued")
    second.click("#cancel")
    status_has(second, "CANCELLED")
    status_has(first, "sampling")
    first.click("#cancel")
    status_has(first, "CANCELLED")


@needs_chromium
@needs_packages
def test_the_page_tells_its_model_and_has_help_at_every_parameter(address, browser):
    page = browser.new_page()
    page.goto(address)
    page.wait_for_selector("#model .embedded", timeout=VIDEO_TIMEOUT_MS)
    assert "tiny-random" in page.inner_text("#model")
    page.click("#parameters button")
    page.wait_for_selector("#sample_steps")
    text = page.inner_text("body")
    for name in ("sample_steps", "motion_frame", "use_apg", "base_seed"):
        assert " ".join(str(SingleJob.model_fields[name].description).split()) in text


@pytest.fixture(scope="module")
def axe() -> str:
    """axe-core's program, which npm fetches once into .cache/."""
    lack = "there is no npm on the PATH, which fetches axe-core"
    return npm.fetched(AXE, "axe", "axe-core/axe.min.js", lack, "axe-core").read_text(encoding="utf-8")


def faults_of(page: Page, axe: str) -> list[str]:
    """What axe-core finds on the page against WCAG 2.2 AA and its own best practices."""
    page.evaluate(axe)
    found = page.evaluate("tags => axe.run(document, {runOnly: tags})", AXE_TAGS)
    assert len(found["passes"]) > 20
    return [f"{fault['id']}: {node['html']}" for fault in found["violations"] for node in fault["nodes"]]


@needs_chromium
@needs_packages
def test_the_page_is_accessible_at_the_width_of_desktops_and_of_phones(address, browser, axe):
    for width in (1280, 390):
        on_page = OnPage(browser, address, width)
        page = on_page.page
        page.fill("#frames input", "17")
        page.click("#generate")
        page.wait_for_selector("#video video", timeout=VIDEO_TIMEOUT_MS)
        status_has(page, "Warnings")
        assert faults_of(page, axe) == []
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        page.get_by_role("tab", name="Text").click()
        page.wait_for_selector("#speaker1 input")
        assert faults_of(page, axe) == []
        page.click("#directing button")
        on_page.choose("talk.mp4")
        for tab, field in {
            "Places": "#regions",
            "Voices": "#gate",
            "Changes": "#later_prompts",
            "Film": "#mix",
        }.items():
            page.get_by_role("tab", name=tab).click()
            page.wait_for_selector(field)
            assert faults_of(page, axe) == [], tab
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), tab
        page.emulate_media(color_scheme="dark")
        page.reload()
        page.wait_for_selector("#model .embedded")
        assert page.evaluate("document.body.classList.contains('dark')")
        assert faults_of(page, axe) == []
        page.close()


@needs_chromium
@needs_packages
def test_the_keyboard_alone_makes_a_video(address, browser):
    page = OnPage(browser, address).page
    page.fill("#frames input", "17")
    page.focus("#prompt textarea, #prompt input")
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "generate":
            break
    assert page.evaluate("document.activeElement.id") == "generate"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
    page.keyboard.press("Enter")
    page.wait_for_selector("#video video", timeout=VIDEO_TIMEOUT_MS)


@needs_chromium
@needs_packages
def test_prices_stand_in_the_list_of_recipes(address, browser):
    page = OnPage(browser, address).page
    page.click("#prices")
    status_has(page, "estimated")
    page.click("#recipe input")
    page.wait_for_function("document.body.innerText.includes('lora-8: not at this endpoint')")


@needs_packages
def test_a_port_that_is_taken_is_a_sentence():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        command = [str(PAGE_PYTHON), "examples/app.py", "--port", str(port)]
        done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=START_TIMEOUT_S)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith(f"port {port} is taken")
    assert "Traceback" not in done.stderr


def test_an_endpoints_words_are_no_html(page: ModuleType) -> None:
    assert "<b>" not in page.bar({"stage": "<b>sampling", "pct": 40.0})
