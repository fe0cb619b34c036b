"""A page in the browser for an endpoint, local or on Runpod.

    make serve                             in one terminal
    make page                              in another one; then open http://127.0.0.1:7860

For Runpod set RUNPOD_ENDPOINT_ID and RUNPOD_API_KEY, and for media larger than a request S3_ENDPOINT, S3_BUCKET,
S3_ACCESS_KEY and S3_SECRET_KEY.
"""

from __future__ import annotations

import argparse
import json
import mimetypes
import os
import shlex
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
from client import LOCAL_URL, RUNPOD_URL, InfiniteTalkClient, JobError
from PIL import Image, ImageDraw
from requests import RequestException

COLOURS = ("#ff5722", "#2196f3")
MEDIA = Path(__file__).parent / "media"
POLL_S = 0.5

Box = list[int]


def parse_box(text: str) -> Box | None:
    """A box typed as "x_min, y_min, x_max, y_max"; None for nothing.

    Raises:
        ValueError: it is not four whole numbers.
    """
    if not text.strip():
        return None
    numbers = [int(part) for part in text.split(",")]
    if len(numbers) != 4:
        raise ValueError("a box is four numbers: x_min, y_min, x_max, y_max")
    return numbers


def is_picture(source: str | None) -> bool:
    """Whether a file is a picture, by its name."""
    return source is not None and str(mimetypes.guess_type(source)[0]).startswith("image/")


def preview(source: str | None, *boxes: str) -> Image.Image | None:
    """The picture with the speakers' boxes drawn on it; None for a video."""
    if not is_picture(source):
        return None
    picture = Image.open(str(source)).convert("RGB")
    draw = ImageDraw.Draw(picture)
    for number, (text, colour) in enumerate(zip(boxes, COLOURS, strict=True), 1):
        if box := parse_box(text):
            draw.rectangle(box, outline=colour, width=3)
            draw.text((box[0] + 6, box[1] + 4), f"person{number}", fill=colour)
    return picture


def click(corner: list[int] | None, first: str, second: str, event: gr.SelectData) -> tuple[Any, str, str]:
    """Two clicks are a box's corners: the first box drawn is person1's, the next one person2's."""
    x, y = event.index
    if corner is None:
        return [x, y], first, second
    box = f"{min(x, corner[0])}, {min(y, corner[1])}, {max(x, corner[0])}, {max(y, corner[1])}"
    return (None, box, second) if not first.strip() or second.strip() else (None, first, box)


def job_input(client: InfiniteTalkClient, fields: dict[str, Any]) -> dict[str, Any]:
    """The page's fields as a job's input; files are put where the endpoint can read them.

    Raises:
        ValueError: the source is missing, or a box is no box.
    """
    if not fields["source"]:
        raise ValueError("choose a picture or a video")
    voices = [voice for voice in (fields["voice1"], fields["voice2"]) if voice]
    source, *voices = client.media(fields["source"], *voices)
    job: dict[str, Any] = {"prompt": fields["prompt"], "cond_video": source}
    if fields["text"].strip():
        job["tts_audio"] = {"text": fields["text"], "human1_voice": fields["speaker1"]}
        if fields["speaker2"]:
            job["tts_audio"]["human2_voice"] = fields["speaker2"]
    else:
        job["cond_audio"] = {f"person{number}": voice for number, voice in enumerate(voices, 1)}
        job["audio_type"] = fields["audio_type"]
    boxes = [parse_box(fields["box1"]), parse_box(fields["box2"])]
    if any(boxes):
        job["bbox"] = {f"person{number}": box for number, box in enumerate(boxes, 1) if box}
    same = ("size", "mode", "frame_num", "max_frame_num", "motion_frame", "sample_steps", "sample_text_guide_scale")
    same += ("sample_audio_guide_scale", "color_correction_strength", "use_teacache", "use_apg", "base_seed")
    return job | {name: fields[name] for name in same} | {"output_config": client.output_config}


def curl(client: InfiniteTalkClient, payload: str) -> str:
    """The command that sends a payload; the key stays in the environment."""
    return (
        f'curl -X POST {client.url}/run \\\n  -H "Authorization: Bearer ${{RUNPOD_API_KEY:-local}}" \\\n'
        f"  -H 'Content-Type: application/json' \\\n  -d {shlex.quote(payload)}"
    )


def bar(progress: dict[str, Any]) -> str:
    """Progress as a line of HTML."""
    left = f", {progress['eta_s']:.0f} s left" if progress.get("eta_s") else ""
    pct = progress["pct"]
    return f'<progress value="{pct}" max="100" style="width:100%"></progress> {progress["stage"]} {pct:.0f} %{left}'


def build(client: InfiniteTalkClient) -> gr.Blocks:
    """The page."""
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
                    cancel = gr.Button("Cancel", variant="stop")
                status = gr.HTML("ready", elem_id="status")
                video = gr.Video(label="Video", autoplay=True, elem_id="video")
                with gr.Accordion("Parameters", open=True), gr.Row():
                    inputs["size"] = gr.Dropdown(["infinitetalk-480", "infinitetalk-720"], label="size")
                    inputs["mode"] = gr.Dropdown(["clip", "streaming"], value="streaming", label="mode")
                    inputs["audio_type"] = gr.Dropdown(["para", "add"], label="audio_type")
                    inputs["sample_steps"] = gr.Slider(1, 80, 8, step=1, label="sample_steps")
                    inputs["sample_text_guide_scale"] = gr.Slider(0, 10, 1.0, label="sample_text_guide_scale")
                    inputs["sample_audio_guide_scale"] = gr.Slider(0, 10, 2.0, label="sample_audio_guide_scale")
                    inputs["frame_num"] = gr.Slider(5, 121, 81, step=4, label="frame_num", elem_id="frame_num")
                    inputs["max_frame_num"] = gr.Number(1000, precision=0, label="max_frame_num", elem_id="frames")
                    inputs["motion_frame"] = gr.Slider(1, 40, 9, step=1, label="motion_frame")
                    inputs["color_correction_strength"] = gr.Slider(0, 1, 1.0, label="color_correction_strength")
                    inputs["base_seed"] = gr.Number(42, precision=0, label="base_seed (-1: random)")
                    inputs["use_teacache"] = gr.Checkbox(label="use_teacache")
                    inputs["use_apg"] = gr.Checkbox(label="use_apg")
                with gr.Accordion("Payload", open=False):
                    payload = gr.Code(label="JSON", language="json")
                    command = gr.Code(label="curl", language="shell")

        names = list(inputs)

        def prepare(*values: Any) -> tuple[str, str]:
            try:
                job = job_input(client, dict(zip(names, values, strict=True)))
            except (ValueError, KeyError, RequestException) as error:
                raise gr.Error(str(error)) from error
            text = json.dumps({"input": job}, indent=2, ensure_ascii=False)
            return text, curl(client, text)

        def run(text: str) -> Iterator[tuple[Any, ...]]:
            if not text:
                return
            try:
                identifier = client.submit(json.loads(text)["input"])
                progress = client.watch(identifier, POLL_S)
                while True:
                    yield bar(next(progress)), None, identifier
            except StopIteration as end:
                result = end.value
            except (JobError, RequestException) as error:
                yield f"<b>{error}</b>", None, None
                return
            folder = tempfile.mkdtemp(prefix="infinitetalk-page-")
            file = client.download(result, Path(folder) / "talk.mp4")
            warnings = "".join(f"<br>{warning}" for warning in result["warnings"])
            yield f"{bar({'stage': 'completed', 'pct': 100})}{warnings}", str(file), None

        def stop(identifier: str | None) -> None:
            if identifier:
                client.cancel(identifier)

        boxes = [inputs["box1"], inputs["box2"]]
        picture.select(click, [corner, *boxes], [corner, *boxes])
        for component in (inputs["source"], *boxes):
            component.change(preview, [inputs["source"], *boxes], picture)
        generate.click(prepare, list(inputs.values()), [payload, command]).success(
            run, payload, [status, video, job_id], show_progress="hidden"
        )
        show.click(prepare, list(inputs.values()), [payload, command])
        cancel.click(stop, job_id, None)
        gr.Examples(
            [[str(MEDIA / "portrait.jpg"), str(MEDIA / "speech.wav")]],
            [inputs["source"], inputs["voice1"]],
            label="Example",
        )
    return page


def main() -> None:
    """Serves the page on 127.0.0.1."""
    parser = argparse.ArgumentParser(description="A page for an endpoint.")
    parser.add_argument("--url", help=f"address of an endpoint ({LOCAL_URL}, or RUNPOD_ENDPOINT_ID's)")
    parser.add_argument("--key", default=os.environ.get("RUNPOD_API_KEY", "local"))
    parser.add_argument("--port", type=int, default=7860)
    options = parser.parse_args()
    endpoint = os.environ.get("RUNPOD_ENDPOINT_ID")
    url = options.url or (f"{RUNPOD_URL}/{endpoint}" if endpoint else LOCAL_URL)
    client = InfiniteTalkClient(url, options.key)
    if client.is_local:
        # Paths keep the payload short enough to read and copy.
        client = InfiniteTalkClient(url, options.key, inline_bytes=0)
    build(client).launch(server_name="127.0.0.1", server_port=options.port, allowed_paths=[str(MEDIA)])


if __name__ == "__main__":
    main()
