"""Times an image autoencoder in both layouts of its memory, and compares what comes out."""

import copy
import statistics
from functools import partial

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from vexpress.benchmarks.measuring import Table, synchronize, take_turns
from vexpress.benchmarks.random_networks import build_network, pick_machine
from vexpress.benchmarks.settings import AutoencoderSettings

LAYOUTS = {"as loaded": torch.contiguous_format, "channels last": torch.channels_last}


@torch.no_grad()
def measure(settings: AutoencoderSettings) -> Table:
    """Times the rows in turns; ratios are those of medians."""
    torch.manual_seed(0)
    device, dtype = pick_machine(settings)
    vae = build_network("vae", settings.size, device, dtype)
    vaes = {name: copy.deepcopy(vae).to(memory_format=layout) for name, layout in LAYOUTS.items()}
    pixels = torch.rand(1, 3, settings.height, settings.width, device=device, dtype=dtype) * 2 - 1
    latents = vae.encode(pixels).latent_dist.mean

    def encode(vae: AutoencoderKL) -> Tensor:
        return vae.encode(pixels).latent_dist.mean

    def decode(vae: AutoencoderKL) -> Tensor:
        return vae.decode(latents).sample

    cells = []
    for work in (encode, decode):
        rows = {name: partial(work, vae) for name, vae in vaes.items()}
        seconds, results = take_turns(rows, settings.repeats, 1, partial(synchronize, device))
        plain, expected = statistics.median(seconds["as loaded"]), results["as loaded"].float()
        for name, result in results.items():
            median = statistics.median(seconds[name])
            difference = float((result.float() - expected).abs().max() / expected.abs().max())
            row = f"{work.__name__}, {name}"
            cells.append([row, f"{1000 * median:.1f}", f"{median / plain:.3f}", f"{difference:.1e}"])
    return Table([f"a picture of {settings.width}x{settings.height}", "median ms", "ratio", "difference"], cells)
