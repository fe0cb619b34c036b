"""A web page for an endpoint, local or on Runpod.

    make serve                             in one terminal
    make page                              in another one; then open http://127.0.0.1:7860

For Runpod set RUNPOD_ENDPOINT_ID and RUNPOD_API_KEY; for media too large for a request also S3_ENDPOINT, S3_BUCKET,
S3_ACCESS_KEY and S3_SECRET_KEY.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
from infinitetalk_client import LOCAL_URL, RECIPES, RUNPOD_URL, InfiniteTalkClient, InfiniteTalkError
from page import (
    EndpointModel,
    Point,
    Shown,
    Tabs,
    attach,
    cancel,
    click,
    curl,
    help_of,
    job_input,
    player,
    preview,
    prices,
    run,
)

MEDIA = Path(__file__).parent / "media"
POLL_S = 0.5
MAX_THREADS = 200
"""Number of jobs that the page follows at once: a thread waits for each."""

STYLE = """
.model {padding: 0.5em 0.8em; border-left: 4px solid #2563eb; background: var(--block-background-fill)}
.model.embedded {border-left-color: #b45309; background: #fef3c7; color: #451a03}
.model.embedded b {color: inherit}
.gradio-container {--block-info-text-color: var(--neutral-600)}
.dark .gradio-container {--block-info-text-color: var(--neutral-300)}
"""
NAME_IN_ADDRESS = """id => {
    const address = new URL(location);
    if (id && address.searchParams.get("job") !== id) {
        address.searchParams.set("job", id);
        history.replaceState(null, "", address);
    }
}"""
"""Puts the job's id into the page's address: a reload or another tab finds the job again."""


def told(field: str) -> dict[str, str]:
    """Label and help of a parameter."""
    return {"label": field, "info": help_of(field)}


def build(client: InfiniteTalkClient) -> gr.Blocks:
    """Builds the page."""
    tabs, endpoint_model = Tabs(), EndpointModel(client, POLL_S)
    with gr.Blocks(title="InfiniteTalk", analytics_enabled=False) as page:
        gr.HTML(f"<style>{STYLE}</style>", padding=False)
        gr.Markdown("# InfiniteTalk\nA picture or a video and a voice become a talking video.")
        model = gr.HTML('<div class="model">asking the endpoint for its model …</div>', elem_id="model")
        corner = gr.State()
        job_id = gr.Textbox(visible=False)
        with gr.Row():
            with gr.Column():
                inputs: dict[str, Any] = {}
                inputs["source"] = gr.File(label="Picture or video", file_types=["image", "video"], elem_id="source")
                picture = gr.Image(
                    label="Click two corners of each speaker's box", interactive=False, height=260, elem_id="preview"
                )
                with gr.Row():
                    box_help = "x_min, y_min, x_max, y_max in pixels; empty: the speakers are side by side."
                    inputs["box1"] = gr.Textbox("", label="Box of person1", info=box_help, elem_id="box1")
                    inputs["box2"] = gr.Textbox("", label="Box of person2", info=box_help)
                with gr.Tab("Speech"), gr.Row():
                    inputs["voice1"] = gr.Audio(label="person1", type="filepath", elem_id="voice1")
                    inputs["voice2"] = gr.Audio(label="person2 (optional)", type="filepath")
                with gr.Tab("Text"):
                    inputs["text"] = gr.Textbox(
                        "",
                        label="Text",
                        info='With two speakers: "(s1) … (s2) …". It takes the place of speech.',
                        lines=3,
                    )
                    with gr.Row():
                        voice_help = "A name of Kokoro's, such as am_adam or af_heart."
                        inputs["speaker1"] = gr.Textbox("am_adam", label="Voice of person1", info=voice_help)
                        inputs["speaker2"] = gr.Textbox("", label="Voice of person2 (optional)", info=voice_help)
                inputs["prompt"] = gr.Textbox("A person talks to the camera", **told("prompt"), elem_id="prompt")
            with gr.Column():
                with gr.Row():
                    generate = gr.Button("Generate", variant="primary", min_width=100, elem_id="generate")
                    show = gr.Button("Show payload", min_width=100)
                    ask = gr.Button("Prices", min_width=100, elem_id="prices")
                    stop = gr.Button("Cancel", variant="stop", min_width=100, elem_id="cancel")
                status = gr.HTML("ready", elem_id="status")
                growing = gr.HTML(elem_id="growing")
                video = gr.Video(label="Video", autoplay=True, elem_id="video")
                inputs["recipe"] = gr.Dropdown(
                    [("as set below", ""), *((name, name) for name in RECIPES)],
                    value="",
                    label="recipe",
                    info="A recipe sets steps, guidance, chunks and colours itself. Prices lists this endpoint's.",
                    elem_id="recipe",
                )
                with gr.Accordion("Parameters", open=True):
                    with gr.Row():
                        inputs["size"] = gr.Dropdown(["infinitetalk-480", "infinitetalk-720"], **told("size"))
                        inputs["mode"] = gr.Dropdown(["clip", "streaming"], value="streaming", **told("mode"))
                        inputs["audio_type"] = gr.Dropdown(["para", "add"], **told("audio_type"))
                        inputs["sample_steps"] = gr.Slider(
                            1, 80, 8, step=1, **told("sample_steps"), elem_id="sample_steps"
                        )
                        inputs["sample_text_guide_scale"] = gr.Slider(0, 10, 1.0, **told("sample_text_guide_scale"))
                        inputs["sample_audio_guide_scale"] = gr.Slider(0, 10, 2.0, **told("sample_audio_guide_scale"))
                        inputs["frame_num"] = gr.Slider(5, 121, 81, step=4, **told("frame_num"), elem_id="frame_num")
                        inputs["max_frame_num"] = gr.Number(
                            1000, precision=0, **told("max_frame_num"), elem_id="frames"
                        )
                        inputs["motion_frame"] = gr.Slider(1, 40, 9, step=1, **told("motion_frame"))
                        inputs["crossfade_frame"] = gr.Slider(0, 25, 4, step=1, **told("crossfade_frame"))
                        inputs["color_correction_strength"] = gr.Slider(0, 1, 1.0, **told("color_correction_strength"))
                        inputs["base_seed"] = gr.Number(42, precision=0, **told("base_seed"))
                    with gr.Row():
                        inputs["use_teacache"] = gr.Checkbox(**told("use_teacache"))
                        inputs["use_apg"] = gr.Checkbox(**told("use_apg"))
                with gr.Accordion("Payload", open=False):
                    payload = gr.Code(label="JSON", language="json")
                    command = gr.Code(label="curl", language="shell")

        names = list(inputs)

        def begin(request: gr.Request) -> None:
            try:
                tabs.begin(str(request.session_hash))
            except ValueError as error:
                raise gr.Error(str(error)) from error

        def prepare_to_send(request: gr.Request, *values: Any) -> tuple[str, str]:
            try:
                return prepare(*values)
            except gr.Error:
                tabs.end(str(request.session_hash))
                raise

        def prepare(*values: Any) -> tuple[str, str]:
            try:
                job = job_input(client, dict(zip(names, values, strict=True)))
            except (ValueError, InfiniteTalkError) as error:
                raise gr.Error(str(error)) from error
            text = json.dumps({"input": job}, indent=2, ensure_ascii=False)
            return text, curl(client, text)

        def show_job(states: Iterator[Shown], tab: str) -> Iterator[tuple[Any, ...]]:
            address = None
            try:
                for shown in states:
                    # The player is set once per address; setting it again would restart it.
                    is_new, address = shown.preview != address, shown.preview
                    growing_now = (player(address) if address else "") if is_new else gr.skip()
                    yield shown.status, growing_now, shown.video, shown.job_id or gr.skip()
            finally:
                tabs.end(tab)

        def send(text: str, request: gr.Request) -> Iterator[tuple[Any, ...]]:
            tab = str(request.session_hash)
            yield from show_job(run(client, json.loads(text)["input"], POLL_S, tabs, tab), tab)

        def come_back(request: gr.Request) -> Iterator[tuple[Any, ...]]:
            tab = str(request.session_hash)
            if known := dict(request.query_params).get("job"):
                yield from show_job(attach(client, known, POLL_S, tabs, tab), tab)

        def tell_prices(text: str) -> tuple[str, str]:
            try:
                return prices(client, json.loads(text)["input"], POLL_S)
            except InfiniteTalkError as error:
                raise gr.Error(str(error)) from error

        def cancel_job(request: gr.Request) -> None:
            try:
                cancel(client, tabs, str(request.session_hash))
            except InfiniteTalkError as error:
                raise gr.Error(str(error)) from error

        def select(corner: Point | None, first: str, second: str, event: gr.SelectData) -> tuple[Any, ...]:
            return click(corner, first, second, list(event.index))

        boxes = [inputs["box1"], inputs["box2"]]
        drawn = [inputs["source"], corner, *boxes]
        picture.select(select, [corner, *boxes], [corner, *boxes]).then(preview, drawn, picture)
        inputs["source"].change(lambda: None, None, corner).then(preview, drawn, picture)
        for box in boxes:
            box.change(preview, drawn, picture)
        fields, shown = list(inputs.values()), [status, growing, video, job_id]
        # Each event has as many runs at once as there are tabs: a job of one tab waits for none of another.
        many: dict[str, Any] = {"concurrency_limit": None}
        begun = generate.click(begin, None, None, queue=False)
        prepared = begun.success(prepare_to_send, fields, [payload, command], **many)
        prepared.success(send, payload, shown, show_progress="hidden", **many)
        page.load(come_back, None, shown, show_progress="hidden", **many)
        page.load(endpoint_model.banner, None, model, show_progress="hidden", **many)
        job_id.change(None, job_id, None, js=NAME_IN_ADDRESS)
        show.click(prepare, fields, [payload, command], **many)
        ask.click(prepare, fields, [payload, command], **many).success(tell_prices, payload, [status, model], **many)
        stop.click(cancel_job, None, None, queue=False)
        gr.Examples(
            [[str(MEDIA / "drawn_portrait.png"), str(MEDIA / "speech.wav")]],
            [inputs["source"], inputs["voice1"]],
            label="Example",
        )
    return page


def main() -> None:
    """Serves the page on 127.0.0.1."""
    parser = argparse.ArgumentParser(description="Serves a web page for an endpoint.")
    parser.add_argument("--url", help=f"address of an endpoint ({LOCAL_URL}, or RUNPOD_ENDPOINT_ID's)")
    parser.add_argument("--key", default=os.environ.get("RUNPOD_API_KEY", "local"))
    parser.add_argument("--port", type=int, default=7860)
    options = parser.parse_args()
    endpoint = os.environ.get("RUNPOD_ENDPOINT_ID")
    url = options.url or (f"{RUNPOD_URL}/{endpoint}" if endpoint else LOCAL_URL)
    client = InfiniteTalkClient(url, options.key)
    if client.is_local:
        # Paths instead of data URIs keep the payload short enough to read and copy.
        client = InfiniteTalkClient(url, options.key, inline_bytes=0)
    page = build(client)
    page.launch(server_name="127.0.0.1", server_port=options.port, allowed_paths=[str(MEDIA)], max_threads=MAX_THREADS)


if __name__ == "__main__":
    main()
