"""Makes the small copy of the reference vectors that the project's own tests keep.

`python -m tests.golden.make_small FOLDER SMALL_FOLDER` keeps the tensors named below, of the cases that the folder has.
"""

import argparse
import json
import re
from pathlib import Path
from typing import Any

import safetensors.numpy

#: Which tensors of which case stay, as regular expressions: enough to guard each module, in some hundred KB.
KEPT = {
    "case01_time_embedding": ".*",
    "case02_rope3d": "q128_rot",
    "case03_wav2vec_base": "embedding",
    "case03_wav2vec_stable": "embedding",
    "case03_loudness": ".*",
    "case04_audio_windows": ".*",
    "case05_audio_proj": "slots_.*|tokens_two",
    "case06_dit_single": "out_1",
    "case07_dit_two": "out_1|ref_target_masks|x_ref_attn_map|normalized_pos",
    "case08_masks": "one_640x448|two_default_640x448|two_bbox_480x640",
    "case09_buckets": "down_.*|nearest_.*",
    "case10_timesteps": ".*",
    "case11_guidance": "cfg_t1_a2|apg2_t5_a4",
    "case12_teacache": "(calc|rel|acc)_.*",
    "case13_color": "strength_0.5",
    "case14_vae": "latent_clip.*",
    "case15_single_chunk": "final_latent",
    "case15_two_people": "final_latent",
    "case16_stream_video": "motion_latent",
    "case17_renoise_timesteps": ".*",
    "case18_flashtalk_chunk": "final_latent",
    "case18_flashtalk_stream": "motion_latent",
}


def make_small(folder: Path, small_folder: Path) -> None:
    """Write the kept cases of `folder`, with the manifests that they name, to `small_folder`."""
    small_folder.mkdir(parents=True, exist_ok=True)
    index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    index["set"] = "small"
    cases = index["cases"]
    index["cases"] = {
        name: _keep(folder, small_folder, cases[name], kept) for name, kept in KEPT.items() if name in cases
    }
    _write_json(small_folder / "index.json", index)


def _keep(folder: Path, small_folder: Path, entry: dict[str, Any], kept: str) -> dict[str, Any]:
    tensors = safetensors.numpy.load_file(folder / entry["file"])
    tensors = {name: tensor for name, tensor in tensors.items() if re.fullmatch(kept, name)}
    safetensors.numpy.save_file(tensors, small_folder / entry["file"])
    for manifest in (entry[name] for name in ("manifest", "vae_manifest") if name in entry):
        _write_json(small_folder / manifest, json.loads((folder / manifest).read_text(encoding="utf-8")))
    # What describes the case to a reader stays in the full folder.
    kept_entry = {name: value for name, value in entry.items() if not name.startswith("noise_")}
    kept_entry["tensors"] = {name: value for name, value in entry["tensors"].items() if name in tensors}
    # Without the tensors of its loop, case 12 is the decisions alone.
    return {name: value for name, value in kept_entry.items() if not (name == "loop" and "final_latent" not in tensors)}


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, separators=(",", ":")) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.golden.make_small", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("small_folder", type=Path)
    arguments = parser.parse_args()
    make_small(arguments.folder, arguments.small_folder)
