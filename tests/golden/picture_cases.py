"""Cases 08, 09, 13, 14: region masks, sizes, colour and the VAE."""

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from infinitetalk.encoders.vae import decode_latents, encode_frames
from infinitetalk.family import INFINITETALK
from infinitetalk.generation.color import match_color
from infinitetalk.media.sizes import choose_bucket, resize_and_crop, resize_and_crop_mask
from infinitetalk.network.regions import box_regions, default_regions, latent_regions
from tests.golden.folder import Case, Outcome
from tests.golden.formulas import formula_image, number_after, picture_size
from tests.golden.weights import build_vae


def region_masks(case: Case) -> Outcome:
    """Case 08."""
    outcome = Outcome()
    for run in case.runs:
        regions = source_regions(run["people"], run["bbox"], run["face_scale"], *run["source_h_w"])
        masks = latent_regions(regions, *run["target_h_w"], INFINITETALK.vae_scale_factor_spatial)
        if run["people"] == 1:
            # The reference carries a second speaker's mask, all ones, beside that of a single one.
            masks = masks[[0, 0, 1]]
        outcome.tensors[run["name"]] = masks
        outcome.facts.append((f"{run['name']} areas", masks.flatten(1).sum(1).tolist(), run["areas"]))
    return outcome


def source_regions(
    people: int, boxes: Mapping[str, Sequence[float]] | None, face_scale: float, height: int, width: int
) -> Tensor:
    """Regions at the source's size; the reference reads boxes with x and y exchanged."""
    if boxes is None:
        return default_regions(people, height, width, face_scale)
    return box_regions([boxes[f"person{number}"] for number in range(1, people + 1)], height, width, order="yx")


def sizes(case: Case) -> Outcome:
    """Case 09: the tables, the choices of a bucket, and pictures brought to a size."""
    outcome = Outcome()
    for size, table in case.entry["buckets"].items():
        outcome.facts.append(
            (
                size,
                list(INFINITETALK.sizes[size].buckets.items()),
                [(float(ratio), tuple(bucket)) for ratio, bucket in table],
            )
        )
    for row in case.entry["table"]:
        for size in case.entry["buckets"]:
            chosen = choose_bucket(INFINITETALK, size, row["h"], row["w"])
            outcome.facts.append((f"{size} of {row['h']}x{row['w']}", chosen, tuple(row[size])))
    for name in case.tensors:
        *source, height, width = [int(number) for number in re.findall(r"\d+", name)]
        picture = torch.from_numpy(formula_image(*(source or (height, width)))).permute(2, 0, 1)
        if "formula_image>" in case.meaning(name):
            mask = (picture > number_after("formula_image>", case.meaning(name))).to(torch.uint8)
            outcome.tensors[name] = resize_and_crop_mask(mask, height, width)
        else:
            outcome.tensors[name] = resize_and_crop(picture, height, width)
    return outcome


def color(case: Case) -> Outcome:
    """Case 13: one result a strength."""
    return Outcome(
        {
            name: match_color(case.input("clip"), case.input("ref"), number_after("strength_", name))
            for name in case.tensors
        }
    )


def vae(case: Case) -> Outcome:
    """Case 14: a picture followed by grey frames, a clip of several lengths, and latents decoded."""
    network = build_vae(case, "manifest")
    picture_text = case.inputs["image"]
    image = torch.from_numpy(formula_image(*picture_size(picture_text))).permute(2, 0, 1)
    picture = (image / 127.5 - 1.0)[None, :, None]
    zeros = picture.new_zeros(1, 3, int(number_after("followed by", picture_text)), *picture.shape[-2:])
    latents = encode_frames(network, torch.cat([picture, zeros], dim=2))
    video = decode_latents(network, latents)[0]
    tensors = {"latent": latents[0], "latent_single": encode_frames(network, picture)[0], "video": video}
    for name in case.tensors:
        if clip := re.fullmatch(r"latent_clip(\d+)", name):
            tensors[name] = encode_frames(network, case.input("clip")[:, :, : int(clip[1])])[0]
    if "video_frames" in case.tensors:
        listed = re.findall(r"\d+", re.findall(r"frames ([\d, ]+)", case.meaning("video_frames"))[0])
        tensors["video_frames"] = video[:, [int(frame) for frame in listed]]
    if "z" in case.inputs:
        tensors["video_z"] = decode_latents(network, case.input("z")[None])[0]
    return Outcome(tensors)
