"""From what a user gives to what the pipeline takes: portrait, speech and keypoints as tensors that fit together.

Every door comes through here: programs, validation in training, evaluation, and what measures the demo pack.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction
from os import PathLike
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vexpress.audio_features import encode_audio
from vexpress.data.attribute_curves import asked_attributes, make_attributes, read_curves
from vexpress.data.formats import load_face_info
from vexpress.errors import InputError
from vexpress.media.audio import Audio, load_audio
from vexpress.media.compositing import Box, PasteBack, even_picture
from vexpress.media.faces import FaceDetector, head_and_shoulders_box
from vexpress.media.images import given_to_rgb, load_image
from vexpress.media.keypoints import KpsSequence, fit_to_clip, load_kps, retarget
from vexpress.media.random_access import count_frames, read_frames_at
from vexpress.media.retargeting import choose_strategy, move_face, relative_retarget
from vexpress.media.video import probe_video
from vexpress.model_folder import ModelPaths
from vexpress.models.head_motion import motion_from_speech
from vexpress.options import MotionOptions, SamplingOptions
from vexpress.weights import load_audio_encoder
from vexpress.weights.head_motion import load_head_motion

logger = logging.getLogger(__name__)

ADVISED_PORTRAIT_PX = 512
MAX_SQUEEZE = 0.02  # a change of the aspect ratio that nobody sees
MAX_WHOLE_PX = 4096  # longer side of a video that is the whole picture; larger pictures are made smaller


@dataclass(frozen=True)
class Request:
    """What a user gives.

    Attributes:
        reference_image: path of the portrait, or the picture.
        audio: path of the speech, or the sound.
        kps: path of the driving keypoints, or the keypoints; None for a head that is still or moves by itself.
        motion: how these become the video's.
        max_whole_px: longer side of a video that is the whole picture, with `paste_back`.
    """

    reference_image: str | PathLike | Image.Image
    audio: str | PathLike | Audio
    kps: str | PathLike | KpsSequence | None = None
    motion: MotionOptions = field(default_factory=MotionOptions)
    max_whole_px: int = MAX_WHOLE_PX

    @property
    def strategy(self) -> str:
        """The retarget strategy asked for, or else the one that suits what was given."""
        return self.motion.retarget_strategy or ("fix_face" if self.kps is None else "auto")

    @property
    def needs_face(self) -> bool:
        """Whether the face in the portrait has to be found."""
        return self.crops or self.strategy != "no_retarget"

    @property
    def crops(self) -> bool:
        """Whether the video is made of a part of the picture."""
        return self.motion.auto_crop or self.motion.paste_back


@dataclass(frozen=True)
class ClipInputs:
    """What the pipeline makes a video of.

    Attributes:
        portrait: RGB, at the size of the video.
        audio: the speech as it is in its file; the video's sound.
        kps: (f 3 2) float32, px of the video's frames: left eye, right eye, nose.
        fps: frames per second of the video.
        attributes: (f 6) float32, see `vexpress.models.attributes`; None leaves them to the pipeline.
        whole: the picture that the frames are set back into; None where they are the video.
        reference_kps: (3 2) px, the face in the portrait, where it was looked for.
    """

    portrait: Image.Image
    audio: Audio
    kps: Tensor
    fps: Fraction | float
    attributes: Tensor | None = None
    whole: PasteBack | None = None
    reference_kps: Tensor | None = None
    _waveforms: dict[int, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def num_frames(self) -> int:
        return len(self.kps)

    @property
    def video_size(self) -> tuple[int, int]:
        """Width and height of the finished video, px."""
        return self.whole.size if self.whole else self.portrait.size

    @property
    def video_kps(self) -> Tensor:
        """(f 3 2) px of the finished video."""
        return self.whole.kps(self.kps, self.portrait.size) if self.whole else self.kps

    def finished(self, frames: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        """The video's frames (H W 3) uint8, of those that the pipeline makes; one at a time."""
        if self.whole is None:
            return frames
        reference_kps = self.whole.kps(self.reference_kps, self.portrait.size)
        return self.whole.compose(frames, reference_kps, self.video_kps)

    def waveform(self, sampling_rate_hz: int) -> Tensor:
        """The speech as the audio encoder hears it: (n,) float32; resampled once, for all who ask."""
        if sampling_rate_hz not in self._waveforms:
            self._waveforms[sampling_rate_hz] = self.audio.resampled_mono(sampling_rate_hz)
        return self._waveforms[sampling_rate_hz]

    def pipeline_arguments(self, sampling_rate_hz: int) -> dict[str, Any]:
        """The pipeline's inputs by name; `sampling_rate_hz` is its audio processor's."""
        return {
            "reference_image": self.portrait,
            "audio_waveform": self.waveform(sampling_rate_hz),
            "kps_sequence": self.kps,
            **({} if self.attributes is None else {"attributes": self.attributes}),
        }


class SpeechMotion:
    """Makes a head's motion from speech, with the networks of a model folder that has one for this.

    Args:
        paths: of the model.
        device: where to work.

    Raises:
        InputError: a file is missing, damaged or does not fit.
    """

    def __init__(self, paths: ModelPaths, device: torch.device | str = "cpu"):
        self.network = load_head_motion(paths.head_motion_path, device)
        self.encoder, self.processor = load_audio_encoder(paths.audio_encoder_path, torch.float32, device)
        width, needed = self.encoder.config.hidden_size, self.network.config.audio_width
        if width != needed:
            problem = f"takes hidden states of width {needed}, the audio encoder's are {width} wide: train it again"
            raise InputError(problem, "head_motion_path", paths.head_motion_path)

    @torch.inference_mode()
    def make(
        self,
        audio: Audio,
        num_frames: int,
        options: SamplingOptions,
        strength: float,
        check: Callable[[], None] = lambda: None,
    ) -> Tensor:
        """Motion (f 6) to this speech; see `vexpress.models.head_motion`. `check` may end it between pieces."""
        waveform = audio.resampled_mono(self.processor.sampling_rate)
        states = encode_audio(self.encoder, self.processor, waveform, check=check)
        return motion_from_speech(self.network, states, num_frames, options.fps, options.seed, strength, check)


def check_attributes(motion: MotionOptions, has_attributes: bool) -> None:
    """Checks that a model knows the attributes that are asked for.

    Raises:
        InputError: it knows none.
    """
    asked = asked_attributes(motion)
    if asked and not has_attributes:
        problem = (
            "the model folder has no v-express/attribute_projection; leave it out, or train one, see docs/motion.md"
        )
        raise InputError(problem, asked[0], getattr(motion, asked[0]))


def prepare_request(
    request: Request,
    options: SamplingOptions,
    build_analyzer: Callable[[], FaceDetector],
    build_motion: Callable[[], SpeechMotion] | None = None,
    has_attributes: bool = False,
    check: Callable[[], None] = lambda: None,
) -> ClipInputs:
    """Reads a user's files and makes them fit the video.

    Args:
        request: what was given.
        options: size and frame rate of the video, and its seed.
        build_analyzer: gives the face detector; called only where a face has to be found.
        build_motion: gives what moves a head to speech; None where the model has no such network.
        has_attributes: whether the model has a network for lids, gaze, brows and smile.
        check: called between pieces of the work; may raise what ends it.

    Raises:
        InputError: a file cannot be used, there is no face, or the inputs do not go together.
    """
    is_natural = _moves_by_itself(request, build_motion is not None)
    check_attributes(request.motion, has_attributes)
    read_curves(request.motion)  # before anything that takes long
    if request.kps is None and request.strategy != "fix_face":
        raise InputError(f"`retarget_strategy` {request.strategy} needs `kps_path`; without one use fix_face")
    audio = (
        request.audio
        if isinstance(request.audio, Audio)
        else load_audio(request.audio, track=request.motion.audio_track)
    )
    sequence = request.kps
    if sequence is not None and not isinstance(sequence, KpsSequence):
        sequence = load_kps(sequence)
    num_frames = max(1, round(audio.duration_seconds * options.fps))
    check()
    portrait, reference_kps, whole = prepare_portrait(request, options, build_analyzer)
    check()
    if is_natural:
        motion = build_motion().make(audio, num_frames, options, request.motion.motion_strength, check)
        kps = move_face(reference_kps, motion, options.image_height, options.image_width)
    else:
        kps = prepare_kps(request, options, sequence, reference_kps, num_frames)
    attributes = None
    if has_attributes:
        attributes = torch.from_numpy(make_attributes(request.motion, len(kps), options.fps, options.seed))
    return ClipInputs(portrait, audio, kps, options.fps, attributes, whole, reference_kps)


def _moves_by_itself(request: Request, has_network: bool) -> bool:
    """Whether the head's motion is made from the speech.

    Raises:
        InputError: it is asked for, and cannot be.
    """
    asked = request.motion.motion
    if asked is not None and request.kps is not None:
        raise InputError("is for speech alone, and `kps_path` gives the motion; leave one of them out", "motion", asked)
    if asked == "natural" and request.motion.retarget_strategy is not None:
        problem = "makes the motion, and `retarget_strategy` says what else to do; leave one of them out"
        raise InputError(problem, "motion", asked)
    if asked == "natural" and not has_network:
        problem = "the model folder has no v-express/head_motion; train it with `vexpress train-motion`, or use still"
        raise InputError(problem, "motion", asked)
    is_free = request.kps is None and request.motion.retarget_strategy is None
    if has_network and is_free and asked is None:
        logger.info("the head moves to the speech; `motion` still holds it")
    return asked == "natural" or (has_network and is_free and asked is None)


def prepare_portrait(
    request: Request, options: SamplingOptions, build_analyzer: Callable[[], FaceDetector]
) -> tuple[Image.Image, Tensor | None, PasteBack | None]:
    """Loads the portrait at the model's size.

    Returns:
        The portrait; its V-Kps (3 2) in px of it where the face has to be found; the picture that it was cut out of
        where the video is set back into it.

    Raises:
        InputError: the picture cannot be read, or shows no face.
    """
    given = request.reference_image
    image = given_to_rgb(given, "reference_image") if isinstance(given, Image.Image) else load_image(given)
    max_px = request.max_whole_px
    if request.motion.paste_back and max(image.size) > max_px:
        logger.warning("`paste_back`: the picture of %dx%d px is made smaller, to %d px", *image.size, max_px)
        image = even_picture(image, max_px)
    size = (options.image_width, options.image_height)
    face = None
    if request.needs_face:
        value = None if isinstance(given, Image.Image) else given
        try:
            face = build_analyzer().detect_main(np.asarray(image), "reference_image_path", value, video_px=max(size))
        except InputError as error:
            if request.crops or request.motion.retarget_strategy is not None or request.kps is None:
                raise
            logger.warning("%s: `kps_path` is used as it is", error)  # nobody asked for more
    box = (0, 0, image.width, image.height)
    if request.crops:
        # Set back, a larger crop would be a smaller face, and nobody sees the crop.
        min_side = 1 if request.motion.paste_back else ADVISED_PORTRAIT_PX
        framing = (min_side, options.crop_scale, options.crop_face_height)
        box = head_and_shoulders_box(face.bbox, image.width, image.height, *framing)
        if box[2] - box[0] < min(ADVISED_PORTRAIT_PX, *size):
            logger.warning(
                "`auto_crop`: the portrait gives a crop of %d px for a video of %dx%d", box[2] - box[0], *size
            )
    box_width, box_height = box[2] - box[0], box[3] - box[1]
    if abs(box_width / box_height / (size[0] / size[1]) - 1) > MAX_SQUEEZE:
        logger.warning(
            "the picture is squeezed from %dx%d to %dx%d: crop the portrait, or change `image_width`, `image_height`",
            *(box_width, box_height, *size),
        )
    portrait = image.resize(size, Image.Resampling.LANCZOS, box=box)
    if face is None:
        return portrait, None, None
    scale = torch.tensor([size[0] / box_width, size[1] / box_height])
    kps = (torch.from_numpy(face.v_kps) - torch.tensor(box[:2])) * scale
    place = Box(*box[:2], box_width, box_height)
    return portrait, kps, PasteBack(np.asarray(image), place) if request.motion.paste_back else None


def prepare_kps(
    request: Request,
    options: SamplingOptions,
    sequence: KpsSequence | None,
    reference_kps: Tensor | None,
    num_frames: int,
) -> Tensor:
    """The keypoints of every frame, (f 3 2) float32 px.

    Raises:
        InputError: the keypoints cannot be carried over to the portrait.
    """
    strategy, motion = request.strategy, request.motion
    if sequence is not None and strategy == "fix_face":
        logger.warning("`retarget_strategy` fix_face keeps the head still: `kps_path` is not used")
    if sequence is None or strategy == "fix_face":
        return retarget(reference_kps.expand(num_frames, -1, -1), reference_kps, "fix_face").float()
    if sequence.fps is None and motion.kps_fps is None:
        logger.warning(
            "`kps_path` holds no frame rate: taken as %g fps; set `kps_fps`, or as released `kps_extend` stretch",
            options.fps,
        )
    if motion.kps_fps is not None:
        sequence = KpsSequence(sequence.kps, motion.kps_fps, sequence.height, sequence.width)
    driving = fit_to_clip(
        sequence, num_frames, options.fps, options.image_height, options.image_width, motion.kps_extend
    )
    if strategy == "auto":
        strategy, why = choose_strategy(driving, reference_kps) if reference_kps is not None else ("no_retarget", "")
        logger.info("`retarget_strategy` %s%s", strategy, f": {why}" if why else "")
    if strategy == "relative_retarget":
        return relative_retarget(driving, reference_kps, motion.kps_smoothing).float()
    return retarget(driving, reference_kps, strategy).float()


def load_clip_inputs(
    video: str | PathLike,
    face_info: str | PathLike,
    sound: str | PathLike,
    size: tuple[int, int],
    *,
    max_frames: float = float("inf"),
    reference_frame: int = 0,
) -> ClipInputs:
    """Makes inputs of a real clip of a data set: one of its frames as the portrait, its keypoints, its sound.

    Args:
        video: the clip.
        face_info: the face in each of its frames, see `vexpress.data.formats`.
        sound: the clip, or another file with its sound.
        size: width and height of the video to make, px.
        max_frames: the rest of the clip is left out.
        reference_frame: number of the frame that is the portrait; the last one where there are fewer.

    Raises:
        InputError: a part is missing, damaged or does not fit.
    """
    info = probe_video(video, "video")
    kps = load_face_info(face_info).kps[:, :3]
    num_frames = int(min(len(kps), count_frames(video, "video"), max(1, max_frames)))
    scaled = torch.from_numpy(kps[:num_frames] * np.divide(size, (info.width, info.height))).float()
    if not scaled.isfinite().all():
        raise InputError("holds keypoints that are not finite", "face_info", face_info)
    [portrait] = read_frames_at(video, [min(reference_frame, num_frames - 1)], "video")
    audio = load_audio(sound, "sound")
    audio = replace(audio, samples=audio.samples[:, : round(num_frames / info.fps * audio.sampling_rate_hz)])
    return ClipInputs(Image.fromarray(portrait).resize(size, Image.Resampling.LANCZOS), audio, scaled, info.fps)
