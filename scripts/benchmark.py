#!/usr/bin/env python3
"""Measures speed and memory with random weights, so that nothing needs to be downloaded. Each command prints a table.

python scripts/benchmark.py unet        # a denoising step, with each of our savings
python scripts/benchmark.py loading     # peak memory of loading the networks; writes up to 12 GB to disk
python scripts/benchmark.py full_run    # the whole pipeline, part by part
python scripts/benchmark.py data        # drawing training samples
"""

import argparse
import concurrent.futures
import json
import logging
import multiprocessing
import re
import shutil
import statistics
import sys
import tempfile
import threading
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor, nn
from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model

from vexpress.cli.parser import ArgumentParser
from vexpress.cli.program import run_program
from vexpress.data import dataset
from vexpress.data.config import DataConfig
from vexpress.data.formats import ClipRecord, FaceInfo, save_audio_embeds, save_face_info, save_metadata
from vexpress.devices import DTYPES, resolve_device, resolve_dtype
from vexpress.diffusion.guidance import Denoise, guided
from vexpress.diffusion.schedule import build_scheduler
from vexpress.errors import InputError
from vexpress.files import replacing
from vexpress.logs import set_up_logging
from vexpress.media.video import read_frames, write_video
from vexpress.model_folder import LAYOUT, ModelPaths
from vexpress.models import AudioProjection, Conditions, DenoisingUNet, ReferenceNet, VKpsGuider
from vexpress.models.attention import sinusoidal_positions
from vexpress.pipeline import PreparedClip, VExpressPipeline
from vexpress.weights import MOTION_KEY, load_networks

logger = logging.getLogger("benchmark")

NETWORKS = {
    "reference_net": ReferenceNet,
    "denoising_unet": DenoisingUNet,
    "v_kps_guider": VKpsGuider,
    "audio_projection": AudioProjection,
}
UNET = {"block_out_channels": (320, 640, 1280, 1280), "cross_attention_dim": 768, "attention_head_dim": 8}
TINY_UNET = {"block_out_channels": (32, 64, 64, 64), "cross_attention_dim": 32, "norm_num_groups": 8}
VAE_BLOCKS = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
CONFIGS = {
    "released": {
        "reference_net": UNET,
        "denoising_unet": UNET,
        "v_kps_guider": {},  # these defaults are the released sizes
        "audio_projection": {},
        "vae": {**VAE_BLOCKS, "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2},  # sd-vae-ft-mse
        "audio_encoder": {},  # wav2vec2-base-960h
    },
    "tiny": {
        "reference_net": TINY_UNET,
        "denoising_unet": {**TINY_UNET, "motion_norm_num_groups": 8},
        "v_kps_guider": {"out_channels": 32, "block_out_channels": (8, 16, 24, 32)},
        "audio_projection": {"dim": 32, "depth": 2, "dim_head": 8, "heads": 4, "embedding_dim": 32, "output_dim": 32},
        "vae": {**VAE_BLOCKS, "block_out_channels": (8, 16, 16, 16), "norm_num_groups": 4},
        "audio_encoder": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "conv_dim": (16,) * 7},
    },
}
"""Size -> part -> what differs from the part's defaults."""

NUM_WEIGHTS_IN_FILES = {"released": 2.75e9, "tiny": 1e7}  # about; motion rows count twice
DOWNSAMPLING = 8  # px per latent
GUIDANCE_SCALE = 3.5
ATTENTION_WEIGHTS = {"reference_attention_weight": 0.95, "audio_attention_weight": 3.0}
FPS = 30
SAMPLING_RATE_HZ = 16000
POLL_SECONDS = 0.005
PROCESS_STATUS = Path("/proc/self/status")


# ---- what the commands share ---------------------------------------------------------------------------------------


def print_table(header: list[str], rows: list[list[str]]) -> None:
    """Prints aligned columns."""
    widths = [max(map(len, column)) for column in zip(header, *rows)]
    for row in (header, *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())


def build(part: str, size: str, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> nn.Module:
    """Builds a network with random weights that keep activations at about unit scale.

    It is built without weights, since the constructors' own initialisation of a released size takes minutes.
    """
    config = CONFIGS[size][part]
    with torch.device("meta"):
        if part == "audio_encoder":
            network = Wav2Vec2Model(Wav2Vec2Config(**config))
        else:
            network = {**NETWORKS, "vae": AutoencoderKL}[part].from_config(config)
    network = network.to(dtype).to_empty(device=device).eval().requires_grad_(False)
    for name, tensor in network.state_dict().items():
        if name.endswith(".pe"):
            tensor.copy_(sinusoidal_positions(*tensor.shape[1:]))
        elif tensor.ndim > 1:
            tensor.normal_(std=tensor[0].numel() ** -0.5)
        else:
            tensor.normal_(mean=float(name.endswith("weight")), std=0.1)
    return network


def pick_machine(args: Namespace) -> tuple[torch.device, torch.dtype]:
    """Device and dtype that the flags ask for."""
    device = resolve_device(args.device, args.gpu_id)
    dtype = resolve_dtype(args.dtype or ("fp16" if device.type == "cuda" else "fp32"))
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    logger.info("%s (%s), %s, torch %s", device, name, dtype, torch.__version__)
    return device, dtype


def synchronize(device: torch.device) -> None:
    """Waits until the device has done all it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def gpu_peak(device: torch.device) -> str:
    return gib(torch.cuda.max_memory_allocated(device)) if device.type == "cuda" else "-"


def process_memory(field: str) -> int:
    """Bytes of memory of this process: "VmRSS" now, "VmHWM" at its peak, "RssAnon" now without mapped files."""
    return int(re.search(rf"^{field}:\s+(\d+) kB", PROCESS_STATUS.read_text(), re.MULTILINE)[1]) * 1024


def gib(num_bytes: float) -> str:
    return f"{num_bytes / 2**30:.2f} GiB"


def check_numbers(args: Namespace, **allowed: tuple[int, int]) -> None:
    """Raises InputError for a flag outside of its range, or a height or width that no latents have."""
    for name, (low, high) in {"height": (64, 4096), "width": (64, 4096), **allowed}.items():
        if not low <= getattr(args, name) <= high:
            raise InputError(f"--{name} {getattr(args, name)}: must be {low} to {high}")
    for name in ("height", "width"):
        if getattr(args, name) % DOWNSAMPLING:
            raise InputError(f"--{name} {getattr(args, name)}: must be a multiple of {DOWNSAMPLING}")


# ---- unet ----------------------------------------------------------------------------------------------------------


def build_denoisers(args: Namespace, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, dict[str, Denoise]]:
    """Noisy latents (1 c f h w) of one window, and row -> guided prediction from them."""
    height, width, num_frames = args.height // DOWNSAMPLING, args.width // DOWNSAMPLING, args.context_frames
    config = CONFIGS[args.size]["denoising_unet"]

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, device=device, dtype=dtype)

    latents = noise(1, 4, num_frames, height, width)
    tokens = noise(1, num_frames, 5, config["cross_attention_dim"])
    kps_features = noise(1, config["block_out_channels"][0], num_frames, height, width)
    features = build("reference_net", args.size, device, dtype)(latents[:, :, 0])
    inputs = {
        True: (features, tokens),
        False: ({path: torch.zeros_like(feature) for path, feature in features.items()}, torch.zeros_like(tokens)),
    }
    kps = {True: kps_features, False: torch.zeros_like(kps_features)}
    unet = build("denoising_unet", args.size, device, dtype)

    def prepare(conditional: bool) -> Conditions:
        return unet.prepare_conditions(*inputs[conditional], **ATTENTION_WEIGHTS)

    prepared = {conditional: prepare(conditional) for conditional in inputs}
    audio_kv = {path: tuple(part.cpu() for part in kv) for path, kv in prepared[True].audio_kv.items()}
    clip = PreparedClip(
        replace(prepared[True], audio_kv=audio_kv), kps_features[0].transpose(0, 1).cpu(), torch.arange(num_frames)
    )

    dropped = replace(prepared[True], reference_kv=None, audio_kv=None), None

    def denoiser(choose: Callable, network: Callable[..., Tensor] = unet, scale: float = GUIDANCE_SCALE) -> Denoise:
        def predict(noisy: Tensor, timestep: Tensor, windows: list[list[int]], conditional: bool) -> Tensor:
            conditions, kps_features = choose(windows, conditional)
            return network(noisy, timestep, conditions=conditions, kps_features=kps_features)

        return guided(predict, scale)

    def as_pipeline(windows: list[list[int]], conditional: bool) -> tuple[Conditions, Tensor | None]:
        return clip.select(windows, device) if conditional else dropped

    denoisers = {
        "plain": denoiser(lambda windows, conditional: (prepare(conditional), kps[conditional])),
        "+ prepared keys and values": denoiser(lambda windows, conditional: (prepared[conditional], kps[conditional])),
        "+ unconditional without attention": denoiser(as_pipeline),
    }
    if args.compile:
        denoisers["+ torch.compile"] = denoiser(as_pipeline, torch.compile(unet, fullgraph=True))
    denoisers["guidance 1"] = denoiser(as_pipeline, scale=1)
    return latents, denoisers


@torch.no_grad()
def benchmark_unet(args: Namespace) -> None:
    """Times one denoising step of one window.

    Rows take turns within each repeat, so that what else the machine does hits all of them alike.
    """
    check_numbers(args, context_frames=(1, 32), repeats=(1, 1000), warmup=(1, 1000))
    device, dtype = pick_machine(args)
    latents, denoisers = build_denoisers(args, device, dtype)
    timestep, windows = torch.tensor(499, device=device), [list(range(args.context_frames))]
    seconds: dict[str, list[float]] = {row: [] for row in denoisers}
    peaks: dict[str, str] = {}
    outputs: dict[str, Tensor] = {}
    for turn in range(args.warmup + args.repeats):
        for row, denoise in denoisers.items():
            reset_peak(device)
            synchronize(device)
            start = time.perf_counter()
            output = denoise(latents, timestep, windows)
            synchronize(device)
            if turn >= args.warmup:
                seconds[row].append(time.perf_counter() - start)
            peaks[row], outputs[row] = gpu_peak(device), output.float().cpu()
        logger.info("turn %d of %d done", turn + 1, args.warmup + args.repeats)

    plain, plain_seconds = outputs["plain"], statistics.median(seconds["plain"])
    rows = []
    for row, output in outputs.items():
        median, fastest = statistics.median(seconds[row]), min(seconds[row])  # the latter, for a busy machine
        difference = f"{float((output - plain).abs().max() / plain.abs().max()):.1e}"
        if row == "guidance 1":
            difference = "-"  # another result, by intent
        times = [f"{1000 * median:.1f}", f"{1000 * fastest:.1f}", f"{median / plain_seconds:.3f}"]
        rows.append([row, *times, difference, peaks[row]])
    header = ["denoising step of one window", "median ms", "fastest ms", "median to plain's", "max difference to plain"]
    print_table([*header, "peak GPU memory"], rows)


# ---- loading -------------------------------------------------------------------------------------------------------


def write_networks(model_dir: Path, size: str, dtype: torch.dtype) -> None:
    """Writes random weights in the released layout, a network at a time; motion rows lie in two files, as released.

    Raises:
        InputError: the folder cannot be made, or the disk has too little space.
    """
    try:
        model_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--model_dir {model_dir}: cannot be made ({error.strerror}); change --model_dir") from error
    free, needed = shutil.disk_usage(model_dir).free, NUM_WEIGHTS_IN_FILES[size] * dtype.itemsize
    if free < needed:
        raise InputError(f"{model_dir}: {gib(free)} free, {gib(needed)} needed; point --model_dir to more space")
    (model_dir / "v-express").mkdir()
    for name in NETWORKS:
        network = build(name, size, dtype=dtype)
        files = {name: network.state_dict()}
        config_path = model_dir / f"{LAYOUT[f'{name}_path']}.json"
        if name == "denoising_unet":
            files["motion_module"] = {key: tensor for key, tensor in files[name].items() if MOTION_KEY in key}
            config_path = model_dir / LAYOUT["unet_config_path"]
            config_path.parent.mkdir(parents=True)
        if name != "reference_net":  # it is sized by the denoising UNet's
            config = {key: value for key, value in network.config.items() if not key.startswith("_")}
            config_path.write_text(json.dumps(config))
        for file, weights in files.items():
            path = model_dir / f"{LAYOUT[f'{file}_path']}.bin"
            logger.info("writing %s", path)
            with replacing(path) as temporary:
                torch.save(weights, temporary)


def measure_loading(model_dir: Path) -> dict[str, float]:
    """Loads the networks as the pipeline does, in fp16 on the CPU; to be run in a process of its own.

    Returns:
        size, peak and anonymous_peak in bytes, the peaks beyond what the imports take; seconds.
    """
    baseline, anonymous_baseline = process_memory("VmRSS"), process_memory("RssAnon")
    anonymous_peak, done = anonymous_baseline, threading.Event()

    def poll() -> None:
        nonlocal anonymous_peak
        while not done.wait(POLL_SECONDS):
            anonymous_peak = max(anonymous_peak, process_memory("RssAnon"))

    poller = threading.Thread(target=poll)
    poller.start()
    try:
        start = time.perf_counter()
        # VAE and audio encoder are not read here; any path that exists will do.
        paths = ModelPaths.from_model_dir(model_dir, vae_path=model_dir, audio_encoder_path=model_dir)
        networks = load_networks(paths, torch.float16)
        weights = [tensor for network in networks.values() for tensor in network.state_dict().values()]
        for tensor in weights:
            tensor.max()  # reads what may be mapped only, as the first use would
        seconds = time.perf_counter() - start
    finally:
        done.set()
        poller.join()
    return {
        "size": sum(tensor.nbytes for tensor in weights),
        "peak": process_memory("VmHWM") - baseline,
        "anonymous_peak": anonymous_peak - anonymous_baseline,
        "seconds": seconds,
    }


def benchmark_loading(args: Namespace) -> None:
    """Measures in a fresh process the peak memory of loading the networks; weights are written first if need be."""
    if not PROCESS_STATUS.exists():
        raise InputError(f"loading: memory is read from {PROCESS_STATUS}, which only Linux has")
    with tempfile.TemporaryDirectory() as temporary:
        model_dir = Path(args.model_dir or temporary)
        if not (model_dir / "v-express").exists():  # else measures what is there
            write_networks(model_dir, args.size, resolve_dtype(args.file_dtype))
        fresh = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(1, mp_context=fresh) as pool:
            found = pool.submit(measure_loading, model_dir).result()
        num_bytes_of_files = sum(path.stat().st_size for path in (model_dir / "v-express").iterdir())
    rows = [
        ["files", gib(num_bytes_of_files), "-"],
        ["networks in fp16", gib(found["size"]), "1.00"],
        ["peak resident memory", gib(found["peak"]), f"{found['peak'] / found['size']:.2f}"],
        ["  of it anonymous, peak", gib(found["anonymous_peak"]), f"{found['anonymous_peak'] / found['size']:.2f}"],
        ["time", f"{found['seconds']:.1f} s", "-"],
    ]
    print_table(["loading", "measured", "ratio to networks"], rows)


# ---- full_run ------------------------------------------------------------------------------------------------------


def build_pipeline(size: str, device: torch.device | str, dtype: torch.dtype) -> VExpressPipeline:
    """A pipeline with random weights."""
    processor = Wav2Vec2FeatureExtractor(sampling_rate=SAMPLING_RATE_HZ, do_normalize=True, return_attention_mask=False)
    pipeline = VExpressPipeline(
        **{part: build(part, size, device, dtype) for part in CONFIGS[size]},
        audio_processor=processor,
        scheduler=build_scheduler(),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def benchmark_full_run(args: Namespace) -> None:
    """Runs the pipeline from waveform to frames, and takes the time of its parts."""
    check_numbers(args, num_frames=(1, 10_000), steps=(1, 1000))
    device, dtype = pick_machine(args)
    marks: list[tuple[str, float]] = []

    def mark(part: str) -> None:
        synchronize(device)
        marks.append((part, time.perf_counter()))

    def marked(part: str, function: Callable) -> Callable:
        def run(*inputs):
            result = function(*inputs)
            mark(part)
            return result

        return run

    mark("start")
    pipeline = build_pipeline(args.size, "cpu" if args.save_gpu_memory else device, dtype)
    for part in ("audio", "reference", "kps"):
        setattr(pipeline, f"encode_{part}", marked(part, getattr(pipeline, f"encode_{part}")))
    center = np.array([[0.4, 0.4], [0.6, 0.4], [0.5, 0.55]]) * (args.width, args.height)
    inputs = {
        "reference_image": Image.effect_noise((args.width, args.height), 50).convert("RGB"),
        "audio_waveform": torch.randn(round(args.num_frames / FPS * SAMPLING_RATE_HZ)),
        "kps_sequence": torch.from_numpy(center).float() + torch.randn(args.num_frames, 1, 2),
    }
    reset_peak(device)
    mark("building")
    pipeline(
        **inputs,
        num_inference_steps=args.steps,
        output_type="np",
        device=device,
        save_gpu_memory=args.save_gpu_memory,
        callback=lambda step, timestep, latents: mark("denoising"),
    )
    mark("decoding")

    seconds: dict[str, float] = {}
    for (_, start), (part, end) in zip(marks, marks[1:]):
        seconds[part] = seconds.get(part, 0) + end - start
    rows = [[part, f"{value:.2f} s"] for part, value in seconds.items()]
    rows.insert(-1, ["  per step", f"{seconds['denoising'] / args.steps:.2f} s"])
    rows.append(["all but building", f"{marks[-1][1] - marks[1][1]:.2f} s"])
    rows.append(["peak GPU memory", gpu_peak(device)])
    if PROCESS_STATUS.exists():
        rows.append(["peak resident memory", gib(process_memory("VmHWM"))])
    print_table([f"{args.num_frames} frames of {args.width}x{args.height}", "measured"], rows)


# ---- data ----------------------------------------------------------------------------------------------------------


def write_clip(folder: Path, height: int, width: int, seconds: float) -> Path:
    """Writes a clip of moving noise, with what training needs to know of it; returns its metadata file."""
    num_frames = round(seconds * FPS)
    noise = np.asarray(Image.effect_noise((width // 8, height // 8), 100).resize((width, height)).convert("RGB"))
    write_video(folder / "clip.mp4", (np.roll(noise, (i, 2 * i), axis=(0, 1)) for i in range(num_frames)), FPS)
    landmarks = np.random.default_rng(0).uniform(0.3, 0.7, (num_frames, 106, 2)) * (width, height)
    face_info = FaceInfo(landmarks[:, :2].reshape(-1, 4), landmarks[:, :5], landmarks, np.ones(num_frames))
    save_face_info(folder / "face_info.npz", face_info)
    save_audio_embeds(folder / "audio_embeds.safetensors", torch.zeros(round(seconds * 50), 768))
    record = ClipRecord(folder / "clip.mp4", folder / "face_info.npz", folder / "audio_embeds.safetensors")
    save_metadata(folder / "meta.json", [record])
    return folder / "meta.json"


def read_whole_clip(path: Path, frame_ids: Sequence[int]) -> np.ndarray:
    """The plain way to do what `read_frames_at` does: decodes all, keeps some."""
    kept = {i: pixels for i, (_, pixels) in enumerate(read_frames(path)) if i in frame_ids}
    return np.stack([kept[i] for i in frame_ids])


def benchmark_data(args: Namespace) -> None:
    """Times drawing a training sample."""
    check_numbers(args, num_samples=(1, 100_000), num_frames=(1, 1000), clip_seconds=(2, 3600))
    with tempfile.TemporaryDirectory() as folder:
        meta_path = args.meta_path or write_clip(Path(folder), args.height, args.width, args.clip_seconds)
        config = DataConfig(
            [str(meta_path)], train_width=args.width, train_height=args.height, num_frames=args.num_frames
        )
        samples = dataset.TalkingFaceDataset(config, seed=0)
        seconds: dict[str, list[float]] = {"only the frames needed": [], "the whole clip": []}
        difference = 0.0
        for number in range(args.num_samples):
            pixels = []
            for row, read in zip(seconds, (dataset.read_frames_at, read_whole_clip)):
                with mock.patch.object(dataset, "read_frames_at", read):
                    start = time.perf_counter()
                    pixels.append(samples[number]["pixel_values"])
                    seconds[row].append(time.perf_counter() - start)
            difference = max(difference, float((pixels[0] - pixels[1]).abs().max()))
    rows = [[row, f"{len(times) / sum(times):.2f}", f"{difference:.1e}"] for row, times in seconds.items()]
    print_table(["decoding", "samples per second", "max difference"], rows)


# ---- the program ---------------------------------------------------------------------------------------------------


def build_parser() -> ArgumentParser:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)

    def add_command(run: Callable[[Namespace], None], px: int | None, networks: bool = True) -> argparse.ArgumentParser:
        summary = run.__doc__.splitlines()[0]
        command = commands.add_parser(run.__name__.removeprefix("benchmark_"), description=summary, help=summary)
        command.set_defaults(run=run)
        if networks:
            command.add_argument("--size", choices=tuple(CONFIGS), default="released", help="of the networks")
        if px:
            command.add_argument("--height", type=int, default=px, help="px, a multiple of 8")
            command.add_argument("--width", type=int, default=px, help="px, a multiple of 8")
        if networks and px:
            command.add_argument("--device", choices=("cuda", "cpu", "mps"), help="unset: what is there")
            command.add_argument("--gpu_id", type=int, default=0)
            command.add_argument("--dtype", choices=tuple(DTYPES), help="unset: fp16 on cuda, else fp32")
        return command

    unet = add_command(benchmark_unet, px=512)
    unet.add_argument("--context_frames", type=int, default=24, help="frames of the window")
    unet.add_argument("--repeats", type=int, default=5, help="timed turns, of which the median is printed")
    unet.add_argument("--warmup", type=int, default=1, help="turns before")
    unet.add_argument("--compile", action="store_true", help="adds torch.compile, which needs minutes to trace")

    loading = add_command(benchmark_loading, px=None)
    loading.add_argument("--model_dir", help="keeps the files, or measures those there; unset: a temporary folder")
    loading.add_argument("--file_dtype", choices=tuple(DTYPES), default="fp32", help="of files written")

    full_run = add_command(benchmark_full_run, px=256)
    full_run.add_argument("--num_frames", type=int, default=2)
    full_run.add_argument("--steps", type=int, default=2)
    full_run.add_argument("--save_gpu_memory", action="store_true")

    data = add_command(benchmark_data, px=512, networks=False)
    data.add_argument("--meta_path", help="metadata file of a data set; unset: a clip is generated")
    data.add_argument("--clip_seconds", type=float, default=20.0, help="of the generated clip")
    data.add_argument("--num_frames", type=int, default=8, help="of a sample")
    data.add_argument("--num_samples", type=int, default=20)
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Runs one command."""
    args = build_parser().parse_args(arguments)
    set_up_logging()
    torch.manual_seed(0)
    args.run(args)


if __name__ == "__main__":
    sys.exit(run_program(main))
