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
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
from infinitetalk_client import LOCAL_URL, RUNPOD_URL, InfiniteTalkClient, InfiniteTalkError
from page import (
    PREVIEWS,
    USUAL_VOICES,
    EndpointModel,
    Point,
    Shown,
    Tabs,
    VoiceSamples,
    attach,
    cancel,
    click,
    curl,
    help_of,
    job_input,
    model_banner,
    plan_of,
    player,
    preview,
    prices,
    recipe_choices,
    run,
    voice_note,
)

MEDIA = Path(__file__).parent / "media"
VOICES = Path(__file__).parents[1] / "outputs/voices"
POLL_S = 0.5
MAX_THREADS = 200
"""Number of jobs that the page follows at once: a thread waits for each."""

STYLE = """
.model {padding: 0.5em 0.8em; border-left: 4px solid #2563eb; background: var(--block-background-fill)}
.model.embedded {border-left-color: #b45309; background: #fef3c7; color: #451a03}
.model.embedded b {color: inherit}
.warnings {margin-top: 0.5em; padding: 0.5em 0.8em; border-left: 4px solid #b45309; background: #fef3c7; color: #451a03}
.warnings b {color: inherit}
.warnings ul {margin: 0.2em 0 0 1.2em; list-style: disc}
button:focus-visible, a:focus-visible {outline: 3px solid var(--color-accent) !important; outline-offset: 2px}
.icon-button, .download-link {min-width: 24px; min-height: 24px}
#time, #duration, .playback {color: var(--body-text-color-subdued) !important}
"""
DARK = "<style>body.dark, .dark.dark {--color-accent: #60a5fa !important}</style>"
NAME_IN_ADDRESS = """id => {
    const address = new URL(location);
    if (id && address.searchParams.get("job") !== id) {
        address.searchParams.set("job", id);
        history.replaceState(null, "", address);
    }
}"""
"""Puts the job's id into the page's address: a reload or another tab finds the job again."""


ACCESSIBLE = """() => {
    // What Gradio leaves without a name for those who hear the page.
    const name = () => {
        document.querySelectorAll("#preview button img:not([alt='Choose a corner'])").forEach(image => {
            image.alt = "Choose a corner";
        });
        // A link around a button: one of both is enough for the keyboard.
        document.querySelectorAll(".download-link button:not([tabindex])").forEach(button => {
            button.tabIndex = -1;
        });
    };
    new MutationObserver(name).observe(document.body, {childList: true, subtree: true});
    name();
}"""
THEME = gr.themes.Default(primary_hue=gr.themes.colors.blue).set(
    color_accent="*primary_700",
    button_primary_background_fill="*primary_700",
    button_primary_background_fill_hover="*primary_800",
    button_primary_border_color="*primary_700",
    button_cancel_background_fill="#b91c1c",
    button_cancel_background_fill_hover="#991b1b",
    block_info_text_color="*neutral_600",
    block_info_text_color_dark="*neutral_300",
    body_text_color_subdued="*neutral_600",
    body_text_color_subdued_dark="*neutral_300",
    input_placeholder_color="*neutral_500",
)
"""Gradio's own, with colours that stand out enough from their grounds (WCAG 2.2, level AA)."""


def told(field: str) -> dict[str, str]:
    """Label and help of a parameter."""
    return {"label": field, "info": help_of(field)}


def build(client: InfiniteTalkClient, samples: VoiceSamples) -> gr.Blocks:
    """Builds the page.

    Args:
        client: of the page's endpoint.
        samples: of its voices.
    """
    tabs, endpoint_model = Tabs(), EndpointModel(client, POLL_S)
    usual_voices = list(samples.files) or list(USUAL_VOICES)
    with gr.Blocks(title="InfiniteTalk", analytics_enabled=False) as page:
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
                    hearing: list[tuple[Any, Any, Any]] = []
                    with gr.Row():
                        for name, label in (
                            ("speaker1", "Voice of person1"),
                            ("speaker2", "Voice of person2 (optional)"),
                        ):
                            with gr.Column(min_width=200):
                                inputs[name] = gr.Dropdown(
                                    usual_voices,
                                    value=usual_voices[0] if name == "speaker1" else "",
                                    label=label,
                                    info="A voice of Kokoro's; another name may be typed.",
                                    allow_custom_value=True,
                                    elem_id=name,
                                )
                                sample = gr.Audio(
                                    label="Sample",
                                    type="filepath",
                                    interactive=False,
                                    visible=False,
                                    elem_id=f"{name}_sample",
                                )
                                hearing.append((inputs[name], sample, gr.HTML(elem_id=f"{name}_note")))
                    speaks = gr.HTML(elem_id="speaks")
                inputs["prompt"] = gr.Textbox("A person talks to the camera", **told("prompt"), elem_id="prompt")
                inputs["recipe"] = gr.Dropdown(
                    recipe_choices(None, False),
                    value="",
                    label="recipe",
                    info="A recipe sets steps, guidance, chunks and colours itself. Prices tells what each would cost.",
                    elem_id="recipe",
                )
                with gr.Accordion("Parameters", open=False, elem_id="parameters"):
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
            with gr.Column():
                with gr.Row():
                    generate = gr.Button("Generate", variant="primary", min_width=100, elem_id="generate")
                    show = gr.Button("Payload", min_width=100)
                    ask = gr.Button("Prices", min_width=100, elem_id="prices")
                    stop = gr.Button("Cancel", variant="stop", min_width=100, elem_id="cancel")
                status = gr.HTML("ready", elem_id="status")
                growing = gr.HTML(elem_id="growing")
                video = gr.Video(label="Video", autoplay=True, height=480, elem_id="video")
                with gr.Accordion("Payload", open=False, elem_id="payload"):
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

        def told_of(plan: dict[str, Any], is_of_this_job: bool) -> tuple[Any, ...]:
            choices = gr.update(choices=recipe_choices(plan, is_of_this_job))
            voices = gr.update(choices=plan["voices"] or usual_voices)
            return choices, voices, voices, voice_note(plan)

        def tell_prices(text: str) -> tuple[Any, ...]:
            try:
                plan = plan_of(client, json.loads(text)["input"], POLL_S)
            except InfiniteTalkError as error:
                raise gr.Error(str(error)) from error
            return prices(plan), model_banner(plan), *told_of(plan, is_of_this_job=True)

        def ask_model() -> tuple[Any, ...]:
            banner, plan = endpoint_model.ask()
            return banner, *((gr.skip(),) * 4 if plan is None else told_of(plan, is_of_this_job=False))

        def hear(voice: str | None) -> tuple[Any, str]:
            file, note = samples.of(voice or "")
            return gr.update(value=file, visible=file is not None), note

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
        endpoint = [inputs["recipe"], inputs["speaker1"], inputs["speaker2"], speaks]
        page.load(ask_model, None, [model, *endpoint], show_progress="hidden", **many)
        for voice, sample, note in hearing:
            page.load(hear, voice, [sample, note], show_progress="hidden", **many)
            voice.change(hear, voice, [sample, note], show_progress="hidden", **many)
        job_id.change(None, job_id, None, js=NAME_IN_ADDRESS)
        show.click(prepare, fields, [payload, command], **many)
        asked = ask.click(prepare, fields, [payload, command], **many)
        asked.success(tell_prices, payload, [status, model, *endpoint], **many)
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
    parser.add_argument("--voices", type=Path, default=VOICES, help="folder of the samples that `make voices` made")
    options = parser.parse_args()
    endpoint = os.environ.get("RUNPOD_ENDPOINT_ID")
    url = options.url or (f"{RUNPOD_URL}/{endpoint}" if endpoint else LOCAL_URL)
    client = InfiniteTalkClient(url, options.key)
    if client.is_local:
        # Paths instead of data URIs keep the payload short enough to read and copy.
        client = InfiniteTalkClient(url, options.key, inline_bytes=0)
    page = build(client, VoiceSamples.read(options.voices))
    address = {"server_name": "127.0.0.1", "server_port": options.port}
    looks = {"theme": THEME, "css": STYLE, "js": ACCESSIBLE, "head": DARK, "footer_links": []}
    allowed = [str(MEDIA), str(options.voices.resolve()), str(PREVIEWS)]
    try:
        page.launch(**address, **looks, allowed_paths=allowed, max_threads=MAX_THREADS)
    except OSError as error:
        if "empty port" not in str(error):
            raise
        sys.exit(f"port {options.port} is taken, by another page perhaps: end it, or choose another with --port")


if __name__ == "__main__":
    main()
