"""Extracts the keypoints and the sound of a video, to drive a portrait with.

python scripts/extract_kps_sequence_and_audio.py --video_path in.mp4 \
    --kps_sequence_save_path kps.npz --audio_save_path aud.wav
"""

import dataclasses
import logging
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from vexpress.cli.parser import ArgumentParser, add_options, refuse_unused
from vexpress.cli.program import set_up_logging
from vexpress.errors import InputError
from vexpress.fields import check_fields, option
from vexpress.files import check_output_path, replacing
from vexpress.options import FACE_CHOICES, FACE_MODELS
from vexpress.unused import unused_face_models

if TYPE_CHECKING:  # at run time they are imported where they are used: the parser answers without them
    from vexpress.media.faces import Face, FaceDetector
    from vexpress.media.video import VideoInfo

logger = logging.getLogger(__name__)

MAX_SQUEEZE = 0.05  # a change of the aspect ratio that hardly shows
MAX_SIDE_PX = 8192
DEFAULT_FACE_MODELS = "./model_ckpts/insightface_models/"


@dataclasses.dataclass(frozen=True)
class ExtractSettings:
    """What is extracted of a video.

    Raises:
        InputError: a value is out of bounds.
    """

    height: int = option(512, "frames are resized to this", low=1, high=MAX_SIDE_PX, unit="px")
    width: int = option(512, "frames are resized to this", low=1, high=MAX_SIDE_PX, unit="px")
    max_gap: int = option(
        12, "longest gap in which keypoints are interpolated where the face is not seen", low=0, unit="frames"
    )
    audio_track: int | None = option(
        None, "number of the sound track, from 0; unset: the one a player plays", low=0, high=999, type=int
    )
    face: str = option(
        "largest", "whom to follow: largest, leftmost, or a number from 0 on, counted from left to right"
    )
    face_models: str | None = option(
        None,
        "what finds the face: insightface's models, or mtcnn, which comes with the package; unset: insightface if its "
        "folder is there",
        choices=FACE_MODELS,
        type=str,
    )

    def __post_init__(self):
        check_fields(self)
        if not self.face.isdecimal() and self.face not in FACE_CHOICES:
            raise InputError(f"must be {', '.join(FACE_CHOICES)} or a number from 0 on", "face", self.face)

    @property
    def face_choice(self) -> str | int:
        """What `track_face` takes."""
        return int(self.face) if self.face.isdecimal() else self.face


def build_parser() -> ArgumentParser:
    """The flags: those of the released program with their meaning, and ours."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--video_path", required=True, help="a video that shows a face")
    parser.add_argument(
        "--kps_sequence_save_path", required=True,
        help="keypoints to write: .npz or .safetensors (with frame rate and size), or .pth (of the released scripts)",
    )  # fmt: skip
    parser.add_argument("--audio_save_path", help="sound to write: .wav, .flac, .mp3 or .m4a; unset: none")
    parser.add_argument("--device", choices=("cuda", "mps", "cpu"), help="unset: what is there")
    parser.add_argument("--gpu_id", type=int, default=0, help="index of the CUDA device")
    parser.add_argument("--insightface_model_path", default=DEFAULT_FACE_MODELS, help="folder of insightface's models")
    add_options(parser, dataclasses.fields(ExtractSettings))
    return parser


def check_outputs(args: Namespace) -> tuple[Path, Path | None]:
    """Finds out at once what would fail after the work is done; gives the paths of keypoints and sound.

    Raises:
        InputError: names of files that cannot be written, or whose writing would destroy something.
    """
    from vexpress.media.audio import check_audio_suffix
    from vexpress.media.keypoints import check_kps_suffix

    check_kps_suffix(args.kps_sequence_save_path, "kps_sequence_save_path")
    models = [args.insightface_model_path]
    others = [args.video_path, args.audio_save_path]
    kps_path = check_output_path(args.kps_sequence_save_path, "kps_sequence_save_path", others, models)
    if args.audio_save_path is None:
        return kps_path, None
    check_audio_suffix(args.audio_save_path, "audio_save_path")
    return kps_path, check_output_path(args.audio_save_path, "audio_save_path", [args.video_path, kps_path], models)


def find_faces(
    video_path: str, settings: ExtractSettings, info: "VideoInfo", analyzer: "FaceDetector"
) -> Iterator[list["Face"]]:
    """Yields the faces of each frame of the video, resized to `width` x `height`, at the video's constant rate."""
    import cv2
    from tqdm import tqdm

    from vexpress.media.video import constant_rate, read_frames

    size = (settings.width, settings.height)
    frames = constant_rate(read_frames(video_path), info.fps)
    resized = (cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in frames)
    total = round(info.duration_seconds * info.fps)
    yield from tqdm(analyzer.detect_each(resized), desc="faces", unit="frame", total=total)


def main(arguments: list[str] | None = None) -> None:
    """Video -> keypoints and sound, as files that appear together."""
    set_up_logging()
    parser = build_parser()
    args = parser.parse_args(arguments)
    settings = ExtractSettings(**{f.name: getattr(args, f.name) for f in dataclasses.fields(ExtractSettings)})
    unused = {} if args.audio_save_path else {"audio_track": "without `audio_save_path`"}
    given = parser.given()
    refuse_unused(given, unused | unused_face_models(settings.face_models))
    kps_path, audio_path = check_outputs(args)
    import torch

    from vexpress.devices import resolve_device
    from vexpress.media.audio import load_audio, write_audio
    from vexpress.media.faces import track_face
    from vexpress.media.keypoints import KpsSequence, save_kps
    from vexpress.media.mtcnn import load_face_detector
    from vexpress.media.video import check_rate, probe_video

    face_models = settings.face_models or ("insightface" if "insightface_model_path" in given else None)
    device = resolve_device(args.device, args.gpu_id)
    analyzer = load_face_detector(face_models, args.insightface_model_path, device)
    info = probe_video(args.video_path)
    check_rate(info, args.video_path)
    if audio_path and not info.has_audio:
        raise InputError("has no audio; leave out `audio_save_path`", "video_path", args.video_path)
    audio = None if audio_path is None else load_audio(args.video_path, "video_path", settings.audio_track)
    if abs(info.width * settings.height / (info.height * settings.width) - 1) > MAX_SQUEEZE:
        logger.warning(
            "the video of %d x %d px is squeezed to %d x %d px: better crop it around the face first",
            *(info.width, info.height, settings.width, settings.height),
        )

    faces = find_faces(args.video_path, settings, info, analyzer)
    kps, filled = track_face(faces, settings.max_gap, "video_path", args.video_path, settings.face_choice)
    if filled:
        logger.info("the face was not seen in %d of %d frames, which are interpolated", len(filled), len(kps))
    sequence = KpsSequence(torch.from_numpy(kps[:, :3].copy()), float(info.fps), settings.height, settings.width)
    with replacing(kps_path) as temporary:  # neither file appears without the other
        save_kps(temporary, sequence)
        if audio is not None:
            write_audio(audio_path, audio)
    written = [name for name in (args.kps_sequence_save_path, args.audio_save_path) if name]
    print(f"wrote {' and '.join(written)}: {len(kps)} frames at {float(info.fps):g} fps")
