"""Configuration of a training run, one class per part; `vexpress.training.config_file` reads and writes it.

Default, bounds and explanation of each key are at its field. docs/training.md shows them as a table.
"""

import re
from dataclasses import dataclass, field
from typing import Any

from vexpress.data.config import DataConfig
from vexpress.errors import InputError
from vexpress.fields import check_fields, option
from vexpress.options import STAGES

TRAINED_STAGES = (*STAGES, "stage_4")
DISTILLATIONS = ("regression", "consistency", "truth")
OPTIMIZERS = ("adamw", "muon")
LR_SCHEDULERS = ("constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial")
"""Names that `diffusers.optimization` knows."""
PRECISIONS = ("no", "fp16", "bf16")
SOURCES = ("unet", "animate_anyone", "stage", "random")
NETWORKS = ("reference_net", "denoising_unet", "v_kps_guider", "audio_projection", "attribute_projection")
TRACKERS = ("tensorboard", "wandb", "mlflow")
EXPORT_SUFFIXES = (".safetensors", ".bin")
MAX_STEPS = 99_999_999
"""Names of checkpoints have 8 digits."""


@dataclass
class SolverConfig:
    """How the weights are updated.

    Raises:
        InputError: a value is out of bounds, or two of them exclude each other.
    """

    max_train_steps: int = option(100_000, "updates in total, over all restarts", low=1, high=MAX_STEPS)
    optimizer: str = option(
        "adamw",
        "muon needs fewer steps for small networks from scratch, with a learning rate of about 0.02",
        choices=OPTIMIZERS,
    )
    learning_rate: float = option(1e-6, "learning rate after the warm-up", low=0, high=10)
    lr_scheduler: str = option("constant", "course of the learning rate", choices=LR_SCHEDULERS)
    lr_warmup_steps: int = option(0, "updates over which the learning rate rises from 0", low=0, high=MAX_STEPS)
    gradient_accumulation_steps: int = option(
        1, "micro-batches per update; the gradient equals that of one large batch", low=1, high=10**6
    )
    gradient_checkpointing: bool = option(
        False, "recompute activations in the backward pass: less memory, a third more time"
    )
    compile: bool = option(False, "torch.compile the denoising UNet, which takes minutes and makes steps faster")
    mixed_precision: str = option(
        "no",
        "number type of the forward pass; trained weights stay fp32, frozen networks are held in it",
        choices=PRECISIONS,
    )
    max_grad_norm: float = option(1.0, "gradients with a larger norm are scaled down to it", low=1e-6, high=1e9)
    use_8bit_adam: bool = option(False, "hold Adam's moments in 8 bits; needs bitsandbytes")
    adam_beta1: float = option(0.9, "decay of Adam's first moment", low=0, high=0.99999)
    adam_beta2: float = option(0.999, "decay of Adam's second moment", low=0, high=0.9999999)
    adam_weight_decay: float = option(1e-2, "weight decay of AdamW", low=0, high=10)
    adam_epsilon: float = option(1e-8, "added to the root of Adam's second moment", low=0, high=1e6)
    ema_decay: float | None = option(
        None,
        "decay of the moving average of the weights that is exported; unset: the last weights are",
        low=0,
        high=1,
        type=float,
    )
    deepspeed_config: str | None = option(
        None, "JSON file for DeepSpeed, such as training_configs/zero2_config.json", type=str
    )
    fsdp: bool = option(False, "shard weights and optimizer over the processes (FSDP2)")

    def __post_init__(self):
        if self.mixed_precision == "False":  # how YAML reads a bare `no`
            self.mixed_precision = "no"
        check_fields(self, "solver.")
        if self.optimizer == "muon" and (self.use_8bit_adam or self.fsdp or self.deepspeed_config):
            raise InputError(
                "does not go with use_8bit_adam, fsdp or deepspeed_config; unset these", "solver.optimizer", "muon"
            )
        if self.deepspeed_config and self.fsdp:
            raise InputError("does not go with solver.deepspeed_config; unset one", "solver.fsdp", "true")
        if self.ema_decay is not None and self.fsdp:
            raise InputError(
                "sharded weights are not averaged; unset it or solver.fsdp", "solver.ema_decay", self.ema_decay
            )


@dataclass
class InitConfig:
    """Where the weights come from at the start.

    Raises:
        InputError: a value is out of bounds, or the folder is not named.
    """

    source: str = option(
        "unet",
        "unet: a diffusers UNet folder; animate_anyone: a folder of Moore-AnimateAnyone; stage: a model folder, such "
        "as the export of the previous stage; random: for trials",
        choices=SOURCES,
    )
    path: str | None = option(None, "that folder; unset with source unet: BASE_MODEL_PATH/unet", type=str)
    motion_module_path: str | None = option(
        None, "AnimateDiff checkpoint for the motion modules; unset: as the source has them", type=str
    )

    def __post_init__(self):
        check_fields(self, "init.")
        if self.path is None and self.source in ("animate_anyone", "stage"):
            raise InputError("set init.path to the folder to start from", "init.source", self.source)


@dataclass
class ModelConfig:
    """Sizes of the networks; with init.source=stage they come from that folder, and only what it lacks from here.

    Raises:
        InputError: a value has another type.
    """

    unet_config_path: str | None = option(
        None,
        "JSON of the UNet, whose motion_* keys are the motion modules' sizes; unset: BASE_MODEL_PATH/unet/config.json",
        type=str,
    )
    v_kps_guider: dict[str, Any] = option({}, "arguments of VKpsGuider that differ from the released ones")
    audio_projection: dict[str, Any] = option({}, "arguments of AudioProjection that differ from the released ones")
    attribute_projection: dict[str, Any] | None = option(
        None,
        "arguments of AttributeProjection, such as {dim: 256}, added where init has none; unset: none is added",
        type=dict,
    )

    def __post_init__(self):
        check_fields(self, "model.")


@dataclass
class ModuleTrainingConfig:
    """Which networks are trained, where that differs from the stage's row in `vexpress.training.stages.STAGES`.

    Raises:
        InputError: a value has another type.
    """

    reference_net: bool | None = option(None, "true: train all of it; false: freeze it; unset: as the stage", type=bool)
    denoising_unet: bool | None = option(None, "likewise", type=bool)
    v_kps_guider: bool | None = option(None, "likewise", type=bool)
    audio_projection: bool | None = option(None, "likewise", type=bool)
    attribute_projection: bool | None = option(None, "likewise", type=bool)

    def __post_init__(self):
        check_fields(self, "module_training.")


@dataclass
class LoraConfig:
    """Low-rank adapters that are trained in place of the networks, which stay as they are.

    Raises:
        InputError: a value is out of bounds, or there is no such network or pattern.
    """

    rank: int = option(16, "of the adapters; more can learn more, and weigh more", low=1, high=1024)
    targets: dict[str, Any] = option(
        {},
        "network -> patterns of its layers, out of those that the stage trains, as in vexpress.training.stages; empty: "
        "the networks themselves are trained",
    )

    def __post_init__(self):
        check_fields(self, "lora.")
        for name, patterns in self.targets.items():
            if name not in NETWORKS:
                raise InputError(f"is no network; there are {', '.join(NETWORKS)}", "lora.targets", name)
            if not isinstance(patterns, list) or not all(isinstance(pattern, str) for pattern in patterns):
                raise InputError("must be a list of patterns", f"lora.targets.{name}", patterns)
            for pattern in patterns:
                try:
                    re.compile(pattern)
                except (re.error, RecursionError, OverflowError) as error:
                    raise InputError(f"is no regular expression ({error})", f"lora.targets.{name}", pattern) from error

    @property
    def is_on(self) -> bool:
        """Whether any network has adapters."""
        return any(self.targets.values())


@dataclass
class DistillConfig:
    """Stage 4: what the student learns from its teacher. See docs/distillation.md.

    Raises:
        InputError: a value is out of bounds.
    """

    objective: str = option(
        "regression",
        "regression: onto results that the teacher has sampled before, which are kept on disk; consistency: onto one "
        "guided step of the teacher, then the student's moving average; truth: onto the clips themselves, where the "
        "conditions say all that is seen; nothing is kept",
        choices=DISTILLATIONS,
    )
    teacher_path: str | None = option(None, "model folder of the teacher; unset: init.path", type=str)
    teacher_sampling: dict[str, Any] = option(
        {}, "sampling options of the teacher that differ from those of its inference_defaults.json"
    )
    num_steps: int = option(2, "denoising steps of the student", choices=(1, 2, 4))
    context_overlap: int = option(
        6, "frames that the student's windows share in rolling sampling, below data.num_frames", low=0, high=999
    )
    history_rate: float = option(
        0.5, "probability that the shared frames are held to the window before, as in rolling sampling", low=0, high=1
    )
    num_trajectories: int = option(
        1000, "samples that the teacher makes for regression, to be learned over and over", low=1, high=10**7
    )
    trajectories_dir: str | None = option(
        None, "folder that keeps them, for several runs; unset: OUTPUT_DIR/trajectories", type=str
    )

    def __post_init__(self):
        check_fields(self, "distill.")


@dataclass
class ValidationConfig:
    """What is measured and shown during training.

    Raises:
        InputError: a value is out of bounds.
    """

    steps: int = option(1000, "updates between two validations; 0: never", low=0, high=MAX_STEPS)
    meta_paths: list[str] = option([], "metadata JSON files of held-out clips; empty: the training clips", items=str)
    num_samples: int = option(8, "samples of the validation loss, with the same noise each time", low=0, high=10**6)
    num_frames: int = option(0, "frames of a video that is generated beside the true one; 0: none", low=0, high=10**6)
    num_inference_steps: int = option(25, "denoising steps of that video", low=1, high=1000)
    guidance_scale: float = option(3.5, "strength of guidance of that video", low=0, high=100)

    def __post_init__(self):
        check_fields(self, "validation.")


@dataclass
class TrainConfig:
    """One stage of training.

    Raises:
        InputError: a value is out of bounds.
    """

    train_stage: str = option(
        STAGES[0], "what is trained, see `vexpress.training.stages.STAGES`", choices=TRAINED_STAGES
    )
    output_dir: str = option(
        "runs/stage_1", "folder of checkpoints, logs and the exported model; the same command resumes the run in it"
    )
    seed: int = option(42, "same seed and data: same run", low=0, high=2**63 - 1)
    base_model_path: str = option("model_ckpts/stable-diffusion-v1-5", "folder of Stable Diffusion 1.5, for its unet")
    vae_model_path: str = option("model_ckpts/sd-vae-ft-mse", "folder of the image autoencoder")
    audio_model_path: str = option("model_ckpts/wav2vec2-base-960h", "folder of the audio encoder")
    insightface_model_path: str | None = option(
        None, "folder of face models, copied into the exported model; unset: left out", type=str
    )
    uncond_ratio: float = option(
        0.1, "probability that a sample loses all conditions, which guidance needs", low=0, high=1
    )
    noise_offset: float = option(0.05, "scale of noise that is constant over a sample's pixels", low=0, high=10)
    shared_noise: float = option(
        0.0, "share of the noise's variance that all frames of a sample have in common, as in sampling", low=0, high=1
    )
    snr_gamma: float | None = option(
        5.0, "Min-SNR weighting; unset: all timesteps weigh the same", low=1e-3, high=1e6, optional=True
    )
    motion_loss_weight: float = option(
        0.0,
        "weight of the loss on differences of neighbouring frames: better motion, less flicker; 0 as released",
        low=0,
        high=1e6,
    )
    sync_loss_weight: float = option(
        0.0,
        "weight, in stages 3 and 4, of how badly lips of predicted frames fit the speech, as SyncNet sees it; 0 as "
        "released",
        low=0,
        high=1e6,
    )
    sync_max_timestep: int = option(
        500, "samples with more noise have no lips to judge, and do not count there", low=0, high=999
    )
    syncnet_path: str | None = option(
        None, "file of that SyncNet, such as MODEL_DIR/evaluation/syncnet_v2.model", type=str
    )
    enable_zero_snr: bool = option(True, "rescale the noise schedule to zero terminal SNR, as sampling does")
    checkpointing_steps: int = option(1000, "updates between two checkpoints", low=1, high=MAX_STEPS)
    keep_checkpoints: int = option(2, "newest checkpoints that are kept", low=1, high=10**6)
    log_steps: int = option(10, "updates between two lines of the log", low=1, high=MAX_STEPS)
    tracker: str | None = option("tensorboard", "where metrics go besides log.jsonl", choices=TRACKERS, optional=True)
    export_suffix: str = option(".safetensors", "format of the exported weights", choices=EXPORT_SUFFIXES)
    data: DataConfig = field(default_factory=DataConfig)
    solver: SolverConfig = field(default_factory=SolverConfig)
    init: InitConfig = field(default_factory=InitConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    module_training: ModuleTrainingConfig = field(default_factory=ModuleTrainingConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)

    def __post_init__(self):
        check_fields(self)
        if self.lora.is_on and self.init.source != "stage":
            problem = "an adapter belongs to a finished model: lora.targets needs init.source=stage and init.path"
            raise InputError(problem, "init.source", self.init.source)
        if self.sync_loss_weight:
            if self.train_stage not in ("stage_3", "stage_4"):
                problem = "speech drives lips from stage 3 on: must be stage_3 or stage_4, or sync_loss_weight 0"
                raise InputError(problem, "train_stage", self.train_stage)
            if self.syncnet_path is None:
                problem = "needs a SyncNet: set syncnet_path, such as model_ckpts/evaluation/syncnet_v2.model"
                raise InputError(problem, "sync_loss_weight", self.sync_loss_weight)
        if self.train_stage == TRAINED_STAGES[-1]:
            self._check_distillation()

    def _check_distillation(self) -> None:
        if self.init.source != "stage":
            raise InputError("stage_4 starts from its teacher: must be stage", "init.source", self.init.source)
        if self.distill.context_overlap >= self.data.num_frames:
            raise InputError(
                f"must be below data.num_frames, which is {self.data.num_frames}",
                "distill.context_overlap",
                self.distill.context_overlap,
            )
        if self.distill.objective == "consistency" and self.solver.ema_decay is None:
            raise InputError("needs solver.ema_decay, such as 0.99", "distill.objective", "consistency")
