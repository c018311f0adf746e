"""Encodes the frames of clips with the VAE once, as they are and mirrored, so that training need not.

python scripts/prepare_dataset/cache_latents.py --meta_path clips/metadata.json --cache_dir clips/latents

The same command again encodes only what is missing. Train with data.latent_cache_dir and data.crop_ratio=[1,1].
"""

import itertools
import logging
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from tqdm import tqdm

from vexpress.cli.parser import ArgumentParser
from vexpress.data.dataset import LATENT_CACHE_KEYS, latent_cache_path, read_latents_shape
from vexpress.data.formats import load_metadata
from vexpress.data.transforms import central_geometry, transform_frames
from vexpress.devices import DTYPES, resolve_device, resolve_dtype
from vexpress.diffusion.latents import scale_latents, vae_downsampling
from vexpress.errors import InputError
from vexpress.files import replacing
from vexpress.logs import set_up_logging
from vexpress.media.video import read_frames
from vexpress.model_folder import LAYOUT
from vexpress.weights import load_vae

logger = logging.getLogger(__name__)

EXIT_FAILURES = 1


def parse_arguments() -> Namespace:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--meta_path", type=Path, required=True, help="metadata JSON of the clips")
    parser.add_argument("--cache_dir", type=Path, required=True, help="folder to fill; one per VAE and size")
    parser.add_argument("--vae_path", type=Path, default=Path("model_ckpts") / LAYOUT["vae_path"], help="folder")
    parser.add_argument("--width", type=int, default=512, help="px, as data.train_width")
    parser.add_argument("--height", type=int, default=512, help="px, as data.train_height")
    parser.add_argument("--batch_size", type=int, default=8, help="frames that are encoded together")
    parser.add_argument("--device", choices=("cuda", "cpu", "mps"), help="unset: what is there")
    parser.add_argument("--gpu_id", type=int, default=0)
    parser.add_argument("--dtype", choices=tuple(DTYPES), help="to work in and to write; unset: fp16 on cuda")
    return parser.parse_args()


@torch.inference_mode()
def encode_clip(vae: AutoencoderKL, video_path: Path, width: int, height: int, batch_size: int) -> dict[str, Tensor]:
    """Encodes all frames of a video, as they are and mirrored.

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
            latents[key].append(scale_latents(vae, vae.encode(pixels).latent_dist.mean).cpu())
    encoded = {key: torch.cat(parts).contiguous() for key, parts in latents.items()}
    if not all(tensor.isfinite().all() for tensor in encoded.values()):
        raise InputError(f"video {video_path}: its latents are not finite; choose another --dtype")
    return encoded


def is_cached(path: Path, latent_size: tuple[int, int]) -> bool:
    """Whether the file is there, whole and of this height and width."""
    try:
        return read_latents_shape(path)[2:] == latent_size
    except InputError:
        return False


def main() -> None:
    set_up_logging()
    args = parse_arguments()
    device = resolve_device(args.device, args.gpu_id)
    dtype = resolve_dtype(args.dtype or ("fp16" if device.type == "cuda" else "fp32"))
    if args.batch_size < 1:
        raise InputError("must be 1 or more", "batch_size", args.batch_size)
    videos = [record.video for record in load_metadata(args.meta_path)]
    vae = load_vae(args.vae_path, dtype, device)
    downsampling = vae_downsampling(vae)
    for name in ("width", "height"):
        value = getattr(args, name)
        if value % downsampling or value < downsampling:
            raise InputError(f"--{name} {value}: must be a multiple of {downsampling}, the px of a latent")
    latent_size = (args.height // downsampling, args.width // downsampling)
    try:
        args.cache_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot be made ({error.strerror})", "cache_dir", args.cache_dir) from error

    num_encoded, num_present, num_failed = 0, 0, 0
    for video_path in tqdm(videos, desc="latents", unit="clip"):
        try:
            path = latent_cache_path(args.cache_dir, video_path)
            if is_cached(path, latent_size):
                num_present += 1
                continue
            latents = encode_clip(vae, video_path, args.width, args.height, args.batch_size)
        except InputError as error:
            num_failed += 1
            logger.error("%s", " ".join(str(error).split()))
            continue
        with replacing(path) as temporary:
            safetensors.torch.save_file(latents, temporary)
        num_encoded += 1
    print(f"{args.cache_dir}: {num_encoded} clips encoded, {num_present} were there, {num_failed} failed")
    if num_failed:
        sys.exit(EXIT_FAILURES)
