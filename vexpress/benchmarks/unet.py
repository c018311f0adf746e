"""Times a denoising step of one window: without and with each of our savings."""

import statistics
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from vexpress.benchmarks.measuring import Table, gpu_peak, reset_gpu_peak, synchronize, take_turns
from vexpress.benchmarks.random_networks import CONFIGS, build_network, pick_machine
from vexpress.benchmarks.settings import UNetSettings
from vexpress.diffusion.guidance import Carried, Denoise, guided
from vexpress.models import Conditions

DOWNSAMPLING = 8  # px per latent
GUIDANCE_SCALE = 3.5
ATTENTION_WEIGHTS = {"reference_attention_weight": 0.95, "audio_attention_weight": 3.0}
PLAIN, NO_GUIDANCE = "plain", "guidance 1"


def build_denoisers(
    settings: UNetSettings, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, dict[str, Denoise]]:
    """Builds noisy latents (1 c f h w) of one window, and row -> denoiser of them."""
    height, width, num_frames = settings.height // DOWNSAMPLING, settings.width // DOWNSAMPLING, settings.context_frames
    config = CONFIGS[settings.size]["denoising_unet"]

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, device=device, dtype=dtype)

    # 1. inputs, and the zeros that the release feeds in the place of dropped conditions
    latents = noise(1, 4, num_frames, height, width)
    tokens = noise(1, num_frames, 5, config["cross_attention_dim"])
    kps_features = noise(1, config["block_out_channels"][0], num_frames, height, width)
    features = build_network("reference_net", settings.size, device, dtype)(latents[:, :, 0])
    zeros = {path: torch.zeros_like(feature) for path, feature in features.items()}
    unet = build_network("denoising_unet", settings.size, device, dtype)
    prepare = partial(unet.prepare_conditions, **ATTENTION_WEIGHTS)
    prepare_full = partial(prepare, features, tokens, kps_features)
    prepare_zero = partial(prepare, zeros, torch.zeros_like(tokens), torch.zeros_like(kps_features))
    full, zero = prepare_full(), prepare_zero()

    # 2. ways to denoise
    def predict(network: Callable[..., Tensor], noisy: Tensor, timestep: Tensor, conditions: Conditions) -> Tensor:
        return network(noisy, timestep, conditions=conditions)

    def two_passes(conditional: Callable[[], Conditions], unconditional: Callable[[], Conditions]) -> Denoise:
        def denoise(noisy: Tensor, timestep: Tensor, windows: list[list[int]], carried: list[Carried]) -> Tensor:
            with_all = unet(noisy, timestep, conditions=conditional())
            without = unet(noisy, timestep, conditions=unconditional())
            return without + GUIDANCE_SCALE * (with_all - without)

        return denoise

    denoisers = {
        PLAIN: two_passes(prepare_full, prepare_zero),
        "+ prepared keys and values": two_passes(lambda: full, lambda: zero),
        "+ unconditional without attention": guided(partial(predict, unet), lambda windows: full, GUIDANCE_SCALE),
    }
    if settings.compile:
        compiled = torch.compile(unet, fullgraph=True)
        denoisers["+ torch.compile"] = guided(partial(predict, compiled), lambda windows: full, GUIDANCE_SCALE)
    denoisers[NO_GUIDANCE] = guided(partial(predict, unet), lambda windows: full, 1)
    return latents, denoisers


@torch.no_grad()
def measure(settings: UNetSettings) -> Table:
    """Times the rows in turns; the ratio is that of medians."""
    torch.manual_seed(0)
    device, dtype = pick_machine(settings)
    latents, denoisers = build_denoisers(settings, device, dtype)
    timestep, windows = torch.tensor(499, device=device), [list(range(settings.context_frames))]

    def run(denoise: Denoise) -> tuple[Tensor, str]:
        reset_gpu_peak(device)
        output = denoise(latents, timestep, windows, [Carried()])
        return output, gpu_peak(device)

    rows = {name: partial(run, denoise) for name, denoise in denoisers.items()}
    seconds, results = take_turns(rows, settings.repeats, settings.warmup, partial(synchronize, device))

    plain, plain_seconds = results[PLAIN][0].float(), statistics.median(seconds[PLAIN])
    cells = []
    for name, (output, peak) in results.items():
        median, fastest = statistics.median(seconds[name]), min(seconds[name])  # the latter, for a busy machine
        difference = f"{float((output.float() - plain).abs().max() / plain.abs().max()):.1e}"
        if name == NO_GUIDANCE:
            difference = "-"  # another result, by intent
        times = [f"{1000 * median:.1f}", f"{1000 * fastest:.1f}", f"{median / plain_seconds:.3f}"]
        cells.append([name, *times, difference, peak])
    header = ["denoising step of one window", "median ms", "fastest ms", "median to plain's", "max difference to plain"]
    return Table([*header, "peak GPU memory"], cells)
