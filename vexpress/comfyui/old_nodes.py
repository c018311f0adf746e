"""The eleven nodes of the old pack, so that its workflows run: the same ids, inputs and outputs, made of the new ones'
functions. Those that choose files are in `old_file_nodes`."""

import logging
from dataclasses import fields
from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.latest import io

from vexpress.comfyui import folders, host
from vexpress.comfyui.generation import generate
from vexpress.comfyui.old_file_nodes import (
    OLD_FILE_NODES,
    AudioPath,
    ImagePath,
    Integer,
    KpsPath,
    String,
    find_model,
    known_file,
    old_schema,
    shown_video,
)
from vexpress.comfyui.values import node_words, options_of
from vexpress.comfyui.widgets import Model, option_inputs
from vexpress.errors import InputError
from vexpress.files import check_output_path
from vexpress.media.video import write_video
from vexpress.options import RELEASED_STRATEGIES, MotionOptions, SamplingOptions
from vexpress.request import Request

logger = logging.getLogger(__name__)

SIZE_FIELD = next(field for field in fields(SamplingOptions) if field.name == "image_width")
# Defaults of the old sampler where they differ from ours.
OLD_DEFAULTS = {"num_inference_steps": 20, "context_frames": 12}
SAMPLER_NAMES = ("seed", "num_inference_steps", "guidance_scale", "context_frames", "context_overlap")
WEIGHT_NAMES = ("reference_attention_weight", "audio_attention_weight")


def old_option_inputs(*names: str) -> list[io.Input]:
    """Inputs of the options table with the old pack's defaults."""
    made = option_inputs(field for name in names for field in fields(SamplingOptions) if field.name == name)
    for one in made:
        one.default = OLD_DEFAULTS.get(one.id, one.default)
        one.extra_dict = {}
    return made


class SizeConstant(io.ComfyNode):
    """A number of the old pack's own type."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        facts = SIZE_FIELD.metadata
        bounds = {"min": facts["low"], "max": facts["high"], "step": facts["multiple"]}
        return old_schema(
            "VEINTConstant",
            "Set Image Size",
            "the samplers have image_width and image_height.",
            inputs=[io.Int.Input("image_size", default=SIZE_FIELD.default, tooltip="Side of the video, px", **bounds)],
            outputs=[Integer.Output("size", display_name="image_size")],
        )

    @classmethod
    def execute(cls, image_size: int) -> io.NodeOutput:
        return io.NodeOutput(image_size)


class StringConstant(io.ComfyNode):
    """A text of the old pack's own type."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return old_schema(
            "VEStringConstant",
            "Set V-Express Model Path",
            "use V-Express Load Model.",
            inputs=[
                io.String.Input(
                    "string",
                    default="./model_ckpts",
                    tooltip="Folder of the models: in this pack's folder, or below models/vexpress",
                )
            ],
            outputs=[String.Output("text", display_name="STRING_INPUT")],
        )

    @classmethod
    def execute(cls, string: str) -> io.NodeOutput:
        return io.NodeOutput(string)


class Loader(io.ComfyNode):
    """A path -> the pipeline."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return old_schema(
            "V_Express_Loader",
            "V-Express Loader",
            "use V-Express Load Model.",
            inputs=[String.Input("vexpress_model_path")],
            outputs=[Model.Output("v_express_pipeline", display_name="v_express_pipeline")],
        )

    @classmethod
    def execute(cls, vexpress_model_path: str) -> io.NodeOutput:
        with node_words():
            return io.NodeOutput(host.LoadedModel(find_model(vexpress_model_path)))


class Sampler(io.ComfyNode):
    """Paths -> a file in the output folder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return old_schema(
            "V_Express_Sampler",
            "V-Express Sampler",
            "use V-Express Sample to Video.",
            inputs=[
                Model.Input("v_express_pipeline"),
                String.Input("vexpress_model_path"),
                AudioPath.Input("audio_path"),
                KpsPath.Input("kps_path"),
                ImagePath.Input("ref_image_path"),
                io.String.Input("output_path", default="vexpress.mp4", tooltip="File in ComfyUI's output folder"),
                Integer.Input("image_size"),
                io.Combo.Input("retarget_strategy", options=list(RELEASED_STRATEGIES), default="fix_face"),
                io.Float.Input("fps", default=30.0, min=20.0, max=60.0),
                *old_option_inputs(*SAMPLER_NAMES[:4]),
                io.Int.Input("context_stride", default=1, min=1, tooltip="Only 1 is supported; others count as 1"),
                *old_option_inputs(*SAMPLER_NAMES[4:], *WEIGHT_NAMES),
            ],
            outputs=[String.Output("path", display_name="output_path")],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, output_path: str | None = None, retarget_strategy: str | None = None) -> bool | str:
        try:
            if output_path is not None:
                folders.old_output_file(output_path, folder_paths.get_output_directory())
            options_of(MotionOptions, {"retarget_strategy": retarget_strategy})
        except InputError as error:
            return str(error)
        return True

    @classmethod
    def execute(
        cls,
        v_express_pipeline: host.LoadedModel,
        vexpress_model_path: str,
        audio_path: str,
        kps_path: str,
        ref_image_path: str,
        output_path: str,
        image_size: int,
        retarget_strategy: str,
        context_stride: int,
        **values: Any,
    ) -> io.NodeOutput:
        if context_stride != 1:
            logger.warning("`context_stride` %d counts as 1", context_stride)
        output_dir = Path(folder_paths.get_output_directory())
        path = folders.old_output_file(output_path, output_dir)
        path.parent.mkdir(parents=True, exist_ok=True)
        model = v_express_pipeline
        with node_words():
            given = [known_file(path) for path in (ref_image_path, audio_path, kps_path)]
            check_output_path(path, "output_path", given)
            options = options_of(SamplingOptions, {"image_width": image_size, "image_height": image_size, **values})
            request = Request(*given, MotionOptions(retarget_strategy=retarget_strategy, kps_extend="stretch"))
            report, inputs = host.node_report(), model.prepare(request, options)
            clip = generate(model.pipeline, inputs, options, report, model.load)
            metadata = host.file_metadata(cls.hidden, model, options)
            write_video(path, clip.frames, options.fps, clip.inputs.audio, metadata=metadata)
        return io.NodeOutput(str(path), ui=shown_video(path))


class PreviewVideo(io.ComfyNode):
    """Shows a video of one of ComfyUI's folders."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return old_schema(
            "VEPreview_Video",
            "Preview Output Video",
            "V-Express Sample to Video shows its video itself.",
            inputs=[String.Input("video")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, video: str) -> io.NodeOutput:
        return io.NodeOutput(ui=shown_video(known_file(video)))


OLD_NODES = [Loader, Sampler, SizeConstant, StringConstant, PreviewVideo, *OLD_FILE_NODES]
