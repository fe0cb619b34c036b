"""What is generated is laid over the film where its speakers are, at the film's times, and nothing else changes."""

import tracemalloc
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from infinitetalk.dubbing.clock import even_times, frame_at, mean_rate, own_times
from infinitetalk.dubbing.composite import Placement, drawn_from, lay_over, soft_region
from infinitetalk.dubbing.motion import Motion
from infinitetalk.dubbing.view import View, window_around
from infinitetalk.errors import MediaError
from infinitetalk.family import FAMILIES
from infinitetalk.media.decode import even_frames, extract_frames, film_frames, film_times
from infinitetalk.media.sizes import bucket_of_part, choose_bucket
from tests.media_factory import make_numbered_video, read_number, run_ffmpeg

CHECKOUT = Path(__file__).parents[1]
NTSC = [number * 1001 / 30_000 for number in range(300)]


def test_a_films_own_frames_are_those_that_references_are_made_of(tmp_path: Path) -> None:
    """The model sees what is kept around what it makes, to the level."""
    path = CHECKOUT / "examples/media/drawn_video.mp4"
    assert film_times(path, 0.2, 120) == pytest.approx([0, 0.04, 0.08, 0.12, 0.16])
    references = extract_frames(path, tmp_path, 1, 5)
    with film_frames(path, 0, 5) as frames:
        own = [frame.copy() for frame in frames]
    with film_frames(path, 3, 2) as frames:
        later = [frame.copy() for frame in frames]
    with even_frames(path, 2, 3) as frames:
        even = [frame.copy() for frame in frames]
    assert np.array_equal(own[3:], later) and np.array_equal(own[2:], even)
    for number, frame in enumerate(own):
        assert np.array_equal(references.frame_at(number / 25).permute(1, 2, 0).numpy(), frame)


def uneven_film(folder: Path, name: str) -> Path:
    """Numbered frames at 30 a second, each third one 4 ms late, each third one 8 ms."""
    filters = "settb=1/1000,setpts=PTS+4*mod(N\\,3)"
    options = ("-pix_fmt", "yuv420p", "-enc_time_base", "1:1000", "-video_track_timescale", "90000")
    make_numbered_video(
        folder / name, range(40), "30", *options[: None if name.endswith("mp4") else 4], filters=filters
    )
    return folder / name


def cut_film(folder: Path) -> Path:
    """A film whose edit list skips the first 15 frames."""
    make_numbered_video(folder / "whole.mp4", range(40), "30", "-pix_fmt", "yuv420p")
    run_ffmpeg("-ss", "0.5", "-i", folder / "whole.mp4", "-c", "copy", folder / "cut.mp4")
    return folder / "cut.mp4"


def late_film(folder: Path) -> Path:
    """A film that begins two seconds late."""
    make_numbered_video(folder / "late.mkv", range(20), "50", "-pix_fmt", "yuv420p", filters="setpts=PTS+2/TB")
    return folder / "late.mkv"


def film_of_two_sizes(folder: Path) -> Path:
    options = ("-pix_fmt", "yuv420p", "-bf", "0")
    make_numbered_video(folder / "1.ts", range(20), "25", *options)
    make_numbered_video(folder / "2.ts", range(20, 40), "25", *options, filters="scale=288:96,setpts=PTS+0.8/TB")
    (folder / "both.ts").write_bytes((folder / "1.ts").read_bytes() + (folder / "2.ts").read_bytes())
    return folder / "both.ts"


UNEVEN = {number: round(number * 1000 / 30) / 1000 + 0.004 * (number % 3) for number in range(40)}
FILMS = {
    "uneven.mp4": (lambda folder: uneven_film(folder, "uneven.mp4"), UNEVEN),
    "uneven.mkv": (lambda folder: uneven_film(folder, "uneven.mkv"), UNEVEN),
    "an edit list": (cut_film, {number: (number - 15) / 30 for number in range(15, 40)}),
    "a late begin": (late_film, {number: number / 50 for number in range(20)}),
    "two sizes": (film_of_two_sizes, {number: number / 25 for number in range(40)}),
}


@pytest.mark.parametrize("name", FILMS)
def test_a_films_times_are_those_of_its_frames(name: str, tmp_path: Path) -> None:
    make, times_of = FILMS[name]
    path = make(tmp_path)
    times = film_times(path, 10.0, 120)
    assert times == pytest.approx(list(times_of.values()), abs=2e-6)
    with film_frames(path, 0, len(times)) as frames:
        assert [read_number(frame) for frame in frames] == list(times_of)
    with film_frames(path, 12, len(times) - 12) as frames:
        assert [read_number(frame) for frame in frames] == list(times_of)[12:]
    for start in (0, 11):
        with even_frames(path, start, 15) as frames:
            shown = [list(times_of)[frame_at(times, number / 25)] for number in range(start, start + 15)]
            own = [read_number(frame) for frame in frames]
        assert own == shown[: len(own)] and set(shown[len(own) :]) <= {own[-1]}


def test_of_a_video_with_too_many_frames_a_second_no_more_are_read(tmp_path: Path) -> None:
    """Neither a film nor a mask may cost more than its length allows, even if all its frames are at one time."""
    make_numbered_video(tmp_path / "fast.mkv", range(200), "1000", "-pix_fmt", "yuv420p", filters="setpts=0")
    assert film_times(tmp_path / "fast.mkv", 0.1, 200) == [0.0] * 200
    with pytest.raises(MediaError, match="more than 100 frames a second"):
        film_times(tmp_path / "fast.mkv", 0.1, 100)


def pattern(height: int, width: int) -> np.ndarray:
    """A smooth picture, each of whose pixels is another."""
    y, x = np.mgrid[:height, :width]
    waves = [128 + 100 * np.sin(x / 23 + y / 31), 128 + 100 * np.cos(x / 37 - y / 19), 128 + 90 * np.sin(y / 41)]
    return np.stack(waves, axis=-1).astype(np.uint8)


def test_film_frames_keep_their_times_and_show_the_nearest_generated_frame() -> None:
    clock = own_times(NTSC, 250, [81, 153, 225, 250])
    assert clock.film == tuple(range(300)) and clock.timing.rate == Fraction(30_000, 1001)
    shown = np.array(clock.timing.starts[:-1]) / 90_000
    assert np.abs(shown - NTSC).max() < 1e-5
    assert np.abs(shown - np.array(clock.generated) / 25)[:-1].max() <= 0.02 + 1e-9
    assert clock.timing.starts[-1] == 10 * 90_000
    ranges = [clock.shown_during(*ends) for ends in ((0, 81), (81, 153), (153, 225), (225, 250))]
    assert [number for shown in ranges for number in shown] == list(range(300))


def test_at_25_a_second_the_film_shows_what_it_shows_then() -> None:
    clock = even_times(NTSC, 250)
    assert clock.generated == tuple(range(250))
    assert all(NTSC[number] <= index / 25 + 1e-3 for index, number in enumerate(clock.film))
    assert clock.film[5] == 5 and clock.film[249] == 298


def test_a_frame_that_stands_still_is_repeated_and_every_chunk_gets_a_frame() -> None:
    clock = own_times([0.0, 0.5, 3.0], 101, [81, 100, 101])
    starts = np.array(clock.timing.starts) / 90_000
    assert np.diff(starts).max() <= 0.1
    assert [bool(clock.shown_during(*ends)) for ends in ((0, 81), (81, 100), (100, 101))] == [True, True, True]
    assert all(frame_at([0.0, 0.5, 3.0], start) == shown for start, shown in zip(starts, clock.film, strict=False))
    sparse = own_times([0.0, 0.09, 0.18], 6, [2, 3, 6])
    assert [len(sparse.shown_during(*ends)) > 0 for ends in ((0, 2), (2, 3), (3, 6))] == [True, True, True]
    assert list(sparse.timing.starts) == sorted(set(sparse.timing.starts))


def test_frames_at_the_same_time_are_one() -> None:
    clock = own_times([0.0, 0.04, 0.04, 0.08], 4, [4])
    assert clock.film[:3] == (0, 2, 3) and list(clock.timing.starts) == sorted(set(clock.timing.starts))


@pytest.mark.parametrize("ticks", [1, 20, 374])
def test_frames_close_together_are_one_and_a_still_has_at_most_120_a_second(ticks: int) -> None:
    clock = own_times([number * ticks / 90_000 for number in range(3)], 125, [81, 125])
    lengths = np.diff(clock.timing.starts)
    assert lengths.min() >= 375 and len(clock.film) <= 5 * 120 + 1 and clock.film[-1] == 2
    assert clock.timing.starts[-1] == 5 * 90_000


def test_no_frame_is_lost_at_120_a_second_in_a_container_of_milliseconds() -> None:
    clock = own_times([round(number / 120, 3) for number in range(240)], 50, [50])
    assert clock.film == tuple(range(240))


@pytest.mark.parametrize(
    ("times", "rate"), [(NTSC, 30_000 / 1001), ([0.0] * 4, 25), ([0.0, 1e-6], 120), ([0.0], 25), ([0.0, 0.5, 2.0], 1)]
)
def test_the_mean_rate_of_frames_at_one_time_is_25_and_never_beyond_the_most(times: list[float], rate: float) -> None:
    assert mean_rate(times) == pytest.approx(rate)


def test_a_film_that_ends_first_holds_its_last_frame() -> None:
    clock = own_times(NTSC[:30], 50, [50])
    assert clock.film[-1] == 29 and clock.generated[-1] == 49
    assert clock.timing.starts[-1] == 2 * 90_000
    assert set(np.diff(clock.timing.starts[:-1])) == {3003}


@pytest.mark.parametrize("num_generated", range(40, 60))
def test_the_last_frame_ends_with_the_sound_to_half_a_frame(num_generated: int) -> None:
    for times in (NTSC, NTSC[:31]):
        *_, last, end = own_times(times, num_generated, [num_generated]).timing.starts
        assert abs(end - last - 3003) <= 3003 / 2 + 1


@pytest.mark.parametrize("shift", [(0, 0), (7.3, -4.6)])
def test_nothing_outside_the_region_changes_and_inside_the_generated_frame_shows(shift: tuple[float, float]) -> None:
    film, mask = pattern(200, 300), np.zeros((200, 300), bool)
    mask[60:140, 100:200] = True
    centres = np.array([[150.0, 100.0], [150.0 + shift[0], 100.0 + shift[1]]])
    motion = Motion(centres, np.ones(2), np.ones(2))
    view = View(window_around([[100, 60, 200, 140]], 0.2, (200, 300), (128, 128)), 128, 128, [motion])
    generated = np.full((128, 128, 3), (250, 10, 30), np.uint8)
    shown = film.copy()
    lay_over(shown, generated, view.placement(1), [soft_region(mask, 12, motion)], 1)
    moved = np.zeros_like(mask)
    x, y = (int(np.floor(part)) for part in shift)
    moved[60 + y : 141 + y, 100 + x : 201 + x] = True
    assert np.array_equal(shown[~moved], film[~moved])
    # The edge's colours are the film's there, on average; the middle differs from the film as the picture does.
    middle = shown[90 + y : 110 + y, 130 + x : 170 + x].reshape(-1, 3)
    assert np.ptp(middle, axis=0).max() <= 1


def test_a_cut_laid_back_is_the_film_itself() -> None:
    film = pattern(240, 320)
    motion = Motion(np.array([[160.0, 120.0], [170.5, 111.25]]), np.array([1.0, 1.1]), np.ones(2))
    view = View(window_around([[100, 60, 220, 180]], 0.1, (240, 320), (128, 128)), 128, 128, [motion])
    mask = np.zeros((240, 320), bool)
    mask[60:180, 100:220] = True
    for frame in (0, 1):
        shown = film.copy()
        lay_over(shown, view.cut(film, frame), view.placement(frame), [soft_region(mask, None, motion)], frame)
        assert np.abs(shown.astype(int) - film).max() <= 3


@pytest.mark.parametrize("away", [(200.0, 0.0), (-200.0, 0.0), (0.0, 150.0), (0.0, -150.0)])
def test_a_speaker_beyond_the_part_that_is_generated_stays_the_films(away: tuple[float, float]) -> None:
    film, mask = pattern(400, 500), np.zeros((400, 500), bool)
    mask[180:220, 230:270] = True
    still = Motion.still((250, 200), 2)
    walks = Motion(np.array([[250.0, 200.0], [250.0 + away[0], 200.0 + away[1]]]), np.ones(2), np.ones(2))
    view = View(window_around([[230, 180, 270, 220]], 0, (400, 500), (128, 128)), 128, 128, [still])
    shown = film.copy()
    lay_over(shown, 255 - view.cut(film, 1), view.placement(1), [soft_region(mask, 4, walks)], 1)
    assert np.array_equal(shown, film)


def test_a_lost_face_leaves_the_film_as_it_is() -> None:
    film = pattern(100, 100)
    motion = Motion(np.full((1, 2), 50.0), np.ones(1), np.zeros(1))
    shown = film.copy()
    lay_over(shown, 255 - film, Placement(50, 50, 1, 50, 50), [soft_region(np.ones((100, 100), bool), 5, motion)], 0)
    assert np.array_equal(shown, film)


def test_a_window_holds_the_regions_and_stays_within_the_film() -> None:
    for boxes in ([[10, 10, 60, 90]], [[1200, 600, 1280, 720]], [[0, 0, 1280, 720]], [[500, 300, 560, 380]]):
        for bucket in ((128, 128), (96, 192), (160, 96)):
            window = window_around(boxes, 0.5, (720, 1280), bucket)
            assert window.width / window.height == pytest.approx(bucket[1] / bucket[0])
            assert window.x - window.width / 2 >= -1e-9 and window.x + window.width / 2 <= 1280 + 1e-9
            assert window.y - window.height / 2 >= -1e-9 and window.y + window.height / 2 <= 720 + 1e-9
    (box,) = boxes
    assert window.x - window.width / 2 <= box[0] and window.x + window.width / 2 >= box[2]


@pytest.mark.parametrize("scale", [1.0, 0.2])
@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_a_part_of_a_buckets_shape_gets_that_bucket(family, scale: float) -> None:
    """What is cut out of a film has the size that is generated, so that nothing is scaled or cropped again."""
    for size in ("infinitetalk-480", "infinitetalk-720"):
        for height, width in family.size(size).buckets.values():
            bucket = bucket_of_part(family, size, height, width, scale)
            assert choose_bucket(family, size, *bucket, scale) == bucket


@pytest.mark.parametrize("scale", [2.0, 5.0, 9.0])
@pytest.mark.parametrize("centre", [(160.0, 120.0), (30.0, 200.0)])
def test_a_window_that_has_grown_beyond_the_film_shows_its_edge_going_on(scale, centre) -> None:
    film = pattern(240, 320)
    motion = Motion(np.array([[160.0, 120.0], centre]), np.array([1.0, scale]), np.ones(2))
    view = View(window_around([[100, 60, 220, 180]], 0.1, (240, 320), (128, 128)), 128, 128, [motion])
    beyond = 1200
    padded = np.pad(film, [(beyond, beyond), (beyond, beyond), (0, 0)], "edge")
    whole = View(
        replace(view.window, x=view.window.x + beyond, y=view.window.y + beyond),
        128,
        128,
        [replace(motion, centres=motion.centres + beyond)],
    )
    difference = np.abs(view.cut(film, 1).astype(int) - whole.cut(padded, 1))
    # The film's pixels are averaged in groups, which begin elsewhere.
    assert difference.mean() < 1.5 and np.quantile(difference, 0.99) < 24


def test_a_speaker_who_grows_and_shrinks_much_takes_no_memory() -> None:
    """A mask of one pixel that becomes the whole film, and the other way round."""
    film = pattern(540, 960)
    for scale in (720.0, 1 / 720):
        motion = Motion(np.full((2, 2), 250.0), np.array([1.0, scale]), np.ones(2))
        view = View(window_around([[250, 250, 251, 251]], None, (540, 960), (240, 416)), 240, 416, [motion])
        region = soft_region(np.ones((540, 960), bool), 20, motion)
        tracemalloc.start()
        lay_over(film, view.cut(film, 1), view.placement(1), [region], 1)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 40 * film.nbytes


def test_regions_are_cut_as_the_film_is() -> None:
    motion = Motion.still((60, 50), 1)
    view = View(window_around([[20, 10, 100, 90]], 0, (100, 200), (64, 64)), 64, 64, [motion])
    region = torch.zeros(1, 100, 200, dtype=torch.bool)
    region[0, 10:90, 20:60] = True
    cut = view.cut_regions(region)[0]
    assert cut[:, :31].all() and not cut[:, 33:].any()


def test_a_picture_made_smaller_is_averaged() -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    small = drawn_from(stripes, Placement(8, 8, 0.25, 32, 32), 16, 16)
    assert np.abs(small[2:-2, 2:-2].astype(int) - 127).max() <= 2
