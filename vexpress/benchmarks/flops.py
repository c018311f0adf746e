"""Counts the arithmetic of one frame of a video with each preset, by kind of work. It runs on shapes alone."""

import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from diffusers import AutoencoderTiny
from torch.utils.flop_counter import FlopCounterMode

from vexpress.audio_features import num_audio_steps
from vexpress.benchmarks.measuring import Table
from vexpress.benchmarks.random_networks import build_network
from vexpress.benchmarks.settings import FlopsSettings
from vexpress.diffusion.guidance import DROPPED, Carried, guided
from vexpress.models import Conditions
from vexpress.options import PRESETS, SamplingOptions

DOWNSAMPLING = 8  # px per latent
KINDS = {
    "ResNet layers": r"\.resnets\.\d+$",
    "motion modules": r"\.motion_modules\.\d+$",
    "self attention": r"\.attn1(\.to_[kv])?$",  # `project_kv` is no call of the attention itself
    "feed-forward": r"\.attentions\.\d+\.transformer_blocks\.\d+\.ff$",
    "reference attention": r"\.attn1_5$",
    "audio attention": r"\.attn2$",
    "down- and upsampling": r"\.(down|up)samplers\.\d+$",
}
"""Kind of work in the UNet -> names of modules, none of which lies within another."""
REST = "other layers"

Work = tuple[bool, bool]
"""A pass of the UNet: with all conditions? with its deep blocks?"""


def count_flops(function: Callable[[], Any]) -> Counter[str]:
    """Kind of work, or "" for all of it -> floating-point operations, a multiplication and an addition being two."""
    with FlopCounterMode(display=False) as counter:
        function()
    by_module = {name: sum(counts.values()) for name, counts in counter.get_flop_counts().items()}
    by_kind = Counter({"": counter.get_total_flops()})
    for kind, pattern in KINDS.items():
        by_kind[kind] = sum(flops for name, flops in by_module.items() if re.search(pattern, name))
    by_kind[REST] = 2 * by_kind[""] - by_kind.total()
    return by_kind


def count_passes(options: SamplingOptions) -> Counter[Work]:
    """How often a window goes through the UNet, from noise to the end."""
    passes: Counter[Work] = Counter()
    nothing = torch.zeros(1, 1)

    def predict(latents: None, timestep: None, conditions: Conditions, deep: Any = None, returns_deep: bool = False):
        passes[conditions.audio_kv is not None, deep is None] += 1
        return (nothing, nothing) if returns_deep else nothing

    intervals = {name: getattr(options, name) for name in ("guidance_interval", "deep_block_interval")}
    whole = Conditions(audio_kv={})
    denoise = guided(predict, lambda windows: whole, options.guidance_scale, options.guidance, **intervals)
    carried = Carried()
    for carried.step in range(options.num_inference_steps):
        denoise(None, None, None, [carried])
    return passes


class ReleasedFrame:
    """Arithmetic of a frame: of each pass of the UNet, of its conditions, and of decoding.

    Args:
        settings: size of picture and networks.
        options: of sampling; those that all presets have in common.
    """

    def __init__(self, settings: FlopsSettings, options: SamplingOptions):
        self._num_frames, self._guidance = options.context_frames, options.guidance
        sides = (settings.height // DOWNSAMPLING, settings.width // DOWNSAMPLING)
        self._unet = build_network("denoising_unet", settings.size, "meta")
        config, num_frames = self._unet.config, self._num_frames
        guider, projection = (
            build_network(part, settings.size, "meta") for part in ("v_kps_guider", "audio_projection")
        )
        vae = build_network("vae", settings.size, "meta")
        with torch.device("meta"), torch.no_grad():
            self._latents = torch.empty(1, config.in_channels, num_frames, *sides)
            tokens = torch.empty(1, num_frames, projection.config.num_queries, config.cross_attention_dim)
            features = build_network("reference_net", settings.size, "meta")(self._latents[:, :, 0])
            kps = torch.empty(1, config.block_out_channels[0], num_frames, *sides)
            self._conditions = self._unet.prepare_conditions(features, tokens, kps)
            pixels = torch.empty(1, 3, num_frames, settings.height, settings.width)
            steps = num_audio_steps(options.num_pad_audio_frames)
            audio = torch.empty(num_frames, steps, projection.config.embedding_dim)
            once = (lambda: guider(pixels), lambda: projection(audio))
            self.conditions_once = sum(count_flops(part)[""] for part in once) / num_frames
            project = lambda: self._unet.prepare_conditions(audio_tokens=tokens)  # noqa: E731
            self.conditions_per_step = count_flops(project)[""] / num_frames
            frame = self._latents[:, :, 0]
            self.decoding = count_flops(lambda: vae.decode(frame))[""]
            tiny = AutoencoderTiny(latent_channels=config.in_channels).eval()  # the released TAESD's sizes
            self.tiny_decoding = count_flops(lambda: tiny.decode(frame))[""]
        self._passes: dict[Work, Counter[str]] = {}

    @torch.no_grad()
    def of_pass(self, work: Work) -> Counter[str]:
        """Of one frame in a window, by kind."""
        if work not in self._passes:
            has_all, has_deep = work
            conditions = self._conditions if has_all else self._conditions.without(*DROPPED[self._guidance])
            _, _, num_frames, *sides = self._latents.shape
            level = self._unet.up_blocks[-2].resnets[-1].out_channels
            half = [-(-side // 2) for side in sides]
            deep = None if has_deep else torch.empty(num_frames, level, *half, device="meta")
            inputs = (self._latents, torch.zeros((), device="meta"), conditions, deep)
            self._passes[work] = count_flops(lambda: self._unet(*inputs))
        return Counter({kind: flops / self._num_frames for kind, flops in self._passes[work].items()})


def measure(settings: FlopsSettings) -> Table:
    """Counts what a frame in the middle of a long video takes with each preset; what a video takes once is left out."""
    frame = ReleasedFrame(settings, SamplingOptions())
    columns: dict[str, dict[str, float]] = {}
    for preset, values in PRESETS.items():
        options = SamplingOptions(**values)
        passes = count_passes(options)
        overlap = options.context_frames / (options.context_frames - options.context_overlap)  # windows of a frame
        by_kind: Counter[str] = Counter()
        for work, number in passes.items():
            by_kind.update({kind: overlap * number * flops for kind, flops in frame.of_pass(work).items()})
        num_steps = options.num_inference_steps
        conditions = frame.conditions_once + overlap * num_steps * frame.conditions_per_step
        columns[preset] = {
            "passes, whole": sum(number for (_, has_deep), number in passes.items() if has_deep),
            "passes, first level alone": sum(number for (_, has_deep), number in passes.items() if not has_deep),
            "windows of a frame": overlap,
            **{kind: by_kind[kind] / 1e12 for kind in (*KINDS, REST)},
            "conditions": conditions / 1e12,
            "VAE's decoder": frame.decoding / 1e12,
            "sum": (by_kind[""] + conditions + frame.decoding) / 1e12,
            "sum with a tiny decoder": (by_kind[""] + conditions + frame.tiny_decoding) / 1e12,
        }
    names = next(iter(columns.values()))
    rows = [[name, *(f"{column[name]:.4g}" for column in columns.values())] for name in names]
    return Table([f"TFLOP per frame of {settings.width}x{settings.height}", *columns], rows)
