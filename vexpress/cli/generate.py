"""Makes a talking video from a portrait and speech.

python inference.py --reference_image_path ref.jpg --audio_path speech.mp3 --output_path out.mp4
python inference.py                                       # a demo with the embedded model of drawn faces
"""

import json
import logging
import math
import os
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from PIL import Image
from torch import Tensor

from vexpress.cli.parser import ArgumentParser
from vexpress.devices import DTYPES, resolve_device, resolve_dtype
from vexpress.diffusion.schedule import SCHEDULERS
from vexpress.errors import InputError
from vexpress.files import check_output_path, replacing
from vexpress.logs import set_up_logging
from vexpress.media.audio import load_audio
from vexpress.media.faces import FaceAnalyzer, head_and_shoulders_box
from vexpress.media.images import load_image
from vexpress.media.keypoints import KPS_EXTEND, RETARGET_STRATEGIES, KpsSequence, fit_to_clip, load_kps, retarget
from vexpress.media.sheets import draw_filmstrip, frame_numbers, remember
from vexpress.media.video import write_video
from vexpress.model_folder import INFERENCE_DEFAULTS, LAYOUT, ModelPaths, read_config
from vexpress.pipeline import GUIDANCE, VExpressPipeline

logger = logging.getLogger("vexpress")

DEFAULT_OUTPUT_PATH = "output/output.mp4"
DEFAULT_MODEL_DIR = Path("model_ckpts")
DEMO_PACK_DIR = Path(__file__).resolve().parents[1] / "demo_pack"
DEMO = {
    "reference_image_path": DEMO_PACK_DIR / "examples" / "portrait.png",
    "audio_path": DEMO_PACK_DIR / "examples" / "speech.wav",
    "kps_path": DEMO_PACK_DIR / "examples" / "driving_kps.npz",
    "retarget_strategy": "naive_retarget",
    "output_path": "output/demo.mp4",
}
"""What a run without inputs takes."""
MODEL_DEFAULTS = (
    *("image_width", "image_height", "fps", "scheduler", "num_inference_steps", "guidance_scale", "guidance"),
    *("shared_noise", "context_frames", "context_overlap", "reference_attention_weight", "audio_attention_weight"),
    *("num_pad_audio_frames", "no_median_filter", "denoise_threshold"),
)
"""Flags whose defaults a model folder may set."""
SAMPLING = (
    *("num_inference_steps", "guidance_scale", "guidance", "shared_noise", "context_frames", "context_overlap"),
    *("windows_per_batch", "num_pad_audio_frames", "reference_attention_weight", "audio_attention_weight", "seed"),
    "denoise_threshold",
)
"""Flags that the pipeline takes under the same name."""
SIZE_MULTIPLE = 8
MIN_SIZE_PX = 64
MAX_SIZE_PX = 2048
ADVISED_PORTRAIT_PX = 512
SHEET_FRAMES = 8


def build_parser() -> ArgumentParser:
    """The flags: those of the released program with their meaning, and ours."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    inputs = parser.add_argument_group("input and output")
    inputs.add_argument("--reference_image_path", help="portrait, best square: head and shoulders")
    inputs.add_argument("--audio_path", help="speech: any audio or video file")
    inputs.add_argument("--kps_path", help="driving keypoints: .pth, .npz or .safetensors")
    inputs.add_argument("--output_path", default=DEFAULT_OUTPUT_PATH, help="video to write")
    inputs.add_argument("--contact_sheet_path", help="PNG to write: portrait, some frames, keypoints and waveform")
    inputs.add_argument("--auto_crop", action="store_true", help="crop the portrait around the face")

    motion = parser.add_argument_group("head motion")
    motion.add_argument(
        "--retarget_strategy",
        choices=RETARGET_STRATEGIES,
        help="fix_face: a still head; no_retarget: the keypoints as they are; the others: those of another person, see "
        "README; unset: fix_face, or with --kps_path no_retarget",
    )
    motion.add_argument(
        "--kps_extend", default="loop", choices=KPS_EXTEND, help="if the keypoints end before the audio"
    )
    motion.add_argument("--kps_fps", type=float, help="frame rate of --kps_path; unset: the file's, else --fps")

    model = parser.add_argument_group("model")
    model.add_argument(
        "--model_dir", help=f"folder in the released layout; unset: {DEFAULT_MODEL_DIR}, or if that is not there the "
        "embedded model of drawn faces",
    )  # fmt: skip
    for name, place in LAYOUT.items():
        model.add_argument(f"--{name}", help=f"in place of MODEL_DIR/{place}")
    model.add_argument(
        "--test_stage",
        default="stage_3",
        choices=("stage_1", "stage_2", "stage_3"),
        help="stage_1 silences audio attention and motion modules, which it has not trained; 2 and 3 run alike",
    )

    machine = parser.add_argument_group("machine")
    machine.add_argument("--device", choices=("cuda", "cpu", "mps"), help="unset: what is there")
    machine.add_argument("--gpu_id", type=int, default=0, help="index of the CUDA device")
    machine.add_argument("--dtype", choices=tuple(DTYPES), help="unset: fp16 on cuda, else fp32")
    machine.add_argument("--save_gpu_memory", action="store_true", help="networks are on the GPU only while they work")
    machine.add_argument(
        "--do_multi_devices_inference", action="store_true", help="share the work of torchrun's processes"
    )
    machine.add_argument("--windows_per_batch", type=int, default=1, help="more is faster and takes more memory")
    machine.add_argument("--compile", action="store_true", help="torch.compile the denoising UNet")

    sampling = parser.add_argument_group("sampling")
    sampling.add_argument("--image_width", type=int, default=512, help="px, multiple of 8, 64 advised")
    sampling.add_argument("--image_height", type=int, default=512, help="px, multiple of 8, 64 advised")
    sampling.add_argument("--fps", type=float, default=30.0, help="of the video")
    sampling.add_argument("--seed", type=int, default=42, help="same seed and inputs: same video")
    sampling.add_argument("--scheduler", default="ddim", choices=tuple(SCHEDULERS), help="sampler")
    sampling.add_argument("--num_inference_steps", type=int, default=25, help="denoising steps")
    sampling.add_argument("--guidance_scale", type=float, default=3.5, help="1: no guidance, half the time")
    sampling.add_argument(
        "--guidance",
        default="all",
        choices=GUIDANCE,
        help="guide away from: no condition at all, or no audio, which moves the mouth more and keeps colours",
    )
    sampling.add_argument(
        "--shared_noise",
        type=float,
        default=0.0,
        help="share of the noise that all frames have in common: less flicker",
    )
    sampling.add_argument("--context_frames", type=int, default=24, help="frames of a window")
    sampling.add_argument("--context_overlap", type=int, default=4, help="frames that windows share")
    sampling.add_argument(
        "--reference_attention_weight", type=float, default=0.95, help="higher: closer to the portrait"
    )
    sampling.add_argument("--audio_attention_weight", type=float, default=3.0, help="higher: the mouth moves more")
    sampling.add_argument("--num_pad_audio_frames", type=int, default=2, help="frames of audio around each frame")
    sampling.add_argument("--standard_audio_sampling_rate", type=int, default=16000, help="Hz, of the audio encoder")
    sampling.add_argument("--no_median_filter", action="store_true", help="no smoothing of decoded frames")
    sampling.add_argument(
        "--denoise_threshold",
        type=float,
        default=0.0,
        help="of 255: pixels that differ by less are averaged over 5 frames, which stills the background; 0: off",
    )
    return parser


def parse_arguments(arguments: list[str] | None) -> Namespace:
    """Flags, with defaults that suit the model; without inputs and without a model of one's own, those of the demo."""
    parser = build_parser()
    args = parser.parse_args(arguments)
    is_embedded = args.model_dir is None and not DEFAULT_MODEL_DIR.exists()
    model_dir = args.model_dir or (DEMO_PACK_DIR if is_embedded else DEFAULT_MODEL_DIR)
    parser.set_defaults(**read_model_defaults(Path(model_dir), parser), model_dir=model_dir, is_embedded=is_embedded)
    args = parser.parse_args(arguments)
    no_inputs = args.reference_image_path is None and args.audio_path is None
    if no_inputs and Path(model_dir).resolve() == DEMO_PACK_DIR:
        for name, value in DEMO.items():
            if getattr(args, name) == parser.get_default(name):
                setattr(args, name, str(value))
        args.contact_sheet_path = args.contact_sheet_path or str(Path(args.output_path).with_suffix(".png"))
    for name in ("reference_image_path", "audio_path"):
        if getattr(args, name) is None:
            raise InputError(f"--{name} is missing: give the file; without both and without a model the demo runs")
    return args


def read_model_defaults(model_dir: Path, parser: ArgumentParser) -> dict[str, float | str | bool]:
    """What the model folder suggests for `MODEL_DEFAULTS`; nothing without a file.

    Raises:
        InputError: the file holds another key, or a value of another type than the flag's.
    """
    path = model_dir / INFERENCE_DEFAULTS
    if not path.is_file():
        return {}
    defaults = read_config(path)
    for name, value in defaults.items():
        kind = type(parser.get_default(name))
        if name not in MODEL_DEFAULTS or type(value) not in ((int, float) if kind is float else (kind,)):
            raise InputError(f"{path}: {name}={json.dumps(value)}; allowed are {', '.join(MODEL_DEFAULTS)}")
    return defaults


def check_numbers(args: Namespace) -> None:
    """Finds numbers that cannot work, before anything is loaded."""
    for name in ("image_width", "image_height"):
        if getattr(args, name) % SIZE_MULTIPLE or not MIN_SIZE_PX <= getattr(args, name) <= MAX_SIZE_PX:
            raise InputError(
                f"--{name} {getattr(args, name)}: must be a multiple of {SIZE_MULTIPLE}, {MIN_SIZE_PX} to {MAX_SIZE_PX}"
            )
    allowed = {
        "fps": (1, 240),
        "kps_fps": (1, 240),
        "num_inference_steps": (1, 1000),
        "guidance_scale": (0, 100),
        "shared_noise": (0, 1),
        "denoise_threshold": (0, 255),
        "context_frames": (1, 1000),
        "context_overlap": (0, args.context_frames - 1),
        "windows_per_batch": (1, 1000),
        "num_pad_audio_frames": (0, 100),
        "standard_audio_sampling_rate": (1000, 1_000_000),
        "reference_attention_weight": (0, 100),
        "audio_attention_weight": (0, 100),
        "seed": (0, 2**63 - 1),
    }
    for name, (low, high) in allowed.items():
        value = getattr(args, name)
        if value is not None and not (math.isfinite(value) and low <= value <= high):
            raise InputError(f"--{name} {value}: must be {low} to {high}")
    for name, choices in {"scheduler": SCHEDULERS, "guidance": GUIDANCE}.items():  # those of a file are not parsed
        if getattr(args, name) not in choices:
            raise InputError(f"--{name} {getattr(args, name)}: allowed are {', '.join(choices)}")
    if args.retarget_strategy is None:
        args.retarget_strategy = "fix_face" if args.kps_path is None else "no_retarget"
    if args.kps_path is None and args.retarget_strategy != "fix_face":
        raise InputError(f"--retarget_strategy {args.retarget_strategy} needs --kps_path; without one use fix_face")


def parse_generation_flags(model_dir: Path, flags: Sequence[str]) -> Namespace:
    """Reads flags that say how to generate, for programs that have portraits and speech from elsewhere.

    Raises:
        InputError: an unknown field, or a value out of range.
    """
    args = parse_arguments(["--model_dir", str(model_dir), "--reference_image_path", "-", "--audio_path", "-", *flags])
    check_numbers(args)
    return args


def sampling_options(args: Namespace) -> dict[str, float | str | bool]:
    """What the flags say of sampling and smoothing, as arguments of the pipeline."""
    return {name: getattr(args, name) for name in SAMPLING} | {"median_filter": not args.no_median_filter}


def join_processes(args: Namespace) -> int:
    """Joins torchrun's processes if asked to; returns this one's rank."""
    num_processes = int(os.environ.get("WORLD_SIZE", "1"))
    if not args.do_multi_devices_inference:
        if num_processes > 1:
            raise InputError("started as several processes: add --do_multi_devices_inference, or start one")
        return 0
    if "RANK" not in os.environ:
        raise InputError("start with `torchrun --nproc_per_node N inference.py ...`", "do_multi_devices_inference")
    dist.init_process_group("gloo")  # what is shared is in host memory
    args.gpu_id = int(os.environ["LOCAL_RANK"])
    return dist.get_rank()


def prepare_portrait(args: Namespace, device: torch.device, insightface_dir: Path) -> tuple[Image.Image, Tensor | None]:
    """Loads the portrait at output size, and its V-Kps (3 2) in px of it where the strategy needs them."""
    image = load_image(args.reference_image_path)
    size = (args.image_width, args.image_height)
    needs_face = args.auto_crop or args.retarget_strategy != "no_retarget"
    face = None
    if needs_face:
        analyzer = FaceAnalyzer(insightface_dir, device)
        face = analyzer.detect_main(np.asarray(image), f"--reference_image_path {args.reference_image_path}")
    box = (0, 0, image.width, image.height)
    if args.auto_crop:
        box = head_and_shoulders_box(face.bbox, image.width, image.height, ADVISED_PORTRAIT_PX)
        if box[2] - box[0] < ADVISED_PORTRAIT_PX:
            logger.warning(
                "--auto_crop: the portrait gives a crop of %d px, %d are advised", box[2] - box[0], ADVISED_PORTRAIT_PX
            )
    box_width, box_height = box[2] - box[0], box[3] - box[1]
    if abs(box_width / box_height / (size[0] / size[1]) - 1) > 0.02:
        logger.warning(
            "the picture is squeezed from %dx%d to %dx%d: crop the portrait, or change --image_width, --image_height",
            *(box_width, box_height, *size),
        )
    portrait = image.resize(size, Image.Resampling.LANCZOS, box=box)
    if face is None:
        return portrait, None
    scale = torch.tensor([size[0] / box_width, size[1] / box_height])
    return portrait, (torch.from_numpy(face.v_kps) - torch.tensor(box[:2])) * scale


def prepare_kps(args: Namespace, sequence: KpsSequence | None, reference_kps: Tensor | None, num_frames: int) -> Tensor:
    """The keypoints of every frame, (f 3 2) px."""
    if sequence is not None and args.retarget_strategy == "fix_face":
        logger.warning("--retarget_strategy fix_face keeps the head still: --kps_path is not used")
    if sequence is None or args.retarget_strategy == "fix_face":
        return retarget(reference_kps.expand(num_frames, -1, -1), reference_kps, "fix_face").float()
    if sequence.fps is None and args.kps_fps is None:
        logger.warning(
            "--kps_path %s holds no frame rate: taken as %g fps; set --kps_fps, or as released --kps_extend stretch",
            *(args.kps_path, args.fps),
        )
    if args.kps_fps is not None:
        sequence = KpsSequence(sequence.kps, args.kps_fps, sequence.height, sequence.width)
    driving = fit_to_clip(sequence, num_frames, args.fps, args.image_height, args.image_width, args.kps_extend)
    return retarget(driving, reference_kps, args.retarget_strategy).float()


def main(arguments: list[str] | None = None) -> None:
    """Files -> tensors -> video file."""
    args = parse_arguments(arguments)
    check_numbers(args)
    rank = join_processes(args)
    set_up_logging(logging.INFO if rank == 0 else logging.ERROR)
    if args.is_embedded:
        logger.info(
            "no --model_dir and no %s: the embedded model runs, which knows drawn faces only; for photographs get the "
            "released models with scripts/download_models.py",
            DEFAULT_MODEL_DIR,
        )
    try:
        make_video(args, rank)
    except torch.OutOfMemoryError as error:
        raise InputError(
            "out of GPU memory: use --save_gpu_memory, --dtype fp16, a smaller --context_frames or --image_width"
        ) from error
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def make_video(args: Namespace, rank: int) -> None:
    """The work, as one of the processes that share it; process 0 writes."""
    # 1. inputs, before any network is loaded
    device = resolve_device(args.device, args.gpu_id)
    dtype = resolve_dtype(args.dtype or ("fp16" if device.type == "cuda" else "fp32"))
    audio = load_audio(args.audio_path)
    num_frames = max(1, round(audio.duration_seconds * args.fps))
    sequence = load_kps(args.kps_path) if args.kps_path else None
    paths = ModelPaths.from_model_dir(args.model_dir, **{name: getattr(args, name) for name in LAYOUT})
    portrait, reference_kps = prepare_portrait(args, device, paths.insightface_model_path)
    kps = prepare_kps(args, sequence, reference_kps, num_frames)
    inputs = (args.reference_image_path, args.audio_path, args.kps_path)
    if args.output_path in (DEFAULT_OUTPUT_PATH, DEMO["output_path"]):
        Path(args.output_path).parent.mkdir(exist_ok=True)
    output_path = check_output_path(args.output_path, "--output_path", inputs)
    sheet_path = None
    if args.contact_sheet_path:
        sheet_path = check_output_path(args.contact_sheet_path, "--contact_sheet_path", (*inputs, output_path))

    # 2. networks
    weights_device = "cpu" if args.save_gpu_memory else device
    pipeline = VExpressPipeline.from_released(paths, dtype, weights_device, args.test_stage, args.scheduler)
    pipeline.set_progress_bar_config(disable=rank != 0)
    if args.compile:
        pipeline.denoising_unet.compile(fullgraph=True)
    expected_rate = pipeline.audio_processor.sampling_rate
    if args.standard_audio_sampling_rate != expected_rate:
        raise InputError(f"needs {expected_rate}", "standard_audio_sampling_rate", args.standard_audio_sampling_rate)

    # 3. video
    logger.info("%d frames of %dx%d at %g fps on %s in %s", num_frames, *portrait.size, args.fps, device, dtype)
    output = pipeline(
        portrait,
        audio.resampled_mono(expected_rate),
        kps,
        **sampling_options(args),
        output_type="generator" if rank == 0 else "latent",
        device=device,
        save_gpu_memory=args.save_gpu_memory,
    )
    if rank == 0:
        shown: list[np.ndarray] = []
        numbers = frame_numbers(num_frames, SHEET_FRAMES)
        write_video(output_path, remember(output.frames, numbers, shown), args.fps, audio)
        if sheet_path:
            waveform = audio.resampled_mono(expected_rate).numpy()
            sheet = draw_filmstrip(np.asarray(portrait), shown, numbers, kps.numpy(), waveform)
            with replacing(sheet_path) as temporary:
                Image.fromarray(sheet).save(temporary, format="PNG")
        beside = f"; contact sheet {sheet_path}" if sheet_path else ""
        print(f"{output_path}: {num_frames} frames, {num_frames / args.fps:.2f} s, with audio{beside}")
