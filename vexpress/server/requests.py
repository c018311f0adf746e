"""From the fields of a request to files in its folder, and from these to what the pipeline takes."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import torch
from PIL import Image

from vexpress.errors import InputError
from vexpress.media.audio import WAV2VEC2_RATE_HZ, Audio, load_audio
from vexpress.media.container import open_stream
from vexpress.media.faces import FaceDetector, track_face
from vexpress.media.images import load_image
from vexpress.media.keypoints import KpsSequence, save_kps
from vexpress.media.video import constant_rate, probe_video, read_frames
from vexpress.options import MotionOptions, SamplingOptions
from vexpress.request import Request
from vexpress.server.examples import Examples
from vexpress.server.schema import FILE_FIELDS, SPEECH_FIELDS, TEXT_FIELDS, parse_options
from vexpress.server.settings import ServeSettings
from vexpress.server.speech import speak
from vexpress.server.uploads import name_kps

MAX_GAP_FRAMES = 12  # longest gap without the face in a driving video that is interpolated
DRIVING_PX = 512  # longer side of the frames in which a driving face is looked for
MAX_VIDEO_PX = 4096
MAX_PORTRAIT_PIXELS = 50_000_000  # a phone's picture; reading one takes 0.6 GB
PADDING_SECONDS = 1.0  # that AAC and Opus may have
MAX_VALUES_PER_SECOND = 8 * 48_000  # of speech: some KB of FLAC can hold a hundred times as much silence
DRIVING_KPS = "driving_kps.npz"
SPOKEN = "spoken.wav"
NO_SOUND_YET = Audio(np.zeros((1, 0), np.float32), WAV2VEC2_RATE_HZ)  # a live stream's comes later


@dataclass(frozen=True)
class VideoRequest:
    """A request for a video, as a job keeps it.

    Attributes:
        options: how to sample.
        motion: how portrait and keypoints are used.
        files: field -> path of its file, in the job's folder or an example's; a live stream's have no "audio".
    """

    options: SamplingOptions
    motion: MotionOptions
    files: dict[str, Path]

    def as_json(self) -> dict[str, Any]:
        """For the list of jobs; files by their names in the job's folder, which may be moved."""
        files = {name: path.name for name, path in self.files.items()}
        return {"options": asdict(self.options), "motion": asdict(self.motion), "files": files}

    @classmethod
    def from_json(cls, kept: dict[str, Any], folder: Path) -> "VideoRequest":
        """What `as_json` gave, of the job in a folder; earlier versions kept whole paths."""
        files = {name: folder / Path(path).name for name, path in kept["files"].items()}
        return cls(SamplingOptions(**kept["options"]), MotionOptions(**kept["motion"]), files)

    def prepared(
        self, folder: Path, analyzer: FaceDetector, check: Callable[[], None], settings: ServeSettings
    ) -> Request:
        """The package's request; a driving video becomes keypoints, kept in the job's folder.

        Args:
            folder: of the job.
            analyzer: finds faces.
            check: called after each frame; may raise what ends the work.
            settings: limits, of the speech as it is decoded: packets may say less than they hold.

        Raises:
            InputError: no face in the driving video, or the speech is too long or cannot be read.
        """
        kps = self.files.get("kps")
        if kps is None and "driving_video" in self.files:
            kps = folder / DRIVING_KPS
            if not kps.is_file():
                save_kps(kps, follow_face(self.files["driving_video"], analyzer, check))
        return self._request(kps, self.motion, settings)

    def prepared_without_motion(self, settings: ServeSettings) -> Request:
        """As `prepared`, with a still head where the motion is not known yet."""
        kps = self.files.get("kps")
        is_known = kps is not None or self.motion.motion == "natural"
        motion = self.motion if is_known else replace(self.motion, retarget_strategy="fix_face")
        return self._request(kps, motion, settings)

    def _request(self, kps: Path | None, motion: MotionOptions, settings: ServeSettings) -> Request:
        portrait = load_portrait(self.files["portrait"])
        audio = NO_SOUND_YET
        if "audio" in self.files:
            max_seconds = settings.max_seconds + PADDING_SECONDS
            limits = {"max_seconds": max_seconds, "max_values": round(max_seconds * MAX_VALUES_PER_SECOND)}
            audio = load_audio(self.files["audio"], track=motion.audio_track, **limits)
        return Request(portrait, audio, kps, motion, settings.max_px)


def load_portrait(path: Path) -> Image.Image:
    """Reads a portrait, with fewer pixels than a program's may have: others use this service as well.

    Raises:
        InputError: as `vexpress.media.images.load_image`.
    """
    return load_image(path, max_pixels=MAX_PORTRAIT_PIXELS)


def collect(
    values: dict[str, Any],
    folder: Path,
    is_text: bool,
    defaults: SamplingOptions,
    examples: Examples,
    settings: ServeSettings,
    has_speech: bool = True,
) -> VideoRequest:
    """Checks a request's fields and gathers its files.

    Args:
        values: fields but files.
        folder: holds the files that were sent, under the names of their fields.
        is_text: the values are texts, as forms have them.
        defaults: the model's options.
        examples: what may be named in place of files.
        settings: limits.
        has_speech: whether the request brings the speech, which a live stream's must not.

    Raises:
        InputError: a field is missing, unknown, given twice over, or out of bounds.
    """
    texts = {name: values.pop(name, None) or None for name in TEXT_FIELDS if name != "preset"}
    for name, text in texts.items():
        if text is not None and not isinstance(text, str):
            raise InputError("must be a text", name)
    options, motion = parse_options(values, defaults, settings, is_text)
    files = {name: folder / name for name in FILE_FIELDS if (folder / name).is_file()}
    if "kps" in files:
        files["kps"] = name_kps(files["kps"])
    if not has_speech:
        for name in SPEECH_FIELDS:
            if name in files or texts.get(name) is not None:
                raise InputError("is for videos; a live stream's sound comes in messages of its own", name)
    if texts["text"] is not None:
        _only_one("text", "audio", files)
        speak(texts["text"], texts["voice"], folder / SPOKEN, settings.max_text)
        files["audio"] = folder / SPOKEN
    for kind, name in (("portrait", "portrait"), ("audio", "audio"), ("motion", "driving_video")):
        example = texts[f"{kind}_example"]
        if example is not None:
            _only_one(f"{kind}_example", name, files)
            files[name] = examples.path(kind, example)
    if "kps" in files:
        _only_one("driving_video", "kps", {} if "driving_video" not in files else files)
    for name in ("portrait", "audio") if has_speech else ("portrait",):
        if name not in files:
            instead = f"`{name}_example`" + " or `text`" * (name == "audio")
            raise InputError(f"is missing: send the file, or {instead}", name)
    return VideoRequest(options, motion, files)


def _only_one(name: str, other: str, files: dict[str, Path]) -> None:
    if other in files:
        raise InputError(f"cannot be given together with `{other}`", name)


def check_length(path: Path, kind: str, field: str, max_seconds: float, track: int | None = None) -> float:
    """Reads the length of a media file's track from its packets, without decoding them; gives seconds.

    Raises:
        InputError: it cannot be read, or is too long.
    """
    seconds, first, last = 0.0, None, 0.0
    with open_stream(path, kind, field, track) as (container, stream):
        try:
            for packet in container.demux(stream):
                seconds += float((packet.duration or 0) * packet.time_base) if packet.time_base else 0.0
                if packet.pts is not None:
                    time = float(packet.pts * packet.time_base)
                    first = time if first is None else first
                    last = max(last, time - first)
                if max(seconds, last) > max_seconds + PADDING_SECONDS:
                    break
        except av.error.FFmpegError:
            pass  # the reader says what can be read of a damaged file
    seconds = max(seconds, last)
    if seconds > max_seconds + PADDING_SECONDS:
        raise InputError(f"lasts longer than {max_seconds:g} s, the limit of this service", field)
    return seconds


def check_files(request: VideoRequest, settings: ServeSettings) -> None:
    """Checks lengths and sizes before anything is decoded.

    Raises:
        InputError: a file is too long, too large or no media file.
    """
    if "driving_video" in request.files:
        video = request.files["driving_video"]
        check_length(video, "video", "video_path", settings.max_seconds)
        info = probe_video(video)
        if request.motion.motion is not None:
            raise InputError(
                "is for speech alone, and `driving_video` gives the motion", "motion", request.motion.motion
            )
        if max(info.width, info.height) > MAX_VIDEO_PX:
            raise InputError(f"has frames larger than {MAX_VIDEO_PX} px", "video_path")
    if request.motion.retarget_strategy not in (None, "fix_face") and not {"kps", "driving_video"} & set(request.files):
        raise InputError("needs `kps` or `driving_video`; without one use fix_face", "retarget_strategy")
    if "audio" in request.files:
        check_length(request.files["audio"], "audio", "audio_path", settings.max_seconds, request.motion.audio_track)


def follow_face(video: Path, analyzer: FaceDetector, check: Callable[[], None] = lambda: None) -> KpsSequence:
    """The keypoints of the face in a video, at the video's own frame rate.

    Args:
        video: its file.
        analyzer: finds faces.
        check: called after each frame; may raise what ends the work.

    Raises:
        InputError: no face, or it is missing for too long.
    """
    info = probe_video(video)
    scale = min(1.0, DRIVING_PX / max(info.width, info.height))
    width, height = (max(1, round(side * scale)) for side in (info.width, info.height))

    def resized() -> Iterator[np.ndarray]:
        for frame in constant_rate(read_frames(video), info.fps):
            check()
            yield cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA)

    kps, _ = track_face(analyzer.detect_each(resized()), MAX_GAP_FRAMES, "video_path")
    return KpsSequence(torch.from_numpy(kps[:, :3].copy()), float(info.fps), height, width)


def copy_examples(request: VideoRequest, folder: Path) -> VideoRequest:
    """Examples as files of the job, so that it has all that it needs."""
    files = {}
    for name, path in request.files.items():
        files[name] = path if path.is_relative_to(folder) else folder / f"{name}{path.suffix}"
        if files[name] != path:
            shutil.copyfile(path, files[name])
    return VideoRequest(request.options, request.motion, files)
