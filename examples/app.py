"""A web page for an endpoint, local or on Runpod.

    make serve                             in one terminal
    make page                              in another one; then open http://127.0.0.1:7860

For Runpod set RUNPOD_ENDPOINT_ID and RUNPOD_API_KEY; for media too large for a request also S3_ENDPOINT, S3_BUCKET,
S3_ACCESS_KEY and S3_SECRET_KEY.
"""

from __future__ import annotations

import argparse
import html
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
from directing import DECIDING, OWN_BOXES, OWN_SIZE, SET_BY_RECIPE, effective, film_note, place_note, speech_note
from infinitetalk_client import LOCAL_URL, RUNPOD_URL, InfiniteTalkClient, InfiniteTalkError
from page import (
    PREVIEWS,
    USUAL_VOICES,
    EndpointModel,
    Shown,
    Tabs,
    VoiceSamples,
    attach,
    cancel,
    curl,
    help_of,
    job_input,
    model_banner,
    plan_of,
    player,
    prices,
    recipe_choices,
    run,
    voice_note,
)
from places import Point, Told, basis, click, drawn_boxes, preview

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
.warnings * {color: inherit !important}
.warnings ul {margin: 0.2em 0 0 1.2em; list-style: disc}
.note {color: var(--body-text-color-subdued)}
.places ul {margin: 0.2em 0 0 1.2em; list-style: disc}
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
        // These say in their text what they are for; their other name is not in it.
        document.querySelectorAll(".upload-container[aria-label]").forEach(button => {
            button.removeAttribute("aria-label");
        });
        // A name needs something that can have one.
        document.querySelectorAll(".empty[aria-label]:not([role])").forEach(place => {
            place.setAttribute("role", "img");
        });
        // What is heard must contain what is seen: "1x" on a button that is called "Adjust playback speed to 1.5x".
        document.querySelectorAll("button.playback").forEach(button => {
            const [seen, heard] = [button.innerText.trim(), button.getAttribute("aria-label") ?? ""];
            if (!heard.includes(seen)) button.setAttribute("aria-label", `${seen}, ${heard}`);
        });
    };
    const changes = {childList: true, subtree: true, characterData: true, attributeFilter: ["aria-label"]};
    new MutationObserver(name).observe(document.body, changes);
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


KEEPS = [
    ("none: the frames are generated whole", "none"),
    ("face: all but the speakers' faces stays", "face"),
    ("all: all but the speakers' regions stays", "all"),
]
PLACES = [("side by side", "halves"), ("the faces in the picture", "faces"), ("boxes of your own", OWN_BOXES)]
SIZES = ["infinitetalk-480", "infinitetalk-720", ("a resolution of your own", OWN_SIZE)]
FRAME_TIMES = [("null: as dub needs it", ""), "source", "model"]
ORDERS = ["para", "add", "script"]

DISABLED = frozenset(
    (
        "regions",
        "audio_type",
        "negative_prompt",
        "nag",
        "max_frame_num",
        "motion_frame",
        "crossfade_frame",
        *SET_BY_RECIPE,
    )
)
"""Fields that stay in sight without an effect, so that the way to it can be read; others without one are hidden."""

CLICKABLE, PLAIN = "Click two corners of each speaker's box", "Picture"
"""What stands above the picture: whether boxes have an effect."""


def told(field: str, more: str = "") -> dict[str, str]:
    """Label and help of a parameter.

    Args:
        field: of a job, as `help_of` takes it.
        more: what the page adds.
    """
    return {"label": field, "info": f"{help_of(field)} {more}".strip()}


def note_of(text: str) -> Any:
    """A note as the page shows it; an empty one takes no room."""
    return gr.update(value=f'<div class="note">{html.escape(text)}</div>', visible=bool(text))


def direct(inputs: dict[str, Any]) -> list[Any]:
    """Builds the part that directs a video; adds its fields to `inputs`.

    Returns:
        The notes on top of its tabs: places, voices, film.
    """
    notes = []
    with gr.Tab("Places"):
        notes.append(gr.HTML(visible=False))
        inputs["regions"] = gr.Radio(PLACES, value="halves", **told("regions"), elem_id="regions")
        box_help = "x_min, y_min, x_max, y_max in pixels of the upright picture."
        with gr.Row():
            for number in (1, 2):
                name = f"box{number}"
                inputs[name] = gr.Textbox(
                    "", label=f"Box of person{number}", info=box_help, visible=False, elem_id=name
                )
    with gr.Tab("Voices"):
        notes.append(gr.HTML(visible=False))
        inputs["audio_type"] = gr.Dropdown(ORDERS, value="para", **told("audio_type"), elem_id="audio_type")
        inputs["script"] = gr.Textbox(
            "",
            **told("script", "Here, a line for each turn: 4 s: person2, or 4 s to 6 s: person2."),
            placeholder="0 s: person1\n4 s: person2",
            lines=3,
            visible=False,
            elem_id="script",
        )
        with gr.Row():
            for number in (1, 2):
                label = {"label": f"person{number} begins at (s)", "info": help_of("cond_audio.from_s")}
                inputs[f"begin{number}"] = gr.Number(0, step=0.5, **label, elem_id=f"begin{number}")
        inputs["gate"] = gr.Checkbox(
            label="speech.gate: mouths rest in music and noise", info=help_of("speech.gate"), elem_id="gate"
        )
    with gr.Tab("Changes"):
        inputs["later_prompts"] = gr.Textbox(
            "",
            label="Prompt along the video",
            info="A line for each change: the seconds from which it counts, and the prompt. A chunk takes what is in "
            "force at its first frame. The prompt above counts from the start.",
            placeholder="8 s: She laughs\n12.5 s: She looks away",
            lines=3,
            elem_id="later_prompts",
        )
        inputs["later_pictures"] = gr.File(
            label="Pictures or videos along the video",
            file_types=["image", "video"],
            file_count="multiple",
            allow_reordering=True,
            height=140,
            elem_id="later_pictures",
        )
        inputs["later_times"] = gr.Textbox(
            "",
            label="Times of these pictures (s)",
            info="Seconds from which each of them counts, in their order: 8, 12.5. The picture above counts from the "
            "start.",
            visible=False,
            elem_id="later_times",
        )
    with gr.Tab("Film"):
        notes.append(gr.HTML(visible=False))
        inputs["keep"] = gr.Radio(KEEPS, value="none", **told("dub.keep"), elem_id="keep")
        with gr.Row():
            empty = "Empty means null."
            inputs["strength"] = gr.Slider(
                0.05, 1, 1.0, step=0.05, **told("dub.strength"), visible=False, elem_id="strength"
            )
            inputs["fps"] = gr.Dropdown(FRAME_TIMES, value="", **told("output.fps"), visible=False, elem_id="fps")
            # Texts, since a number's field cannot be empty.
            inputs["margin"] = gr.Textbox("0.5", **told("dub.margin", empty), visible=False, elem_id="margin")
            inputs["feather"] = gr.Textbox("", **told("dub.feather", empty), visible=False, elem_id="feather")
        inputs["mix"] = gr.Checkbox(
            label="audio_mix: the film's own sound under the speech",
            info=help_of("audio_mix"),
            visible=False,
            elem_id="mix",
        )
        inputs["mix_db"] = gr.Slider(-60, 12, -12, step=1, **told("audio_mix.source"), visible=False, elem_id="mix_db")
        inputs["scene_seg"] = gr.Checkbox(**told("scene_seg"), visible=False, elem_id="scene_seg")
    return notes


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
        corner, sent_basis, places = gr.State(), gr.State(), gr.State()
        job_id = gr.Textbox(visible=False)
        with gr.Row():
            with gr.Column():
                inputs: dict[str, Any] = {}
                inputs["source"] = gr.File(label="Picture or video", file_types=["image", "video"], elem_id="source")
                picture = gr.Image(
                    label=CLICKABLE,
                    interactive=False,
                    visible=False,
                    height=260,
                    buttons=["fullscreen"],
                    elem_id="preview",
                )
                with gr.Tab("Speech"), gr.Row():
                    inputs["voice1"] = gr.Audio(label="person1", type="filepath", elem_id="voice1")
                    inputs["voice2"] = gr.Audio(label="person2 (optional)", type="filepath", elem_id="voice2")
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
                inputs["prompt"] = gr.Textbox(
                    "A person talks to the camera",
                    label="prompt",
                    info="Description of the video; only its first 512 tokens count. Other prompts from a time on: "
                    "Directing, Changes.",
                    elem_id="prompt",
                )
                inputs["recipe"] = gr.Dropdown(
                    recipe_choices(None, False),
                    value="",
                    label="recipe",
                    info="A recipe sets steps, guidance, chunks and colours itself. Prices tells what each would cost.",
                    elem_id="recipe",
                )
                with gr.Accordion("Directing", open=False, elem_id="directing"):
                    notes = direct(inputs)
                with gr.Accordion("Parameters", open=False, elem_id="parameters"):
                    with gr.Row():
                        inputs["size"] = gr.Dropdown(SIZES, value="infinitetalk-480", **told("size"), elem_id="size")
                        inputs["width"] = gr.Number(832, precision=0, step=16, **told("size.width"), visible=False)
                        inputs["height"] = gr.Number(480, precision=0, step=16, **told("size.height"), visible=False)
                        inputs["mode"] = gr.Dropdown(["clip", "streaming"], value="streaming", **told("mode"))
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
                        inputs["negative_prompt"] = gr.Textbox("", **told("negative_prompt"), interactive=False)
                    with gr.Row():
                        inputs["nag"] = gr.Checkbox(**told("nag"), elem_id="nag")
                        inputs["nag_scale"] = gr.Slider(1, 50, 11.0, **told("nag.scale"), visible=False)
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

        def prepare_to_send(request: gr.Request, *values: Any) -> tuple[Any, ...]:
            try:
                return prepare(*values)
            except gr.Error:
                tabs.end(str(request.session_hash))
                raise

        def prepare(*values: Any) -> tuple[Any, ...]:
            filled = dict(zip(names, values, strict=True))
            try:
                job = job_input(client, filled)
            except (ValueError, InfiniteTalkError) as error:
                raise gr.Error(str(error)) from error
            text = json.dumps({"input": job}, indent=2, ensure_ascii=False)
            return text, curl(client, text), basis(filled)

        def show_job(states: Iterator[Shown], tab: str, sent: tuple[Any, ...] | None) -> Iterator[tuple[Any, ...]]:
            address = None
            try:
                for shown in states:
                    # The player is set once per address; setting it again would restart it.
                    is_new, address = shown.preview != address, shown.preview
                    growing_now = (player(address) if address else "") if is_new else gr.skip()
                    drawn = Told(sent, shown.speakers) if sent and shown.speakers else gr.skip()
                    yield shown.status, growing_now, shown.video, shown.job_id or gr.skip(), drawn
            finally:
                tabs.end(tab)

        def send(text: str, sent: tuple[Any, ...], request: gr.Request) -> Iterator[tuple[Any, ...]]:
            tab = str(request.session_hash)
            yield from show_job(run(client, json.loads(text)["input"], POLL_S, tabs, tab), tab, sent)

        def come_back(request: gr.Request) -> Iterator[tuple[Any, ...]]:
            tab = str(request.session_hash)
            if known := dict(request.query_params).get("job"):
                # Nobody knows whether the picture on the page is that job's.
                yield from show_job(attach(client, known, POLL_S, tabs, tab), tab, None)
            else:
                yield (gr.skip(),) * len(shown)

        def told_of(plan: dict[str, Any], is_of_this_job: bool) -> tuple[Any, ...]:
            choices = gr.update(choices=recipe_choices(plan, is_of_this_job))
            voices = gr.update(choices=plan["voices"] or usual_voices)
            return choices, voices, voices, voice_note(plan)

        def tell_prices(text: str, sent: tuple[Any, ...]) -> tuple[Any, ...]:
            try:
                plan = plan_of(client, json.loads(text)["input"], POLL_S)
            except InfiniteTalkError as error:
                raise gr.Error(str(error)) from error
            drawn = Told(sent, plan["speakers"])
            return prices(plan), drawn, model_banner(plan), *told_of(plan, is_of_this_job=True)

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

        def select(event: gr.SelectData, corner: Point | None, *values: Any) -> tuple[Any, ...]:
            filled = dict(zip(deciding, values, strict=True))
            if not effective(filled)["regions"]:
                gr.Info(place_note(filled))
                return (gr.skip(),) * 4
            return *click(corner, filled["box1"], filled["box2"], list(event.index)), OWN_BOXES

        def draw(corner: Point | None, places: Told | None, *values: Any) -> dict[str, Any]:
            filled = dict(zip(deciding, values, strict=True))
            marked = preview(filled["source"], corner, drawn_boxes(filled, places))
            label = CLICKABLE if effective(filled)["regions"] else PLAIN
            return dict(gr.update(value=marked, visible=marked is not None, label=label))

        def adapt(*values: Any) -> list[Any]:
            filled = dict(zip(deciding, values, strict=True))
            counts = effective(filled)
            notes_now = (note_of(note(filled)) for note in (place_note, speech_note, film_note))
            return [
                *(gr.update(**{"interactive" if name in DISABLED else "visible": counts[name]}) for name in adapted),
                *notes_now,
            ]

        deciding = (*DECIDING, "box1", "box2")
        adapted = list(effective({name: getattr(inputs[name], "value", None) for name in DECIDING}))
        decide = [inputs[name] for name in deciding]
        look = [corner, places, *decide]
        clicked = picture.select(select, [corner, *decide], [corner, inputs["box1"], inputs["box2"], inputs["regions"]])
        clicked.then(draw, look, picture)
        inputs["source"].change(lambda: None, None, corner)
        quick: dict[str, Any] = {"show_progress": "hidden", "trigger_mode": "always_last", "queue": False}
        # A text decides by being there: its letters need not be looked at one by one.
        decided = [field.blur if field is inputs["text"] else field.change for field in decide]
        gr.on([places.change, *decided], draw, look, picture, **quick)
        gr.on(decided, adapt, decide, [*(inputs[name] for name in adapted), *notes], **quick)
        fields, shown = list(inputs.values()), [status, growing, video, job_id, places]
        # Each event has as many runs at once as there are tabs: a job of one tab waits for none of another.
        many: dict[str, Any] = {"concurrency_limit": None}
        begun = generate.click(begin, None, None, queue=False)
        prepared = begun.success(prepare_to_send, fields, [payload, command, sent_basis], **many)
        prepared.success(send, [payload, sent_basis], shown, show_progress="hidden", **many)
        page.load(come_back, None, shown, show_progress="hidden", **many)
        endpoint = [inputs["recipe"], inputs["speaker1"], inputs["speaker2"], speaks]
        page.load(ask_model, None, [model, *endpoint], show_progress="hidden", **many)
        for voice, sample, note in hearing:
            page.load(hear, voice, [sample, note], show_progress="hidden", **many)
            voice.change(hear, voice, [sample, note], show_progress="hidden", **many)
        job_id.change(None, job_id, None, js=NAME_IN_ADDRESS)
        show.click(prepare, fields, [payload, command, sent_basis], **many)
        asked = ask.click(prepare, fields, [payload, command, sent_basis], **many)
        asked.success(tell_prices, [payload, sent_basis], [status, places, model, *endpoint], **many)
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
