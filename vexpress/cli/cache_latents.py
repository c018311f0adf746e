"""Encodes the frames of clips with the VAE once, as they are and mirrored, so that training need not.

    vexpress cache-latents --meta_path clips/metadata.json --cache_dir clips/latents

The same command again encodes only what is missing, or is of another video or autoencoder than it was. Train with
data.latent_cache_dir and data.crop_ratio=[1,1].
"""

import logging
import sys
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path

from vexpress.cli.parser import ArgumentParser, add_options
from vexpress.cli.program import set_up_logging
from vexpress.errors import InputError
from vexpress.fields import check_fields, option
from vexpress.model_folder import LAYOUT
from vexpress.options import DTYPES

logger = logging.getLogger(__name__)

EXIT_FAILURES = 1


@dataclass(frozen=True)
class Encoding:
    """How frames are encoded.

    Raises:
        InputError: a value is out of bounds.
    """

    width: int = option(512, "of the frames, as data.train_width", low=8, high=4096, unit="px")
    height: int = option(512, "of the frames, as data.train_height", low=8, high=4096, unit="px")
    batch_size: int = option(8, "frames that are encoded together", low=1, high=4096)

    def __post_init__(self):
        check_fields(self)


def parse_arguments(arguments: list[str] | None) -> Namespace:
    """The flags."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--meta_path", type=Path, required=True, help="metadata JSON of the clips")
    parser.add_argument("--cache_dir", type=Path, required=True, help="folder to fill; one per VAE and size")
    parser.add_argument("--vae_path", type=Path, default=Path("model_ckpts") / LAYOUT["vae_path"], help="folder")
    add_options(parser, Encoding.__dataclass_fields__.values())
    parser.add_argument("--device", choices=("cuda", "cpu", "mps"), help="unset: the first of these that is there")
    parser.add_argument("--gpu_id", type=int, default=0, help="index of the CUDA device")
    parser.add_argument("--dtype", choices=DTYPES, help="to work in and to write; unset: fp16 on cuda, else fp32")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Clips -> files of latents; exit code 1 if a clip fails."""
    set_up_logging()
    args = parse_arguments(arguments)
    encoding = Encoding(args.width, args.height, args.batch_size)

    import safetensors.torch
    from tqdm import tqdm

    from vexpress.data.formats import load_metadata
    from vexpress.data.latent_cache import autoencoder_digest, cache_facts, encode_clip, is_cached, latent_cache_path
    from vexpress.devices import resolve_device, resolve_dtype
    from vexpress.diffusion.latents import vae_downsampling
    from vexpress.files import replacing
    from vexpress.weights import load_vae

    device = resolve_device(args.device, args.gpu_id)
    videos = [record.video for record in load_metadata(args.meta_path)]
    vae = load_vae(args.vae_path, resolve_dtype(args.dtype, device), device)
    autoencoder = autoencoder_digest(vae, args.vae_path)
    downsampling = vae_downsampling(vae)
    for name in ("width", "height"):
        value = getattr(encoding, name)
        if value % downsampling:
            raise InputError(f"must be a multiple of {downsampling}, the px of a latent", name, value)
    latent_size = (encoding.height // downsampling, encoding.width // downsampling)
    try:
        args.cache_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot be made ({error.strerror})", "cache_dir", args.cache_dir) from error

    num_encoded, num_present, num_failed = 0, 0, 0
    for video_path in tqdm(videos, desc="latents", unit="clip"):
        try:
            path = latent_cache_path(args.cache_dir, video_path)
            if is_cached(path, video_path, latent_size, autoencoder):
                num_present += 1
                continue
            facts = cache_facts(video_path, autoencoder)
            latents = encode_clip(vae, video_path, encoding.width, encoding.height, encoding.batch_size)
        except InputError as error:
            num_failed += 1
            logger.error("%s", " ".join(str(error).split()))
            continue
        with replacing(path) as temporary:
            safetensors.torch.save_file(latents, temporary, facts)
        num_encoded += 1
    print(f"{args.cache_dir}: {num_encoded} clips encoded, {num_present} were there, {num_failed} failed")
    if num_failed:
        sys.exit(EXIT_FAILURES)
