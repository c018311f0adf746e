"""Times each part of the way from waveform to frames."""

from collections.abc import Mapping

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vexpress.benchmarks.measuring import (
    PROCESS_STATUS,
    Stopwatch,
    Table,
    gib,
    gpu_peak,
    process_memory,
    reset_gpu_peak,
)
from vexpress.benchmarks.random_networks import build_pipeline, pick_machine
from vexpress.benchmarks.settings import FullRunSettings
from vexpress.diffusion.guidance import guided
from vexpress.diffusion.sampling import sample
from vexpress.diffusion.windows import context_windows
from vexpress.models import Conditions
from vexpress.options import SamplingOptions
from vexpress.pipeline import VExpressPipeline
from vexpress.pipeline.conditioning import KpsFeatures, WindowConditions

VIDEO_FPS = 30
FACE = np.array([[0.4, 0.4], [0.6, 0.4], [0.5, 0.55]])  # eyes and nose, shares of the picture


def random_inputs(settings: FullRunSettings, sampling_rate_hz: int) -> dict[str, Image.Image | Tensor]:
    """The pipeline's inputs by name: a picture of noise, noise, and a face that trembles."""
    size = (settings.width, settings.height)
    tremble = torch.randn(settings.num_frames, 1, 2)
    return {
        "reference_image": Image.effect_noise(size, 50).convert("RGB"),
        "audio_waveform": torch.randn(round(settings.num_frames / VIDEO_FPS * sampling_rate_hz)),
        "kps_sequence": torch.from_numpy(FACE * size).float() + tremble,
    }


@torch.no_grad()
def run_parts(
    pipeline: VExpressPipeline,
    inputs: Mapping[str, Image.Image | Tensor],
    noise: Tensor,
    options: SamplingOptions,
    device: torch.device,
    watch: Stopwatch,
) -> Tensor:
    """Does what the pipeline's call does, part by part; returns the denoised latents (1 c f h w)."""
    image, kps = inputs["reference_image"], inputs["kps_sequence"]
    unet = pipeline.denoising_unet

    # 1. inputs to tokens and features
    audio_tokens = pipeline.encode_audio(inputs["audio_waveform"], len(kps), options.num_pad_audio_frames)
    watch.mark("audio")
    constant = unet.prepare_conditions(
        pipeline.encode_reference(image),
        reference_attention_weight=options.reference_attention_weight,
        audio_attention_weight=options.audio_attention_weight,
    )
    watch.mark("reference")
    kps_features = KpsFeatures(lambda points: pipeline.encode_kps(points, image.height, image.width)[0].transpose(0, 1))
    kps_features(kps)  # kept for the windows, as far as there is room
    watch.mark("kps")

    # 2. denoising
    def predict(noisy: Tensor, timestep: Tensor, conditions: Conditions) -> Tensor:
        return unet(noisy.to(device, unet.dtype), timestep.to(device), conditions=conditions)

    conditions = WindowConditions(unet, constant, kps_features)
    pipeline.scheduler.set_timesteps(options.num_inference_steps)
    latents = sample(
        guided(predict, conditions.of_clip(kps, audio_tokens), options.guidance_scale, options.guidance),
        noise * pipeline.scheduler.init_noise_sigma,
        pipeline.scheduler,
        context_windows(len(kps), options.context_frames, options.context_overlap),
    )
    watch.mark("denoising")

    # 3. frames
    for _ in pipeline.decode(latents, options.median_filter, options.denoise_threshold):
        pass
    watch.mark("decoding")
    return latents


def measure(settings: FullRunSettings) -> Table:
    """Times one run, from building the networks on."""
    torch.manual_seed(0)
    device, dtype = pick_machine(settings)
    watch = Stopwatch(device)
    pipeline = build_pipeline(settings.size, "cpu" if settings.save_gpu_memory else device, dtype)
    if settings.save_gpu_memory:
        pipeline.enable_model_cpu_offload(device=device)
    inputs = random_inputs(settings, pipeline.audio_processor.sampling_rate)
    sides = (settings.height // pipeline.downsampling, settings.width // pipeline.downsampling)
    noise = torch.randn(1, pipeline.denoising_unet.config.in_channels, settings.num_frames, *sides)
    reset_gpu_peak(device)
    watch.mark("building")
    run_parts(pipeline, inputs, noise, SamplingOptions(num_inference_steps=settings.steps), device, watch)

    seconds = watch.seconds
    total = sum(seconds.values()) - seconds["building"]
    rows = [[part, f"{value:.2f} s", f"{value / total:.1%}"] for part, value in seconds.items()]
    rows[0][-1] = "-"
    per_step = seconds["denoising"] / settings.steps
    rows.insert(-1, ["  per step", f"{per_step:.2f} s", f"{per_step / total:.1%}"])
    rows.append(["all but building", f"{total:.2f} s", "100.0%"])
    rows.append(["peak GPU memory", gpu_peak(device), "-"])
    if PROCESS_STATUS.exists():
        rows.append(["peak resident memory", gib(process_memory("VmHWM")), "-"])
    return Table([f"{settings.num_frames} frames of {settings.width}x{settings.height}", "measured", "share"], rows)
