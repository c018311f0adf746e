"""One source video to training clips: cuts, crops around the face, face info, audio hidden states, and rejections.

Two passes over a source, frame by frame: the first finds the face in each frame at the constant rate, the second
crops, writes and extracts. Face info is detected on the crops that are written, not moved over from the first pass,
since the detector sees the face larger there and its points jitter less.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.feature_extraction_sequence_utils import SequenceFeatureExtractor

from vexpress.audio_encoders import EncoderRecord, describe_encoder
from vexpress.audio_features import encode_audio
from vexpress.data.formats import AUDIO_ENCODER_KEY, FaceInfo, save_audio_embeds, save_face_info
from vexpress.errors import InputError
from vexpress.media.audio import Audio, load_audio
from vexpress.media.faces import MODULES, Face, FaceAnalyzer
from vexpress.media.video import (
    VideoInfo,
    constant_rate,
    frame_rate,
    probe_video,
    read_frames,
    replace_sound,
    write_video,
)
from vexpress.prepare import sync
from vexpress.prepare.duplicates import hash_picture, hash_sound
from vexpress.prepare.extract import build_face_info
from vexpress.prepare.pictures import FrameLook, measure_pictures
from vexpress.prepare.pieces import Piece, compute_crop, crop_frame, split_into_pieces
from vexpress.prepare.quality import PICTURE_LIMITS, SPEECH_LIMITS, SYNC_LIMITS, Rejected, check_limits, rounded
from vexpress.prepare.settings import FORMATS, PrepareSettings
from vexpress.prepare.shots import ShotFinder
from vexpress.prepare.speech import RATE_HZ, measure_speech
from vexpress.prepare.sync import Speech
from vexpress.prepare.verify import find_lips_outside
from vexpress.syncnet import SyncNet, SyncScore, load_syncnet
from vexpress.weights import load_audio_encoder

FIELD = "input_dir"  # that gave the videos, for messages
MODEL_FIELDS = ("insightface_model_path", "audio_encoder_path", "syncnet_path", "speech_detector", "cut_change")
KEYFRAME_INTERVAL = 30  # training seeks in clips: this cuts its reading time to 60 %, for files 1.7 times as large


@dataclass(frozen=True)
class PrepareModels:
    """All that is run on frames and sound: a bare face detector, one with all modules, the audio encoder, and SyncNet.

    `encoder_record` stands in the files of hidden states. Without a SyncNet, nobody looks whether sound and lips fit.
    """

    detector: FaceAnalyzer
    analyzer: FaceAnalyzer
    audio_encoder: PreTrainedModel
    audio_processor: SequenceFeatureExtractor
    encoder_record: EncoderRecord
    syncnet: SyncNet | None = None

    @classmethod
    def load(
        cls, insightface_model_path: Path, audio_encoder_path: Path, device: str, syncnet_path: Path | None = None
    ) -> "PrepareModels":
        """Loads them from the folders of the released layout.

        Raises:
            InputError: a model is missing or damaged.
        """
        detector = FaceAnalyzer(insightface_model_path, device)
        analyzer = FaceAnalyzer(insightface_model_path, device, MODULES)
        encoder = load_audio_encoder(audio_encoder_path, device=device)
        syncnet = load_syncnet(syncnet_path, device)[0] if syncnet_path else None
        return cls(detector, analyzer, *encoder, describe_encoder(*encoder), syncnet)

    def encode_audio(self, waveform: Tensor) -> Tensor:
        """Sound (n,) at the encoder's rate -> hidden states (m d) float32 on the CPU."""
        with torch.inference_mode():
            return encode_audio(self.audio_encoder, self.audio_processor, waveform).float().cpu()

    @property
    def sync_crop_px(self) -> int | None:
        """Side of the crops that `measure_sync` takes; None without a SyncNet."""
        return None if self.syncnet is None else self.syncnet.config.crop_px

    def measure_sync(self, crops: np.ndarray, speech: Speech) -> SyncScore | None:
        """See `vexpress.prepare.sync.measure_sync`."""
        return sync.measure_sync(self.syncnet, crops, speech)


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
        "clips": rows of the metadata, with file names in `folder`, and "quality", all that was measured; "rejected":
        rows with "clip" (its number, None for the whole source), "start_seconds", "end_seconds", "reason", "detail",
        "quality".

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
        shots = ShotFinder(fps, settings.cut_change)
        frames = shots.watch(constant_rate(read_frames(source, FIELD), fps))
        boxes = [np.array([face.bbox for face in faces]) for faces in models.detector.detect_each(frames)]
    except InputError as error:
        if error.field in MODEL_FIELDS:
            raise
        return {"clips": [], "rejected": [_rejected_row(Rejected("corrupt", str(error)))]}
    except Rejected as rejection:
        return {"clips": [], "rejected": [_rejected_row(rejection)]}

    frames, position = constant_rate(read_frames(source, FIELD), fps), 0
    max_frames = math.floor(settings.max_clip_seconds * fps)
    for number, piece in enumerate(split_into_pieces(boxes, settings.max_gap, max_frames, shots.cuts)):
        times = {"start_seconds": float(piece.start / fps), "end_seconds": float(piece.stop / fps)}
        try:
            quality = check_piece(piece, info, settings, float(np.mean(shots.brightness[piece.start : piece.stop])))
            speech = cut_audio(audio, *times.values()).resampled_mono(RATE_HZ)
            quality |= measure_speech(speech.numpy(), settings)
            check_limits(SPEECH_LIMITS, quality, settings)
            _skip(frames, piece.start - position)
            position = piece.stop
            seen = itertools.islice(frames, piece.num_frames)
            row = write_clip(folder / f"{number:03}", seen, audio, piece, info, settings, models, quality)
            clips.append(row | {"source_start_seconds": times["start_seconds"]})
            on_clip()
        except Rejected as rejection:
            rejected.append(_rejected_row(rejection, number) | times)
    return {"clips": clips, "rejected": rejected}


def _rejected_row(rejection: Rejected, clip: int | None = None) -> dict:
    return {
        "clip": clip,
        "reason": rejection.reason,
        "detail": rejection.detail,
        "quality": rounded(rejection.quality),
    }


def _skip(frames: Iterator, num_frames: int) -> None:
    next(itertools.islice(frames, num_frames, num_frames), None)


def check_source(info: VideoInfo, settings: PrepareSettings) -> None:
    """Raises `Rejected` for a source without sound or with too few pixels."""
    if not info.has_audio:
        raise Rejected("no_audio", "the file has no sound")
    if min(info.width, info.height) < settings.min_resolution:
        size = f"{info.width}x{info.height} px"
        raise Rejected("low_resolution", f"{size}, `min_resolution` is {settings.min_resolution}")


def check_piece(piece: Piece, info: VideoInfo, settings: PrepareSettings, brightness: float) -> dict[str, float]:
    """Measures what is known of a piece before its frames are looked at closely; `brightness` is of whole frames.

    Raises:
        Rejected: a piece without its one face, too short, or with too small a face.
    """
    seconds = float(piece.num_frames / frame_rate(settings.fps))
    quality = {"seconds": seconds, "bad_fraction": piece.num_bad / piece.num_frames}
    if not len(piece.boxes):
        if brightness < settings.min_brightness:  # which detectors do not see through
            detail = f"no face is seen, and the picture's brightness is {brightness:.3g}, "
            raise Rejected("too_dark", f"{detail}`min_brightness` is {settings.min_brightness:g}", quality)
        raise Rejected("not_one_face", f"no face in any of {piece.num_frames} frames", quality)
    quality["face_px"] = face_px = float(np.median((piece.boxes[:, 2:] - piece.boxes[:, :2]).max(1)))
    if piece.num_frames < round(settings.min_clip_seconds * frame_rate(settings.fps)):
        detail = f"{seconds:.2f} s, `min_clip_seconds` is {settings.min_clip_seconds:g}"
        raise Rejected("cut" if piece.is_cut else "too_short", detail, quality)
    _check_one_face(piece.num_bad, piece.num_frames, settings, quality)
    least = max(settings.min_face_px, settings.min_face_fraction * min(info.width, info.height))
    if face_px < least:
        limits = f"`min_face_px` is {settings.min_face_px}, `min_face_fraction` {settings.min_face_fraction:g}"
        raise Rejected("face_too_small", f"{face_px:.0f} px in {info.width}x{info.height} px, {limits}", quality)
    return quality


def _check_one_face(num_bad: int, num_frames: int, settings: PrepareSettings, quality: dict[str, float]) -> None:
    if num_bad > settings.max_bad_fraction * num_frames:
        limit = f"`max_bad_fraction` is {settings.max_bad_fraction:g}"
        raise Rejected("not_one_face", f"no face or several in {num_bad} of {num_frames} frames, {limit}", quality)


def cut_audio(audio: Audio, start_seconds: float, end_seconds: float) -> Audio:
    """Cuts out a stretch of sound, with silence where there is none, before and after."""
    start, stop = (round(seconds * audio.sampling_rate_hz) for seconds in (start_seconds, end_seconds))
    samples = audio.samples[:, max(0, start) : max(0, stop)]
    before = min(max(0, -start), stop - start)
    return replace(audio, samples=np.pad(samples, ((0, 0), (before, stop - start - before - samples.shape[1]))))


def write_clip(
    stem: Path,
    frames: Iterable[np.ndarray],
    audio: Audio,
    piece: Piece,
    info: VideoInfo,
    settings: PrepareSettings,
    models: PrepareModels,
    quality: dict[str, float],
) -> dict:
    """Crops and writes a clip with its face info and audio hidden states, the sound shifted to the lips.

    Args:
        stem: path of the clip's files without their endings.
        frames: (H W 3) uint8 RGB of the source, those of the piece.
        audio: of the source.
        piece: where the face is.
        info: size of the source's frames.
        settings: size, rate, limits, format.
        models: from `PrepareModels.load`.
        quality: what was measured before.

    Returns:
        The clip's row of the metadata, with file names without their folder.

    Raises:
        Rejected: the crops do not show one whole face, or something measured is not allowed; no file is left.
    """
    face_info_ending, audio_embeds_ending = FORMATS[settings.format]
    video_path = stem.with_name(f"{stem.name}.mp4")
    face_info_path = stem.with_name(stem.name + face_info_ending)
    audio_embeds_path = stem.with_name(stem.name + audio_embeds_ending)
    fps = frame_rate(settings.fps)
    start, end = (float(index / fps) for index in (piece.start, piece.stop))
    detections, look = _write_crops(video_path, frames, cut_audio(audio, start, end), piece, info, settings, models)
    try:
        face_info, filled = _check_faces(detections, settings, quality)
        quality = quality | measure_pictures(look, face_info, float(fps))
        check_limits(PICTURE_LIMITS, quality, settings)
        if models.sync_crop_px is not None:
            quality |= _measure_sync(video_path, face_info.bbox, fps, audio, start, models)
        check_limits(SYNC_LIMITS, quality, settings)
    except Rejected:
        video_path.unlink()
        raise
    shift = quality.get("sync_offset", 0.0)
    if abs(shift) * sync.FPS < settings.min_sync_shift - 0.5:
        shift = 0.0
    quality["sound_shift"] = shift
    sound = cut_audio(audio, start - shift, end - shift)
    if shift:
        replace_sound(video_path, sound)
    quality["sound_hash"] = hash_sound(sound.resampled_mono(RATE_HZ).numpy())
    quality["picture_hash"] = hash_picture(np.stack(look.thumbnails))
    save_face_info(face_info_path, face_info)
    embeds = models.encode_audio(sound.resampled_mono(models.audio_processor.sampling_rate))
    save_audio_embeds(audio_embeds_path, embeds, models.encoder_record)
    return {
        "video": video_path.name,
        "face_info": face_info_path.name,
        "audio_embeds": audio_embeds_path.name,
        "duration": float(len(detections) / fps),
        "fps": float(fps),
        "num_frames": len(detections),
        "num_interpolated_frames": len(filled),
        "width": settings.size,
        "height": settings.size,
        "num_states": len(embeds),
        "audio_dim": embeds.shape[1],
        AUDIO_ENCODER_KEY: models.encoder_record.to_text(),
        "quality": rounded(quality),
    }


def _check_faces(
    detections: list[list[Face]], settings: PrepareSettings, quality: dict[str, float]
) -> tuple[FaceInfo, list[int]]:
    """Follows the face of a clip; gives it and the frames that were filled. Raises `Rejected` if it is not one."""
    _check_one_face(sum(len(faces) != 1 for faces in detections), len(detections), settings, quality)
    try:
        face_info, filled = build_face_info(detections, settings.max_gap, "the crop")
    except InputError as error:
        raise Rejected("not_one_face", str(error), quality) from error
    if num_outside := find_lips_outside(face_info, settings.size, settings.size).sum():
        raise Rejected("face_cut_off", f"the lips reach out of the picture in {num_outside} frames", quality)
    return face_info, filled


def _write_crops(
    path: Path,
    frames: Iterable[np.ndarray],
    sound: Audio,
    piece: Piece,
    info: VideoInfo,
    settings: PrepareSettings,
    models: PrepareModels,
) -> tuple[list[list[Face]], FrameLook]:
    """Writes the square around the face; gives the faces in each frame, and what is kept of the frames."""
    crop = compute_crop(piece.boxes, info.width, info.height, settings.margin)
    detections: list[list[Face]] = []
    look = FrameLook()

    def crops() -> Iterator[np.ndarray]:
        for frame in frames:
            image = crop_frame(frame, *crop, settings.size)
            faces = models.analyzer.detect(image)
            detections.append(faces)
            look.add(image, faces[0] if faces else None, frame, (crop[0], crop[1], crop[2] / settings.size))
            yield image

    write_video(path, crops(), frame_rate(settings.fps), sound, keyframe_interval=KEYFRAME_INTERVAL)
    return detections, look


def _measure_sync(
    path: Path, boxes: np.ndarray, fps: Fraction, audio: Audio, start: float, models: PrepareModels
) -> dict[str, float]:
    """How sound and lips of a clip that was written fit; nothing for one that is too short to say."""
    frames = (frame for _, frame in read_frames(path, FIELD))
    crops = sync.crop_for_syncnet(frames, boxes, fps, models.sync_crop_px)
    end = start + len(boxes) / fps
    around = cut_audio(audio, start - sync.MARGIN_SECONDS, float(end) + sync.MARGIN_SECONDS)
    speech = Speech(around.resampled_mono(RATE_HZ).numpy(), start, max(0.0, audio.duration_seconds - float(end)))
    score = models.measure_sync(crops, speech)
    if score is None:
        return {}
    return {
        "sync_confidence": score.confidence,
        "sync_distance": score.distance,
        "sync_offset": score.offset / sync.FPS,
        "sync_frames_off": abs(score.offset),
    }
