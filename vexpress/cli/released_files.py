"""The files of the released models, and where on the Hugging Face Hub they are."""

from dataclasses import dataclass

RELEASED_REPOSITORY = "tk93/V-Express"
DEFAULT_REVISION = "main"


@dataclass(frozen=True)
class Source:
    """One place on the Hub that has a needed file."""

    repository: str
    remote_path: str
    local_path: str
    """Below the model folder. Never taken from a server's answer."""


def _released(local_path: str) -> Source:
    return Source(RELEASED_REPOSITORY, f"model_ckpts/{local_path}", local_path)


def _upstream(repository: str, remote_path: str, local_dir: str) -> Source:
    return Source(repository, remote_path, f"{local_dir}/{remote_path}")


_SD = ("stable-diffusion-v1-5/stable-diffusion-v1-5", "stable-diffusion-v1-5")
_VAE = ("stabilityai/sd-vae-ft-mse", "sd-vae-ft-mse")
_WAV2VEC2 = ("facebook/wav2vec2-base-960h", "wav2vec2-base-960h")


def _released_or_upstream(upstream: tuple[str, str], *names: str) -> tuple[Source, ...]:
    repository, local_dir = upstream
    return (
        *(_released(f"{local_dir}/{name}") for name in names),
        *(_upstream(repository, name, local_dir) for name in names),
    )


# One row per needed file: its part, and the sources to try in this order.
NEEDED_FILES: tuple[tuple[str, tuple[Source, ...]], ...] = (
    ("unet", _released_or_upstream(_SD, "unet/config.json")),
    ("vae", _released_or_upstream(_VAE, "config.json")),
    ("vae", _released_or_upstream(_VAE, "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")),
    ("wav2vec2", _released_or_upstream(_WAV2VEC2, "config.json")),
    ("wav2vec2", _released_or_upstream(_WAV2VEC2, "preprocessor_config.json")),
    ("wav2vec2", _released_or_upstream(_WAV2VEC2, "model.safetensors", "pytorch_model.bin")),
    ("insightface", (_released("insightface_models/models/buffalo_l/det_10g.onnx"),)),
    ("insightface", (_released("insightface_models/models/buffalo_l/2d106det.onnx"),)),
    ("insightface", (_released("insightface_models/models/buffalo_l/1k3d68.onnx"),)),
    ("insightface", (_released("insightface_models/models/buffalo_l/genderage.onnx"),)),
    ("insightface", (_released("insightface_models/models/buffalo_l/w600k_r50.onnx"),)),
    ("v-express", (_released("v-express/reference_net.bin"),)),
    ("v-express", (_released("v-express/denoising_unet.bin"),)),
    ("v-express", (_released("v-express/motion_module.bin"),)),
    ("v-express", (_released("v-express/v_kps_guider.bin"),)),
    ("v-express", (_released("v-express/audio_projection.bin"),)),
    ("taesd", (_upstream("madebyollin/taesd", "config.json", "taesd"),)),
    (
        "taesd",
        (
            _upstream("madebyollin/taesd", "diffusion_pytorch_model.safetensors", "taesd"),
            _upstream("madebyollin/taesd", "diffusion_pytorch_model.bin", "taesd"),
        ),
    ),
    ("evaluation", (Source("ByteDance/LatentSync", "auxiliary/syncnet_v2.model", "evaluation/syncnet_v2.model"),)),
    (
        "evaluation",
        (
            Source("ByteDance/LatentSync", "auxiliary/i3d_torchscript.pt", "evaluation/i3d_torchscript.pt"),
            Source("flateon/FVD-I3D-torchscript", "i3d_torchscript.pt", "evaluation/i3d_torchscript.pt"),
        ),
    ),
)
ON_REQUEST = ("taesd", "evaluation")
"""Parts that are fetched only if they are asked for: inference does not need them."""
PARTS = tuple(dict.fromkeys(part for part, _ in NEEDED_FILES))
