"""The eleven nodes of the old pack, so that its workflows run: the same ids, inputs and outputs, made of the new ones'
functions. Their own types carry paths, which are checked wherever they come in."""

import hashlib
import logging
from dataclasses import fields
from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.latest import io, ui

from vexpress.comfyui import folders, host, keypoints
from vexpress.comfyui.generation import generate
from vexpress.comfyui.keypoint_nodes import MAX_GAP_FRAMES
from vexpress.comfyui.values import node_words, options_of
from vexpress.comfyui.widgets import Model, check_input_file, option_inputs
from vexpress.errors import InputError
from vexpress.files import check_output_path
from vexpress.media.keypoints import KPS_SUFFIXES, save_kps
from vexpress.media.video import write_video
from vexpress.options import RELEASED_STRATEGIES, MotionOptions, SamplingOptions
from vexpress.request import Request

logger = logging.getLogger(__name__)

CATEGORY = "V-Express/old pack"
String = io.Custom("STRING_INPUT")
Integer = io.Custom("INT_INPUT")
AudioPath = io.Custom("AUDIO_PATH")
KpsPath = io.Custom("VKPS_PATH")
ImagePath = io.Custom("IMAGE_PATH")
FILE_TIP = "File in ComfyUI's input folder"
OLD_VIDEO_SUFFIXES = (".mp4", ".webm", ".mkv", ".avi")
SIZE_FIELD = next(field for field in fields(SamplingOptions) if field.name == "image_width")
# Defaults of the old sampler where they differ from ours.
OLD_DEFAULTS = {"num_inference_steps": 20, "context_frames": 12}
SAMPLER_NAMES = ("seed", "num_inference_steps", "guidance_scale", "context_frames", "context_overlap")
WEIGHT_NAMES = ("reference_attention_weight", "audio_attention_weight")


def old_schema(node_id: str, display_name: str, description: str, **parts: Any) -> io.Schema:
    """A schema that says that the node is deprecated."""
    return io.Schema(
        node_id=node_id,
        display_name=display_name,
        category=CATEGORY,
        description=f"Of the old pack: {description}",
        is_deprecated=True,
        **parts,
    )


def old_option_inputs(*names: str) -> list[io.Input]:
    """Inputs of the options table with the old pack's defaults."""
    made = option_inputs(field for name in names for field in fields(SamplingOptions) if field.name == name)
    for one in made:
        one.default = OLD_DEFAULTS.get(one.id, one.default)
        one.extra_dict = {}
    return made


class _FileNode(io.ComfyNode):
    """Chooses a file of the input folder; its path is the output."""

    NODE_ID, TITLE, DESCRIPTION_TEXT = "", "", ""
    FIELD, SUFFIXES, OUTPUT, OUTPUT_NAME, UPLOAD = "", (), None, "", None

    @classmethod
    def define_schema(cls) -> io.Schema:
        files = folders.list_files(folder_paths.get_input_directory(), cls.SUFFIXES)
        return old_schema(
            cls.NODE_ID,
            cls.TITLE,
            cls.DESCRIPTION_TEXT,
            inputs=[io.Combo.Input(cls.FIELD, options=files, upload=cls.UPLOAD, tooltip=FILE_TIP)],
            outputs=[cls.OUTPUT.Output("path", display_name=cls.OUTPUT_NAME)],
        )

    @classmethod
    def fingerprint_inputs(cls, **values: str) -> str:
        return folders.fingerprint(cls.chosen(values))

    @classmethod
    def execute(cls, **values: str) -> io.NodeOutput:
        return io.NodeOutput(str(cls.chosen(values)))

    @classmethod
    def chosen(cls, values: dict[str, str]) -> Path:
        return folders.file_in(folder_paths.get_input_directory(), values[cls.FIELD], cls.FIELD)


class LoadAudioPath(_FileNode):
    NODE_ID, TITLE, DESCRIPTION_TEXT = "Load_Audio_Path", "Load Audio Path", "use Load Audio."
    FIELD, SUFFIXES, OUTPUT, OUTPUT_NAME = "audio_path", folders.AUDIO_SUFFIXES, AudioPath, "AUDIO_PATH"

    @classmethod
    def validate_inputs(cls, audio_path: str | None = None) -> bool | str:
        return check_input_file(audio_path, "audio_path")


class LoadAudioPathFromVideo(_FileNode):
    NODE_ID, TITLE = "Load_Audio_Path_From_Video", "Load Audio Path From Video"
    DESCRIPTION_TEXT = "use Load Video and Get Video Components."
    FIELD, SUFFIXES, OUTPUT, OUTPUT_NAME = "video_path", OLD_VIDEO_SUFFIXES, AudioPath, "AUDIO_PATH"

    @classmethod
    def validate_inputs(cls, video_path: str | None = None) -> bool | str:
        return check_input_file(video_path, "video_path")


class LoadVideoPath(_FileNode):
    NODE_ID, TITLE, DESCRIPTION_TEXT = "Load_Video_Path", "Load Video Path", "use Load Video."
    FIELD, SUFFIXES, OUTPUT, OUTPUT_NAME = "video_path", OLD_VIDEO_SUFFIXES, String, "STRING_INPUT"

    @classmethod
    def validate_inputs(cls, video_path: str | None = None) -> bool | str:
        return check_input_file(video_path, "video_path")


class LoadKpsPath(_FileNode):
    NODE_ID, TITLE, DESCRIPTION_TEXT = "Load_Kps_Path", "Load V-Kps Path", "use V-Express Load Keypoints."
    FIELD, SUFFIXES, OUTPUT, OUTPUT_NAME = "kps_path", KPS_SUFFIXES, KpsPath, "VKPS_PATH"

    @classmethod
    def validate_inputs(cls, kps_path: str | None = None) -> bool | str:
        return check_input_file(kps_path, "kps_path")


class LoadImagePath(_FileNode):
    NODE_ID, TITLE, DESCRIPTION_TEXT = "Load_Image_Path", "Load Reference Image Path", "use Load Image."
    FIELD, OUTPUT, OUTPUT_NAME, UPLOAD = "image", ImagePath, "IMAGE_PATH", io.UploadType.image

    @classmethod
    def validate_inputs(cls, image: str | None = None) -> bool | str:
        return check_input_file(image, "image")


class LoadKpsPathFromVideo(_FileNode):
    """Writes the keypoints to ComfyUI's temporary folder."""

    FIELD = "video_path"

    @classmethod
    def define_schema(cls) -> io.Schema:
        files = folders.list_files(folder_paths.get_input_directory(), OLD_VIDEO_SUFFIXES)
        return old_schema(
            "Load_Kps_Path_From_Video",
            "Load V-Kps Path From Video",
            "use Load Video and V-Express Keypoints from Video.",
            inputs=[
                String.Input("vexpress_model_path"),
                io.Combo.Input("video_path", options=files, tooltip=FILE_TIP),
                Integer.Input("image_size"),
            ],
            outputs=[KpsPath.Output("path", display_name="VKPS_PATH")],
        )

    @classmethod
    def validate_inputs(cls, video_path: str | None = None) -> bool | str:
        return check_input_file(video_path, "video_path")

    @classmethod
    def execute(cls, vexpress_model_path: str, video_path: str, image_size: int) -> io.NodeOutput:
        video = cls.chosen({"video_path": video_path})
        folder = Path(folder_paths.get_temp_directory())
        folder.mkdir(parents=True, exist_ok=True)
        name = hashlib.sha256(folders.fingerprint(video).encode()).hexdigest()[:16]
        path = folder / f"{video.stem[:100]}_{name}_kps.npz"
        with node_words():
            analyzer = host.build_face_detector(find_model(vexpress_model_path))
            sequence = keypoints.kps_of_video(video, analyzer, MAX_GAP_FRAMES, host.node_report())
        save_kps(path, sequence)
        return io.NodeOutput(str(path))


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
            write_video(path, clip.frames, options.fps, clip.inputs.audio, metadata=host.workflow_metadata(cls.hidden))
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


def find_model(typed: str) -> Path:
    """The folder that a path of the old pack means.

    Raises:
        InputError: it leads elsewhere, or there is no model.
    """
    return folders.old_model_folder(typed, host.PACK_DIR, host.model_roots())


def comfyui_folders() -> dict[io.FolderType, Path]:
    """The folders that paths may lead into."""
    return {
        io.FolderType.input: Path(folder_paths.get_input_directory()).resolve(),
        io.FolderType.output: Path(folder_paths.get_output_directory()).resolve(),
        io.FolderType.temp: Path(folder_paths.get_temp_directory()).resolve(),
    }


def known_file(path: str) -> Path:
    """A path that came over a link, which may be anybody's text.

    Raises:
        InputError: it is no file in a folder of ComfyUI's.
    """
    places = comfyui_folders().values()
    found = Path(path.replace("\0", "")).resolve()
    if not found.is_file() or not any(found.is_relative_to(place) for place in places):
        raise InputError(f"must be a file in {', '.join(map(str, places))}", "path", repr(path))
    return found


def shown_video(path: Path) -> ui.PreviewVideo:
    """What has a node show a video of one of ComfyUI's folders."""
    kind, folder = next((kind, place) for kind, place in comfyui_folders().items() if path.is_relative_to(place))
    below = path.relative_to(folder)
    return ui.PreviewVideo([ui.SavedResult(below.name, below.parent.as_posix().removeprefix("."), kind)])


OLD_NODES = [
    Loader,
    Sampler,
    LoadAudioPath,
    LoadAudioPathFromVideo,
    LoadKpsPath,
    LoadKpsPathFromVideo,
    LoadImagePath,
    LoadVideoPath,
    SizeConstant,
    StringConstant,
    PreviewVideo,
]
