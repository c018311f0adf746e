"""Latents of whole clips in files, so that training need not encode them."""

import hashlib
import itertools
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vexpress.data.transforms import central_geometry, transform_frames
from vexpress.diffusion.latents import Autoencoder, compute_latents, scale_latents
from vexpress.errors import InputError, first_line
from vexpress.media.video import read_frames

LATENT_CACHE_KEYS = ("latents", "mirrored")
"""Tensors (f c h w) of a cache file: of the frames as they are and mirrored."""


def latent_cache_path(cache_dir: str | os.PathLike, video_path: str | os.PathLike) -> Path:
    """Names the file of a video's cached latents; another place or size of the video gives another name.

    Raises:
        InputError: there is no such video.
    """
    video_path = Path(video_path).resolve()
    try:
        num_bytes = video_path.stat().st_size
    except OSError as error:
        raise InputError(f"video {video_path}: cannot be read ({error.strerror})") from error
    key = os.fsencode(video_path) + b"|" + str(num_bytes).encode()
    return Path(cache_dir) / f"{hashlib.sha256(key).hexdigest()[:32]}.safetensors"


def read_latents_shape(path: str | os.PathLike) -> tuple[int, int, int, int]:
    """Reads the shape (f c h w) of cached latents, without reading them.

    Raises:
        InputError: the file is missing or damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            shapes = {tuple(file.get_slice(key).get_shape()) for key in LATENT_CACHE_KEYS}
            [shape] = shapes
            num_frames, num_channels, height, width = shape
    except (OSError, SafetensorError, ValueError) as error:
        raise InputError(
            f"cached latents {path}: missing or damaged; make them with `vexpress cache-latents`"
        ) from error
    return num_frames, num_channels, height, width


def load_latents(path: Path, frame_ids: Sequence[int], flip: bool) -> Tensor:
    """Reads latents (f c h w) float32 of these frames, mirrored if `flip`.

    Raises:
        InputError: the file is not what it was when `read_latents_shape` read it.
    """
    try:
        with safe_open(path, framework="pt") as file:
            latents = file.get_slice(LATENT_CACHE_KEYS[flip])
            return torch.cat([latents[int(i) : int(i) + 1] for i in frame_ids]).float()
    except (OSError, SafetensorError, ValueError, IndexError, RuntimeError) as error:
        raise InputError(f"cached latents {path}: cannot be read any more ({first_line(error)})") from error


def is_cached(path: Path, latent_size: tuple[int, int]) -> bool:
    """Whether the file is there, whole and of this height and width."""
    try:
        return read_latents_shape(path)[2:] == latent_size
    except InputError:
        return False


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
