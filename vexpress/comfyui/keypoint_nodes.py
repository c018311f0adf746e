"""Nodes that find, read, change and show keypoints."""

from dataclasses import fields
from typing import Any

import folder_paths
import torch
from comfy_api.latest import Input, io

from vexpress.comfyui import folders, host, keypoints
from vexpress.comfyui.values import node_words, to_picture
from vexpress.comfyui.widgets import CATEGORY, Kps, Model, check_input_file, option_inputs
from vexpress.media.keypoints import KPS_SUFFIXES, KpsSequence
from vexpress.options import RETARGET_STRATEGIES, MotionOptions

MAX_GAP_FRAMES = 12


class KpsFromVideo(io.ComfyNode):
    """The face's motion in a VIDEO -> VEXPRESS_KPS."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="VExpress_KpsFromVideo",
            display_name="V-Express Keypoints from Video",
            category=CATEGORY,
            description="Follows the largest face of a video: eyes and nose in every frame.",
            inputs=[
                Model.Input("model"),
                io.Video.Input("video", tooltip="A video that shows the driving face in (nearly) every frame"),
                io.Int.Input(
                    "max_gap",
                    default=MAX_GAP_FRAMES,
                    min=0,
                    max=1000,
                    tooltip="Longest gap, in frames, in which the face may be missing; it is interpolated",
                ),
            ],
            outputs=[Kps.Output("kps", display_name="kps")],
        )

    @classmethod
    def execute(cls, model: host.LoadedModel, video: Input.Video, max_gap: int) -> io.NodeOutput:
        with node_words():
            analyzer, report = model.face_detector, host.node_report()
            return io.NodeOutput(keypoints.kps_of_video(host.video_file(video), analyzer, max_gap, report))


class LoadKps(io.ComfyNode):
    """A keypoint file in the input folder -> VEXPRESS_KPS."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        files = folders.list_files(folder_paths.get_input_directory(), KPS_SUFFIXES)
        return io.Schema(
            node_id="VExpress_LoadKps",
            display_name="V-Express Load Keypoints",
            category=CATEGORY,
            description="Reads keypoints of the released scripts (.pth) or ours (.npz, .safetensors). No code in a "
            "file is ever run.",
            inputs=[
                io.Combo.Input(
                    "file", options=files, tooltip=f"File in ComfyUI's input folder: {', '.join(KPS_SUFFIXES)}"
                ),
                io.Float.Input(
                    "kps_fps",
                    default=0.0,
                    min=0.0,
                    max=240.0,
                    step=0.01,
                    round=0.001,
                    tooltip="Frame rate of the keypoints; 0: the file's, or where it says none the video's",
                ),
            ],
            outputs=[Kps.Output("kps", display_name="kps")],
        )

    @classmethod
    def validate_inputs(cls, file: str | None = None) -> bool | str:
        return check_input_file(file, "file")

    @classmethod
    def fingerprint_inputs(cls, file: str, **_: Any) -> str:
        return folders.fingerprint(folders.file_in(folder_paths.get_input_directory(), file, "file"))

    @classmethod
    def execute(cls, file: str, kps_fps: float) -> io.NodeOutput:
        path = folders.file_in(folder_paths.get_input_directory(), file, "file")
        return io.NodeOutput(keypoints.kps_of_file(path, kps_fps))


class KpsFromImage(io.ComfyNode):
    """The face in an IMAGE -> VEXPRESS_KPS of one frame."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="VExpress_KpsFromImage",
            display_name="V-Express Keypoints from Image",
            category=CATEGORY,
            description="Finds eyes and nose of the largest face.",
            inputs=[Model.Input("model"), io.Image.Input("image", tooltip="A picture with one clear frontal face")],
            outputs=[Kps.Output("kps", display_name="kps")],
        )

    @classmethod
    def execute(cls, model: host.LoadedModel, image: torch.Tensor) -> io.NodeOutput:
        with node_words():
            return io.NodeOutput(keypoints.kps_of_picture(to_picture(image, "image"), model.face_detector))


class RetargetKps(io.ComfyNode):
    """Keypoints of one person -> keypoints of another."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="VExpress_RetargetKps",
            display_name="V-Express Retarget Keypoints",
            category=CATEGORY,
            description="Carries the motion of one face over to another. A sampler then takes it as it is; samplers "
            "can do this themselves, too, by their retarget_strategy.",
            inputs=[
                Kps.Input("kps", tooltip="The driving motion"),
                Kps.Input("portrait_kps", tooltip="The portrait's keypoints; their first frame counts"),
                io.Combo.Input(
                    "retarget_strategy",
                    options=list(RETARGET_STRATEGIES),
                    default="auto",
                    tooltip="relative_retarget: the portrait's own geometry, moved as the driving head moves; "
                    "naive_retarget: all motion, scaled; offset_retarget: half of the nose's motion; fix_face: a still "
                    "head; no_retarget: as it is; auto: relative_retarget where the faces differ",
                ),
                *option_inputs(field for field in fields(MotionOptions) if field.name == "kps_smoothing"),
            ],
            outputs=[Kps.Output("retargeted", display_name="kps")],
        )

    @classmethod
    def execute(
        cls, kps: KpsSequence, portrait_kps: KpsSequence, retarget_strategy: str, kps_smoothing: float
    ) -> io.NodeOutput:
        with node_words():
            return io.NodeOutput(keypoints.carry_over(kps, portrait_kps, retarget_strategy, kps_smoothing))


class DrawKps(io.ComfyNode):
    """VEXPRESS_KPS -> IMAGE, to look at."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        size = {"default": 0, "min": 0, "max": 2048, "step": 8}
        return io.Schema(
            node_id="VExpress_DrawKps",
            display_name="V-Express Draw Keypoints",
            category=CATEGORY,
            description="Draws keypoints as the model sees them: left eye red, right eye green, nose blue.",
            inputs=[
                Kps.Input("kps"),
                io.Int.Input("width", tooltip="Of the pictures, in px; 0: that of the keypoints", **size),
                io.Int.Input("height", tooltip="Of the pictures, in px; 0: that of the keypoints", **size),
            ],
            outputs=[io.Image.Output("images", display_name="images")],
        )

    @classmethod
    def execute(cls, kps: KpsSequence, width: int, height: int) -> io.NodeOutput:
        return io.NodeOutput(keypoints.render_sequence(kps, height, width))


KEYPOINT_NODES = [KpsFromVideo, LoadKps, KpsFromImage, RetargetKps, DrawKps]
