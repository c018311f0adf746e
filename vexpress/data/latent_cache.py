"""Latents of whole clips in files, so that training need not encode them.

A file's metadata say what it was made of: `autoencoder`, see `autoencoder_digest`, and the video's `sha256` and
`mtime_ns`. Files of earlier versions say nothing, and are believed.
"""

import contextlib
import hashlib
import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vexpress.data.transforms import central_geometry, transform_frames
from vexpress.diffusion.latents import Autoencoder, compute_latents, scale_latents
from vexpress.errors import InputError, first_line
from vexpress.files import hash_file
from vexpress.media.video import read_frames
from vexpress.weights import base_digest, load_vae

LATENT_CACHE_KEYS = ("latents", "mirrored")
"""Tensors (f c h w) of a cache file: of the frames as they are and mirrored."""


@dataclass(frozen=True)
class CachedLatents:
    """What is known of a cache file without reading its latents.

    Attributes:
        path: of the file.
        shape: of the latents, f c h w.
        autoencoder: digest of what made them; "" is not known.
        video_sha256: of the video's bytes, likewise.
        video_mtime_ns: when the video was last written, likewise.
    """

    path: Path
    shape: tuple[int, int, int, int]
    autoencoder: str
    video_sha256: str
    video_mtime_ns: str

    def are_of(self, video_path: str | os.PathLike) -> bool:
        """Whether the video is still the one that was encoded, or may be, where nothing is known.

        Raises:
            InputError: the video cannot be read.
        """
        if not self.video_sha256:
            return True
        with _reading(video_path):
            if str(os.stat(video_path).st_mtime_ns) == self.video_mtime_ns:
                return True
            return hash_file(video_path) == self.video_sha256  # copied or touched, or another video


def autoencoder_digest(vae: Autoencoder, folder: str | os.PathLike) -> str:
    """A digest of what latents depend on, the encoder and the latents' scale, the same for every dtype.

    Args:
        vae: in any dtype.
        folder: that it was loaded from.
    """
    if vae.dtype == torch.bfloat16:  # shows less than the digest is of
        vae = load_vae(folder)
    parts = {name: part for name in ("encoder", "quant_conv") if (part := getattr(vae, name, None)) is not None}
    scale = [vae.config.get(name) for name in ("scaling_factor", "shift_factor", "latents_mean", "latents_std")]
    return hashlib.sha256(f"{base_digest(parts)} {scale}".encode()).hexdigest()


def latent_cache_path(cache_dir: str | os.PathLike, video_path: str | os.PathLike) -> Path:
    """Names the file of a video's cached latents; another place or size of the video gives another name.

    Raises:
        InputError: there is no such video.
    """
    video_path = Path(video_path).resolve()
    with _reading(video_path):
        num_bytes = video_path.stat().st_size
    key = os.fsencode(video_path) + b"|" + str(num_bytes).encode()
    return Path(cache_dir) / f"{hashlib.sha256(key).hexdigest()[:32]}.safetensors"


@contextlib.contextmanager
def _reading(video_path: str | os.PathLike) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"video {video_path}: cannot be read ({error.strerror})") from error


def read_cached(path: Path) -> CachedLatents:
    """Reads what a cache file says of itself.

    Raises:
        InputError: the file is missing or damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            shapes = {tuple(file.get_slice(key).get_shape()) for key in LATENT_CACHE_KEYS}
            facts = file.metadata() or {}
        [shape] = shapes
        num_frames, num_channels, height, width = shape
    except (OSError, SafetensorError, ValueError) as error:
        raise InputError(
            f"cached latents {path}: missing or damaged; make them with `vexpress cache-latents`"
        ) from error
    known = (facts.get(key, "") for key in ("autoencoder", "sha256", "mtime_ns"))
    return CachedLatents(path, (num_frames, num_channels, height, width), *known)


def load_latents(path: Path, frame_ids: Sequence[int], flip: bool) -> Tensor:
    """Reads latents (f c h w) float32 of these frames, mirrored if `flip`.

    Raises:
        InputError: the file is not what it was when `read_cached` read it.
    """
    try:
        with safe_open(path, framework="pt") as file:
            latents = file.get_slice(LATENT_CACHE_KEYS[flip])
            return torch.cat([latents[int(i) : int(i) + 1] for i in frame_ids]).float()
    except (OSError, SafetensorError, ValueError, IndexError, RuntimeError) as error:
        raise InputError(f"cached latents {path}: cannot be read any more ({first_line(error)})") from error


def is_cached(path: Path, video_path: Path, latent_size: tuple[int, int], autoencoder: str) -> bool:
    """Whether the file is there and whole, of this height, width, video and autoencoder."""
    try:
        cached = read_cached(path)
        return cached.shape[2:] == latent_size and cached.autoencoder == autoencoder and cached.are_of(video_path)
    except InputError:
        return False


def cache_facts(video_path: Path, autoencoder: str) -> dict[str, str]:
    """A cache file's metadata; to be found out before the video is encoded, lest it be replaced meanwhile.

    Raises:
        InputError: the video cannot be read.
    """
    with _reading(video_path):
        mtime_ns, sha256 = str(video_path.stat().st_mtime_ns), hash_file(video_path)
    return {"autoencoder": autoencoder, "sha256": sha256, "mtime_ns": mtime_ns}


@torch.inference_mode()
def encode_clip(vae: Autoencoder, video_path: Path, width: int, height: int, batch_size: int) -> dict[str, Tensor]:
    """Encodes all frames of a video, as they are and mirrored.

    Args:
        vae: in eval mode.
        video_path: of the clip.
        width: of the frames to encode, px, likewise height; the video's central square is resized to it.
        height: see width.
        batch_size: frames that are encoded together.

    Returns:
        LATENT_CACHE_KEYS -> (f c h w) on the CPU, in the VAE's dtype, scaled for diffusion; means of the posterior.

    Raises:
        InputError: the video cannot be read, or the dtype is too narrow for the VAE.
    """
    latents: dict[str, list[Tensor]] = {key: [] for key in LATENT_CACHE_KEYS}
    frames = (frame for _, frame in read_frames(video_path, "video"))
    while batch := list(itertools.islice(frames, batch_size)):
        frame_height, frame_width, _ = batch[0].shape
        for key, flip in zip(LATENT_CACHE_KEYS, (False, True)):
            geometry = central_geometry((frame_width, frame_height), (width, height), flip)
            pixels = transform_frames(np.stack(batch), geometry).to(vae.device, vae.dtype) / 127.5 - 1
            latents[key].append(scale_latents(vae, compute_latents(vae, pixels)).cpu())
    encoded = {key: torch.cat(parts).contiguous() for key, parts in latents.items()}
    if not all(tensor.isfinite().all() for tensor in encoded.values()):
        raise InputError(f"video {video_path}: its latents are not finite; choose another `dtype`")
    return encoded
