"""One source video to training clips: cuts, crops around the face, face info, audio hidden states, and rejections.

Two passes over a source, frame by frame: the first finds the face in each frame at the constant rate, the second
crops, writes and extracts. Face info is detected on the crops that are written, not moved over from the first pass,
since the detector sees the face larger there and its points jitter less.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import Wav2Vec2FeatureExtractor, Wav2Vec2Model

from vexpress.audio_features import encode_audio
from vexpress.data.formats import save_audio_embeds, save_face_info
from vexpress.errors import InputError
from vexpress.media.audio import Audio, load_audio
from vexpress.media.faces import MODULES, Face, FaceAnalyzer
from vexpress.media.video import VideoInfo, constant_rate, frame_rate, probe_video, read_frames, write_video
from vexpress.prepare.extract import build_face_info
from vexpress.prepare.pieces import Piece, compute_crop, crop_frame, split_into_pieces
from vexpress.prepare.settings import FORMATS, PrepareSettings
from vexpress.prepare.verify import find_lips_outside
from vexpress.weights import load_audio_encoder

FIELD = "input_dir"  # that gave the videos, for messages
MODEL_FIELDS = ("insightface_model_path", "audio_encoder_path")
SPEECH_WINDOW_SECONDS = 0.025
KEYFRAME_INTERVAL = 30  # training seeks in clips: this cuts its reading time to 60 %, for files 1.7 times as large


@dataclass(frozen=True)
class PrepareModels:
    """All that is run on frames and sound: a bare face detector, one with all modules, and the audio encoder."""

    detector: FaceAnalyzer
    analyzer: FaceAnalyzer
    audio_encoder: Wav2Vec2Model
    audio_processor: Wav2Vec2FeatureExtractor

    @classmethod
    def load(cls, insightface_model_path: Path, audio_encoder_path: Path, device: str) -> "PrepareModels":
        """Loads them from the folders of the released layout.

        Raises:
            InputError: a model is missing or damaged.
        """
        detector = FaceAnalyzer(insightface_model_path, device)
        analyzer = FaceAnalyzer(insightface_model_path, device, MODULES)
        return cls(detector, analyzer, *load_audio_encoder(audio_encoder_path, device=device))

    def encode_audio(self, waveform: Tensor) -> Tensor:
        """Sound (n,) at the encoder's rate -> hidden states (m d) float32 on the CPU."""
        with torch.inference_mode():
            return encode_audio(self.audio_encoder, self.audio_processor, waveform).float().cpu()


class Rejected(Exception):
    """A clip or a whole source is left out.

    Args:
        reason: "corrupt", "no_audio", "low_resolution", "not_one_face", "too_short", "face_too_small", "face_cut_off"
            or "no_speech".
        detail: what was measured, and the setting that decides.
    """

    def __init__(self, reason: str, detail: str):
        super().__init__(reason, detail)
        self.reason, self.detail = reason, " ".join(detail.split())


def prepare_source(
    source: Path,
    folder: Path,
    settings: PrepareSettings,
    models: PrepareModels,
    on_clip: Callable[[], None] = lambda: None,
) -> dict[str, list[dict]]:
    """Makes the clips of one video.

    Frames are streamed; the sound is held, 1.4 GB per hour of stereo at 48 kHz.

    Args:
        source: any video file with sound.
        folder: where the clips' files go; exists.
        settings: size, rate, limits.
        models: from `PrepareModels.load`.
        on_clip: called after each clip that is made.

    Returns:
        "clips": rows of the metadata, with file names in `folder`; "rejected": rows with "clip" (its number, None for
        the whole source), "start_seconds", "end_seconds", "reason", "detail".

    Raises:
        InputError: a model cannot be used.
    """
    clips: list[dict] = []
    rejected: list[dict] = []
    fps = frame_rate(settings.fps)
    try:
        info = probe_video(source, FIELD)
        check_source(info, settings)
        audio = load_audio(source, FIELD)
        frames = constant_rate(read_frames(source, FIELD), fps)
        boxes = [np.array([face.bbox for face in faces]) for faces in models.detector.detect_each(frames)]
    except InputError as error:
        if error.field in MODEL_FIELDS:
            raise
        return {"clips": [], "rejected": [_rejected_row(Rejected("corrupt", str(error)))]}
    except Rejected as rejection:
        return {"clips": [], "rejected": [_rejected_row(rejection)]}

    frames, position = constant_rate(read_frames(source, FIELD), fps), 0
    max_frames = math.floor(settings.max_clip_seconds * fps)
    for number, piece in enumerate(split_into_pieces(boxes, settings.max_gap, max_frames)):
        times = {"start_seconds": float(piece.start / fps), "end_seconds": float(piece.stop / fps)}
        try:
            check_piece(piece, info, settings)
            sound = cut_audio(audio, *times.values())
            waveform = sound.resampled_mono(models.audio_processor.sampling_rate)
            check_speech(waveform, models.audio_processor.sampling_rate, settings)
            _skip(frames, piece.start - position)
            position = piece.stop
            shots = itertools.islice(frames, piece.num_frames)
            row = write_clip(folder / f"{number:03}", shots, sound, waveform, piece, info, settings, models)
            clips.append(row | {"source_start_seconds": times["start_seconds"]})
            on_clip()
        except Rejected as rejection:
            rejected.append(_rejected_row(rejection, number) | times)
    return {"clips": clips, "rejected": rejected}


def _rejected_row(rejection: Rejected, clip: int | None = None) -> dict:
    return {"clip": clip, "reason": rejection.reason, "detail": rejection.detail}


def _skip(frames: Iterator, num_frames: int) -> None:
    next(itertools.islice(frames, num_frames, num_frames), None)


def check_source(info: VideoInfo, settings: PrepareSettings) -> None:
    """Raises `Rejected` for a source without sound or with too few pixels."""
    if not info.has_audio:
        raise Rejected("no_audio", "the file has no sound")
    if min(info.width, info.height) < settings.min_resolution:
        size = f"{info.width}x{info.height} px"
        raise Rejected("low_resolution", f"{size}, `min_resolution` is {settings.min_resolution}")


def check_piece(piece: Piece, info: VideoInfo, settings: PrepareSettings) -> None:
    """Raises `Rejected` for a piece without its one face, too short, or with too small a face."""
    if not len(piece.boxes):
        raise Rejected("not_one_face", f"no face in any of {piece.num_frames} frames")
    if piece.num_frames < round(settings.min_clip_seconds * frame_rate(settings.fps)):
        seconds = float(piece.num_frames / frame_rate(settings.fps))
        raise Rejected("too_short", f"{seconds:.2f} s, `min_clip_seconds` is {settings.min_clip_seconds:g}")
    _check_one_face(piece.num_bad, piece.num_frames, settings)
    face_px = float(np.median((piece.boxes[:, 2:] - piece.boxes[:, :2]).max(1)))
    least = max(settings.min_face_px, settings.min_face_fraction * min(info.width, info.height))
    if face_px < least:
        limits = f"`min_face_px` is {settings.min_face_px}, `min_face_fraction` {settings.min_face_fraction:g}"
        raise Rejected("face_too_small", f"{face_px:.0f} px in {info.width}x{info.height} px, {limits}")


def _check_one_face(num_bad: int, num_frames: int, settings: PrepareSettings) -> None:
    if num_bad > settings.max_bad_fraction * num_frames:
        limit = f"`max_bad_fraction` is {settings.max_bad_fraction:g}"
        raise Rejected("not_one_face", f"no face or several in {num_bad} of {num_frames} frames, {limit}")


def cut_audio(audio: Audio, start_seconds: float, end_seconds: float) -> Audio:
    """Cuts out a stretch of sound, with silence where the sound is over."""
    start, stop = (round(seconds * audio.sampling_rate_hz) for seconds in (start_seconds, end_seconds))
    samples = audio.samples[:, start:stop]
    return replace(audio, samples=np.pad(samples, ((0, 0), (0, stop - start - samples.shape[1]))))


def check_speech(waveform: Tensor, sampling_rate_hz: int, settings: PrepareSettings) -> None:
    """Raises `Rejected` for sound (n,) that is quiet for most of the time.

    Only loudness is looked at: music or noise passes.
    """
    length = round(SPEECH_WINDOW_SECONDS * sampling_rate_hz)
    windows = waveform.unfold(0, length, length)
    levels_db = 20 * windows.std(dim=1, correction=0).clamp_min(1e-10).log10()  # a constant offset is no sound
    fraction = (levels_db > settings.speech_db).float().mean().item()
    if fraction < settings.min_speech_fraction:
        limit = f"`min_speech_fraction` is {settings.min_speech_fraction:g}"
        raise Rejected("no_speech", f"{fraction:.2f} of the sound is above {settings.speech_db:g} dB, {limit}")


def write_clip(
    stem: Path,
    frames: Iterable[np.ndarray],
    sound: Audio,
    waveform: Tensor,
    piece: Piece,
    info: VideoInfo,
    settings: PrepareSettings,
    models: PrepareModels,
) -> dict:
    """Crops and writes a clip with its face info and audio hidden states.

    Args:
        stem: path of the clip's files without their endings.
        frames: (H W 3) uint8 RGB of the source, those of the piece.
        sound: of the piece, likewise waveform: (n,) at the encoder's rate.
        piece: where the face is.
        info: size of the source's frames.
        settings: size, rate, limits, format.
        models: from `PrepareModels.load`.

    Returns:
        The clip's row of the metadata, with file names without their folder.

    Raises:
        Rejected: the crops do not show one whole face; no file is left.
    """
    crop = compute_crop(piece.boxes, info.width, info.height, settings.margin)
    detections: list[list[Face]] = []

    def crops() -> Iterator[np.ndarray]:
        for frame in frames:
            image = crop_frame(frame, *crop, settings.size)
            detections.append(models.analyzer.detect(image))
            yield image

    face_info_ending, audio_embeds_ending = FORMATS[settings.format]
    video_path = stem.with_name(f"{stem.name}.mp4")
    face_info_path = stem.with_name(stem.name + face_info_ending)
    audio_embeds_path = stem.with_name(stem.name + audio_embeds_ending)
    fps = frame_rate(settings.fps)
    num_frames = write_video(video_path, crops(), fps, sound, keyframe_interval=KEYFRAME_INTERVAL)
    try:
        _check_one_face(sum(len(faces) != 1 for faces in detections), num_frames, settings)
        face_info, filled = build_face_info(detections, settings.max_gap, "the crop")
        num_outside = find_lips_outside(face_info, settings.size, settings.size).sum()
        if num_outside:
            raise Rejected("face_cut_off", f"the lips reach out of the picture in {num_outside} frames")
    except InputError as error:
        video_path.unlink()
        raise Rejected("not_one_face", str(error)) from error
    except Rejected:
        video_path.unlink()
        raise
    save_face_info(face_info_path, face_info)
    embeds = models.encode_audio(waveform)
    save_audio_embeds(audio_embeds_path, embeds)
    return {
        "video": video_path.name,
        "face_info": face_info_path.name,
        "audio_embeds": audio_embeds_path.name,
        "duration": float(num_frames / fps),
        "fps": float(fps),
        "num_frames": num_frames,
        "num_interpolated_frames": len(filled),
        "width": settings.size,
        "height": settings.size,
        "num_states": len(embeds),
        "audio_dim": embeds.shape[1],
    }
