"""Options that change nothing beside the others: programs refuse them where they are given, and commands lack them."""

from vexpress.options import MotionOptions, SamplingOptions


def unused_sampling(options: SamplingOptions) -> dict[str, str]:
    """Options of sampling without effect -> why, in words that follow "has no effect"."""
    names = ("guidance", "guidance_interval") if options.guidance_scale == 1 else ()
    return dict.fromkeys(names, "with `guidance_scale` 1")


def unused_face_models(face_models: str | None) -> dict[str, str]:
    """As `unused_sampling`, of the folder of insightface's models."""
    return {"insightface_model_path": "with `face_models` mtcnn"} if face_models == "mtcnn" else {}


def unused_options(
    options: SamplingOptions, motion: MotionOptions, has_kps: bool, has_natural_motion: bool
) -> dict[str, str]:
    """As `unused_sampling`, of all options of a video.

    Args:
        options: how it is sampled.
        motion: how portrait and keypoints are used.
        has_kps: whether there are driving keypoints.
        has_natural_motion: whether the model moves a head to speech.
    """
    unused, strategy = unused_sampling(options), motion.retarget_strategy
    with_strategy = f"with `retarget_strategy` {strategy}"
    if not motion.auto_crop and not motion.paste_back:
        unused |= dict.fromkeys(("crop_scale", "crop_face_height"), "without `auto_crop` or `paste_back`")
    if not has_kps or strategy == "fix_face":
        names = ("kps_fps", "kps_extend", "kps_smoothing")
        unused |= dict.fromkeys(names, with_strategy if has_kps else "without `kps_path`")
    elif strategy not in (None, "auto", "relative_retarget"):
        unused["kps_smoothing"] = with_strategy
    if has_kps:
        unused["motion_strength"] = "with `kps_path`"
    elif strategy is not None:
        unused["motion_strength"] = with_strategy
    elif motion.motion == "still":
        unused["motion_strength"] = "with `motion` still"
    elif not has_natural_motion:
        unused["motion_strength"] = "without v-express/head_motion in the model folder"
    return unused
