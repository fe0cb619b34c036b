"""Colour correction of a chunk, against the reference's, which converts frame by frame with scikit-image."""

import torch
from torch import Tensor

from benchmarks.measure import EVALUATION_S, NO_GPU, Comparison, Goal, Measurement, compare, seconds_of
from benchmarks.reference import UNSET, import_reference, reference_folder
from infinitetalk.generation.color import match_color

NUM_FRAMES, SIDE = 81, 640
#: Difference of two neighbouring pixel levels, in the range [-1, 1].
LEVEL = 2 / 255


def make_pictures() -> tuple[Tensor, Tensor]:
    """Frames (1, 3, 81, 640, 640) and a reference frame (1, 3, 1, 640, 640) in [-1, 1]: soft colours, some grain."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 3, NUM_FRAMES + 1, 8, 8, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(NUM_FRAMES + 1, SIDE, SIDE), mode="trilinear")
    pictures = (smooth + 0.02 * torch.randn(smooth.shape, generator=generator)).clamp(0, 1) * 2 - 1
    return pictures[:, :, 1:].contiguous(), pictures[:, :, :1]


def against_reference(frames: Tensor, reference: Tensor, repeats: int) -> tuple[Comparison, float]:
    """The reference's time against ours, and the largest difference of the results in levels of 255."""
    theirs = import_reference("wan.utils.multitalk_utils").match_and_blend_colors

    def run_theirs() -> Tensor:
        return theirs(frames, reference, 1.0)

    def run_ours() -> Tensor:
        return match_color(frames, reference, 1.0)

    difference = (run_theirs() - run_ours()).abs().max().item() / LEVEL
    return compare(run_theirs, run_ours, repeats), difference


def seconds_on_gpu(frames: Tensor, reference: Tensor, repeats: int) -> float:
    """Seconds on the GPU for frames that are there already."""
    frames, reference = frames.cuda(), reference.cuda()

    def run() -> None:
        match_color(frames, reference, 1.0)
        torch.cuda.synchronize()

    run()
    return min(seconds_of(run) for _ in range(repeats))


def measure_color(repeats: int) -> list[Measurement]:
    """The table's rows about colour correction."""
    what = f"colour correction of {NUM_FRAMES} frames {SIDE}×{SIDE}"
    frames, reference = make_pictures()
    ratio = difference = share = None
    how = how_equal = UNSET
    if reference_folder():
        comparison, difference = against_reference(frames, reference, repeats)
        ratio, how, how_equal = comparison.ratio, str(comparison), "largest difference"
    if torch.cuda.is_available():
        share = 100 * seconds_on_gpu(frames, reference, repeats) / EVALUATION_S
    return [
        Measurement(what, "the reference's, frame by frame", Goal(5, at_least=True, unit="× faster"), ratio, how),
        Measurement(what, "the reference's", Goal(0.5, unit=" of 255"), difference, how_equal),
        Measurement(what, "one evaluation, on a GPU", Goal(1, unit=" %"), share, NO_GPU if share is None else ""),
    ]
