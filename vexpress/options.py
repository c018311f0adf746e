"""The table of sampling options: default, bounds, unit and help of each, in one place.

From it derive the flags of programs, what a model folder may set, what an evaluation records, the pipeline's keyword
arguments with their checks, and the table of docs/inference.md. A new option is one field here, and its use.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import Field, asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from vexpress.errors import InputError
from vexpress.fields import allowed_values, check_fields, option
from vexpress.model_folder import INFERENCE_DEFAULTS, read_config

GUIDANCE = ("all", "audio", "attributes")
SAMPLING = ("joint", "rolling")
SCHEDULERS = ("ddim", "dpmsolver++", "unipc", "lcm", "euler")
DTYPES = ("fp16", "bf16", "fp32")
STAGES = ("stage_1", "stage_2", "stage_3")
RELEASED_STRATEGIES = ("fix_face", "no_retarget", "offset_retarget", "naive_retarget")
RETARGET_STRATEGIES = (*RELEASED_STRATEGIES, "relative_retarget", "auto")
MOTIONS = ("still", "natural")
FACE_MODELS = ("insightface", "mtcnn")
ATTRIBUTE_OPTIONS = ("blink", "gaze", "brows", "smile")
PLAIN_ATTRIBUTE = re.compile(r"natural|none|[-+.,eE\d\s]+")
KPS_EXTEND = ("loop", "stretch", "hold")
FACE_CHOICES = ("largest", "leftmost")  # or a number, from the left

# Where an option takes effect: when the user's files are read, when the model is loaded, or in the pipeline's call.
REQUEST, LOADING, CALL = "request", "loading", "call"


@dataclass(frozen=True)
class SamplingOptions:
    """How a video is made from a portrait, speech and keypoints.

    Facts of a field beside those of `vexpress.fields.option`: `where` it takes effect; `by_model`, whether a model
    folder's inference_defaults.json may set it; `same_result`, True for what changes speed, memory and rounding only;
    `advanced`, True for what doors show last.

    Raises:
        InputError: a value is out of bounds.
    """

    image_width: int = option(
        512, "width of the video, 64 advised as a step", low=64, high=2048, multiple=8, unit="px", where=REQUEST
    )
    image_height: int = option(
        512, "height of the video, 64 advised as a step", low=64, high=2048, multiple=8, unit="px", where=REQUEST
    )
    fps: float = option(30.0, "frame rate of the video", low=1, high=240, unit="frames per second", where=REQUEST)
    crop_scale: float = option(
        2.2,
        "side of the square that is cut out around a face, in sides of the face's box; as the model's data have it",
        low=1,
        high=10,
        where=REQUEST,
        advanced=True,
    )
    crop_face_height: float = option(
        0.45,
        "where in that square the middle of the face's box is, from the top",
        low=0.1,
        high=0.9,
        where=REQUEST,
        advanced=True,
    )
    seed: int = option(42, "same seed and inputs: same video", low=0, high=2**63 - 1, where=CALL, by_model=False)
    scheduler: str = option("ddim", "sampler", choices=SCHEDULERS, where=LOADING, advanced=True)
    num_inference_steps: int = option(
        25, "denoising steps; with dpmsolver++ or unipc 10 to 15 are worth a try", low=1, high=1000, where=CALL
    )
    guidance_scale: float = option(
        3.5, "strength of guidance; 1 switches it off and halves the time", low=0, high=100, where=CALL
    )
    guidance: str = option(
        "all",
        "guide away from: no condition at all; no audio, which moves the mouth more and keeps colours; no attributes",
        choices=GUIDANCE,
        where=CALL,
        advanced=True,
    )
    guidance_interval: int = option(
        1,
        "steps for which a direction of guidance serves; 2 or 3 save a quarter or a third of the time",
        low=1,
        high=1000,
        where=CALL,
        advanced=True,
    )
    deep_block_interval: int = option(
        1,
        "steps for which what the UNet's deep blocks give serves; 2 saves a quarter of the time and takes memory",
        low=1,
        high=1000,
        where=CALL,
        advanced=True,
    )
    shared_noise: float = option(
        0.0,
        "share of the initial noise that all frames have in common: less flicker",
        low=0,
        high=1,
        where=CALL,
        advanced=True,
    )
    sampling: str = option(
        "joint",
        "joint: all windows at each step, as released; rolling: one window after the other, in constant memory",
        choices=SAMPLING,
        where=CALL,
    )
    context_frames: int = option(
        24, "frames of a window; fewer take less memory", low=1, high=1000, where=CALL, advanced=True
    )
    context_overlap: int = option(
        4,
        "frames that neighbouring windows share; more make joints smoother",
        low=0,
        high=999,
        where=CALL,
        advanced=True,
    )
    reference_attention_weight: float = option(
        0.95, "higher holds the look of the portrait more", low=0, high=100, where=CALL
    )
    audio_attention_weight: float = option(
        3.0, "higher moves the mouth more; too high distorts it", low=0, high=100, where=CALL
    )
    num_pad_audio_frames: int = option(
        2, "frames of audio around each frame", low=0, high=100, where=CALL, advanced=True
    )
    median_filter: bool = option(True, "smooth decoded frames against flicker", where=CALL, advanced=True)
    denoise_threshold: float = option(
        0.0,
        "of 255: pixels that differ by less are averaged over 5 frames, which stills the background; 0 is off",
        low=0,
        high=255,
        where=CALL,
        advanced=True,
    )
    windows_per_batch: int = option(
        1,
        "windows predicted at once: more is faster and takes more memory",
        low=1,
        high=1000,
        where=CALL,
        by_model=False,
        same_result=True,
        advanced=True,
    )
    dtype: str | None = option(
        None,
        "number type; unset: fp16 on cuda, else fp32",
        choices=DTYPES,
        type=str,
        where=LOADING,
        by_model=False,
        advanced=True,
    )
    test_stage: str = option(
        "stage_3",
        "stage_1 silences audio attention and motion modules, which it has not trained; 2 and 3 run alike",
        choices=STAGES,
        where=LOADING,
        by_model=False,
        advanced=True,
    )

    def __post_init__(self):
        check_fields(self)
        if self.context_overlap >= self.context_frames:
            allowed = f"0 to {self.context_frames - 1}, below `context_frames`"
            raise InputError(f"must be {allowed}", "context_overlap", self.context_overlap)

    def changed(self, **values: Any) -> "SamplingOptions":
        """These options with other values.

        Raises:
            InputError: no such option, or a value out of bounds.
        """
        names = [field.name for field in fields(self)]
        if unknown := [name for name in values if name not in names]:
            raise InputError(f"is no sampling option; there are {', '.join(names)}", unknown[0])
        return replace(self, **values)

    def values_at(self, *places: str) -> dict[str, Any]:
        """Names and values of the options that take effect at these places."""
        return {field.name: getattr(self, field.name) for field in option_fields(*places)}

    def recorded(self) -> dict[str, Any]:
        """What decides how a video looks, to be written beside it."""
        return {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if not field.metadata.get("same_result", False)
        }


@dataclass(frozen=True)
class MotionOptions:
    """How a user's portrait and keypoints become those of the video.

    Raises:
        InputError: a value is out of bounds.
    """

    auto_crop: bool = option(False, "crop the portrait around the face")
    paste_back: bool = option(
        False, "crop the portrait around the face, and set the video's frames back into the whole picture"
    )
    retarget_strategy: str | None = option(
        None,
        "fix_face: a still head; no_retarget: the keypoints as they are; the others: those of another person, see "
        "docs/inference.md; auto: no_retarget or relative_retarget, by how much the faces differ; unset: auto, or "
        "without kps_path fix_face",
        choices=RETARGET_STRATEGIES,
        type=str,
    )
    kps_smoothing: float = option(
        1.0, "strength of relative_retarget's smoothing against a detector's noise; 0 is off", low=0, high=10
    )
    motion: str | None = option(
        None,
        "how the head moves without kps_path: still, or natural, made from the speech; unset: natural if the model can",
        choices=MOTIONS,
        type=str,
    )
    motion_strength: float = option(1.0, "of natural motion; 1 moves as the training data do", low=0, high=3)
    blink: str | None = option(
        None,
        "lids: natural; none, which keeps them open; 0 closed to 1 open; or a curve, see docs/motion.md; unset: "
        "natural if the model knows attributes",
        type=str,
    )
    gaze: str | None = option(
        None,
        "where the eyes look: x,y, each -1 to 1, to the viewer's right and down; or a curve; unset: left to the model",
        type=str,
    )
    brows: str | None = option(None, "-1 lowered, 0 at rest, 1 raised; or a curve; unset: left to the model", type=str)
    smile: str | None = option(None, "0 at rest to 1; or a curve; unset: left to the model", type=str)
    face_models: str | None = option(
        None,
        "what finds the face: insightface's models, or mtcnn, which comes with the package; unset: insightface if the "
        "model folder has it",
        choices=FACE_MODELS,
        type=str,
        advanced=True,
    )
    kps_extend: str = option(
        "loop", "what to do if the keypoints end before the audio", choices=KPS_EXTEND, advanced=True
    )
    kps_fps: float | None = option(
        None, "frame rate of kps_path; unset: the file's, else fps", low=1, high=240, type=float
    )
    audio_track: int | None = option(
        None,
        "number of the sound track, from 0; unset: the one a player plays",
        low=0,
        high=999,
        type=int,
        advanced=True,
    )

    def __post_init__(self):
        check_fields(self)

    def recorded(self) -> dict[str, Any]:
        """What may be written into a video: of a curve no more than that it was one, since it may be a user's file."""
        values = asdict(self)
        for name in ATTRIBUTE_OPTIONS:
            if values[name] is not None and not PLAIN_ATTRIBUTE.fullmatch(values[name].strip()):
                values[name] = "curve"
        return values


_SAMPLER = {"scheduler": "ddim", "num_inference_steps": 25, "guidance_interval": 1, "deep_block_interval": 1}
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "released": {**_SAMPLER, "sampling": "joint"},
    "fast": {
        "scheduler": "dpmsolver++",
        "num_inference_steps": 13,  # odd, and one more than a multiple of 3: so the last step reuses nothing
        "guidance_interval": 2,
        "deep_block_interval": 3,
        "sampling": "joint",
    },
    "live": {**_SAMPLER, "num_inference_steps": 2, "guidance_scale": 1.0, "sampling": "rolling", "context_overlap": 6},
}
"""Name -> values of other options: as the release samples; a third of its arithmetic, and almost its frames; frames as
they are made, of models that stage 4 has distilled. A preset goes before what a model folder sets, and a value that is
given beside it goes before the preset. See docs/speed.md."""
PRESET_HELP = "a set of values of other options, which flags that are given go before; see docs/speed.md"


def preset_values(preset: str, model: Mapping[str, Any]) -> dict[str, Any]:
    """What a preset sets for a model whose folder sets `model`; a student keeps its own steps and overlap."""
    values = dict(PRESETS[preset])
    if values["sampling"] == "rolling" == model.get("sampling"):
        del values["num_inference_steps"], values["context_overlap"]
    return values


def option_fields(*places: str) -> tuple[Field, ...]:
    """The fields of `SamplingOptions`, or those that take effect at the given places."""
    return tuple(field for field in fields(SamplingOptions) if not places or field.metadata["where"] in places)


def load_model_defaults(model_dir: str | Path, preset: str | None = None) -> dict[str, Any]:
    """Reads the options that a model folder sets, none without a file, and puts those of a preset over them.

    Args:
        model_dir: the folder.
        preset: key of `PRESETS`, or None.

    Raises:
        InputError: no such preset; the file is damaged, holds what is no option or not the model's to set, or a value
            out of bounds.
    """
    if preset is not None and preset not in PRESETS:
        raise InputError(f"must be one of {', '.join(PRESETS)}", "preset", preset)
    path = Path(model_dir) / INFERENCE_DEFAULTS
    if not path.is_file():
        return preset_values(preset, {}) if preset else {}
    values = read_config(path)
    allowed = {field.name: field for field in fields(SamplingOptions) if field.metadata.get("by_model", True)}
    values = {LEGACY_NAMES.get(name, name): _legacy(name, value) for name, value in values.items()}
    for name, value in values.items():
        if name not in allowed:
            raise InputError(f"{path}: {name}={json.dumps(value)}; allowed are {', '.join(allowed)}")
    try:
        SamplingOptions(**values)
    except InputError as error:
        field = allowed.get(error.field)
        what = f"must be {allowed_values(field)}" if field else error.problem
        raise InputError(f"{path}: {error.field}={json.dumps(error.value)}; {what}") from error
    return values | (preset_values(preset, values) if preset else {})


def unlearned(options: SamplingOptions, model: Mapping[str, Any]) -> str | None:
    """What to warn of where a student is asked for other steps than it learned, which makes bad frames; None if not.

    Args:
        options: that are asked for.
        model: what the model's folder sets.
    """
    learned = model.get("num_inference_steps")
    if model.get("sampling") != "rolling" or learned in (None, options.num_inference_steps):
        return None
    return f"`num_inference_steps` {options.num_inference_steps}: this student learned {learned}"


LEGACY_NAMES = {"no_median_filter": "median_filter"}


def _legacy(name: str, value: Any) -> Any:
    """Files of the first edition say no_median_filter."""
    return not value if name in LEGACY_NAMES and isinstance(value, bool) else value
