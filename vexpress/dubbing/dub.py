"""From a video and new speech to the same video, speaking it: everything but the face stays as it is."""

import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vexpress.audio_features import audio_windows
from vexpress.dubbing.shots import MIN_TRACK_FRAMES, Timeline, Track, constant_fps, sources
from vexpress.errors import InputError
from vexpress.media.audio import Audio
from vexpress.media.compositing import SPEECH, Box, Compositor, region_mask
from vexpress.media.video import pick_frames, read_frames
from vexpress.options import SamplingOptions
from vexpress.pipeline import VExpressPipeline
from vexpress.prepare.pieces import crop_frame

logger = logging.getLogger(__name__)

MIN_SHIFT_PX = 0.02
FADE_FRAMES = 4  # over which a mouth is replaced little by little, where the finder loses a face within a shot


@dataclass(frozen=True)
class DubPlan:
    """What is generated for which frames.

    Attributes:
        video: path of the video.
        timeline: when its frames are shown.
        tracks: the faces in it.
        num_frames: of the result; the first ones of the video.
        fps: rate at which faces are generated.
        source: (num_frames) which generated frame each frame of the video shows.
        audio: the new sound, as long as the result.
    """

    video: str | os.PathLike
    timeline: Timeline
    tracks: list[Track]
    num_frames: int
    fps: Fraction
    source: np.ndarray
    audio: Audio

    @property
    def times(self) -> np.ndarray | None:
        """When each frame is shown, seconds; None where they are evenly spaced."""
        return None if self.timeline.is_even else self.timeline.times[: self.num_frames]

    @property
    def fps_of_file(self) -> Fraction:
        """The video's own rate; with `times`, how long the last frame is shown."""
        if self.timeline.is_even:
            return self.timeline.info.fps
        return Fraction(1 / self.timeline.spacing).limit_denominator(1001)


def plan_dub(
    video: str | os.PathLike,
    timeline: Timeline,
    tracks: list[Track],
    audio: Audio,
    length: str,
    model_fps: float,
) -> DubPlan:
    """Fits speech and video together.

    Args:
        video: path.
        timeline: of it; likewise tracks.
        audio: the new speech, from the first frame on.
        length: one of `LENGTHS`.
        model_fps: rate of the model's training data.

    Raises:
        InputError: the speech is shorter than a frame, or no face is found in what remains.
    """
    num_frames = len(timeline.times)
    if length == "shorter":
        num_frames = int((timeline.middles <= audio.duration_seconds).sum())
        if not num_frames:
            raise InputError(f"lasts {audio.duration_seconds:.3f} s, less than one frame", "audio_path")
    tracks = [_shortened(track, num_frames) for track in tracks if track.start < num_frames]
    if not tracks:
        problem = f"no face was found in {MIN_TRACK_FRAMES} frames on end; another `face_models` may find one"
        raise InputError(problem, "video_path", video)
    fps = constant_fps(timeline, model_fps)
    source = np.fromiter(sources(timeline, fps), int)[:num_frames]
    end = timeline.times[num_frames] if num_frames < len(timeline.times) else timeline.duration_seconds
    wanted = round(float(end) * audio.sampling_rate_hz)
    missing, cut = wanted / audio.sampling_rate_hz - audio.duration_seconds, audio.duration_seconds - float(end)
    if cut > timeline.spacing:
        logger.warning("the speech is %.2f s longer than the video; its end is left out", cut)
    left = max(timeline.duration_seconds, timeline.info.duration_seconds) - float(end)
    if left > timeline.spacing:
        logger.warning("the video is %.2f s longer than the speech and ends with it; `length` video keeps all", left)
    samples = np.pad(audio.samples[:, :wanted], ((0, 0), (0, max(0, wanted - audio.samples.shape[1]))))
    if missing > timeline.spacing:
        logger.info("the speech ends %.2f s before the video: mouths are silent from there on", missing)
    sound = replace(audio, samples=samples)
    return DubPlan(video, timeline, tracks, num_frames, fps, source, sound)


def _shortened(track: Track, num_frames: int) -> Track:
    """The track up to a frame; its reference may be a later one."""
    stop = min(track.stop, num_frames)
    length = stop - track.start
    fades = (track.fades[0], track.fades[1] and stop == track.stop)
    return replace(track, stop=stop, kps=track.kps[:length], boxes=track.boxes[:length], fades=fades)


class Dubber:
    """Makes the frames of a dubbed video, one at a time.

    Args:
        plan: from `plan_dub`.
        pipeline: of the model.
        options: how to sample, and the size of generated frames.
        device: where the pipeline works; None is where it is.
    """

    def __init__(
        self,
        plan: DubPlan,
        pipeline: VExpressPipeline,
        options: SamplingOptions,
        device: torch.device | str | None = None,
    ):
        self._plan, self._pipeline, self._device = plan, pipeline, device
        self._options = options.changed(fps=float(plan.fps))
        self._size = (options.image_width, options.image_height)
        self._windows: Tensor | None = None  # audio steps around every generated frame
        self._portraits: dict[int, Image.Image] = {}  # number of a frame -> the face in it

    def frames(self, on_mask: Callable[[int, np.ndarray, Box], None] = lambda *_: None) -> Iterator[np.ndarray]:
        """The frames of the result.

        Args:
            on_mask: told of each frame with a face: number, mask (h w) of what is replaced, and where that lies.

        Yields:
            (H W 3) uint8; frames without a face are those of the video, bit for bit.
        """
        plan = self._plan
        tracks = {track.start: track for track in plan.tracks}
        self._portraits = self._cut_portraits()
        track, shown = None, None
        for number, (_, frame) in zip(range(plan.num_frames), read_frames(plan.video)):
            if number in tracks:
                track = tracks[number]
                shown = _Shown(self._generate(track))
                compositor = Compositor()
            if track is not None and number >= track.stop:
                track = None
            if track is not None:
                box, generated = self._placed(track, number, shown)
                mask = region_mask(track.kps[number - track.start], SPEECH, box) * fade(track, number)
                on_mask(number, mask, box)
                frame = compositor.compose(frame, generated, mask, box)
            yield frame

    def _placed(self, track: Track, number: int, shown: "_Shown") -> tuple[Box, np.ndarray]:
        """The generated face for a frame of the video, and where it lies there."""
        first = self._plan.source[track.start]
        source = self._plan.source[number]
        generated = shown.frame(source - first)
        box = self._box_at(track, source)
        # Made for a time between two of the video's frames, it is moved to where the face is in this one.
        moved = (track.kps[number - track.start] - box.to_whole(self._kps_at(track, source), self._size)).mean(0)
        moved = np.where(np.abs(moved) < MIN_SHIFT_PX, 0, moved)
        return replace(box, left=box.left + float(moved[0]), top=box.top + float(moved[1])), generated

    def _position(self, track: Track, source: int) -> float:
        """Where among the frames of a track a generated frame is, from 0."""
        middles = self._plan.timeline.middles[track.start : track.stop]
        return float(np.interp((source + 0.5) / float(self._plan.fps), middles, np.arange(len(middles))))

    def _box_at(self, track: Track, source: int) -> Box:
        return track.boxes[round(self._position(track, source))]

    def _kps_at(self, track: Track, source: int) -> np.ndarray:
        """(3 2) px of the generated frame."""
        position = self._position(track, source)
        low = int(position)
        high = min(low + 1, len(track.kps) - 1)
        kps = track.kps[low] + (position - low) * (track.kps[high] - track.kps[low])
        return self._box_at(track, source).to_generated(kps, self._size)

    def _cut_portraits(self) -> dict[int, Image.Image]:
        """The faces that tracks are made from, by the numbers that frames had when these were found."""
        boxes, portraits = {track.reference: track.reference_box for track in self._plan.tracks}, {}
        for number, frame in pick_frames(self._plan.video, boxes):
            box = boxes[number]
            portrait = crop_frame(frame, int(box.left), int(box.top), box.width, box.width)
            portraits[number] = Image.fromarray(portrait).resize(self._size, Image.Resampling.LANCZOS)
        return portraits

    def _generate(self, track: Track) -> Iterator[np.ndarray]:
        """The generated frames of a track: (h w 3) uint8."""
        plan = self._plan
        first, last = (int(plan.source[n]) for n in (track.start, track.stop - 1))
        kps = np.stack([self._kps_at(track, source) for source in range(first, last + 1)])
        tokens = self._pipeline.project_audio(self._audio_windows()[first : last + 1])
        return self._pipeline(
            self._portraits[track.reference],
            None,
            torch.from_numpy(kps).float(),
            audio_tokens=tokens,
            options=self._options,
            output_type="generator",
            device=self._device,
        ).frames

    def _audio_windows(self) -> Tensor:
        """Audio steps around each generated frame of the whole video, so that a shot hears what is before it."""
        if self._windows is None:
            plan, rate = self._plan, self._pipeline.audio_processor.sampling_rate
            num_frames = int(plan.source[-1]) + 1
            waveform = plan.audio.resampled_mono(rate)
            wanted = round(num_frames / float(plan.fps) * rate)
            waveform = torch.nn.functional.pad(waveform[:wanted], (0, max(0, wanted - len(waveform))))
            states = self._pipeline.encode_speech(waveform)
            self._windows = audio_windows(states, num_frames, self._options.num_pad_audio_frames)
        return self._windows


class _Shown:
    """The generated frame that is shown, of an iterator that only goes forward."""

    def __init__(self, frames: Iterator[np.ndarray]):
        self._frames, self._number, self._frame = frames, -1, None

    def frame(self, number: int) -> np.ndarray:
        while self._number < number:
            self._frame, self._number = next(self._frames), self._number + 1
        return self._frame


def fade(track: Track, number: int) -> float:
    """How much of a frame's face is replaced, where a track begins or ends within a shot."""
    before, after = number - track.start + 1, track.stop - number
    shares = [min(1.0, n / (FADE_FRAMES + 1)) for n, fades in zip((before, after), track.fades) if fades]
    return min(shares, default=1.0)
