"""What ComfyUI decides: devices, number types, memory, folders, progress and interruption."""

import json
import uuid
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import comfy.model_management as management
import folder_paths
from comfy.cli_args import args
from comfy.model_patcher import ModelPatcher
from comfy.utils import ProgressBar
from comfy_api.latest import Input, InputImpl
from PIL import Image
from torch import nn

from vexpress.comfyui.generation import NodePipeline
from vexpress.comfyui.keypoints import Report
from vexpress.devices import DTYPES
from vexpress.media.faces import FaceDetector
from vexpress.media.mtcnn import load_face_detector
from vexpress.model_folder import LAYOUT, ModelPaths
from vexpress.options import SamplingOptions
from vexpress.provenance import video_metadata
from vexpress.request import ClipInputs, Request, SpeechMotion, prepare_request

MODELS = "vexpress"
"""The folder below models/, and the key of extra_model_paths.yaml."""
PACK_DIR = Path(__file__).resolve().parents[2]
PREVIEW_PX = 512


def register_folders() -> None:
    """Has ComfyUI know models/vexpress; what extra_model_paths.yaml names stays."""
    folder_paths.add_model_folder_path(MODELS, str(Path(folder_paths.models_dir, MODELS)), is_default=True)


def model_roots() -> Sequence[str]:
    """Folders that hold folders of models."""
    return folder_paths.get_folder_paths(MODELS)


def adapter_roots() -> Sequence[str]:
    """Folders that hold adapters, such as models/loras."""
    return folder_paths.get_folder_paths("loras")


class _Holder(nn.Module):
    """ModelPatcher writes `device` to what it moves, which diffusers' networks do not allow."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network


def _held(network: nn.Module) -> _Holder:
    """Holds a network under its own class's name, which ComfyUI logs."""
    return type(type(network).__name__, (_Holder,), {})(network)


class LoadedModel:
    """A model whose networks ComfyUI moves between devices, and forgets with `/free`.

    Args:
        folder: in the released layout.
        dtype: key of `DTYPES`, or None for what ComfyUI chooses for this device.
        test_stage: see `vexpress.options`, likewise `face_models`.
        adapters: `PATH:WEIGHT` each.
        check_base: see `VExpressPipeline.use_adapters`.

    Raises:
        InputError: a part is missing or does not fit.
    """

    def __init__(
        self,
        folder: Path,
        dtype: str | None = None,
        test_stage: str = "stage_3",
        face_models: str | None = None,
        adapters: tuple[str, ...] = (),
        check_base: bool = True,
    ):
        self.paths, self.folder, self.face_models = ModelPaths.from_model_dir(folder), folder, face_models
        self.dtype, self.test_stage, self.adapters, self.check_base = dtype, test_stage, adapters, check_base
        device = management.get_torch_device()
        torch_dtype = DTYPES[dtype] if dtype else management.unet_dtype(device, supported_dtypes=[*DTYPES.values()])
        self.pipeline = NodePipeline.from_released(self.paths, torch_dtype, "cpu", test_stage)
        self.pipeline.use_adapters(adapters, check_base)
        networks = [part for part in self.pipeline.components.values() if isinstance(part, nn.Module)]
        offload_device = management.unet_offload_device()
        self._patchers = [ModelPatcher(_held(network), device, offload_device) for network in networks]

    def with_adapter(self, path: Path, weight: float, check_base: bool) -> "LoadedModel":
        """The same model with one more adapter, from its files again: this one may be in use as it is."""
        loading = self.folder, self.dtype, self.test_stage, self.face_models
        return LoadedModel(*loading, (*self.adapters, f"{path}:{weight}"), self.check_base and check_base)

    def load(self, num_bytes: int = 0) -> None:
        """Brings all networks to the device, with room for `num_bytes` beside them."""
        management.load_models_gpu(self._patchers, memory_required=num_bytes, force_full_load=True)

    @cached_property
    def face_detector(self) -> FaceDetector:
        """The model's face detector; see `build_face_detector`."""
        return build_face_detector(self.folder, self.face_models)

    def prepare(self, request: Request, options: SamplingOptions) -> ClipInputs:
        """See `prepare_request`; motion from speech is made on the CPU, by networks that are not kept."""
        build_motion = (lambda: SpeechMotion(self.paths)) if self.paths.head_motion_path.exists() else None
        return prepare_request(request, options, lambda: self.face_detector, build_motion, self.paths.has_attributes)


def build_face_detector(folder: Path, face_models: str | None = None) -> FaceDetector:
    """The face detector of a model folder.

    Raises:
        InputError: it is missing or damaged.
    """
    return load_face_detector(face_models, folder / LAYOUT["insightface_model_path"], management.get_torch_device())


def node_report() -> Report:
    """Shows progress and previews at the node that runs; each call ends the work if the user asked for it."""
    bar = ProgressBar(1)

    def report(done: int, total: int, preview: Image.Image | None = None) -> None:
        management.throw_exception_if_processing_interrupted()
        bar.update_absolute(done, total, preview and ("JPEG", preview, PREVIEW_PX))

    return report


def video_file(video: Input.Video) -> Path:
    """The file of a VIDEO; one that is in memory only is written to ComfyUI's temporary folder."""
    source = video.get_stream_source() if isinstance(video, InputImpl.VideoFromFile) else None
    if isinstance(source, str):
        return Path(source)
    folder = Path(folder_paths.get_temp_directory())
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"vexpress_{uuid.uuid4().hex}.mp4"
    video.save_to(str(path))
    return path


def new_output_file(prefix: str, size: tuple[int, int]) -> tuple[Path, str]:
    """A new .mp4 in the output folder, and its folder below that.

    Args:
        prefix: as in ComfyUI's own nodes that save; may hold folders and placeholders such as %year%.
        size: width and height of the video in px, for placeholders.
    """
    folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(
        prefix, folder_paths.get_output_directory(), *size
    )
    return Path(folder, f"{name}_{counter:05}_.mp4"), subfolder


def file_metadata(hidden: Any, model: LoadedModel, options: SamplingOptions) -> dict[str, str]:
    """That a video is generated, and the workflow as which it opens; nothing where the user switched that off."""
    if args.disable_metadata:
        return {}
    values = {"prompt": hidden.prompt, **(hidden.extra_pnginfo or {})}
    workflow = {name: json.dumps(value) for name, value in values.items() if value is not None}
    return video_metadata(model.folder, options, adapters=model.adapters) | workflow
