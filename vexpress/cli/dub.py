"""Has the people of a video speak another speech: their faces alone change, all else stays.

vexpress dub film.mp4 --audio_path speech.wav --output_path dubbed.mp4
"""

import logging
from argparse import Namespace
from dataclasses import fields
from pathlib import Path

from vexpress.cli.generate import (
    SAMPLING_RATE_HZ,
    adapter_files,
    add_model_flags,
    load_pipeline,
    options_of,
    unused_model_flags,
)
from vexpress.cli.parser import ArgumentParser, add_options, refuse_unused
from vexpress.cli.program import set_up_logging
from vexpress.dubbing.settings import DubSettings
from vexpress.errors import InputError
from vexpress.files import check_output_path, replacing
from vexpress.model_folder import LAYOUT, ModelPaths, choose_model_dir
from vexpress.options import PRESET_HELP, PRESETS, MotionOptions, SamplingOptions, load_model_defaults, option_fields
from vexpress.provenance import video_metadata
from vexpress.unused import unused_sampling

logger = logging.getLogger("vexpress")

SAMPLING = tuple(field for field in option_fields() if field.name != "fps")
"""The frame rate is the video's."""
MOTION = tuple(
    field for field in fields(MotionOptions) if field.name in ("kps_smoothing", "face_models", "audio_track")
)
LOSSLESS_SUFFIX = ".mkv"
SUFFIXES = (".mp4", LOSSLESS_SUFFIX)
SHEET_FRAMES = 8


def build_parser() -> ArgumentParser:
    """The flags."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    inputs = parser.add_argument_group("input and output")
    inputs.add_argument("video_path", help="the video")
    inputs.add_argument("--audio_path", required=True, help="the new speech: any audio or video file")
    inputs.add_argument("--output_path", required=True, help="video to write: .mp4, or .mkv, which is lossless")
    inputs.add_argument("--contact_sheet_path", help="PNG to write: frames before and after, and the waveform")
    inputs.add_argument("--no_metadata", action="store_true", help="do not write into the file that it is generated")
    add_options(parser.add_argument_group("what is dubbed"), (*fields(DubSettings), *MOTION))
    add_model_flags(parser)
    sampling = parser.add_argument_group("sampling")
    sampling.add_argument("--preset", choices=PRESETS, help=PRESET_HELP)
    add_options(sampling, SAMPLING)
    parser.set_defaults(standard_audio_sampling_rate=SAMPLING_RATE_HZ)
    return parser


def parse_arguments(arguments: list[str] | None) -> Namespace:
    """Flags, with defaults that suit the model.

    Raises:
        InputError: an unknown flag, a value out of bounds, or an input is missing.
    """
    parser = build_parser()
    args = parser.parse_args(arguments)
    model_dir = choose_model_dir(args.model_dir)
    defaults = load_model_defaults(model_dir, args.preset)
    parser.set_defaults(**{"fps": SamplingOptions().fps, **defaults}, model_dir=model_dir)
    args = parser.parse_args(arguments)
    args.sampling = options_of(args, SamplingOptions)
    args.settings = options_of(args, DubSettings)
    args.motion = MotionOptions(**{field.name: getattr(args, field.name) for field in MOTION})
    unused = unused_sampling(args.sampling) | unused_model_flags(args)
    if Path(args.output_path).suffix.lower() == LOSSLESS_SUFFIX:
        unused["crf"] = f"with a lossless {LOSSLESS_SUFFIX}"
    refuse_unused(parser.given(), unused)
    return args


def check_outputs(args: Namespace, paths: ModelPaths) -> tuple[Path, Path | None]:
    """The paths of video and contact sheet, which can be written and are nothing that is read.

    Raises:
        InputError: they are not.
    """
    inputs = (args.video_path, args.audio_path, *adapter_files(args.lora))
    models = (args.model_dir, *vars(paths).values())
    output_path = check_output_path(args.output_path, "output_path", inputs, models, SUFFIXES)
    if not args.contact_sheet_path:
        return output_path, None
    inputs = (*inputs, output_path)
    return output_path, check_output_path(args.contact_sheet_path, "contact_sheet_path", inputs, models, (".png",))


def main(arguments: list[str] | None = None) -> None:
    """Video and speech -> video."""
    args = parse_arguments(arguments)
    set_up_logging(logging.INFO)
    import torch  # the parser above answers without it

    try:
        dub_video(args)
    except torch.OutOfMemoryError as error:
        raise InputError(
            "out of GPU memory: use `save_gpu_memory`, `dtype` fp16 or smaller `context_frames`"
        ) from error


def dub_video(args: Namespace) -> None:
    """The work."""
    from vexpress.devices import resolve_device, resolve_dtype
    from vexpress.dubbing.dub import Dubber, plan_dub
    from vexpress.dubbing.shots import find_tracks
    from vexpress.media.audio import load_audio
    from vexpress.media.mtcnn import load_face_detector
    from vexpress.media.sheets import frame_numbers, remember
    from vexpress.media.video import probe_video, write_video

    # 1. inputs, before any network is loaded
    options, settings, motion = args.sampling, args.settings, args.motion
    device = resolve_device(args.device, args.gpu_id)
    paths = ModelPaths.from_model_dir(args.model_dir, **{name: getattr(args, name) for name in LAYOUT})
    output_path, sheet_path = check_outputs(args, paths)
    is_lossless = output_path.suffix.lower() == LOSSLESS_SUFFIX
    info = probe_video(args.video_path)
    if not is_lossless and (info.width % 2 or info.height % 2):
        raise InputError(
            f"frames of {info.width}x{info.height} cannot be H.264: write .mkv", "output_path", output_path
        )
    audio = load_audio(args.audio_path, track=motion.audio_track)

    # 2. faces
    face_models = motion.face_models or ("insightface" if args.insightface_model_path else None)
    detector = load_face_detector(face_models, paths.insightface_model_path, device)
    max_seconds = audio.duration_seconds if settings.length == "shorter" else float("inf")
    timeline, tracks = find_tracks(
        args.video_path, detector, options, settings.face, settings.max_gap, motion.kps_smoothing, max_seconds
    )
    plan = plan_dub(args.video_path, timeline, tracks, audio, settings.length, options.fps)
    num_dubbed = sum(track.stop - track.start for track in plan.tracks)
    logger.info(
        "%d of %d frames show a face, in %d stretches; faces are generated at %g fps",
        *(num_dubbed, plan.num_frames, len(plan.tracks), plan.fps),
    )

    # 3. video
    pipeline = load_pipeline(args, paths, device, resolve_dtype(options.dtype, device), {})
    dubber = Dubber(plan, pipeline, options, None if args.save_gpu_memory else device)
    numbers, shown = frame_numbers(plan.num_frames, SHEET_FRAMES), []
    metadata = {} if args.no_metadata else video_metadata(args.model_dir, options, motion, args.lora, is_composite=True)
    write_video(
        output_path,
        remember(dubber.frames(), numbers, shown),
        plan.fps_of_file,
        plan.audio,
        crf=settings.crf,
        metadata=metadata,
        times=plan.times,
        is_lossless=is_lossless,
    )
    if sheet_path:
        write_sheet(sheet_path, args.video_path, shown, numbers, plan)
    seconds = plan.audio.duration_seconds
    print(f"{output_path}: {plan.num_frames} frames, {seconds:.2f} s, {num_dubbed} frames dubbed")


def write_sheet(path: Path, video: str, shown: list, numbers: list[int], plan) -> None:
    """Writes a picture of frames before and after, and the waveform of the speech."""
    from PIL import Image

    from vexpress.media.sheets import render_pairs
    from vexpress.media.video import pick_frames

    before = [frame for _, frame in pick_frames(video, numbers)]
    sheet = render_pairs(before, shown, numbers, plan.num_frames, plan.audio.resampled_mono(16000).numpy())
    with replacing(path) as temporary:
        Image.fromarray(sheet).save(temporary, format="PNG")
