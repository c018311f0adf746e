"""Training configuration: typed, validated, from YAML files and `key=value` overrides. An unknown key is an error."""

import difflib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException
from yaml import YAMLError

from vexpress.data.config import DataConfig
from vexpress.errors import InputError, first_line
from vexpress.fields import check_range
from vexpress.files import replacing

REPLACED_KEYS = {
    "solver.enable_xformers_memory_efficient_attention": "nothing, attention always is scaled_dot_product_attention",
    "enable_xformers_memory_efficient_attention": "nothing, attention always is scaled_dot_product_attention",
    "resume_from_checkpoint": "nothing, the same command with the same output_dir resumes",
    "save_model_epoch_interval": "checkpointing_steps",
    "image_encoder_path": "nothing, there is no image encoder",
    "module_training.motion_module": "module_training.denoising_unet, or STAGES in vexpress/training/stages.py",
    "stage1_ckpt_dir": "init.source=stage and init.path, the folder exported by the stage before",
    "stage2_ckpt_dir": "init.source=stage and init.path, the folder exported by the stage before",
    "motion_module_path": "init.motion_module_path",
    "unet_additional_kwargs": "model.unet_config_path, whose motion_* keys size the motion modules",
    "noise_scheduler_kwargs": "enable_zero_snr; the schedule itself is the released one",
    "solver.scale_lr": "solver.learning_rate, given as it shall be",
    "weight_dtype": "solver.mixed_precision",
    "exp_name": "output_dir",
    "val": "validation",
}
"""Keys of released configurations that are gone -> what to set instead."""


OPTIMIZERS = ("adamw", "muon")
LR_SCHEDULERS = ("constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial")
"""Of `diffusers.optimization`."""


@dataclass
class SolverConfig:
    """How weights are updated."""

    max_train_steps: int = 100_000
    """Updates, counted over restarts."""
    optimizer: str = "adamw"
    """adamw; or muon, which trains small networks from scratch in fewer steps, at a learning rate of about 0.02."""
    learning_rate: float = 1e-6
    lr_scheduler: str = "constant"
    """One of `LR_SCHEDULERS`."""
    lr_warmup_steps: int = 0
    gradient_accumulation_steps: int = 1
    """Micro-batches per update; the gradient is that of one large batch."""
    gradient_checkpointing: bool = False
    """Recomputes activations in the backward pass: less memory, about a third more time."""
    mixed_precision: str = "no"
    """no, fp16 or bf16; trained weights stay fp32, networks that are not trained are held in half."""
    max_grad_norm: float = 1.0
    use_8bit_adam: bool = False
    """Needs bitsandbytes."""
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_weight_decay: float = 1e-2
    adam_epsilon: float = 1e-8
    ema_decay: float | None = None
    """Exported weights are a moving average with this decay, 0 to 1; unset exports the last weights."""
    deepspeed_config: str | None = None
    """JSON file for DeepSpeed, e.g. training_configs/zero2_config.json."""
    fsdp: bool = False
    """Shards weights and optimizer over processes (FSDP2)."""

    def __post_init__(self):
        check_range("solver.max_train_steps", self.max_train_steps, 1, 10**9)
        check_range("solver.learning_rate", self.learning_rate, 0, 10)
        check_range("solver.gradient_accumulation_steps", self.gradient_accumulation_steps, 1, 10**6)
        check_range("solver.max_grad_norm", self.max_grad_norm, 1e-6, 1e9)
        check_range("solver.lr_warmup_steps", self.lr_warmup_steps, 0, 10**9)
        check_range("solver.adam_beta1", self.adam_beta1, 0, 0.99999)
        check_range("solver.adam_beta2", self.adam_beta2, 0, 0.9999999)
        check_range("solver.adam_weight_decay", self.adam_weight_decay, 0, 10)
        check_range("solver.adam_epsilon", self.adam_epsilon, 0, 1e6)
        if self.optimizer not in OPTIMIZERS:
            raise InputError(f"allowed are {', '.join(OPTIMIZERS)}", "solver.optimizer", self.optimizer)
        if self.optimizer == "muon" and (self.use_8bit_adam or self.fsdp or self.deepspeed_config):
            raise InputError("solver.optimizer=muon: not with use_8bit_adam, fsdp or deepspeed_config; unset these")
        if self.lr_scheduler not in LR_SCHEDULERS:
            raise InputError(f"allowed are {', '.join(LR_SCHEDULERS)}", "solver.lr_scheduler", self.lr_scheduler)
        if self.ema_decay is not None:
            check_range("solver.ema_decay", self.ema_decay, 0, 1)
        if self.mixed_precision == "False":  # how YAML reads a bare `no`
            self.mixed_precision = "no"
        if self.mixed_precision not in ("no", "fp16", "bf16"):
            raise InputError("allowed are no, fp16 and bf16", "solver.mixed_precision", self.mixed_precision)
        if self.deepspeed_config and self.fsdp:
            raise InputError("solver.deepspeed_config and solver.fsdp=true: choose one")
        if self.ema_decay is not None and self.fsdp:
            raise InputError("solver.ema_decay with solver.fsdp=true: sharded weights are not averaged; unset one")


@dataclass
class InitConfig:
    """Where the weights come from."""

    source: str = "unet"
    """unet: a diffusers UNet folder; animate_anyone: a folder of Moore-AnimateAnyone; stage: a model folder, such as
    the export of the stage before; random: for trials."""
    path: str | None = None
    """The folder; unset with source unet means BASE_MODEL_PATH/unet."""
    motion_module_path: str | None = None
    """AnimateDiff checkpoint for the motion modules; unset leaves them as the source has them."""

    def __post_init__(self):
        if self.source not in ("unet", "animate_anyone", "stage", "random"):
            raise InputError("allowed are unet, animate_anyone, stage and random", "init.source", self.source)
        if self.path is None and self.source in ("animate_anyone", "stage"):
            raise InputError("set init.path to the folder to start from", "init.source", self.source)


@dataclass
class ModelConfig:
    """Sizes of the networks; with init.source=stage all come from that folder."""

    unet_config_path: str | None = None
    """JSON of the UNet; unset means BASE_MODEL_PATH/unet/config.json. Its motion_* keys size the motion modules."""
    v_kps_guider: dict[str, Any] = field(default_factory=dict)
    """Arguments of `VKpsGuider` that differ from the released ones."""
    audio_projection: dict[str, Any] = field(default_factory=dict)
    """Arguments of `AudioProjection` that differ from the released ones."""


@dataclass
class ModuleTrainingConfig:
    """Switches networks on or off against the stage's table; unset follows the table."""

    reference_net: bool | None = None
    denoising_unet: bool | None = None
    v_kps_guider: bool | None = None
    audio_projection: bool | None = None


@dataclass
class ValidationConfig:
    """What is looked at while training."""

    steps: int = 1000
    """Every so many updates; 0 never."""
    meta_paths: list[str] = field(default_factory=list)
    """Held-out clips for the validation loss; unset takes the training clips."""
    num_samples: int = 8
    """Samples of the validation loss, the same with the same noise every time."""
    num_frames: int = 0
    """Frames of a video generated beside its ground truth; 0 makes none."""
    num_inference_steps: int = 25
    guidance_scale: float = 3.5

    def __post_init__(self):
        check_range("validation.steps", self.steps, 0, 10**9)
        check_range("validation.num_samples", self.num_samples, 0, 10**6)
        check_range("validation.num_frames", self.num_frames, 0, 10**6)
        check_range("validation.num_inference_steps", self.num_inference_steps, 1, 1000)
        check_range("validation.guidance_scale", self.guidance_scale, 0, 100)


@dataclass
class TrainConfig:
    """One stage of training."""

    train_stage: str = "stage_1"
    """stage_1, stage_2 or stage_3: a row of `vexpress.training.stages.STAGES`."""
    output_dir: str = "runs/stage_1"
    """Checkpoints, logs and the exported model. The same command with the same folder resumes."""
    seed: int = 42
    base_model_path: str = "model_ckpts/stable-diffusion-v1-5"
    vae_model_path: str = "model_ckpts/sd-vae-ft-mse"
    audio_model_path: str = "model_ckpts/wav2vec2-base-960h"
    insightface_model_path: str | None = None
    """Copied into the exported model; unset leaves face models out."""
    uncond_ratio: float = 0.1
    """Probability that a sample loses all conditions, for guidance."""
    noise_offset: float = 0.05
    shared_noise: float = 0.0
    """Share of the noise's variance that all frames of a sample have in common, 0 (as released) to 1; see
    inference.py `shared_noise`."""
    snr_gamma: float | None = 5.0
    """Min-SNR weighting; unset weighs all timesteps alike."""
    motion_loss_weight: float = 0.0
    """Weight of the same loss on the differences of neighbouring frames: more regard for what moves, and less flicker;
    0 as released; single frames have none."""
    enable_zero_snr: bool = True
    """Rescales the noise schedule to zero terminal SNR, as inference does."""
    checkpointing_steps: int = 1000
    """Full state every so many updates."""
    keep_checkpoints: int = 2
    log_steps: int = 10
    tracker: str | None = "tensorboard"
    """tensorboard, wandb, mlflow or unset."""
    export_suffix: str = ".safetensors"
    """.safetensors or .bin."""
    data: DataConfig = field(default_factory=DataConfig)
    solver: SolverConfig = field(default_factory=SolverConfig)
    init: InitConfig = field(default_factory=InitConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    module_training: ModuleTrainingConfig = field(default_factory=ModuleTrainingConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)

    def __post_init__(self):
        allowed = {
            "train_stage": ("stage_1", "stage_2", "stage_3"),
            "tracker": ("tensorboard", "wandb", "mlflow", None),
            "export_suffix": (".safetensors", ".bin"),
        }
        for key, values in allowed.items():
            if getattr(self, key) not in values:
                raise InputError(f"{key}={getattr(self, key)}: allowed are {', '.join(map(str, values))}")
        if self.train_stage == "stage_3" and self.init.motion_module_path:
            raise InputError("init.motion_module_path in stage_3 would replace what stage 2 has trained: unset it")
        check_range("seed", self.seed, 0, 2**63 - 1)
        check_range("uncond_ratio", self.uncond_ratio, 0, 1)
        check_range("noise_offset", self.noise_offset, 0, 10)
        check_range("shared_noise", self.shared_noise, 0, 1)
        check_range("motion_loss_weight", self.motion_loss_weight, 0, 1e6)
        check_range("checkpointing_steps", self.checkpointing_steps, 1, 10**9)
        check_range("keep_checkpoints", self.keep_checkpoints, 1, 10**6)
        check_range("log_steps", self.log_steps, 1, 10**9)
        if self.snr_gamma is not None:
            check_range("snr_gamma", self.snr_gamma, 1e-3, 1e6)


def load_config(path: str | PathLike, overrides: Sequence[str] = ()) -> TrainConfig:
    """Reads a training configuration.

    Args:
        path: YAML file; its key `base` may name another file, relative to it, whose values it changes.
        overrides: `key=value`, with dots for nested keys; these count most.

    Raises:
        InputError: a file that cannot be read, an unknown key, or a value of the wrong type or out of range.
    """
    file = path = Path(path)
    layers = [_read_yaml(file)]
    while (base := layers[0].pop("base", None)) is not None:
        if len(layers) > 8:
            raise InputError(f"{path}: more than 8 files name one another as base")
        file = file.parent / str(base)
        layers.insert(0, _read_yaml(file))
    for override in overrides:
        if "=" not in override:
            raise InputError(f"override {override!r}: must be key=value, e.g. solver.learning_rate=1e-5")
    try:
        merged = OmegaConf.merge(OmegaConf.structured(TrainConfig), *layers, OmegaConf.from_dotlist(list(overrides)))
        return OmegaConf.to_object(merged)
    except ConfigKeyError as error:
        key = error.full_key or str(error.key)
        if hint := next((text for old, text in REPLACED_KEYS.items() if key == old or key.startswith(f"{old}.")), None):
            raise InputError(f"{path}: key {key} is gone; instead: {hint}") from error
        near = difflib.get_close_matches(key, _all_keys(TrainConfig), n=1)
        raise InputError(f"{path}: unknown key {key}{f'; did you mean {near[0]}?' if near else ''}") from error
    except YAMLError as error:
        raise InputError(f"{path}: an override is not valid YAML ({' '.join(str(error).split())})") from error
    except OmegaConfBaseException as error:
        raise InputError(f"{path}: {getattr(error, 'full_key', None) or 'value'}: {first_line(error)}") from error


def differing_keys(first: TrainConfig, second: TrainConfig) -> list[str]:
    """Keys, with dots, in which two configurations differ."""

    def flatten(entry: Any, prefix: str) -> dict[str, Any]:
        if not isinstance(entry, dict) or not entry:
            return {prefix.rstrip("."): entry}
        return {key: value for name, part in entry.items() for key, value in flatten(part, f"{prefix}{name}.").items()}

    flat = [flatten(asdict(config), "") for config in (first, second)]
    return [key for key in {**flat[0], **flat[1]} if flat[0].get(key) != flat[1].get(key)]


def save_config(config: TrainConfig, path: str | PathLike) -> None:
    """Writes a configuration that `load_config` reads back."""
    with replacing(path) as temporary:
        temporary.write_text(format_config(config))


def format_config(config: TrainConfig) -> str:
    """The configuration as YAML."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def _read_yaml(path: Path) -> DictConfig:
    try:
        loaded = OmegaConf.load(path)
    except OSError as error:
        raise InputError(f"configuration {path}: cannot be read ({error.strerror})") from error
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise InputError(f"configuration {path}: not valid YAML ({' '.join(str(error).split())})") from error
    if not isinstance(loaded, DictConfig):
        raise InputError(f"configuration {path}: must hold keys and values")
    return loaded


def _all_keys(config_class: type, prefix: str = "") -> list[str]:
    keys = []
    for entry in fields(config_class):
        keys.append(f"{prefix}{entry.name}")
        if is_dataclass(entry.type):
            keys += _all_keys(entry.type, f"{prefix}{entry.name}.")
    return keys
