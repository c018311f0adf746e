"""Nodes that load a model, make videos and show them."""

import logging
from dataclasses import Field, fields
from typing import Any

import torch
from comfy_api.latest import Input, InputImpl, io, ui

from vexpress.comfyui import folders, host, keypoints
from vexpress.comfyui.generation import Clip, contact_sheet, generate, sheet_numbers
from vexpress.comfyui.values import check_options, from_audio, node_words, options_of, to_audio, to_batch, to_picture
from vexpress.comfyui.values import to_pixels as pixels_of
from vexpress.comfyui.widgets import CATEGORY, Kps, Model, option_inputs
from vexpress.data.attribute_curves import read_curves
from vexpress.errors import InputError
from vexpress.media.audio import load_audio
from vexpress.media.images import load_image
from vexpress.media.keypoints import KpsSequence, load_kps
from vexpress.media.random_access import count_frames, read_frames_at
from vexpress.media.video import write_video
from vexpress.model_folder import EMBEDDED_MODEL_DIR
from vexpress.options import MotionOptions, SamplingOptions, load_model_defaults, unlearned
from vexpress.request import Request

logger = logging.getLogger(__name__)

TABLES = (SamplingOptions, MotionOptions)
LOADER_OPTIONS = ("dtype", "test_stage", "face_models")
"""Options that take effect when a model is loaded; a sampler's scheduler can change without that."""
NODES_OF_THEIR_OWN = ("auto_crop", "kps_fps", "audio_track")
"""Options that other nodes have."""
SAMPLER_ORDER = (
    *("image_width", "image_height", "fps", "seed", "num_inference_steps", "guidance_scale", "retarget_strategy"),
    *("reference_attention_weight", "audio_attention_weight", "scheduler", "guidance", "shared_noise"),
    *("context_frames", "context_overlap", "num_pad_audio_frames", "median_filter", "denoise_threshold"),
    *("windows_per_batch", "kps_extend", "sampling", "motion", "motion_strength", "kps_smoothing"),
    *("blink", "gaze", "brows", "smile"),
    *("guidance_interval", "deep_block_interval"),
    *("paste_back", "crop_scale", "crop_face_height"),
)
"""Workflows hold the values of widgets by position: this order is for ever, and new options come after it."""


def sampler_fields() -> list[Field]:
    """The options that a sampler has, in the order of its widgets."""
    elsewhere = (*LOADER_OPTIONS, *NODES_OF_THEIR_OWN)
    options = [field for table in TABLES for field in fields(table) if field.name not in elsewhere]
    known = {name: place for place, name in enumerate(SAMPLER_ORDER)}
    return sorted(options, key=lambda field: known.get(field.name, len(known)))


class LoadModel(io.ComfyNode):
    """A model folder -> VEXPRESS_MODEL."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        loading = [field for table in TABLES for field in fields(table) if field.name in LOADER_OPTIONS]
        dtype, *others = option_inputs(loading)
        dtype.tooltip = "number type of all networks; unset: what ComfyUI chooses for this device"
        return io.Schema(
            node_id="VExpress_LoadModel",
            display_name="V-Express Load Model",
            category=CATEGORY,
            description="Loads a model from a folder below models/vexpress, in the released layout.",
            inputs=[
                io.Combo.Input(
                    "model_folder",
                    options=list(folders.find_models(host.model_roots())),
                    tooltip="Folder below models/vexpress; the embedded model knows drawn faces only",
                ),
                dtype,
                *others,
            ],
            outputs=[Model.Output("model", display_name="model")],
        )

    @classmethod
    def validate_inputs(cls, model_folder: str | None = None) -> bool | str:
        try:
            folders.model_folder(model_folder or folders.EMBEDDED, host.model_roots())
        except InputError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, model_folder: str, **_: Any) -> str:
        return folders.fingerprint(folders.model_folder(model_folder, host.model_roots()))

    @classmethod
    def execute(cls, model_folder: str, **values: Any) -> io.NodeOutput:
        with node_words():
            options, motion = options_of(SamplingOptions, values), options_of(MotionOptions, values)
            folder = folders.model_folder(model_folder, host.model_roots())
            return io.NodeOutput(host.LoadedModel(folder, options.dtype, options.test_stage, motion.face_models))


class LoadLora(io.ComfyNode):
    """VEXPRESS_MODEL and an adapter -> VEXPRESS_MODEL."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="VExpress_LoadLora",
            display_name="V-Express Load LoRA",
            category=CATEGORY,
            description="Gives a model an adapter, such as one of a person that `vexpress person` has trained. Several "
            "in a row add up.",
            inputs=[
                Model.Input("model"),
                io.Combo.Input(
                    "lora",
                    options=list(folders.find_adapters(host.adapter_roots())),
                    tooltip="File below models/loras; those of image models do not fit",
                ),
                io.Float.Input("weight", default=1.0, min=-10.0, max=10.0, step=0.05, tooltip="How much it counts"),
                io.Boolean.Input(
                    "lora_any_base",
                    default=False,
                    tooltip="Use it although it was trained on another base model, such as a distilled one's teacher",
                ),
            ],
            outputs=[Model.Output("adapted", display_name="model")],
        )

    @classmethod
    def validate_inputs(cls, lora: str | None = None) -> bool | str:
        try:
            folders.adapter_file(lora or "", host.adapter_roots())
        except InputError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, lora: str, **_: Any) -> str:
        return folders.fingerprint(folders.adapter_file(lora, host.adapter_roots()))

    @classmethod
    def execute(cls, model: host.LoadedModel, lora: str, weight: float, lora_any_base: bool) -> io.NodeOutput:
        with node_words():
            path = folders.adapter_file(lora, host.adapter_roots())
            return io.NodeOutput(model.with_adapter(path, weight, check_base=not lora_any_base))


class CropPortrait(io.ComfyNode):
    """IMAGE -> IMAGE of head and shoulders."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="VExpress_CropPortrait",
            display_name="V-Express Crop Portrait",
            category=CATEGORY,
            description="Cuts a square around the largest face: head and shoulders, as V-Express works best on.",
            inputs=[Model.Input("model"), io.Image.Input("image", tooltip="A picture with one clear frontal face")],
            outputs=[io.Image.Output("portrait", display_name="portrait")],
        )

    @classmethod
    def execute(cls, model: host.LoadedModel, image: torch.Tensor) -> io.NodeOutput:
        with node_words():
            portrait = keypoints.crop_portrait(to_picture(image, "image"), model.face_detector)
        return io.NodeOutput(to_batch([portrait]))


class _Sampler(io.ComfyNode):
    """What both samplers check."""

    @classmethod
    def validate_inputs(
        cls,
        image_width: int | None = None,
        image_height: int | None = None,
        scheduler: str | None = None,
        guidance: str | None = None,
        context_frames: int | None = None,
        context_overlap: int | None = None,
        retarget_strategy: str | None = None,
        kps_extend: str | None = None,
        sampling: str | None = None,
        motion: str | None = None,
        blink: str | None = None,
        gaze: str | None = None,
        brows: str | None = None,
        smile: str | None = None,
    ) -> bool | str:
        # What ComfyUI checks itself is not named here: a message would stand at every input that is.
        return check_options({name: value for name, value in locals().items() if name != "cls"})


class Sample(_Sampler):
    """Portrait, speech and keypoints -> frames."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="VExpress_Sample",
            display_name="V-Express Sample",
            category=CATEGORY,
            description="Makes a talking portrait as images, for other nodes to go on with. A minute of 512x512 at 30 "
            "fps takes 5.7 GB of memory: for long sound use V-Express Sample to Video.",
            inputs=sampler_inputs(),
            outputs=[
                io.Image.Output("images", display_name="images"),
                io.Audio.Output("sound", display_name="audio"),
                io.Float.Output("frame_rate", display_name="fps", tooltip="For Create Video"),
                Kps.Output("used_kps", display_name="kps", tooltip="The keypoints of every frame"),
            ],
        )

    @classmethod
    def execute(cls, audio: dict[str, Any], **values: Any) -> io.NodeOutput:
        with node_words():
            clip, options = make_clip(audio=audio, **values)
            images = to_batch(clip.frames)
        return io.NodeOutput(images, audio, float(options.fps), used_kps(clip))


class SampleToVideo(_Sampler):
    """Portrait, speech and keypoints -> a file in the output folder; memory does not grow with length."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="VExpress_SampleToVideo",
            display_name="V-Express Sample to Video",
            category=CATEGORY,
            description="Makes a talking portrait and writes it to the output folder frame by frame, so that memory "
            "does not grow with the length of the sound.",
            inputs=sampler_inputs(
                io.String.Input(
                    "filename_prefix",
                    default="video/vexpress",
                    tooltip="Name of the file in the output folder; may hold folders, and placeholders such as %year%",
                ),
            ),
            outputs=[
                io.Video.Output("video", display_name="video"),
                Kps.Output("used_kps", display_name="kps", tooltip="The keypoints of every frame"),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, audio: dict[str, Any], filename_prefix: str, **values: Any) -> io.NodeOutput:
        with node_words():
            size = values["image_width"], values["image_height"]
            path, subfolder = host.new_output_file(filename_prefix, size)  # a bad name is told before the work
            clip, options = make_clip(audio=audio, **values)
            metadata = host.file_metadata(cls.hidden, values["model"], options)
            write_video(path, clip.frames, options.fps, clip.inputs.audio, metadata=metadata)
        shown = ui.PreviewVideo([ui.SavedResult(path.name, subfolder, io.FolderType.output)])
        return io.NodeOutput(InputImpl.VideoFromFile(str(path)), used_kps(clip), ui=shown)


class ContactSheet(io.ComfyNode):
    """A clip on one picture."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="VExpress_ContactSheet",
            display_name="V-Express Contact Sheet",
            category=CATEGORY,
            description="Shows a clip at a glance: portrait, eight frames, their keypoints, and the sound.",
            inputs=[
                io.Image.Input("portrait"),
                io.MultiType.Input("clip", types=[io.Image, io.Video], tooltip="The frames, as IMAGE or as VIDEO"),
                io.Audio.Input("audio"),
                Kps.Input("kps", tooltip="The keypoints of every frame, from the sampler"),
            ],
            outputs=[io.Image.Output("sheet", display_name="sheet")],
        )

    @classmethod
    def execute(
        cls, portrait: torch.Tensor, clip: torch.Tensor | Input.Video, audio: dict[str, Any], kps: KpsSequence
    ) -> io.NodeOutput:
        with node_words():
            picture, waveform = to_picture(portrait, "portrait"), to_audio(audio).samples.mean(axis=0)
            file = None if isinstance(clip, torch.Tensor) else host.video_file(clip)
            num_frames = count_frames(file, "clip") if file else len(clip)
            if num_frames != len(kps.kps):
                raise InputError(
                    f"holds {num_frames} frames, and `kps` {len(kps.kps)}: give both of one sampler", "clip"
                )
            numbers = sheet_numbers(num_frames)
            frames = list(read_frames_at(file, numbers, "clip")) if file else [pixels_of(clip[n]) for n in numbers]
            return io.NodeOutput(to_batch([contact_sheet(picture, frames, kps.kps, waveform)]))


class Example(io.ComfyNode):
    """What the demo is made of."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="VExpress_Example",
            display_name="V-Express Example",
            category=CATEGORY,
            description="A drawn portrait, speech, and a driving video with its keypoints, for the embedded model.",
            outputs=[
                io.Image.Output("portrait", display_name="portrait"),
                io.Audio.Output("audio", display_name="audio"),
                Kps.Output("kps", display_name="kps"),
                io.Video.Output("driving_video", display_name="driving_video"),
            ],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        folder = EMBEDDED_MODEL_DIR / "examples"
        return io.NodeOutput(
            to_batch([load_image(folder / "portrait.png")]),
            from_audio(load_audio(folder / "speech.wav")),
            load_kps(folder / "driving_kps.npz"),
            InputImpl.VideoFromFile(str(folder / "driving.mp4")),
        )


def sampler_inputs(*own: io.Input) -> list[io.Input]:
    """Inputs of the nodes that sample, a node's own among them."""
    return [
        Model.Input("model"),
        io.Image.Input("portrait", tooltip="Head and shoulders, best square; it is resized to the video's size"),
        io.Audio.Input("audio", tooltip="Speech; the video lasts as long"),
        Kps.Input("kps", optional=True, tooltip="How the head moves; left open, see motion"),
        *own,
        *option_inputs(sampler_fields()),
    ]


def make_clip(
    model: host.LoadedModel,
    portrait: torch.Tensor,
    audio: dict[str, Any],
    kps: KpsSequence | None = None,
    **values: Any,
) -> tuple[Clip, SamplingOptions]:
    """Denoises what a sampler's inputs describe, in ComfyUI's memory and with its progress."""
    options, motion = options_of(SamplingOptions, values), options_of(MotionOptions, values)
    read_curves(motion, reads_files=False)  # a workflow may come from anywhere
    request = Request(to_picture(portrait, "portrait"), to_audio(audio), kps, motion)
    if warning := unlearned(options, load_model_defaults(model.folder)):
        logger.warning(warning)
    report, inputs = host.node_report(), model.prepare(request, options)
    return generate(model.pipeline, inputs, options, report, model.load), options


def used_kps(clip: Clip) -> KpsSequence:
    """The keypoints that a clip was made with."""
    width, height = clip.inputs.video_size
    return KpsSequence(clip.inputs.video_kps, float(clip.inputs.fps), height, width)


NODES = [LoadModel, LoadLora, Sample, SampleToVideo, CropPortrait, ContactSheet, Example]
