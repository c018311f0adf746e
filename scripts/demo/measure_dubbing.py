"""Measures dubbing on a drawn film: does the new mouth follow the new speech, and does all else stay?

python -m scripts.demo.measure_dubbing --output_dir runs/dubbing

The film shows a person, an empty room, and another person, between cuts; both speeches are held-out clips of the pack.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from scripts.demo.clip_figures import best_lag, correlation_or_zero
from scripts.demo.drawn_people import mouth_from_speech, random_motion, random_person
from scripts.demo.drawn_scene import SceneFrame, Shot, film, random_wall
from scripts.demo.mouth_meter import measure_mouth
from vexpress.cli.parser import ArgumentParser
from vexpress.cli.program import run_program, set_up_logging
from vexpress.dubbing.dub import Dubber, plan_dub
from vexpress.dubbing.shots import Track, find_tracks
from vexpress.media.audio import WAV2VEC2_RATE_HZ, Audio, load_audio
from vexpress.media.faces import FaceAnalyzer, FaceDetector
from vexpress.media.video import read_frames, write_video
from vexpress.model_folder import EMBEDDED_MODEL_DIR, LAYOUT
from vexpress.options import SamplingOptions, load_model_defaults
from vexpress.pipeline import VExpressPipeline

WIDTH, HEIGHT = 320, 240
SHOT_FRAMES, EMPTY_FRAMES = 48, 10
NUM_CLIPS = 10  # held out


def speech(*clips: int) -> Audio:
    """The sound of some of the pack's held-out clips, one after the other and equally loud, at 16 kHz."""
    paths = [EMBEDDED_MODEL_DIR / "heldout" / "clips" / f"heldout_{clip:04}.mp4" for clip in clips]
    sounds = [load_audio(path).resampled_mono(WAV2VEC2_RATE_HZ).numpy() for path in paths]
    return Audio(np.concatenate([0.1 * sound / sound.std() for sound in sounds])[None], WAV2VEC2_RATE_HZ)


def mouths(audio: Audio, num_frames: int, fps: float) -> np.ndarray:
    """(f 2): what a drawn mouth does to a speech."""
    return mouth_from_speech(audio.samples[0], audio.sampling_rate_hz, num_frames, fps)


def make_film(
    path: Path,
    sound: Audio,
    fps: float = 30.0,
    num_frames: int = SHOT_FRAMES,
    num_empty: int = EMPTY_FRAMES,
    seed: int = 0,
    size: tuple[int, int] = (WIDTH, HEIGHT),
    **encoding: bool,
) -> list[SceneFrame]:
    """Writes a film of two shots with a person and an empty one between them, lossless unless `encoding` says more.

    Args:
        path: to write.
        sound: its speech.
        fps: frames per second.
        num_frames: of a shot with a person.
        num_empty: of the shot without; 0 leaves it out.
        seed: of people, motion and walls.
        size: width and height in px.
        encoding: options of `write_video`.

    Returns:
        Its frames, with all labels.
    """
    rng, (width, height) = np.random.default_rng(seed), size
    mouth = mouths(sound, 2 * num_frames + num_empty, fps)
    shots = []
    for index, (share, place) in enumerate(((0.8, 0.05), (0.7, 0.45))):
        start = index * (num_frames + num_empty)
        motion, wall = random_motion(rng, num_frames, fps), random_wall(rng, width, height)
        own = mouth[start : start + num_frames]
        shots.append(
            Shot(wall, num_frames, random_person(rng), motion, own, round(share * height), round(place * width))
        )
    empty = [Shot(random_wall(rng, width, height), num_empty)] if num_empty else []
    frames = list(film([shots[0], *empty, shots[1]]))
    write_video(path, (frame.pixels for frame in frames), fps, sound, **({"is_lossless": True} | encoding))
    return frames


def track_figures(
    track: Track, dubbed: np.ndarray, scene: list[SceneFrame], new: np.ndarray, old: np.ndarray
) -> dict[str, float]:
    """What the mouth of a track does: `new` and `old` are the apertures of the two speeches."""
    rows = slice(track.start, track.stop)
    kps = np.stack([frame.kps for frame in scene[rows]])
    mouth = measure_mouth(dubbed[rows], kps)
    return {
        "aperture_r": correlation_or_zero(mouth[:, 0], new[rows, 0]),
        "width_r": correlation_or_zero(mouth[:, 1], new[rows, 1]),
        "aperture_r_old_speech": correlation_or_zero(mouth[:, 0], old[rows, 0]),
        "lag_frames": best_lag(mouth[:, 0], new[rows, 0]),
        "kps_error_px": float(np.linalg.norm(track.kps - kps[:, :3], axis=2).mean()),
    }


def measure(
    folder: Path,
    pipeline: VExpressPipeline,
    detector: FaceDetector,
    options: SamplingOptions,
    seed: int = 0,
    clips: tuple[int, int] = (0, 3),
    **how: float,
) -> tuple[list[dict[str, float]], dict[str, float]]:
    """Dubs one film.

    Args:
        folder: for its files.
        pipeline: of the model; likewise `detector` and `options`.
        seed: of the film.
        clips: numbers of held-out clips; they and the next ones are the old and the new speech.
        how: options of `make_film`.

    Returns:
        Figures of each track, and of the whole film.
    """
    old, new = (speech(clip, (clip + 1) % NUM_CLIPS) for clip in clips)
    scene = make_film(folder / "film.mkv", old, seed=seed, **how)
    fps = how.get("fps", 30.0)
    timeline, tracks = find_tracks(folder / "film.mkv", detector, options)
    plan = plan_dub(folder / "film.mkv", timeline, tracks, new, "video", options.fps)
    masks = np.zeros((len(scene), *scene[0].pixels.shape[:2]), bool)

    def on_mask(number: int, mask: np.ndarray, box) -> None:
        left, top = int(box.left), int(box.top)
        inside = masks[number, max(top, 0) : top + box.height, max(left, 0) : left + box.width]
        inside |= mask[max(-top, 0) :, max(-left, 0) :][: inside.shape[0], : inside.shape[1]] > 0

    frames = Dubber(plan, pipeline, options).frames(on_mask)
    write_video(folder / "dubbed.mkv", frames, plan.fps_of_file, plan.audio, times=plan.times, is_lossless=True)
    dubbed = np.stack([frame for _, frame in read_frames(folder / "dubbed.mkv")])
    apertures = [mouths(audio, len(scene), fps) for audio in (new, old)]
    per_track = [track_figures(track, dubbed, scene, *apertures) for track in tracks]
    pixels = np.stack([frame.pixels for frame in scene])
    changed = (dubbed != pixels).any(3)
    return per_track, {
        "num_tracks": len(tracks),
        "frames_without_face_changed": int(changed[~masks.any((1, 2))].any((1, 2)).sum()),
        "pixels_changed_outside_masks": int((changed & ~masks).sum()),
        "share_of_masks": float(masks.mean()),
        "mean_difference_in_masks": float(np.abs(dubbed.astype(int) - pixels)[masks].mean()),
    }


def summary(results: list[tuple[list[dict[str, float]], dict[str, float]]]) -> Mapping[str, float]:
    """Means over tracks and films, and the lowest aperture r."""
    tracks = [track for tracks, _ in results for track in tracks]
    figures = {f"{name}": float(np.mean([track[name] for track in tracks])) for name in tracks[0]}
    figures["aperture_r_worst"] = min(track["aperture_r"] for track in tracks)
    figures["largest_lag_frames"] = max(abs(track["lag_frames"]) for track in tracks)
    return figures | {name: float(np.mean([film[name] for _, film in results])) for name in results[0][1]}


def main(arguments: list[str] | None = None) -> None:
    """Prints the figures."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model_dir", type=Path, default=EMBEDDED_MODEL_DIR)
    parser.add_argument("--output_dir", type=Path, required=True, help="for the films")
    parser.add_argument("--num_films", type=int, default=4)
    parser.add_argument("--fps", type=float, default=30.0, help="of the films")
    args = parser.parse_args(arguments)
    set_up_logging()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    options = SamplingOptions(**load_model_defaults(args.model_dir))
    pipeline = VExpressPipeline.from_pretrained(args.model_dir)
    pipeline.set_progress_bar_config(disable=True)
    detector = FaceAnalyzer(args.model_dir / LAYOUT["insightface_model_path"])
    results = []
    for number in range(args.num_films):
        clips = (number % NUM_CLIPS, (number + 3) % NUM_CLIPS)
        results.append(measure(args.output_dir, pipeline, detector, options, number, clips, fps=args.fps))
        print(json.dumps(results[-1][0]), flush=True)
    print(json.dumps({name: round(value, 3) for name, value in summary(results).items()}, indent=1))


if __name__ == "__main__":
    sys.exit(run_program(main))
