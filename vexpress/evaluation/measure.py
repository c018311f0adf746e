"""Everything that is measured on one pair of videos. What fails is listed with its reason, and the rest goes on."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import numpy as np

from vexpress.data.formats import load_face_info
from vexpress.errors import InputError
from vexpress.evaluation.clips import Clip, Pair, Problem, read_clip
from vexpress.evaluation.faces import FaceTrack, find_faces, measure_kps_distance, measure_similarity
from vexpress.evaluation.features import ClipFeatures, FrameFeatures
from vexpress.evaluation.images import fit_size, measure_psnr, measure_ssim
from vexpress.evaluation.metric_networks import CLIP_FRAMES
from vexpress.evaluation.mouth import MouthMeter, choose_meter
from vexpress.evaluation.settings import Settings
from vexpress.media.archives import check_unpacked_size
from vexpress.media.audio import load_audio
from vexpress.media.faces import FaceAnalyzer
from vexpress.media.video import probe_video
from vexpress.network_files import NetworkFacts
from vexpress.syncnet import (
    FPS,
    RATE_HZ,
    SyncFeatures,
    SyncNet,
    compute_mfcc,
    count_windows,
    crop_track,
    encode_clip,
    score_sync,
)

SILENT_LEVEL = 1e-4  # of full scale
SMALLEST_MOVEMENT = 1e-4  # standard deviation, below which a correlation is undefined


@dataclass
class Networks:
    """What measures; None where it is not there: `missing` says for each metric which option would give it."""

    frames: FrameFeatures | None = None
    clips: ClipFeatures | None = None
    syncnet: SyncNet | None = None
    faces: FaceAnalyzer | None = None
    facts: list[NetworkFacts] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)


@dataclass
class Side:
    """What was measured on one video of a pair, as far as it could be.

    Attributes:
        frame_features: (f d) for FID.
        clip_features: (n d) for FVD.
        faces: the face in each frame.
        sync: embeddings of frames and of the video's own sound.
        mouth: (f 2) aperture and width.
        values: metric -> figure.
    """

    frame_features: np.ndarray | None = None
    clip_features: np.ndarray | None = None
    faces: FaceTrack | None = None
    sync: SyncFeatures | None = None
    mouth: np.ndarray | None = None
    values: dict[str, float] = field(default_factory=dict)


@dataclass
class PairMeasures:
    """A pair, its two sides, and the truth about the mouth (f 2): labels, or what was measured on the real video."""

    pair: Pair
    fps: float
    generated: Side
    real: Side
    true_mouth: np.ndarray | None = None
    problems: list[Problem] = field(default_factory=list)

    def fail(self, what: str, reason: str) -> None:
        """Lists a problem."""
        self.problems.append(Problem(self.pair.name, what, " ".join(reason.split())))

    @contextmanager
    def listing(self, what: str) -> Iterator[None]:
        """Lists an InputError in the block as a problem, and goes on after it."""
        try:
            yield
        except InputError as error:
            self.fail(what, str(error))


def measure_pair(
    pair: Pair, networks: Networks, settings: Settings, meters: Mapping[str, MouthMeter] = MappingProxyType({})
) -> PairMeasures:
    """Measures a pair of videos over their common length, at the real one's frame rate.

    Args:
        pair: to compare.
        networks: what measures.
        settings: how.
        meters: name -> mouth meter, beside the package's own.

    Raises:
        InputError: one of the videos cannot be read.
    """
    # 1. frames
    real = read_clip(pair.real, "real videos", settings.max_seconds)
    generated = read_clip(pair.generated, "generated videos", settings.max_seconds, real.fps)
    result = PairMeasures(pair, float(real.fps), Side(), Side())
    num_frames = min(len(real.frames), len(generated.frames))
    if len(real.frames) != len(generated.frames):
        result.fail(
            "length",
            f"{len(generated.frames)} frames were generated, the real video has {len(real.frames)}; the first "
            f"{num_frames} are compared",
        )
    clips = (Clip(generated.frames[:num_frames], real.fps), Clip(real.frames[:num_frames], real.fps))

    # 2. what each video shows and says
    _measure_side(result, "generated", clips[0], networks, settings)
    _measure_side(result, "real", clips[1], networks, settings)

    # 3. against the real video
    fitted = fit_size(clips[0].frames, *clips[1].frames.shape[1:3])
    result.real.values |= {"psnr": float("inf"), "ssim": 1.0}
    result.generated.values["psnr"] = measure_psnr(fitted, clips[1].frames)
    with result.listing("SSIM"):
        result.generated.values["ssim"] = measure_ssim(fitted, clips[1].frames)
    target = None
    with result.listing("target keypoints"):
        target = _target_kps(pair, result.real.faces, num_frames)
    _compare_faces(result, target, [clip.frames.shape[1:3] for clip in clips], settings)
    _compare_mouths(result, target, clips, choose_meter(settings.mouth_meter, meters, pair.labels is not None))
    return result


def _measure_side(result: PairMeasures, name: str, clip: Clip, networks: Networks, settings: Settings) -> None:
    """Measures one video, `name` "generated" or "real", by itself."""
    side, num_frames = getattr(result, name), len(clip.frames)
    if networks.frames is not None:
        with result.listing(f"FID ({name})"):
            side.frame_features = networks.frames(clip.frames)
    if networks.clips is not None:
        with result.listing(f"FVD ({name})"):
            if num_frames < CLIP_FRAMES:
                raise InputError(f"has {num_frames} frames, a clip needs {CLIP_FRAMES}")
            side.clip_features = networks.clips(clip.frames)
    if networks.faces is not None:
        side.faces = find_faces(clip.frames, networks.faces)
        num_found = int(side.faces.is_found.sum())
        if num_found < num_frames:
            result.fail(f"faces ({name})", f"a face was found in {num_found} of {num_frames} frames")
    if networks.syncnet is not None and networks.faces is not None:
        with result.listing(f"sync ({name})"):
            side.sync = _encode_sync(result, name, clip, networks.syncnet, settings.max_seconds)
            side.values |= score_sync(side.sync.visual, side.sync.audio).as_values()


def _encode_sync(result: PairMeasures, name: str, clip: Clip, network: SyncNet, max_seconds: float) -> SyncFeatures:
    boxes = getattr(result, name).faces.filled_boxes()
    path = result.pair.real if name == "real" else result.pair.generated
    if not probe_video(path).has_audio:
        result.fail(f"sound ({name})", f"the video has none; that of {result.pair.sound.name} is taken")
        path = result.pair.sound
    samples = load_audio(path, "sound").resampled_mono(RATE_HZ).numpy()[: round(max_seconds * RATE_HZ)]
    if not len(samples) or np.abs(samples).max() < SILENT_LEVEL:
        raise InputError(f"the sound of {path.name} is silent")
    index = clip.at_rate(FPS)
    num_windows = count_windows(len(index), len(samples))
    if num_windows < 1:
        raise InputError(f"{len(index)} frames at 25 fps with {len(samples) / RATE_HZ:.2f} s of sound are too short")
    crops = crop_track(clip.frames[index], boxes[index], network.config.crop_px)
    cepstra = compute_mfcc(np.clip(np.rint(samples * 32768), -32768, 32767))
    return encode_clip(network, crops, cepstra, num_windows)


def _target_kps(pair: Pair, real_faces: FaceTrack | None, num_frames: int) -> np.ndarray | None:
    """Where the keypoints should be, (f 5 2) px of the real video: as labelled, else as found there."""
    if pair.face_info is not None:
        kps = load_face_info(pair.face_info).kps
        if len(kps) < num_frames:
            raise InputError(f"face_info {pair.face_info.name} has {len(kps)} frames, {num_frames} are needed")
        return kps[:num_frames].astype(np.float64)
    return None if real_faces is None else real_faces.kps


def _compare_faces(
    result: PairMeasures, target: np.ndarray | None, sizes: list[tuple[int, int]], settings: Settings
) -> None:
    generated, real = result.generated, result.real
    if real.faces is None:
        return
    (height, width), (real_height, real_width) = sizes
    for name, side, size in (("generated", generated, (width, height)), ("real", real, (real_width, real_height))):
        if target is None:
            break
        wanted = target * np.divide(size, (real_width, real_height))
        distance = measure_kps_distance(side.faces.kps, wanted, size[0])
        if np.isnan(distance):
            result.fail(f"KpsDis ({name})", "no frame has both a face and a target")
        else:
            side.values["kps_distance"] = distance
    if real.faces.embedding is None or generated.faces.embedding is None:
        if generated.faces.is_found.any() and real.faces.is_found.any():
            return  # there is no recognition model
        result.fail("FaceSim", "no frame of one of the videos has a face")
        return
    reference = real.faces.embedding[min(settings.reference_frame, len(real.faces.embedding) - 1)]
    if np.isnan(reference).any():
        result.fail("FaceSim", f"the real video's frame {settings.reference_frame}, the reference, has no face")
        return
    for side in (generated, real):
        side.values["face_similarity"] = measure_similarity(side.faces, reference)
    for side in (generated, real):
        side.values["d_face_similarity"] = real.values["face_similarity"] - side.values["face_similarity"]


def _compare_mouths(
    result: PairMeasures, target: np.ndarray | None, clips: tuple[Clip, Clip], meter: MouthMeter
) -> None:
    pair, (generated, real) = result.pair, clips
    with result.listing("mouth"):
        for side, clip in ((result.generated, generated), (result.real, real)):
            scale = np.divide(clip.frames.shape[2:0:-1], real.frames.shape[2:0:-1])
            side.mouth = meter(clip.frames, None if target is None else target * scale, side.faces)
        result.true_mouth = result.real.mouth if pair.labels is None else _load_labels(pair.labels, len(real.frames))
    if result.true_mouth is None:
        return
    for name, side in (("generated", result.generated), ("real", result.real)):
        if side.mouth is None:
            continue
        for index, what in enumerate(("aperture", "width")):
            with result.listing(f"{what} ({name})"):
                side.values[f"{what}_r"] = correlate(side.mouth[:, index], result.true_mouth[:, index])


def _load_labels(path: Path, num_frames: int) -> np.ndarray:
    try:
        check_unpacked_size(path, "labels")
        with np.load(path, allow_pickle=False) as arrays:
            mouth = np.asarray(arrays["mouth"], np.float32)
    except InputError:
        raise
    except Exception as error:  # zip, zlib and numpy have errors of their own
        raise InputError(f"labels {path.name}: cannot be read, or hold no `mouth` ({type(error).__name__})") from error
    if mouth.ndim != 2 or mouth.shape[1] != 2 or len(mouth) < num_frames:
        raise InputError(f"labels {path.name}: mouth has shape {mouth.shape}, needed are {num_frames} rows of 2")
    return mouth[:num_frames]


def correlate(one: np.ndarray, other: np.ndarray) -> float:
    """Computes the correlation of two tracks (f) over the frames in which both are known.

    Raises:
        InputError: fewer than 3 or half of the frames are known, or a track does not move.
    """
    known = np.isfinite(one) & np.isfinite(other)
    if known.sum() < max(3, len(one) / 2):
        raise InputError(f"the mouth could be measured in {known.sum()} of {len(one)} frames only")
    if min(one[known].std(), other[known].std()) < SMALLEST_MOVEMENT:
        raise InputError("the mouth does not move, so that a correlation is undefined")
    return float(np.corrcoef(one[known], other[known])[0, 1])
