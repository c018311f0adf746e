"""Making a video in a node: the package's pipeline, which tells the node of every window and every frame."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vexpress.comfyui.keypoints import Report
from vexpress.diffusion.latents import compute_latents, scale_latents
from vexpress.diffusion.schedule import build_scheduler
from vexpress.media.sheets import frame_numbers, render_filmstrip
from vexpress.options import SamplingOptions
from vexpress.pipeline import VExpressPipeline
from vexpress.request import ClipInputs

PREVIEW_SECONDS = 0.5  # between two previews of finished frames
NUM_SHEET_FRAMES = 8
# Peaks of SD1.5's networks, in values: the UNet's 20 maps of 320 channels per latent pixel of a window, and the
# decoder's 4 maps of 128 channels per pixel of the frames that are decoded at once.
UNET_VALUES_PER_LATENT, DECODER_VALUES_PER_PIXEL, DECODED_AT_ONCE = 20 * 320, 4 * 128, 8


class Progress:
    """What the pipeline takes for a progress bar: each update is reported, and so may raise to interrupt the work.

    Args:
        total: pieces of work.
        report: see `vexpress.comfyui.keypoints.Report`.
        outer: the progress that this is a part of; then that is shown.
    """

    def __init__(self, total: int, report: Report, outer: "Progress | None" = None):
        self.done, self.total, self.outer, self._report = 0, total, outer, report

    def __enter__(self) -> "Progress":
        self.show()
        return self

    def __exit__(self, *_: Any) -> None:
        self.total = 0  # over

    def update(self, count: int = 1) -> None:
        self.done += count
        self.show()

    def show(self, preview: Image.Image | None = None) -> None:
        shown = self.outer or self
        self._report(shown.done, shown.total, preview)

    def set_description(self, _: str) -> None:
        pass

    def set_postfix_str(self, _: str) -> None:
        pass


class NodePipeline(VExpressPipeline):
    """The pipeline with progress that is reported in place of being printed.

    Attributes:
        report: see `vexpress.comfyui.keypoints.Report`.
        progress: of the present stage, which may be a part of another: rolling sampling denoises as it decodes.
    """

    report: Report = staticmethod(lambda done, total, preview=None: None)
    progress: Progress | None = None

    def progress_bar(self, iterable: None = None, total: int | None = None) -> Progress:
        """The progress of one stage: denoising counts windows, decoding counts frames."""
        outer = self.progress if self.progress and self.progress.total else None
        self.progress = Progress(total or 1, self.report, outer and (outer.outer or outer))
        return self.progress


@dataclass(frozen=True)
class Clip:
    """A video in the making.

    Attributes:
        inputs: what it is made of; its keypoints are those of the frames.
        frames: (H W 3) uint8 each, decoded as they are asked for.
    """

    inputs: ClipInputs
    frames: Iterator[np.ndarray]


def generate(
    pipeline: NodePipeline,
    inputs: ClipInputs,
    options: SamplingOptions,
    report: Report,
    load: Callable[[int], None] = lambda num_bytes: None,
) -> Clip:
    """Denoises a video, as `vexpress generate` does; its frames are decoded later.

    Args:
        pipeline: with its networks anywhere.
        inputs: from `prepare_request`.
        options: how to sample.
        report: told of every window and every frame, see `vexpress.comfyui.keypoints.Report`.
        load: brings the networks to where they work, with this much memory free beside them.

    Raises:
        InputError: the model cannot do this.
    """
    load(memory_needed(options, pipeline.dtype.itemsize))
    pipeline.report, pipeline.progress = report, None
    pipeline.scheduler = build_scheduler(options.scheduler)
    colours = LatentColours(pipeline, inputs.portrait)

    def on_step(_: NodePipeline, step: int, timestep: Tensor, tensors: dict[str, Tensor]) -> None:
        latents = tensors["latents"]
        pipeline.progress.show(colours.picture(latents[0, :, latents.shape[2] // 2]))

    frames = pipeline(
        **inputs.pipeline_arguments(pipeline.audio_processor.sampling_rate),
        options=options,
        output_type="generator",
        callback_on_step_end=on_step,
    ).frames
    return Clip(inputs, _shown(inputs.finished(frames), inputs.num_frames, report))


def memory_needed(options: SamplingOptions, itemsize: int) -> int:
    """Bytes that networks of SD1.5's widths take beside their weights, roughly.

    Args:
        options: size of the video and of windows.
        itemsize: bytes of a value.
    """
    pixels = options.image_width * options.image_height
    window = options.windows_per_batch * options.context_frames * pixels // 64
    return itemsize * max(window * UNET_VALUES_PER_LATENT, DECODED_AT_ONCE * pixels * DECODER_VALUES_PER_PIXEL)


class LatentColours:
    """Pictures of latents without the decoder: the linear map that turns the portrait's latents into its colours.

    Args:
        pipeline: its VAE encodes the portrait.
        portrait: at the size of the video.
    """

    @torch.no_grad()
    def __init__(self, pipeline: VExpressPipeline, portrait: Image.Image):
        vae = pipeline.vae
        pixels = torch.from_numpy(np.array(portrait)).permute(2, 0, 1)[None].float() / 127.5 - 1
        latents = scale_latents(vae, compute_latents(vae, pixels.to(vae.device, vae.dtype)))[0].float().cpu()
        small = portrait.resize((latents.shape[2], latents.shape[1]), Image.Resampling.BOX)
        colours = torch.from_numpy(np.array(small)).flatten(0, 1).float()
        self._map = torch.linalg.lstsq(_with_one(latents), colours).solution
        self._size = portrait.size

    def picture(self, latents: Tensor) -> Image.Image:
        """Latents of a frame (c h w) -> a picture of the portrait's size."""
        colours = (_with_one(latents.float().cpu()) @ self._map).clamp(0, 255).byte()
        small = Image.fromarray(colours.unflatten(0, latents.shape[1:]).numpy())
        return small.resize(self._size, Image.Resampling.BILINEAR)


def _with_one(latents: Tensor) -> Tensor:
    """(c h w) -> (h*w c+1), for a linear map with an offset."""
    rows = latents.flatten(1).T
    return torch.cat([rows, torch.ones(len(rows), 1)], dim=1)


def _shown(frames: Iterator[np.ndarray], total: int, report: Report) -> Iterator[np.ndarray]:
    """Passes frames on, and reports one from time to time as a preview."""
    last = 0.0
    for number, frame in enumerate(frames, start=1):
        if time.monotonic() - last > PREVIEW_SECONDS:
            last = time.monotonic()
            report(number, total, Image.fromarray(frame))
        yield frame


def contact_sheet(portrait: Image.Image, frames: list[np.ndarray], kps: Tensor, waveform: np.ndarray) -> np.ndarray:
    """One picture of a clip: portrait, frames, keypoints and sound.

    Args:
        portrait: any size.
        frames: (H W 3) uint8 each, those that `sheet_numbers` names.
        kps: (f 3 2) px of the frames, of the whole clip.
        waveform: (n) of the whole clip.

    Returns:
        (h w 3) uint8.
    """
    return render_filmstrip(np.asarray(portrait), frames, sheet_numbers(len(kps)), kps.numpy(), waveform)


def sheet_numbers(num_frames: int) -> list[int]:
    """Numbers of the frames that a contact sheet shows."""
    return frame_numbers(num_frames, NUM_SHEET_FRAMES)
