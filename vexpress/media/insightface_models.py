"""insightface's models from a local folder, run by onnxruntime without its telemetry."""

import contextlib
import glob
import importlib.metadata
import io
import logging
import os
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vexpress.errors import InputError, first_line

logger = logging.getLogger(__name__)

# onnxruntime reads it once, when it is imported: else it writes an identifier of this machine under the home folder,
# and looks up a host to send events to (its Privacy.md, "Disabling Telemetry").
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

MODULES = ("detection", "landmark_2d_106", "recognition")
DETECTOR_NAMES = ("det_", "detection", "scrfd_")  # how insightface's packages and the demo's name them
SHAPES = {"bbox": (4,), "kps": (5, 2), "det_score": (), "landmark_2d_106": (106, 2), "embedding": (512,)}
OF_EVERY_FACE = ("bbox", "kps", "det_score")


class InsightFace:
    """insightface's `FaceAnalysis`, which is given only files that are there and whose outputs are checked.

    Args:
        model_dir: see `find_model_dir`.
        device: where to run; anything but CUDA runs on the CPU.
        modules: of MODULES; detection is always there.
        det_size: width and height in px to which images are fitted for the detector.

    Raises:
        InputError: the folder or a model in it is missing or damaged.
    """

    def __init__(
        self, model_dir: str | Path, device: torch.device, modules: tuple[str, ...], det_size: tuple[int, int]
    ):
        self.model_dir, self.det_size = find_model_dir(model_dir), det_size
        wanted = {"detection", *modules}
        providers = _providers(device)
        found = ", ".join(sorted(path.name for path in self.model_dir.glob("*.onnx")))
        self._links = _links(self.model_dir, is_only_detector=wanted == {"detection"})
        folder = self._links.name if self._links else str(self.model_dir)
        with contextlib.redirect_stdout(io.StringIO()):  # insightface and onnxruntime print on loading
            from insightface.app import FaceAnalysis  # takes a second

            try:
                self._analysis = FaceAnalysis(folder, allowed_modules=list(wanted), providers=providers)
                self._analysis.prepare(ctx_id=0 if len(providers) > 1 else -1, det_size=det_size)
            except AssertionError as error:
                problem = f"no face detector among {found}"
                raise InputError(problem, "insightface_model_path", self.model_dir) from error
            except Exception as error:  # onnxruntime and onnx raise types of their own for a damaged file
                problem = f"cannot load {found} ({type(error).__name__}); get them again with `vexpress download`"
                raise InputError(problem, "insightface_model_path", self.model_dir) from error
        if missing := wanted - set(self._analysis.models):
            raise InputError(f"no model for {sorted(missing)} among {found}", "insightface_model_path", self.model_dir)
        if device.type == "cuda" and "CUDAExecutionProvider" not in self.providers:
            logger.warning(
                "faces are detected on the CPU, since the onnxruntime in use has no working CUDA; to use the GPU: "
                "pip install --force-reinstall --no-deps onnxruntime-gpu==%s",
                _onnxruntime_gpu_version(),
            )

    @property
    def providers(self) -> list[str]:
        """The onnxruntime execution providers that are active."""
        return self._analysis.det_model.session.get_providers()

    def __call__(self, image: np.ndarray) -> list[dict[str, Any]]:
        """Finds the faces in image (H W 3) uint8 RGB.

        Returns:
            For each face its parts by the names of SHAPES; faces with numbers that are not finite are left out.

        Raises:
            InputError: the models' outputs are no faces.
        """
        height, width = image.shape[:2]
        if min(height, width) * max(self.det_size) < max(height, width):
            return []  # no row or column of it would be left at the detector's size
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # scikit-image's, at each recognition
                found = self._analysis.get(np.ascontiguousarray(image[..., ::-1]))  # insightface reads BGR
            faces = [_checked({name: getattr(face, name) for name in SHAPES}) for face in found]
        except Exception as error:  # whatever goes wrong with outputs of other shapes
            problem = f"its models find no faces ({first_line(error)}); get insightface's with `vexpress download`"
            raise InputError(problem, "insightface_model_path", self.model_dir) from error
        return [face for face in faces if face is not None]


def _checked(parts: dict[str, Any]) -> dict[str, Any] | None:
    """A face's parts; None if one of them is not finite.

    Raises:
        ValueError: a part has another shape, or is missing where every face has it.
    """
    for name, part in parts.items():
        is_there = part is not None or name in OF_EVERY_FACE
        if is_there and np.shape(part) != SHAPES[name]:
            raise ValueError(f"{name} of shape {np.shape(part)}")
    is_finite = all(np.isfinite(part).all() for part in parts.values() if part is not None)
    return parts | {"det_score": float(parts["det_score"])} if is_finite else None


def find_model_dir(model_dir: str | Path) -> Path:
    """Returns the folder with the .onnx files: `model_dir` itself or models/buffalo_l below it.

    Raises:
        InputError: there are none.
    """
    state = "is not a folder"
    with contextlib.suppress(OSError, ValueError):  # no name of a folder at all
        for folder in (Path(model_dir), Path(model_dir) / "models" / "buffalo_l"):
            if any(folder.glob("*.onnx")):
                return folder
        if Path(model_dir).is_dir():
            state = "has no .onnx files, nor has models/buffalo_l in it"
    raise InputError(
        f"{state}; get the face models with `vexpress download`, or give the folder that holds them",
        "insightface_model_path",
        model_dir,
    )


def _links(model_dir: Path, is_only_detector: bool) -> tempfile.TemporaryDirectory | None:
    """A folder of links to the models that are needed, where insightface cannot be given their own.

    It loads all models of a folder to learn what they are, some 350 MB, and takes the folder's name for a pattern.
    """
    paths = sorted(model_dir.glob("*.onnx"))
    detectors = [path for path in paths if path.name.startswith(DETECTOR_NAMES)]
    needed = detectors if is_only_detector and len(detectors) == 1 else paths
    if needed == paths and glob.escape(str(model_dir.resolve())) == str(model_dir.resolve()):
        return None
    folder = tempfile.TemporaryDirectory(prefix="vexpress-faces-")
    try:
        for path in needed:
            (Path(folder.name) / path.name).symlink_to(path.resolve())
    except OSError:  # Windows, without the right to make links
        return None
    return folder


def _providers(device: torch.device) -> list:
    """onnxruntime's execution providers for a device, of those that its build has."""
    import onnxruntime

    if device.type == "cuda" and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        return [("CUDAExecutionProvider", {"device_id": device.index or 0}), "CPUExecutionProvider"]
    return ["CPUExecutionProvider"]


def _onnxruntime_gpu_version() -> str:
    """The version of onnxruntime-gpu that is installed, or else the one that fits the build in use."""
    import onnxruntime

    try:
        return importlib.metadata.version("onnxruntime-gpu")
    except importlib.metadata.PackageNotFoundError:
        return onnxruntime.__version__
