"""Makes a talking video from a portrait and speech.

vexpress generate --reference_image_path ref.jpg --audio_path speech.mp3 --output_path out.mp4
vexpress generate                                      # a demo with the embedded model of drawn faces
"""

import argparse
import logging
import os
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vexpress.cli.adapters import add_adapter_flags, unused_adapter_flags
from vexpress.cli.parser import ArgumentParser, add_options, refuse_unused
from vexpress.cli.program import resting_collector, set_up_logging, torchrun_processes
from vexpress.errors import InputError
from vexpress.files import check_output_path, replacing
from vexpress.model_folder import DEFAULT_MODEL_DIR, EMBEDDED_MODEL_DIR, LAYOUT, ModelPaths, choose_model_dir
from vexpress.options import (
    ATTRIBUTE_OPTIONS,
    CALL,
    PRESET_HELP,
    PRESETS,
    MotionOptions,
    SamplingOptions,
    load_model_defaults,
    option_fields,
    unlearned,
)
from vexpress.provenance import check_signing, sign_video, video_metadata
from vexpress.unused import unused_face_models, unused_options

if TYPE_CHECKING:
    import numpy as np
    import torch

    from vexpress.cli.frames_bar import TerminalPipeline
    from vexpress.request import ClipInputs

logger = logging.getLogger("vexpress")

DEFAULT_OUTPUT_PATH = "output/output.mp4"
DEMO = {
    "reference_image_path": EMBEDDED_MODEL_DIR / "examples" / "portrait.png",
    "audio_path": EMBEDDED_MODEL_DIR / "examples" / "speech.wav",
    "kps_path": EMBEDDED_MODEL_DIR / "examples" / "driving_kps.npz",
    "retarget_strategy": "naive_retarget",
    "output_path": "output/demo.mp4",
    "contact_sheet_path": "output/demo.png",
}
"""What a run without inputs takes in place of other defaults."""
SAMPLING_RATE_HZ = 16000  # of the released audio encoder
SHEET_FRAMES = 8


def build_parser() -> ArgumentParser:
    """The flags: those of the released program with their meaning, and ours."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    inputs = parser.add_argument_group("input and output")
    inputs.add_argument("--reference_image_path", help="portrait, best square: head and shoulders")
    inputs.add_argument("--audio_path", help="speech: any audio or video file")
    inputs.add_argument("--kps_path", help="driving keypoints: .pth, .npz or .safetensors")
    inputs.add_argument("--output_path", default=DEFAULT_OUTPUT_PATH, help="video to write: .mp4")
    inputs.add_argument("--contact_sheet_path", help="PNG to write: portrait, some frames, keypoints and waveform")
    inputs.add_argument("--no_metadata", action="store_true", help="do not write into the file that it is generated")
    inputs.add_argument("--c2pa_certificate", help="PEM of a certificate chain, to sign that the video is generated")
    inputs.add_argument("--c2pa_key", help="PEM of the certificate's key; needs the package c2pa-python")
    add_options(parser.add_argument_group("portrait and head motion"), fields(MotionOptions))
    machine = add_model_flags(parser)
    machine.add_argument(
        "--do_multi_devices_inference", action="store_true", help="share the work of torchrun's processes"
    )
    sampling = parser.add_argument_group("sampling")
    sampling.add_argument("--preset", choices=PRESETS, help=PRESET_HELP)
    add_options(sampling, option_fields())
    sampling.add_argument(
        "--standard_audio_sampling_rate", type=int, default=SAMPLING_RATE_HZ, help="Hz, of the audio encoder"
    )
    return parser


def add_model_flags(parser: ArgumentParser) -> argparse._ArgumentGroup:
    """Adds the flags that say where a model is and where it works; gives the group of the latter."""
    model = parser.add_argument_group("model")
    model.add_argument(
        "--model_dir",
        help=f"folder in the released layout; unset: {DEFAULT_MODEL_DIR}, or if that is not there the embedded model "
        "of drawn faces",
    )
    for name, place in LAYOUT.items():
        model.add_argument(f"--{name}", help=f"in place of MODEL_DIR/{place}")
    add_adapter_flags(model)

    model.add_argument(
        "--vae_decoder_path",
        help="folder of an image autoencoder that decodes in place of the model's: a tiny one, such as "
        "MODEL_DIR/taesd of `vexpress download --only taesd`, is faster and a little less exact",
    )

    machine = parser.add_argument_group("machine")
    machine.add_argument("--device", choices=("cuda", "cpu", "mps"), help="unset: what is there")
    machine.add_argument("--gpu_id", type=int, default=0, help="index of the CUDA device")
    machine.add_argument("--save_gpu_memory", action="store_true", help="networks are on the GPU only while they work")
    machine.add_argument("--compile", action="store_true", help="torch.compile the denoising UNet")
    return machine


def parse_arguments(arguments: list[str] | None) -> Namespace:
    """Flags, with defaults that suit the model; without inputs and without a model of one's own, those of the demo.

    Raises:
        InputError: an unknown flag, a value out of bounds, or an input is missing.
    """
    parser = build_parser()
    args = parser.parse_args(arguments)
    model_dir = choose_model_dir(args.model_dir)
    is_embedded = args.model_dir is None and model_dir == EMBEDDED_MODEL_DIR
    defaults = load_model_defaults(model_dir, args.preset)
    parser.set_defaults(**defaults, model_dir=model_dir, is_embedded=is_embedded)
    args = parser.parse_args(arguments)
    no_inputs = args.reference_image_path is None and args.audio_path is None
    if no_inputs and Path(model_dir).resolve() == EMBEDDED_MODEL_DIR:
        parser.set_defaults(**demo_defaults(parser.given()))
        args = parser.parse_args(arguments)
    for name in ("reference_image_path", "audio_path"):
        if getattr(args, name) is None:
            raise InputError(f"`{name}` is missing: give the file; without both and without a model the demo runs")
    args.given = parser.given()
    args.sampling = options_of(args, SamplingOptions)
    args.motion = options_of(args, MotionOptions)
    check_signing(args.c2pa_certificate, args.c2pa_key)
    if args.kps_path is None and args.motion.retarget_strategy not in (None, "fix_face"):
        strategy = args.motion.retarget_strategy
        raise InputError(f"`retarget_strategy` {strategy} needs `kps_path`; without one use fix_face")
    return args


def demo_defaults(given: Mapping[str, Any]) -> dict[str, str]:
    """What of DEMO goes with the flags that are given."""
    defaults = {name: str(value) for name, value in DEMO.items()}
    if "motion" in given or "kps_path" in given:
        del defaults["kps_path"], defaults["retarget_strategy"]
    if "output_path" in given:  # beside which a picture of the user's may lie
        del defaults["contact_sheet_path"]
    return defaults


def unused_model_flags(args: Namespace) -> dict[str, str]:
    """Flags of the model without effect -> why."""
    return unused_adapter_flags(args) | unused_face_models(args.face_models)


def options_of(args: Namespace, table: type) -> SamplingOptions | MotionOptions:
    """The options of a table that the flags say.

    Raises:
        InputError: a value out of bounds.
    """
    return table(**{field.name: getattr(args, field.name) for field in fields(table)})


def main(arguments: list[str] | None = None) -> None:
    """Files -> tensors -> video file."""
    args = parse_arguments(arguments)
    with resting_collector():
        import torch  # the parser above answers without it

    from vexpress.devices import process_number

    if args.do_multi_devices_inference and "RANK" not in os.environ:
        raise InputError("start with `torchrun --nproc_per_node N inference.py ...`", "do_multi_devices_inference")
    with torchrun_processes(args.do_multi_devices_inference) as (rank, num_processes):
        set_up_logging(logging.INFO if rank == 0 else logging.ERROR)
        if num_processes > 1:
            args.gpu_id = process_number("LOCAL_RANK", 0)
        if args.is_embedded:
            logger.info(
                "no --model_dir and no %s: the embedded model runs, which knows drawn faces only; for photographs get "
                "the released models with `vexpress download`",
                DEFAULT_MODEL_DIR,
            )
        try:
            make_video(args, rank)
        except torch.OutOfMemoryError as error:
            raise InputError(
                "out of GPU memory: use `save_gpu_memory`, `dtype` fp16, a smaller `context_frames` or `image_width`"
            ) from error


def check_outputs(args: Namespace, paths: ModelPaths) -> tuple[Path, Path | None]:
    """The paths of video and contact sheet, which can be written and are nothing that is read.

    Raises:
        InputError: they are not.
    """
    inputs = (args.reference_image_path, args.audio_path, args.kps_path, args.c2pa_certificate, args.c2pa_key)
    inputs = (*inputs, *adapter_files(args.lora), *curve_files(args.motion))
    models = (args.model_dir, *vars(paths).values())
    if args.output_path in (DEFAULT_OUTPUT_PATH, DEMO["output_path"]):
        Path(args.output_path).parent.mkdir(exist_ok=True)
    output_path = check_output_path(args.output_path, "output_path", inputs, models, (".mp4",))
    sheet_path = None
    if args.contact_sheet_path:
        inputs = (*inputs, output_path)
        sheet_path = check_output_path(args.contact_sheet_path, "contact_sheet_path", inputs, models, (".png",))
    return output_path, sheet_path


def adapter_files(lora: Sequence[str]) -> list[str]:
    """The files that --lora names."""
    from vexpress.pipeline.adapters import split_weight

    return [split_weight(text)[0] for text in lora]


def curve_files(motion: MotionOptions) -> list[str]:
    """The files that options about lids, gaze, brows and smile name."""
    from vexpress.data.attribute_curves import CURVE_SUFFIXES

    texts = [getattr(motion, name) for name in ATTRIBUTE_OPTIONS]
    return [text.strip() for text in texts if text and text.strip().lower().endswith(CURVE_SUFFIXES)]


def write_contact_sheet(
    path: Path, inputs: "ClipInputs", shown: "list[np.ndarray]", numbers: list[int], sampling_rate_hz: int
) -> None:
    """Writes a picture of portrait, some frames, their keypoints and the waveform."""
    import numpy as np
    from PIL import Image

    from vexpress.media.sheets import render_filmstrip

    waveform = inputs.waveform(sampling_rate_hz).numpy()
    sheet = render_filmstrip(np.asarray(inputs.portrait), shown, numbers, inputs.video_kps.numpy(), waveform)
    with replacing(path) as temporary:
        Image.fromarray(sheet).save(temporary, format="PNG")


def load_pipeline(
    args: Namespace, paths: ModelPaths, device: "torch.device", dtype: "torch.dtype", loaded: dict[str, Any]
) -> "TerminalPipeline":
    """The networks, where the flags want them; `loaded` are parts that are there already. Warns of unlearned steps.

    Raises:
        InputError: a file is missing or does not fit, or the audio encoder hears at another rate.
    """
    from vexpress.cli.frames_bar import TerminalPipeline

    options, where = args.sampling, "cpu" if args.save_gpu_memory else device
    if warning := unlearned(options, load_model_defaults(args.model_dir)):
        logger.warning(warning)
    pipeline = TerminalPipeline.from_released(
        paths, dtype, where, options.test_stage, options.scheduler, args.vae_decoder_path, **loaded
    )
    rate = pipeline.audio_processor.sampling_rate
    if args.standard_audio_sampling_rate != rate:
        raise InputError(f"needs {rate}", "standard_audio_sampling_rate", args.standard_audio_sampling_rate)
    pipeline.use_adapters(args.lora, check_base=not args.lora_any_base)
    if args.save_gpu_memory:
        pipeline.enable_model_cpu_offload(device=device)
    if args.compile:
        pipeline.denoising_unet.compile(fullgraph=True)
    return pipeline


def make_video(args: Namespace, rank: int) -> None:
    """The work, as one of the processes that share it; process 0 writes."""
    with resting_collector():
        import torch

        from vexpress.cli.frames_bar import FramesBar
        from vexpress.devices import resolve_device, resolve_dtype
        from vexpress.media.mtcnn import load_face_detector
        from vexpress.media.sheets import frame_numbers, remember
        from vexpress.media.video import write_video
        from vexpress.request import Request, SpeechMotion, prepare_request

    # 1. inputs, before any network is loaded
    options = args.sampling
    device = resolve_device(args.device, args.gpu_id)
    dtype = resolve_dtype(options.dtype, device)
    paths = ModelPaths.from_model_dir(args.model_dir, **{name: getattr(args, name) for name in LAYOUT})
    output_path, sheet_path = check_outputs(args, paths)
    has_motion = paths.head_motion_path.exists()
    unused = unused_options(options, args.motion, args.kps_path is not None, has_motion)
    refuse_unused(args.given, unused | unused_model_flags(args))
    request = Request(args.reference_image_path, args.audio_path, args.kps_path, args.motion)
    face_models = args.motion.face_models or ("insightface" if args.insightface_model_path else None)
    loaded = {}

    def build_motion() -> SpeechMotion:
        motion = SpeechMotion(paths, device)
        if dtype == torch.float32 and not args.save_gpu_memory:  # the pipeline's own, then, need not be read again
            loaded.update(audio_encoder=motion.encoder, audio_processor=motion.processor)
        return motion

    inputs = prepare_request(
        request,
        options,
        lambda: load_face_detector(face_models, paths.insightface_model_path, device),
        build_motion if has_motion else None,
        paths.has_attributes,
    )

    # 2. networks
    pipeline = load_pipeline(args, paths, device, dtype, loaded)
    pipeline.set_progress_bar_config(disable=rank != 0)
    if rank == 0:
        pipeline.bar = FramesBar(inputs.num_frames, options.sampling == "rolling")
    sampling_rate_hz = pipeline.audio_processor.sampling_rate

    # 3. video
    size = inputs.portrait.size
    logger.info("%d frames of %dx%d at %g fps on %s in %s", inputs.num_frames, *size, options.fps, device, dtype)
    output = pipeline(
        **inputs.pipeline_arguments(sampling_rate_hz),
        **options.values_at(CALL),
        output_type="generator" if rank == 0 else "latent",
        device=None if args.save_gpu_memory else device,
        shares_windows=args.do_multi_devices_inference,
    )
    if rank != 0:
        return
    shown: list[np.ndarray] = []
    numbers = frame_numbers(inputs.num_frames, SHEET_FRAMES)
    metadata = {} if args.no_metadata else video_metadata(args.model_dir, options, args.motion, args.lora)
    frames = inputs.finished(output.frames)
    write_video(output_path, remember(frames, numbers, shown), options.fps, inputs.audio, metadata=metadata)
    if args.c2pa_key:
        sign_video(output_path, args.c2pa_certificate, args.c2pa_key)
    if sheet_path:
        write_contact_sheet(sheet_path, inputs, shown, numbers, sampling_rate_hz)
    beside = f"; contact sheet {sheet_path}" if sheet_path else ""
    seconds = inputs.num_frames / options.fps
    print(f"{output_path}: {inputs.num_frames} frames, {seconds:.2f} s, with audio{beside}")
