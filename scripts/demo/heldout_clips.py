"""Held-out clips of drawn people: what they show, and how a pipeline regenerates them."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from vexpress.data.attributes import load_attributes
from vexpress.data.formats import load_face_info
from vexpress.errors import InputError
from vexpress.media.audio import Audio
from vexpress.media.video import read_frames
from vexpress.options import CALL, SamplingOptions
from vexpress.pipeline import VExpressPipeline
from vexpress.request import ClipInputs, load_clip_inputs

UPPER_LIDS = slice(33, 43)  # landmarks of the left eye


@dataclass(frozen=True)
class HeldoutClip:
    """The start of a clip of a drawn dataset, with its exact labels.

    Attributes:
        name: of the video, without suffix.
        inputs: what the pipeline makes the clip from; the portrait is a later frame with open eyes. Attributes are the
            true ones.
        frames: (f H W 3) uint8, the true ones.
        mouth: (f 2) true aperture and width, 0..1.
        probes: (f 3 2) px, places in skin, hair and background.
    """

    name: str
    inputs: ClipInputs
    frames: np.ndarray
    mouth: np.ndarray
    probes: np.ndarray

    @property
    def kps(self) -> np.ndarray:
        """(f 3 2) float32 px: left eye, right eye, nose."""
        return self.inputs.kps.numpy()


def load_heldout_clips(folder: Path, num_frames: int) -> list[HeldoutClip]:
    """Reads the first frames of each clip of a drawn dataset.

    Raises:
        InputError: a clip is damaged, or not longer than `num_frames`.
        OSError: there is no metadata or no labels.
        KeyError: the dataset was not made by make_drawn_dataset.
    """
    clips = []
    for row in json.loads((folder / "metadata.json").read_text(encoding="utf-8")):
        video, face_info = folder / row["video"], folder / row["face_info"]
        landmarks = load_face_info(face_info).landmark_2d_106
        if len(landmarks) <= num_frames:
            raise InputError(
                f"clip {video.stem}: has {len(landmarks)} frames and must have more than {num_frames} frames"
            )
        reference = num_frames + int(np.ptp(landmarks[num_frames:, UPPER_LIDS, 1], axis=1).argmax())
        frames = np.stack([frame for _, frame in read_frames(video)][:num_frames])
        inputs = load_clip_inputs(video, face_info, video, frames.shape[2:0:-1], reference_frame=reference)
        if name := row.get("attributes"):  # datasets of the pack's first edition have none
            inputs = replace(inputs, attributes=torch.from_numpy(load_attributes(folder / name)))
        with np.load(folder / row["labels"]) as labels:
            mouth, probes = labels["mouth"][:num_frames], labels["probes"][:num_frames]
        clips.append(HeldoutClip(video.stem, shorten(inputs, num_frames), frames, mouth, probes))
    return clips


def shorten(inputs: ClipInputs, num_frames: int) -> ClipInputs:
    """The inputs of a clip's first frames."""
    rate = inputs.audio.sampling_rate_hz
    samples = inputs.audio.samples[:, : round(num_frames / inputs.fps * rate)]
    attributes = None if inputs.attributes is None else inputs.attributes[:num_frames]
    return replace(inputs, kps=inputs.kps[:num_frames], audio=Audio(samples, rate), attributes=attributes)


def regenerate(
    pipeline: VExpressPipeline, clip: HeldoutClip, options: SamplingOptions, speech_of: HeldoutClip | None = None
) -> np.ndarray:
    """Generates the clip again, (f H W 3) uint8, with the speech of another clip if given.

    Its attributes are left out for a model that knows none.
    """
    rate = pipeline.audio_processor.sampling_rate
    arguments = clip.inputs.pipeline_arguments(rate)
    if pipeline.attribute_projection is None:
        arguments["attributes"] = None
    if speech_of is not None:
        arguments["audio_waveform"] = speech_of.inputs.waveform(rate)
    return np.stack(list(pipeline(**arguments, **options.values_at(CALL), output_type="generator").frames))


def silenced(clip: HeldoutClip) -> HeldoutClip:
    """The clip with digital silence in place of its speech."""
    audio = clip.inputs.audio
    silence = Audio(np.zeros_like(audio.samples), audio.sampling_rate_hz)
    return replace(clip, inputs=replace(clip.inputs, audio=silence))
