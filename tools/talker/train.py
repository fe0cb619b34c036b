"""Trains the tiny talker and writes its weights in the published layout.

    python -m tools.talker.train [--folder checkpoints/tiny-talker-training] [--output infinitetalk/embedded/talker]

Stages, each from the files of earlier ones: `vae`, `speech`, `clips`, `transformer`, `sharpen`, `flashtalk`, `export`.
All but `sharpen` work at half size, which has the same latents.
`--stages` picks some.
An interrupted run resumes from its last checkpoint, at most a minute old; existing clips are kept.
"""

import argparse
import json
from pathlib import Path

import torch

from infinitetalk.embedded.tiny import TALKER_FLASHTALK_FOLDER, TALKER_FOLDER
from tools.talker.data import (
    FLASHTALK_CLIPS,
    GUIDED_CLIPS,
    ClipKind,
    ClipMaker,
    load_clips,
    load_scenes,
    write_clips,
)
from tools.talker.distil import distil
from tools.talker.export import (
    export,
    export_flashtalk,
    load_half_vae,
    load_image_encoder,
    load_speech_encoder,
)
from tools.talker.sharpen import sharpen_edges, sharpen_on_chunks, sharpen_on_clips
from tools.talker.train_speech import train_speech
from tools.talker.train_transformer import train_on_silence, train_transformer
from tools.talker.train_vae import train_on_chunks, train_on_clips, train_on_pictures

SEED = 2508
#: Number of clips for the statistics of the latents.
NUM_MEASURED_CLIPS = 12
STAGES = ("vae", "speech", "clips", "transformer", "sharpen", "flashtalk", "export")
REPOSITORY = Path(__file__).parents[2]


def make_clips(folder: Path, num_clips: int, num_silent_clips: int) -> None:
    """Makes the clips for the guided talker."""
    statistics = folder / "latents.json"
    if not statistics.exists():
        (scratch := statistics.with_suffix(".part")).write_text(json.dumps(measure_latents(folder)))
        scratch.rename(statistics)
    if statistics.stat().st_mtime < (folder / "chunks.pt").stat().st_mtime:
        raise SystemExit(f"the VAE has been trained on since {statistics} and the clips were made of it: remove them")
    print(f"clips: {num_clips}, and {num_silent_clips} silent ones", flush=True)
    maker = clip_maker(folder, GUIDED_CLIPS)
    write_clips(folder / "clips", maker, SEED, num_clips, is_silent=False)
    write_clips(folder / "silent_clips", maker, SEED, num_silent_clips, is_silent=True)


def make_flashtalk_clips(folder: Path, num_clips: int, num_silent_clips: int) -> None:
    """Makes the clips for FlashTalk's recipe."""
    print(f"FlashTalk's clips: {num_clips}, and {num_silent_clips} silent ones", flush=True)
    maker = clip_maker(folder, FLASHTALK_CLIPS)
    write_clips(folder / "flashtalk_clips", maker, SEED, num_clips, is_silent=False)
    write_clips(folder / "flashtalk_silent_clips", maker, SEED, num_silent_clips, is_silent=True)


def clip_maker(folder: Path, kind: ClipKind) -> ClipMaker:
    """Makes clips at half size with the trained networks."""
    return ClipMaker(load_half_vae(folder), load_speech_encoder(folder), load_image_encoder(), kind)


def measure_latents(folder: Path) -> dict[str, list[float]]:
    """Mean and deviation of each channel of the trained VAE's latents, under the names in its config."""
    maker = clip_maker(folder, GUIDED_CLIPS)
    clips = [maker.make(SEED, number) for number in range(NUM_MEASURED_CLIPS)]
    values = torch.cat([clip.latents.float().flatten(1) for clip in clips], dim=1)
    return {"latents_mean": values.mean(dim=1).tolist(), "latents_std": values.std(dim=1).tolist()}


def main() -> None:
    """Runs the stages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=REPOSITORY / "checkpoints" / "tiny-talker-training")
    parser.add_argument("--output", type=Path, default=TALKER_FOLDER)
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument("--picture-steps", type=int, default=1000)
    parser.add_argument("--clip-steps", type=int, default=800)
    parser.add_argument("--speech-steps", type=int, default=250)
    parser.add_argument("--clips", type=int, default=500)
    parser.add_argument("--silent-clips", type=int, default=60)
    parser.add_argument("--chunk-steps", type=int, default=2600)
    parser.add_argument("--transformer-steps", type=int, default=15000)
    parser.add_argument("--silence-steps", type=int, default=2500)
    parser.add_argument("--flashtalk-clips", type=int, default=150)
    parser.add_argument("--flashtalk-silent-clips", type=int, default=30)
    parser.add_argument("--sharp-clip-steps", type=int, default=650)
    parser.add_argument("--sharp-chunk-steps", type=int, default=360)
    parser.add_argument("--edge-steps", type=int, default=400)
    parser.add_argument("--flashtalk-steps", type=int, default=2500)
    parser.add_argument("--flashtalk-output", type=Path, default=TALKER_FLASHTALK_FOLDER)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    folder: Path = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    if "vae" in arguments.stages:
        train_on_pictures(folder, arguments.picture_steps, SEED)
        train_on_clips(folder, arguments.clip_steps, SEED)
        train_on_chunks(folder, arguments.chunk_steps, SEED)
    if "speech" in arguments.stages:
        train_speech(folder, arguments.speech_steps, SEED)
    if "clips" in arguments.stages:
        make_clips(folder, arguments.clips, arguments.silent_clips)
    if "transformer" in arguments.stages:
        clips = load_clips(folder / "clips")
        train_transformer(folder, clips, arguments.transformer_steps, SEED)
        train_on_silence(folder, clips, load_clips(folder / "silent_clips"), arguments.silence_steps, SEED)
    if "sharpen" in arguments.stages or "flashtalk" in arguments.stages:
        make_flashtalk_clips(folder, arguments.flashtalk_clips, arguments.flashtalk_silent_clips)
    if "sharpen" in arguments.stages:
        scenes = load_scenes(folder / "flashtalk_clips")
        sharpen_on_clips(folder, arguments.sharp_clip_steps, SEED)
        sharpen_on_chunks(folder, scenes, arguments.sharp_chunk_steps, SEED)
        sharpen_edges(folder, scenes, arguments.edge_steps, SEED)
    if "flashtalk" in arguments.stages:
        clips, silent_clips = load_clips(folder / "flashtalk_clips"), load_clips(folder / "flashtalk_silent_clips")
        distil(folder, clips, silent_clips, arguments.flashtalk_steps, SEED)
    if "export" in arguments.stages:
        export(folder, arguments.output)
        export_flashtalk(folder, arguments.flashtalk_output)
        print(f"wrote {arguments.output} and {arguments.flashtalk_output}", flush=True)


if __name__ == "__main__":
    main()
