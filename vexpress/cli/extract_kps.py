"""Extract the V-Kps sequence and the audio of a video, to drive a portrait with.

python scripts/extract_kps_sequence_and_audio.py --video_path in.mp4 \
    --kps_sequence_save_path kps.npz --audio_save_path aud.wav
"""

import argparse
import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

import av
import cv2
import numpy as np
import torch
from tqdm import tqdm

from vexpress.devices import resolve_device
from vexpress.errors import InputError
from vexpress.files import check_output_path, replacing
from vexpress.logs import set_up_logging
from vexpress.media.audio import Audio, load_audio
from vexpress.media.faces import Face, FaceAnalyzer, track_face
from vexpress.media.keypoints import KpsSequence, check_kps_suffix, save_kps
from vexpress.media.video import VideoInfo, constant_rate, probe_video, read_frames

logger = logging.getLogger(__name__)

AUDIO_CODECS = {".wav": "pcm_s16le", ".flac": "flac", ".mp3": "libmp3lame", ".m4a": "aac", ".aac": "aac"}
LOSSY_BITS_PER_SECOND = 192_000


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--video_path", required=True, help="a video that shows one face")
    parser.add_argument(
        "--kps_sequence_save_path", required=True,
        help="keypoints to write: .npz or .safetensors (with frame rate and size), or .pth (of the released scripts)",
    )  # fmt: skip
    parser.add_argument("--audio_save_path", help=f"audio to write: {', '.join(AUDIO_CODECS)}; left out: no audio")
    parser.add_argument("--device", choices=("cuda", "mps", "cpu"), help="default: the best there is")
    parser.add_argument("--gpu_id", type=int, default=0, help="index of the CUDA device (default: 0)")
    parser.add_argument(
        "--insightface_model_path", default="./model_ckpts/insightface_models/",
        help="folder of the face models (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--height", type=int, default=512, help="frames are resized to this, in px (default: 512)")
    parser.add_argument("--width", type=int, default=512, help="frames are resized to this, in px (default: 512)")
    parser.add_argument(
        "--max_gap", type=int, default=12, help="frames in a row without the face that are filled in (default: 12)"
    )
    return parser.parse_args()


def check_arguments(args: argparse.Namespace) -> None:
    """Finds out at once what would fail after the work is done.

    Raises:
        InputError: sizes or output paths that cannot be.
    """
    for name, least in (("height", 1), ("width", 1), ("max_gap", 0)):
        if getattr(args, name) < least:
            raise InputError(f"--{name} {getattr(args, name)}: must be {least} or more")
    check_kps_suffix(args.kps_sequence_save_path, "--kps_sequence_save_path")
    check_output_path(args.kps_sequence_save_path, "--kps_sequence_save_path")
    if args.audio_save_path is not None:
        if Path(args.audio_save_path).suffix.lower() not in AUDIO_CODECS:
            raise InputError(f"allowed are {', '.join(AUDIO_CODECS)}", "audio_save_path", args.audio_save_path)
        check_output_path(args.audio_save_path, "--audio_save_path")


def find_faces(args: argparse.Namespace, info: VideoInfo, analyzer: FaceAnalyzer) -> Iterator[list[Face]]:
    """Yields the faces of each frame of the video, resized to --width x --height, at the video's constant rate."""
    frames = constant_rate(read_frames(args.video_path, "--video_path"), info.fps)
    for frame in tqdm(frames, desc="faces", unit="frame", total=round(info.duration_seconds * info.fps)):
        yield analyzer.detect(cv2.resize(frame, (args.width, args.height), interpolation=cv2.INTER_AREA))


def write_audio(path: Path, audio: Audio, suffix: str) -> None:
    """Encodes audio at its own rate and number of channels.

    Raises:
        InputError: the format has no such rate or number of channels.
    """
    num_channels = len(audio.samples)
    layout = {1: "mono", 2: "stereo"}.get(num_channels, f"{num_channels} channels")
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(audio.samples), format="fltp", layout=layout)
    frame.sample_rate = audio.sampling_rate_hz
    try:
        with av.open(path, "w") as container:
            stream = container.add_stream(AUDIO_CODECS[suffix], rate=audio.sampling_rate_hz, layout=layout)
            if suffix not in (".wav", ".flac"):
                stream.bit_rate = LOSSY_BITS_PER_SECOND
            for packet in (*stream.encode(frame), *stream.encode(None)):
                container.mux(packet)
    except av.error.ArgumentError as error:
        what = f"{audio.sampling_rate_hz} Hz with {num_channels} channel(s)"
        raise InputError(f"{suffix} cannot hold {what}; use .wav", "audio_save_path") from error


def main() -> None:
    set_up_logging()
    args = parse_arguments()
    check_arguments(args)
    device = resolve_device(args.device, args.gpu_id)
    analyzer = FaceAnalyzer(args.insightface_model_path, device)
    info = probe_video(args.video_path)
    if args.audio_save_path is not None and not info.has_audio:
        raise InputError("has no audio; leave out --audio_save_path", "video_path", args.video_path)
    audio = None if args.audio_save_path is None else load_audio(args.video_path, "--video_path")
    if not 0.95 < info.width * args.height / (info.height * args.width) < 1.05:
        logger.warning(
            "the video of %d x %d px is squeezed to %d x %d px: better crop it around the face first",
            *(info.width, info.height, args.width, args.height),
        )

    kps, filled = track_face(find_faces(args, info, analyzer), args.max_gap, f"--video_path {args.video_path}")
    if filled:
        logger.info("the face was not seen in %d of %d frames, which are interpolated", len(filled), len(kps))
    sequence = KpsSequence(torch.from_numpy(kps[:, :3].copy()), float(info.fps), args.height, args.width)
    with contextlib.ExitStack() as stack:  # neither file appears without the other
        if audio is not None:
            temporary = stack.enter_context(replacing(args.audio_save_path))
            write_audio(temporary, audio, Path(args.audio_save_path).suffix.lower())
        save_kps(args.kps_sequence_save_path, sequence)
    written = filter(None, (args.kps_sequence_save_path, args.audio_save_path))
    print(f"wrote {' and '.join(written)}: {len(kps)} frames at {float(info.fps):g} fps")
