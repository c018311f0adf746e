"""A model folder in the released layout: where each part lies. Nothing is loaded here, and torch is not imported.

    model_dir/
        stable-diffusion-v1-5/unet/config.json
        sd-vae-ft-mse/, wav2vec2-base-960h/        as diffusers and transformers save them; the latter may hold any of
                                                   `vexpress.audio_encoders`
        insightface_models/                        ONNX files
        inference_defaults.json                    optional: flags of inference.py -> defaults that suit the model
        v-express/{reference_net,denoising_unet,motion_module,v_kps_guider,audio_projection}.{safetensors,bin,pth}
        v-express/head_motion.{safetensors,json}   optional: makes a head's motion from speech
        v-express/attribute_projection.{safetensors,json}    optional: lids, gaze, brows and smile on command

The released guider and audio projection have no configuration file; ours have one beside the weights (.json).
"""

from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from vexpress.errors import InputError
from vexpress.files import read_json

SUFFIXES = (".safetensors", ".bin", ".pth")
LAYOUT = {
    "unet_config_path": "stable-diffusion-v1-5/unet/config.json",
    "vae_path": "sd-vae-ft-mse",
    "audio_encoder_path": "wav2vec2-base-960h",
    "insightface_model_path": "insightface_models",
    "denoising_unet_path": "v-express/denoising_unet",
    "reference_net_path": "v-express/reference_net",
    "v_kps_guider_path": "v-express/v_kps_guider",
    "audio_projection_path": "v-express/audio_projection",
    "motion_module_path": "v-express/motion_module",
    "head_motion_path": "v-express/head_motion",
    "attribute_projection_path": "v-express/attribute_projection",
}
"""Where each part lies in a model folder; weights stand without suffix. The keys are the released flags."""

INFERENCE_DEFAULTS = "inference_defaults.json"

EMBEDDED_MODEL_DIR = Path(__file__).resolve().parent / "demo_pack"
"""The model of drawn faces that comes with the package."""

DEFAULT_MODEL_DIR = Path("model_ckpts")
"""Where programs look for a model if none is named."""

OPTIONAL = {
    "insightface_model_path": "some retarget strategies need no face detection; checked where it is needed",
    "motion_module_path": "denoising_unet may hold the motion modules; loading checks that together they cover all",
    "head_motion_path": "the release has none; with one, a head can move to speech alone",
    "attribute_projection_path": "the release has none; with one, lids, gaze, brows and smile can be asked for",
}
"""Parts that a model folder may lack, and why."""


@dataclass(frozen=True)
class ModelPaths:
    """Where every part of a model is. Field names are the released flags."""

    unet_config_path: Path
    vae_path: Path
    audio_encoder_path: Path
    insightface_model_path: Path
    denoising_unet_path: Path
    reference_net_path: Path
    v_kps_guider_path: Path
    audio_projection_path: Path
    motion_module_path: Path
    head_motion_path: Path
    attribute_projection_path: Path

    @classmethod
    def from_model_dir(
        cls, model_dir: str | PathLike, networks_only: bool = False, **overrides: str | None
    ) -> "ModelPaths":
        """Finds the parts in a folder of the released layout.

        Args:
            model_dir: the folder; need not exist when all parts are overridden.
            networks_only: image autoencoder and audio encoder may be missing.
            overrides: field name -> path; None means not overridden.

        Raises:
            InputError: a part that is needed for loading networks is not there.
        """
        optional = {*OPTIONAL, *(("vae_path", "audio_encoder_path") if networks_only else ())}
        paths = {name: cls._find(Path(model_dir), name, overrides.get(name), name in optional) for name in LAYOUT}
        return cls(**paths)

    @property
    def has_attributes(self) -> bool:
        """Whether lids, gaze, brows and smile can be asked for."""
        return self.attribute_projection_path.exists()

    @staticmethod
    def _find(model_dir: Path, name: str, override: str | None, optional: bool) -> Path:
        path = Path(override) if override else model_dir / LAYOUT[name]
        has_suffix = override or not LAYOUT[name].startswith("v-express/")
        candidates = [path] if has_suffix else [path.with_name(path.name + suffix) for suffix in SUFFIXES]
        for candidate in candidates:
            if candidate.exists():
                return candidate
        if not override and optional:
            return path
        looked = " or ".join(map(str, candidates))
        raise InputError(
            f"model file not found: {looked}; point `model_dir` or `{name}` to it, "
            "or fetch the released models with `vexpress download`"
        )


def choose_model_dir(given: str | Path | None) -> str | Path:
    """The model folder that is given; else the default one or, if that is not there, the embedded one."""
    return given or (DEFAULT_MODEL_DIR if DEFAULT_MODEL_DIR.exists() else EMBEDDED_MODEL_DIR)


def read_config(path: Path) -> dict:
    """Reads a JSON object.

    Raises:
        InputError: missing, or not a JSON object.
    """
    try:
        config = read_json(path)
    except OSError as error:
        raise InputError(f"configuration {path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise InputError(f"configuration {path}: not valid JSON ({error})") from error
    if not isinstance(config, dict):
        raise InputError(f"configuration {path}: must hold a JSON object")
    return config
