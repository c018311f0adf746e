"""Measures face networks in insightface, on drawn people and clutter that they were not trained on."""

import dataclasses
import functools
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from scripts.demo.drawn_faces import INNER_LIPS, render_frame
from scripts.demo.drawn_people import Person, random_person
from scripts.demo.face_pictures import degrade, random_clutter, random_moment, random_redress
from vexpress.media.faces import Face, FaceAnalyzer
from vexpress.media.video import read_frames, write_video

HELDOUT_PEOPLE_SEED, HELDOUT_CLUTTER_SEED = 2**31, 2**31 + 2**30


@dataclasses.dataclass(frozen=True)
class Shot:
    """A picture of a held-out person: (H W 3) uint8, what is where in it, in px, and how open the mouth is, 0..1."""

    pixels: np.ndarray
    kps: np.ndarray
    landmarks: np.ndarray
    bbox: np.ndarray
    aperture: float


def render_heldout_shots(num_people: int) -> dict[str, list[Shot]]:
    """Renders each person in several cases: other pose, mouth and light, at times other clothes or background.

    Two of three people have natural colours, see `is_natural`.
    """
    cases: dict[str, list[Shot]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for index in range(num_people):
            rng = np.random.default_rng((HELDOUT_PEOPLE_SEED, index))
            take = functools.partial(random_shot, rng, random_person(rng, is_natural(index)), is_natural(index))
            shots = {f"{size_px} px": take(size_px) for size_px in (96, 128, 256, 512)}
            shot = take(128)
            shots["128 px, degraded"] = dataclasses.replace(shot, pixels=degrade(rng, shot.pixels))
            shot, path = take(128), Path(folder) / "clip.mp4"
            write_video(path, [shot.pixels] * 2, 30, crf=32)
            *_, (_, decoded) = read_frames(path)
            shots["128 px, H.264"] = dataclasses.replace(shot, pixels=decoded)
            shots["small in 512 px"] = put_into_clutter(rng, take(int(rng.integers(128, 384))))
            for case, shot in shots.items():
                cases.setdefault(case, []).append(shot)
    return cases


def random_shot(rng: np.random.Generator, person: Person, natural: bool, size_px: int) -> Shot:
    """A frame of someone in a random moment."""
    motion, mouth = random_moment(rng)
    frame = render_frame(random_redress(rng, person, natural), motion, mouth, size_px)
    return Shot(frame.pixels, frame.kps, frame.landmarks, frame.bbox, float(mouth[0]))


def is_natural(index: int) -> bool:
    """Whether the held-out person of this index has natural colours."""
    return index % 3 > 0


def put_into_clutter(rng: np.random.Generator, shot: Shot) -> Shot:
    """The same shot somewhere in a picture of 512 px."""
    pixels, size = random_clutter(rng, 512), len(shot.pixels)
    x, y = rng.integers(0, 512 - size, 2)
    pixels[y : y + size, x : x + size] = shot.pixels
    bbox = shot.bbox + [x, y, x, y]
    return dataclasses.replace(shot, pixels=pixels, kps=shot.kps + [x, y], landmarks=shot.landmarks + [x, y], bbox=bbox)


def lip_distance(landmarks: np.ndarray) -> float:
    """Height of the mouth's opening in widths of the face's contour."""
    width = np.linalg.norm(landmarks[32] - landmarks[0])
    return float(np.linalg.norm(landmarks[INNER_LIPS[6]] - landmarks[INNER_LIPS[2]]) / width)


def compare(shots: list[Shot], found: list[list[Face]]) -> dict[str, float | int | None]:
    """What insightface found in the shots of a case against what is in them."""
    pairs = [(shot, faces[0]) for shot, faces in zip(shots, found) if faces]
    kps = [np.linalg.norm(face.kps - shot.kps, axis=1).mean() / shot.pixels.shape[1] for shot, face in pairs]
    landmarks = [
        np.linalg.norm(face.landmark_2d_106 - shot.landmarks, axis=1).mean() / (shot.bbox[2] - shot.bbox[0])
        for shot, face in pairs
    ]
    lips = [lip_distance(face.landmark_2d_106) for _, face in pairs]
    apertures = [shot.aperture for shot, _ in pairs]

    def percent(values: list[float], figure: Callable[[list[float]], float]) -> float | None:
        return round(100 * float(figure(values)), 3) if values else None

    return {
        "shots": len(shots),
        "missed": len(shots) - len(pairs),
        "false_faces": sum(max(0, len(faces) - 1) for faces in found),
        "lowest_score": round(min((face.det_score for _, face in pairs), default=0.0), 3),
        "kps_error_percent_of_frame": percent(kps, np.mean),
        "kps_error_percent_of_frame_p95": percent(kps, lambda values: np.percentile(values, 95)),
        "landmark_error_percent_of_face": percent(landmarks, np.mean),
        "landmark_error_percent_of_face_p95": percent(landmarks, lambda values: np.percentile(values, 95)),
        "mouth_correlation": round(float(np.corrcoef(lips, apertures)[0, 1]), 4) if len(pairs) > 2 else None,
    }


def verify(embeddings: list[list[np.ndarray]], rng: np.random.Generator) -> dict[str, float | int]:
    """Tells pairs of pictures of one person from pairs of two, as many of each.

    Args:
        embeddings: for each person those of their pictures, (512) each.
        rng: chooses the pairs. The threshold is the best one for one half of them, the accuracy that on the other half.
    """
    units = [[values / np.linalg.norm(values) for values in person] for person in embeddings if len(person) > 1]
    if len(units) < 2:
        return {"people": len(units)}
    same, other = [], []
    for _ in range(4000):
        one, two = rng.choice(len(units), 2, replace=False)
        first, second = rng.choice(len(units[one]), 2, replace=False)
        same.append(float(units[one][first] @ units[one][second]))
        other.append(float(units[one][first] @ units[two][rng.integers(len(units[two]))]))
    same, other = np.array(same), np.array(other)

    def accuracy(threshold: float, part: slice) -> float:
        return float(((same[part] > threshold).mean() + (other[part] <= threshold).mean()) / 2)

    threshold = max(np.linspace(-1, 1, 401), key=lambda value: accuracy(value, slice(None, None, 2)))
    return {
        "people": len(units),
        "pairs": len(same) + len(other),
        "accuracy": round(accuracy(threshold, slice(1, None, 2)), 4),
        "threshold": round(float(threshold), 3),
        "same_cosine": round(float(same.mean()), 3),
        "same_cosine_p5": round(float(np.percentile(same, 5)), 3),
        "other_cosine": round(float(other.mean()), 3),
        "other_cosine_p95": round(float(np.percentile(other, 95)), 3),
    }


def measure_networks(folder: Path, num_people: int) -> dict:
    """Measures the exported networks through insightface, on people and clutter that they were not trained on."""
    analyzer = FaceAnalyzer(folder, modules=("detection", "landmark_2d_106", "recognition"))
    cases = render_heldout_shots(num_people)
    found = {case: [analyzer.detect(shot.pixels) for shot in shots] for case, shots in cases.items()}
    rng = np.random.default_rng(HELDOUT_CLUTTER_SEED)
    empty = [degrade(rng, random_clutter(rng, int(rng.choice([96, 128, 256, 512])))) for _ in range(3 * num_people)]
    people = [[faces[index] for faces in found.values() if faces[index]] for index in range(num_people)]
    embeddings = [[faces[0].embedding for faces in person] for person in people]
    natural = [person for index, person in enumerate(embeddings) if is_natural(index)]
    return {
        "cases": {case: compare(shots, found[case]) for case, shots in cases.items()},
        "without_face": {"pictures": len(empty), "false_faces": sum(len(analyzer.detect(pixels)) for pixels in empty)},
        "recognition_natural": verify(natural, rng),
        "recognition_all": verify(embeddings, rng),
        "bytes": {path.name: path.stat().st_size for path in sorted((folder / "models/buffalo_l").glob("*.onnx"))},
    }
