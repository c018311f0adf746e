"""V-Express: audio-driven portrait video.

    from vexpress import ModelPaths, Request, SamplingOptions, VExpressPipeline, prepare_request, write_video

Names are imported when they are first used, so that `import vexpress` costs nothing. docs/api.md shows their use.
"""

import importlib

_HOMES = {
    "errors": ("InputError",),
    "model_folder": ("ModelPaths",),
    "options": ("MotionOptions", "SamplingOptions", "load_model_defaults"),
    "request": ("ClipInputs", "Request", "load_clip_inputs", "prepare_request"),
    "pipeline": ("VExpressPipeline",),
    "weights": ("load_networks", "save_networks"),
    "media.audio": ("Audio", "load_audio"),
    "media.faces": ("FaceAnalyzer",),
    "media.images": ("load_image",),
    "media.keypoints": ("KpsSequence", "load_kps", "save_kps"),
    "media.video": ("write_video",),
}
"""Module -> names of the public front that it defines."""
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME_OF)


def __getattr__(name: str):
    if name == "__version__":
        from importlib.metadata import version

        return version("vexpress")
    if name not in _HOME_OF:
        raise AttributeError(f"module 'vexpress' has no attribute {name!r}")
    return getattr(importlib.import_module(f"vexpress.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
