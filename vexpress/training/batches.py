"""Batches of training samples, decoded in worker processes."""

import signal
from collections.abc import Generator

import torch
from einops import rearrange
from torch.utils.data import DataLoader

from vexpress.data.dataset import TalkingFaceDataset
from vexpress.data.loading import SampleStream, start_workers
from vexpress.diffusion.latents import Autoencoder, compute_latents, scale_latents
from vexpress.errors import InputError, first_line
from vexpress.training.objectives import Batch

FRAMES_PER_ENCODING = 8  # that the VAE encodes at once


@torch.no_grad()
def prepare_batch(samples: dict, vae: Autoencoder, dtype: torch.dtype) -> Batch:
    """Brings collated samples to the VAE's device, and makes latents, the posterior's mean, of what comes as pixels.

    Args:
        samples: of `TalkingFaceDataset`, and `noise` (b c f h w) where a teacher has started from it.
        vae: encodes frames.
        dtype: of the conditions; latents are float32.
    """
    device = vae.device
    # The references come last, so that one pass of the VAE, in parts that fit into memory, encodes all frames.
    pixels = [rearrange(samples[name], "b c f h w -> (b f) c h w") for name in ("pixel_values",) if name in samples]
    pixels += [samples[name] for name in ("reference_image",) if name in samples]
    encoded = [
        scale_latents(vae, compute_latents(vae, part.to(device, vae.dtype)).float())
        for part in (torch.cat(pixels).split(FRAMES_PER_ENCODING) if pixels else ())
    ]
    num_samples = len(samples["number"])
    if "reference_image" in samples:
        encoded = torch.cat(encoded)
        references = encoded[-num_samples:]
    else:
        references = samples["reference_latents"].to(device)
    if "pixel_values" in samples:
        latents = rearrange(encoded[:-num_samples], "(b f) c h w -> b c f h w", b=num_samples)
    else:
        latents = samples["latents"].to(device)
    conditions = {
        "reference_latents": references.to(dtype),
        "kps_images": samples["kps_images"].to(device, dtype),
        "audio_windows": samples["audio_windows"].to(device, dtype),
    }
    if "attributes" in samples:
        conditions["attributes"] = samples["attributes"].to(device)
    noise = samples["noise"].to(device) if "noise" in samples else None
    lip_masks, eye_masks = (samples[name].to(device) for name in ("lip_masks", "eye_masks"))
    sync_windows = {name: value.to(device) for name, value in samples.items() if name.startswith("sync_")}
    return Batch(latents, conditions, lip_masks, noise, eye_masks, sync_windows)


def stream_batches(dataset: TalkingFaceDataset, samples: SampleStream, pin_memory: bool) -> Generator[dict, None, None]:
    """Yields collated batches of `data.train_bs` samples without end; close it to end the workers.

    Args:
        dataset: whose configuration says how many samples and workers.
        samples: which samples.
        pin_memory: for copies to a CUDA device.

    Raises:
        InputError: a clip cannot be read, or a worker has died.
    """
    loader = DataLoader(
        dataset,
        batch_size=dataset.config.train_bs,
        sampler=samples,
        num_workers=dataset.config.num_workers,
        pin_memory=pin_memory,
        worker_init_fn=_ignore_signals,
    )
    batches = start_workers(loader)
    while True:
        try:
            yield next(batches)
        except InputError as error:  # a worker's comes with its traceback in the text
            raise InputError(str(error).strip().splitlines()[-1].split("InputError: ")[-1]) from error
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise InputError(
                f"a process that decodes videos has died ({first_line(error)}): out of memory or of shared memory? "
                "Lower data.num_workers or data.train_bs"
            ) from error


def _ignore_signals(worker: int) -> None:
    """A scheduler or a terminal signals all processes of a job; workers are needed until the run is saved."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
