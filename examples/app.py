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
from infinitetalk_client import LOCAL_URL, RECIPES, RUNPOD_URL, InfiniteTalkClient, JobError
from page import Point, click, curl, job_input, player, preview, prices, run
from requests import RequestException

MEDIA = Path(__file__).parent / "media"
POLL_S = 0.5


def build(client: InfiniteTalkClient) -> gr.Blocks:
    """Builds the page."""
    with gr.Blocks(title="InfiniteTalk", analytics_enabled=False) as page:
        gr.Markdown("# InfiniteTalk\nA picture or a video and a voice become a talking video.")
        corner, job_id = gr.State(), gr.State()
        with gr.Row():
            with gr.Column():
                inputs: dict[str, Any] = {}
                inputs["source"] = gr.File(label="Picture or video", file_types=["image", "video"], elem_id="source")
                picture = gr.Image(
                    label="Click two corners of each speaker's box", interactive=False, height=260, elem_id="preview"
                )
                with gr.Row():
                    inputs["box1"] = gr.Textbox("", label="Box of person1: x_min, y_min, x_max, y_max", elem_id="box1")
                    inputs["box2"] = gr.Textbox("", label="Box of person2")
                with gr.Tab("Speech"), gr.Row():
                    inputs["voice1"] = gr.Audio(label="person1", type="filepath", elem_id="voice1")
                    inputs["voice2"] = gr.Audio(label="person2 (optional)", type="filepath")
                with gr.Tab("Text"):
                    inputs["text"] = gr.Textbox("", label='Text; with two speakers "(s1) … (s2) …"', lines=3)
                    with gr.Row():
                        inputs["speaker1"] = gr.Textbox("am_adam", label="Voice of person1")
                        inputs["speaker2"] = gr.Textbox("", label="Voice of person2 (optional)")
                inputs["prompt"] = gr.Textbox("A person talks to the camera", label="Prompt", elem_id="prompt")
            with gr.Column():
                with gr.Row():
                    generate = gr.Button("Generate", variant="primary", elem_id="generate")
                    show = gr.Button("Show payload")
                    ask = gr.Button("Prices", elem_id="prices")
                    cancel = gr.Button("Cancel", variant="stop", elem_id="cancel")
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
                        inputs["size"] = gr.Dropdown(["infinitetalk-480", "infinitetalk-720"], label="size")
                        inputs["mode"] = gr.Dropdown(["clip", "streaming"], value="streaming", label="mode")
                        inputs["audio_type"] = gr.Dropdown(["para", "add"], label="audio_type")
                        inputs["sample_steps"] = gr.Slider(
                            1, 80, 8, step=1, label="sample_steps", elem_id="sample_steps"
                        )
                        inputs["sample_text_guide_scale"] = gr.Slider(0, 10, 1.0, label="sample_text_guide_scale")
                        inputs["sample_audio_guide_scale"] = gr.Slider(0, 10, 2.0, label="sample_audio_guide_scale")
                        inputs["frame_num"] = gr.Slider(5, 121, 81, step=4, label="frame_num", elem_id="frame_num")
                        inputs["max_frame_num"] = gr.Number(1000, precision=0, label="max_frame_num", elem_id="frames")
                        inputs["motion_frame"] = gr.Slider(1, 40, 9, step=1, label="motion_frame")
                        inputs["crossfade_frame"] = gr.Slider(0, 25, 4, step=1, label="crossfade_frame")
                        inputs["color_correction_strength"] = gr.Slider(0, 1, 1.0, label="color_correction_strength")
                        inputs["base_seed"] = gr.Number(42, precision=0, label="base_seed (-1: random)")
                    with gr.Row():
                        inputs["use_teacache"] = gr.Checkbox(label="use_teacache")
                        inputs["use_apg"] = gr.Checkbox(label="use_apg")
                with gr.Accordion("Payload", open=False):
                    payload = gr.Code(label="JSON", language="json")
                    command = gr.Code(label="curl", language="shell")

        names = list(inputs)

        def prepare(*values: Any) -> tuple[str, str]:
            try:
                job = job_input(client, dict(zip(names, values, strict=True)))
            except (ValueError, JobError, RequestException) as error:
                raise gr.Error(str(error)) from error
            text = json.dumps({"input": job}, indent=2, ensure_ascii=False)
            return text, curl(client, text)

        def send(text: str) -> Iterator[tuple[Any, ...]]:
            address = None
            for shown in run(client, json.loads(text)["input"], POLL_S) if text else ():
                # The player is set once per address; setting it again would restart it.
                is_new, address = shown.preview != address, shown.preview
                growing_now = (player(address) if address else "") if is_new else gr.skip()
                yield shown.status, growing_now, shown.video, shown.job_id

        def tell_prices(text: str) -> str:
            try:
                return prices(client, json.loads(text)["input"], POLL_S)
            except (JobError, RequestException) as error:
                raise gr.Error(str(error)) from error

        def stop(identifier: str | None) -> None:
            if identifier:
                try:
                    client.cancel(identifier)
                except (JobError, RequestException) as error:
                    raise gr.Error(str(error)) from error

        def select(corner: Point | None, first: str, second: str, event: gr.SelectData) -> tuple[Any, ...]:
            return click(corner, first, second, list(event.index))

        boxes = [inputs["box1"], inputs["box2"]]
        drawn = [inputs["source"], corner, *boxes]
        picture.select(select, [corner, *boxes], [corner, *boxes]).then(preview, drawn, picture)
        inputs["source"].change(lambda: None, None, corner).then(preview, drawn, picture)
        for box in boxes:
            box.change(preview, drawn, picture)
        generate.click(prepare, list(inputs.values()), [payload, command]).success(
            send, payload, [status, growing, video, job_id], show_progress="hidden"
        )
        show.click(prepare, list(inputs.values()), [payload, command])
        ask.click(prepare, list(inputs.values()), [payload, command]).success(tell_prices, payload, status)
        cancel.click(stop, job_id, None)
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
    build(client).launch(server_name="127.0.0.1", server_port=options.port, allowed_paths=[str(MEDIA)])


if __name__ == "__main__":
    main()
