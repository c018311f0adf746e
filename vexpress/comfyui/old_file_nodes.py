"""The old pack's nodes that choose files, and its types, which carry paths; those are checked wherever they come in."""

import hashlib
from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.latest import io, ui

from vexpress.comfyui import folders, host, keypoints
from vexpress.comfyui.keypoint_nodes import MAX_GAP_FRAMES
from vexpress.comfyui.values import node_words
from vexpress.comfyui.widgets import check_input_file
from vexpress.errors import InputError
from vexpress.media.keypoints import KPS_SUFFIXES, save_kps

CATEGORY = "V-Express/old pack"
String = io.Custom("STRING_INPUT")
Integer = io.Custom("INT_INPUT")
AudioPath = io.Custom("AUDIO_PATH")
KpsPath = io.Custom("VKPS_PATH")
ImagePath = io.Custom("IMAGE_PATH")
FILE_TIP = "File in ComfyUI's input folder"
OLD_VIDEO_SUFFIXES = (".mp4", ".webm", ".mkv", ".avi")


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


OLD_FILE_NODES = [
    LoadAudioPath,
    LoadAudioPathFromVideo,
    LoadKpsPath,
    LoadKpsPathFromVideo,
    LoadImagePath,
    LoadVideoPath,
]
