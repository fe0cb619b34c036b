"""Trains the tiny talker and writes its weights in the published layout.

    python -m tools.talker.train [--folder checkpoints/tiny-talker-training] [--output infinitetalk/embedded/talker]

Stages, each from the files of earlier ones: `vae`, `speech`, `clips`, `transformer`, `export`.
`--stages` picks some.
An interrupted run resumes from its last checkpoint, at most a minute old; existing clips are kept.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import torch

from tools.talker.data import ClipMaker, load_clips
from tools.talker.export import export, load_image_encoder, load_speech_encoder, load_vae
from tools.talker.train_speech import train_speech
from tools.talker.train_transformer import train_on_silence, train_transformer
from tools.talker.train_vae import train_on_chunks, train_on_clips, train_on_pictures

SEED = 2508
#: Number of clips for the statistics of the latents.
NUM_MEASURED_CLIPS = 12
STAGES = ("vae", "speech", "clips", "transformer", "export")
REPOSITORY = Path(__file__).parents[2]


def make_clips(folder: Path, num_clips: int, num_silent_clips: int) -> None:
    """Writes the transformer's clips into `folder`/clips and `folder`/silent_clips, and the statistics of latents."""
    statistics = folder / "latents.json"
    if not statistics.exists():
        (scratch := statistics.with_suffix(".part")).write_text(json.dumps(measure_latents(folder)))
        scratch.rename(statistics)
    if statistics.stat().st_mtime < (folder / "chunks.pt").stat().st_mtime:
        raise SystemExit(f"the VAE has been trained on since {statistics} and the clips were made of it: remove them")
    print(f"clips: {num_clips}, and {num_silent_clips} silent ones", flush=True)
    maker = ClipMaker(load_vae(folder), load_speech_encoder(folder), load_image_encoder())
    write_clips(folder / "clips", maker, num_clips, is_silent=False)
    write_clips(folder / "silent_clips", maker, num_silent_clips, is_silent=True)


def write_clips(folder: Path, maker: ClipMaker, num_clips: int, is_silent: bool) -> None:
    """Writes the missing ones of the first `num_clips` clips."""
    folder.mkdir(exist_ok=True)
    for number in range(num_clips):
        path = folder / f"{number:05}.pt"
        if not path.exists():
            torch.save(asdict(maker.make(SEED, number, is_silent)), scratch := path.with_suffix(".part"))
            scratch.rename(path)


def measure_latents(folder: Path) -> dict[str, list[float]]:
    """Mean and deviation of each channel of the trained VAE's latents, under the names in its config."""
    maker = ClipMaker(load_vae(folder), load_speech_encoder(folder), load_image_encoder())
    clips = [maker.make(SEED, number) for number in range(NUM_MEASURED_CLIPS)]
    values = torch.cat([clip.latents.float().flatten(1) for clip in clips], dim=1)
    return {"latents_mean": values.mean(dim=1).tolist(), "latents_std": values.std(dim=1).tolist()}


def main() -> None:
    """Runs the stages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=REPOSITORY / "checkpoints" / "tiny-talker-training")
    parser.add_argument("--output", type=Path, default=REPOSITORY / "infinitetalk" / "talker")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument("--picture-steps", type=int, default=1000)
    parser.add_argument("--clip-steps", type=int, default=800)
    parser.add_argument("--speech-steps", type=int, default=250)
    parser.add_argument("--clips", type=int, default=500)
    parser.add_argument("--silent-clips", type=int, default=60)
    parser.add_argument("--chunk-steps", type=int, default=2600)
    parser.add_argument("--transformer-steps", type=int, default=15000)
    parser.add_argument("--silence-steps", type=int, default=2500)
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
    if "export" in arguments.stages:
        export(folder, arguments.output)
        print(f"wrote {arguments.output}", flush=True)


if __name__ == "__main__":
    main()
