"""V-Kps: three face points per frame (left eye, right eye, nose). Rendering, retargeting, files, fitting to a clip."""

import io
import logging
import math
import pickle
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import safetensors
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor

from vexpress.errors import InputError, first_line
from vexpress.files import in_one_order, replacing
from vexpress.media.archives import check_unpacked_size
from vexpress.options import KPS_EXTEND, RELEASED_STRATEGIES

logger = logging.getLogger(__name__)

KPS_SUFFIXES = (".pth", ".pt", ".npz", ".safetensors")
KPS_KEYS = ("kps", "keypoints", "kps_sequence", "v_kps")
"""Names under which files hold keypoints."""
NUM_POINTS = (3, 5)  # five are those of face detectors: eyes, nose, corners of the mouth
MAX_FRAMES = 2**20  # nearly ten hours at 30 frames per second
FACT_LIMITS = {"fps": (1e-3, 1e4), "height": (1, 1e6), "width": (1, 1e6)}

POINT_COLOURS = ((255, 0, 0), (0, 255, 0), (0, 0, 255))  # left eye, right eye, nose
LIMB_BRIGHTNESS = 0.6
POINT_RADIUS_PX = LIMB_HALF_WIDTH_PX = 4
MAX_KPS_PX = 100_000  # as far outside of the picture as a keypoint may be
FAR_PX = 2**15  # OpenCV's drawing overflows with coordinates far beyond this

# All that unpickling numpy arrays needs. Files of numpy 1 say numpy.core, those of numpy 2 numpy._core.
NUMPY_SAFE_GLOBALS = [
    *((np.empty(0).__reduce__()[0], f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
    *((np.float32(0).__reduce__()[0], f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    *(np.ndarray, np.dtype),
    *{type(np.dtype(code)) for code in np.typecodes["AllInteger"] + np.typecodes["Float"]},
]


@dataclass(frozen=True)
class KpsSequence:
    """Keypoints (f 3 2) float32, x y in px of a video frame of height x width px; None where the file does not say."""

    kps: Tensor
    fps: float | None = None
    height: int | None = None
    width: int | None = None


def render_v_kps(kps: np.ndarray | Tensor, height: int, width: int) -> np.ndarray:
    """Renders the V-Kps image of one frame, bit-exact with the released one, which the weights expect.

    Args:
        kps: (3 2) px; points may lie outside of the frame.
        height: of the image in px, likewise width.

    Returns:
        (H W 3) uint8: channel 0 shows the left eye, 1 the right eye, 2 the nose; a darker limb runs from each eye to
        the nose.
    """
    points = np.clip(np.asarray(kps), -FAR_PX, FAR_PX)
    image = np.zeros((height, width, 3), np.uint8)
    nose = points[2]
    for eye, colour in zip(points[:2], POINT_COLOURS):
        to_eye = eye - nose
        middle = ((eye + nose) / 2).astype(int).tolist()
        axes = (int(np.hypot(*to_eye) / 2), LIMB_HALF_WIDTH_PX)
        angle = int(np.degrees(np.arctan2(to_eye[1], to_eye[0])))
        # Not cv2.ellipse, which rounds the outline differently.
        cv2.fillConvexPoly(image, cv2.ellipse2Poly(middle, axes, angle, 0, 360, 1), colour)
    image = (image * LIMB_BRIGHTNESS).astype(np.uint8)
    for point, colour in zip(points, POINT_COLOURS):
        cv2.circle(image, point.astype(int).tolist(), POINT_RADIUS_PX, colour, -1)
    return image


def resample(kps: Tensor, num_frames: int) -> Tensor:
    """Stretches or squeezes keypoints (f 3 2) linearly to (num_frames 3 2)."""
    tracks = kps.flatten(1).T[None]  # (1 6 f)
    return F.interpolate(tracks, size=num_frames, mode="linear")[0].T.unflatten(1, kps.shape[1:])


def retarget(target_kps: Tensor, reference_kps: Tensor | None, strategy: str) -> Tensor:
    """Carries the motion of one person's keypoints over to the face of another.

    Args:
        target_kps: (f 3 2) px, the driving motion.
        reference_kps: (3 2) px, the face in the reference image; None only with "no_retarget".
        strategy: one of RELEASED_STRATEGIES.
            fix_face: the reference's keypoints in each frame.
            no_retarget: the target as it is.
            offset_retarget: the reference's keypoints, moved rigidly with the nose at half amplitude.
            naive_retarget: the target, scaled to the size of the reference's face, its first nose on the reference's.
            The last two scale by the sizes of the face in the target frame that is turned most like the reference.

    Returns:
        (f 3 2) px.

    Raises:
        InputError: unknown strategy, no reference, or keypoints from which no size of a face can be measured.

    Source: the released retargeting. Differs from the release: the frame is the one truly closest in eye-nose ratio
    (the release keeps a wrong running minimum), and offset_retarget moves the face with the driving nose (the release
    moves it against).
    """
    if strategy not in RELEASED_STRATEGIES:
        raise InputError(f"allowed are {', '.join(RELEASED_STRATEGIES)}", "retarget_strategy", strategy)
    if strategy == "no_retarget":
        return target_kps
    if reference_kps is None:
        raise InputError(f"`retarget_strategy` {strategy} needs a face in `reference_image_path`; or use no_retarget")
    reference_kps = reference_kps.to(target_kps)
    if strategy == "fix_face":
        return reference_kps.expand_as(target_kps).clone()

    closest = (_eye_nose_ratio(target_kps) - _eye_nose_ratio(reference_kps)).abs().argmin()
    reference_size, target_size = _face_size(reference_kps), _face_size(target_kps[closest])
    if min(reference_size.min(), target_size.min()) < 1e-3:
        raise InputError(
            "eyes and nose of the reference or the sequence lie on one point or line, "
            "so that the face has no size; change the input or use fix_face or no_retarget",
            "retarget_strategy",
            strategy,
        )
    scale = reference_size / target_size
    first_nose = target_kps[0, 2]
    if strategy == "naive_retarget":
        return reference_kps[2] + (target_kps - first_nose) * scale
    return reference_kps + 0.5 * scale * (target_kps[:, 2:] - first_nose)


def _eye_nose_ratio(kps: Tensor) -> Tensor:
    """(... 3 2) -> (...): distance of left eye and nose over that of right eye and nose: how far a head is turned."""
    left, right = (kps[..., :2, :] - kps[..., 2:, :]).norm(dim=-1).unbind(-1)
    return left / right.clamp_min(1e-6)


def _face_size(kps: Tensor) -> Tensor:
    """(3 2) -> (2): distance between the eyes, and distance of the nose from the line through them."""
    eyes, nose = kps[1] - kps[0], kps[2] - kps[0]
    width = eyes.norm()
    return torch.stack([width, (eyes[0] * nose[1] - eyes[1] * nose[0]).abs() / width.clamp_min(1e-6)])


def load_kps(path: str | Path, field: str = "kps_path") -> KpsSequence:
    """Reads keypoints: `.pth`/`.pt` of the released scripts (f arrays of (3 2)), or our `.npz` / `.safetensors`.

    Any number type will do, five points of a face instead of three, axes of size 1 between frames and points, and a
    dictionary that holds the keypoints under a name of KPS_KEYS or by the numbers of the frames. No code in the file
    is ever run: pickles are read with `weights_only=True` and an explicit list of numpy's types.

    Raises:
        InputError: the file is missing, not of these kinds, damaged, unsafe, or does not hold finite (f 3 2) keypoints.
    """
    path = Path(path)
    check_kps_suffix(path, field)
    try:
        if not path.is_file():
            what = "is a folder" if path.is_dir() else "is no file" if path.exists() else "does not exist"
            raise InputError(f"{what}; give a keypoint file", field, path)
        check_unpacked_size(path, field)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch, about odd pickles
            content = _read(path)
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror or first_line(error)})", field, path) from error
    except Exception as error:  # the readers raise anything at all on damaged files, each of its own
        if isinstance(error, pickle.UnpicklingError) and "GLOBAL" in str(error):
            raise InputError("refused, since it holds Python objects that can run code", field, path) from error
        raise InputError(f"is damaged or holds no keypoints ({type(error).__name__})", field, path) from error
    try:
        frames, facts = _find_kps(content)
        kps = _to_tensor(frames)
        fps, height, width = (_find_fact(facts, name) for name in FACT_LIMITS)
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise InputError(f"holds no keypoints that can be read: {first_line(error)}", field, path) from error
    if not kps.isfinite().all():
        bad = (~kps.isfinite()).flatten(1).any(1).nonzero()[0].item()
        raise InputError(f"the keypoints of frame {bad} are not finite numbers; extract them again", field, path)
    if kps.abs().max() > MAX_KPS_PX:
        bad = (kps.abs() > MAX_KPS_PX).flatten(1).any(1).nonzero()[0].item()
        problem = f"a keypoint of frame {bad} is {kps[bad].abs().max():.3g} px from 0, allowed are {MAX_KPS_PX} px"
        raise InputError(f"{problem}; extract them again", field, path)
    return KpsSequence(kps, fps, height and int(height), width and int(width))


def _read(path: Path) -> Any:
    """What the file holds: an array, a sequence of arrays, or a dictionary of them."""
    if path.suffix.lower() == ".npz":
        content = np.load(path, allow_pickle=False)
        if isinstance(content, np.ndarray):
            return content
        with content as arrays:
            return {name: arrays[name] for name in arrays.files if name in (*KPS_KEYS, *FACT_LIMITS)}
    if path.suffix.lower() == ".safetensors":
        with safetensors.safe_open(path, framework="pt") as file:
            names = [name for name in KPS_KEYS if name in file.keys()]  # noqa: SIM118
            return {**(file.metadata() or {}), **{name: file.get_tensor(name) for name in names}}
    with torch.serialization.safe_globals(NUMPY_SAFE_GLOBALS):
        return torch.load(path, map_location="cpu", weights_only=True)


def _find_kps(content: Any) -> tuple[Any, Mapping]:
    """The keypoints in what a file holds, and what says fps, height and width."""
    if not isinstance(content, Mapping):
        return content, {}
    if name := next((name for name in KPS_KEYS if name in content), None):
        return content[name], content
    if content and all(type(key) is int for key in content):
        return [content[number] for number in sorted(content)], {}
    raise ValueError(f"nothing in it is called {' or '.join(KPS_KEYS)}")


def _find_fact(facts: Mapping, name: str) -> float | None:
    value, (low, high) = facts.get(name), FACT_LIMITS[name]
    if value is None:
        return None
    value = float(value)
    if not low <= value <= high:
        raise ValueError(f"{name} {value:g} must be positive and sensible, {low:g} to {high:g}")
    return value


def _to_tensor(frames: Any) -> Tensor:
    """Keypoints of a file, in one array or a sequence of frames -> (f 3 2) float32.

    Raises:
        TypeError: something that is no array of numbers.
        ValueError: no frames, too many, or frames of other shapes.
    """
    if isinstance(frames, Tensor | np.ndarray) and frames.ndim == 2 and frames.shape[0] in NUM_POINTS:
        frames = frames[None]  # a single frame
    if isinstance(frames, Tensor | np.ndarray) and frames.ndim:
        whole = _numbers(frames, 2 * max(NUM_POINTS) * MAX_FRAMES)
        parts = {whole.shape[1:]: whole}
    elif isinstance(frames, Sequence) and not isinstance(frames, str | bytes) and len(frames) <= MAX_FRAMES:
        rows = [_numbers(frame, 2 * max(NUM_POINTS)) for frame in frames]
        parts = {row.shape: row for row in rows}
        whole = torch.stack(rows) if len(parts) == 1 else torch.zeros(len(rows), 0)
    else:
        raise TypeError(f"{type(frames).__name__} is no sequence of up to {MAX_FRAMES} frames")
    fits = all(shape[-2:] in {(n, 2) for n in NUM_POINTS} and math.prod(shape[:-2]) == 1 for shape in parts)
    if not len(whole) or len(whole) > MAX_FRAMES or len(parts) > 1 or not fits:
        shapes = sorted(map(tuple, parts)) if len(whole) else []
        raise ValueError(f"it holds {len(whole)} frames of shapes {shapes}; needed are 1 or more of (3, 2) or (5, 2)")
    return whole.reshape(len(whole), -1, 2)[:, :3].contiguous()


def _numbers(value: Any, most: int) -> Tensor:
    """An array of up to `most` numbers, or points in lists, as float32; nothing that is large by nesting alone."""
    if isinstance(value, np.ndarray | Tensor) and math.prod(value.shape) > most:  # before it is copied: of strides of 0
        raise ValueError(f"an array of shape {tuple(value.shape)}; needed are frames of (3, 2) or (5, 2)")
    if isinstance(value, np.ndarray) and value.dtype.kind in "iuf":
        with np.errstate(over="ignore"):  # what becomes infinite is refused
            return torch.from_numpy(value.astype(np.float32))
    if isinstance(value, Tensor) and value.layout == torch.strided and not (value.is_quantized or value.is_complex()):
        return value.detach().to("cpu", torch.float32)
    while isinstance(value, list | tuple) and len(value) == 1:
        [value] = value
    if isinstance(value, list | tuple) and all(isinstance(point, list | tuple) and len(point) == 2 for point in value):
        return torch.tensor([[float(number) for number in point] for point in value])
    raise TypeError(f"a frame is of type {type(value).__name__}, not an array of numbers")


def save_kps(path: str | Path, sequence: KpsSequence, field: str = "kps_sequence_save_path") -> None:
    """Writes keypoints by suffix: `.pth`/`.pt` as the released scripts do, `.npz` / `.safetensors` with rate and size.

    Raises:
        InputError: any other suffix.
    """
    path = Path(path)
    kps = sequence.kps.detach().float().cpu().contiguous()
    facts = {"fps": sequence.fps, "height": sequence.height, "width": sequence.width}
    facts = {key: value for key, value in facts.items() if value is not None}
    check_kps_suffix(path, field)
    content = io.BytesIO()  # what the libraries raise on a full disk, when they write files themselves, is no OSError
    if path.suffix.lower() == ".npz":
        np.savez(content, kps=kps.numpy(), **facts)
    elif path.suffix.lower() == ".safetensors":
        texts = {key: str(value) for key, value in facts.items()}
        content.write(in_one_order(safetensors.torch.save({"kps": kps}, texts)))
    else:
        torch.save([frame.copy() for frame in kps.numpy()], content)
    with replacing(path) as temporary:
        temporary.write_bytes(content.getvalue())


def check_kps_suffix(path: str | Path, field: str) -> None:
    """Raises an InputError if keypoints are not kept in files of this name."""
    if Path(path).suffix.lower() not in KPS_SUFFIXES:
        raise InputError(f"keypoint files end in {', '.join(KPS_SUFFIXES)}", field, path)


def fit_to_clip(
    sequence: KpsSequence, num_frames: int, fps: float, height: int, width: int, extend: str = "loop"
) -> Tensor:
    """Makes keypoints of one video fit another: its frame size, its frame rate and its length.

    Size and rate are converted where the sequence knows its own. A longer sequence is then cut.

    Args:
        sequence: the keypoints as loaded.
        num_frames: of the output; likewise fps, and height and width in px.
        extend: what a sequence that is too short does, one of KPS_EXTEND.
            loop: runs back and forth at its own speed.
            hold: keeps its last frame.
            stretch: is slowed down to the length of the clip (the released behaviour).

    Returns:
        (num_frames 3 2) float32, px of the (height, width) output.

    Raises:
        InputError: unknown `extend`.
    """
    if extend not in KPS_EXTEND:
        raise InputError(f"allowed are {', '.join(KPS_EXTEND)}", "kps_extend", extend)
    kps, last = sequence.kps, len(sequence.kps) - 1
    if sequence.height and sequence.width:
        kps = kps * torch.tensor([width / sequence.width, height / sequence.height])
    step = sequence.fps / fps if sequence.fps else 1.0  # in frames of the sequence per frame of the output
    num_known = max(1, round(len(kps) / step))
    position = torch.arange(num_frames, dtype=torch.float64) * step
    if num_known < num_frames:
        logger.info("the keypoints last %d of %d frames and are extended: %s", num_known, num_frames, extend)
        if extend == "loop":
            position = last - (position % max(2 * last, 1) - last).abs()  # 0 1 2 1 0 1 2 ...
    if num_known < num_frames and extend == "stretch":
        kps = resample(kps, num_frames)
    else:
        position = position.clamp(0, last)
        before = position.long()
        after = (before + 1).clamp_max(last)
        kps = torch.lerp(kps[before], kps[after], (position - before).float()[:, None, None])
    outside = ((kps < 0) | (kps > torch.tensor([width, height]))).flatten(1).any(1).float().mean().item()
    if outside > 0.1:
        logger.warning(
            "%.0f%% of the frames have a keypoint outside of the picture: keypoints must be in px of "
            "`image_width` x `image_height`, here %d x %d",
            *(100 * outside, width, height),
        )
    return kps
