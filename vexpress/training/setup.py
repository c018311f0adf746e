"""What a run needs at its start: processes, optimizer, and a description of the plan."""

import os
from importlib.util import find_spec
from pathlib import Path

import torch
from accelerate import Accelerator, DeepSpeedPlugin, FullyShardedDataParallelPlugin
from accelerate.utils import DistributedType, ProjectConfiguration
from diffusers.training_utils import EMAModel

from vexpress.audio_encoders import EncoderRecord, check_width, describe_encoder
from vexpress.devices import process_number
from vexpress.diffusion.latents import Autoencoder
from vexpress.errors import InputError, first_line
from vexpress.model_folder import SUFFIXES, read_config
from vexpress.syncnet import load_syncnet
from vexpress.training.config import TrainConfig
from vexpress.training.config_file import format_config
from vexpress.training.distillation import Consistency, Regression
from vexpress.training.initialize import build_training_networks
from vexpress.training.muon import Muon
from vexpress.training.objectives import Denoising, Objective
from vexpress.training.sharded import shard_over_cpus
from vexpress.training.stages import STAGES, TrainingNetworks, compute_memory_bytes, count_parameters, set_trainable
from vexpress.training.sync_loss import SyncLoss
from vexpress.training.teacher import Teacher, teacher_options
from vexpress.weights import load_audio_encoder, load_vae


def build_accelerator(config: TrainConfig) -> Accelerator:
    """Joins the launcher's processes, with what shards over them.

    Raises:
        InputError: a precision, DeepSpeed, FSDP or a tracker is asked for that is not there or would not be used; or
            the environment does not describe processes.
    """
    solver = config.solver
    _check_environment()
    if solver.mixed_precision == "fp16" and not torch.cuda.is_available():
        raise InputError("needs a CUDA device; use bf16 or no", "solver.mixed_precision", "fp16")
    if config.tracker and find_spec(config.tracker) is None:  # accelerate would log nothing
        raise InputError(f"is not installed; pip install {config.tracker}, or tracker=null", "tracker", config.tracker)
    plugins, wanted = {}, None
    if solver.deepspeed_config:
        plugins, wanted = {"deepspeed_plugin": _build_deepspeed_plugin(config)}, DistributedType.DEEPSPEED
    if solver.fsdp:
        plugin = FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy="transformer_based_wrap")
        plugins, wanted = {"fsdp_plugin": plugin}, DistributedType.FSDP
    try:
        accelerator = Accelerator(
            gradient_accumulation_steps=solver.gradient_accumulation_steps,
            mixed_precision=solver.mixed_precision,
            cpu=not torch.cuda.is_available(),
            log_with=config.tracker,
            project_config=ProjectConfiguration(project_dir=config.output_dir, logging_dir=config.output_dir),
            **plugins,
        )
    except (ValueError, RuntimeError, OSError) as error:  # such as a precision that the DeepSpeed file contradicts
        raise InputError(
            f"solver and processes cannot be set up ({first_line(error)}); change solver.mixed_precision or "
            "solver.deepspeed_config, and start several processes by train_stage.sh"
        ) from error
    if solver.fsdp and accelerator.distributed_type == DistributedType.MULTI_CPU:
        shard_over_cpus(accelerator, plugins["fsdp_plugin"])
    if wanted and accelerator.distributed_type != wanted:  # accelerate would train on without it
        raise InputError(
            "solver.deepspeed_config needs CUDA devices, solver.fsdp several processes started by train_stage.sh; "
            f"here is {accelerator.distributed_type.value}: unset them"
        )
    return accelerator


def _check_environment() -> None:
    """Checks the variables of torchrun, from which libraries would take any nonsense, or wait for ever."""
    num_processes, rank = process_number("WORLD_SIZE", 1), process_number("RANK", 0)
    process_number("LOCAL_RANK", 0)
    if rank >= max(1, num_processes):
        raise InputError(
            f"RANK={rank} in the environment: must be below WORLD_SIZE={num_processes}; start with train_stage.sh, or "
            "unset both"
        )
    if num_processes > 1:
        missing = [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
        if missing:
            raise InputError(
                f"WORLD_SIZE={num_processes} in the environment, and no {', '.join(missing)}; start with "
                "train_stage.sh, or unset it"
            )
        process_number("MASTER_PORT", 0)


def _build_deepspeed_plugin(config: TrainConfig) -> DeepSpeedPlugin:
    path = config.solver.deepspeed_config
    if find_spec("deepspeed") is None:
        raise InputError("DeepSpeed is not installed; pip install deepspeed", "solver.deepspeed_config", path)
    read_config(Path(path))
    try:
        plugin = DeepSpeedPlugin(hf_ds_config=path)
        plugin.deepspeed_config["train_micro_batch_size_per_gpu"] = config.data.train_bs
        plugin.deepspeed_config["gradient_clipping"] = config.solver.max_grad_norm
    except (ImportError, ValueError, OSError, KeyError, TypeError) as error:
        raise InputError(
            f"no DeepSpeed configuration ({first_line(error)})", "solver.deepspeed_config", path
        ) from error
    return plugin


def build_optimizer(config: TrainConfig, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """Builds AdamW, in 8 bits if asked for, or Muon.

    Raises:
        InputError: there is nothing to train, or bitsandbytes is asked for and not installed.
    """
    solver = config.solver
    if not parameters:
        raise InputError(f"module_training: leaves nothing to train in {config.train_stage}; unset one of its keys")
    betas = (solver.adam_beta1, solver.adam_beta2)
    if solver.optimizer == "muon":
        return Muon(parameters, solver.learning_rate, betas=betas, eps=solver.adam_epsilon)
    optimizer_class = torch.optim.AdamW
    if solver.use_8bit_adam:
        try:
            from bitsandbytes.optim import AdamW8bit as optimizer_class
        except ImportError as error:
            raise InputError(
                "solver.use_8bit_adam=true needs `pip install bitsandbytes`, or set it to false"
            ) from error
    return optimizer_class(
        parameters,
        lr=solver.learning_rate,
        betas=betas,
        weight_decay=solver.adam_weight_decay,
        eps=solver.adam_epsilon,
    )


def build_objective(
    config: TrainConfig,
    accelerator: Accelerator,
    networks: TrainingNetworks,
    ema: EMAModel | None,
    vae: Autoencoder,
    dtype: torch.dtype,
) -> Objective:
    """Builds the objective of a stage.

    Args:
        config: of the stage.
        accelerator: whose device and number types it works with.
        networks: that are trained.
        ema: their moving average, which some objectives need.
        vae: decodes what a loss on frames looks at.
        dtype: of a teacher.

    Raises:
        InputError: files of the teacher or of SyncNet are missing or do not fit, or the teacher's sampling cannot be.
    """
    device, sync_loss = accelerator.device, None
    if config.sync_loss_weight:
        syncnet = load_syncnet(config.syncnet_path, device)[0].requires_grad_(False)
        sync_loss = SyncLoss(syncnet, vae, config.sync_max_timestep)
    if not STAGES[config.train_stage].distils:
        return Denoising(config, device, sync_loss)
    if config.distill.objective == "consistency":
        teacher = Teacher.load(config, dtype, device)
        return Consistency(config, device, teacher, networks, ema, accelerator.autocast, sync_loss)
    return Regression(config, device, sync_loss)


def weight_files(config: TrainConfig) -> list[Path]:
    """All files of weights that a run starts from."""
    folders = [Path(config.vae_model_path)]
    if config.init.source == "unet":
        folders.append(Path(config.init.path or Path(config.base_model_path) / "unet"))
    elif config.init.path:
        folders += [Path(config.init.path), Path(config.init.path) / "v-express"]
    if STAGES[config.train_stage].distils and config.distill.teacher_path:
        folders.append(Path(config.distill.teacher_path) / "v-express")
    files = [path for folder in folders for path in sorted(folder.glob("*")) if path.suffix in SUFFIXES]
    return files + ([Path(config.init.motion_module_path)] if config.init.motion_module_path else [])


def describe_audio_encoder(config: TrainConfig, networks: TrainingNetworks) -> EncoderRecord:
    """Says who must have made the data's hidden states: the encoder that goes into the exported model.

    Raises:
        InputError: it cannot be loaded, or the audio projection takes another width.
    """
    with torch.random.fork_rng(devices=[]):  # loading takes random numbers
        encoder, processor = load_audio_encoder(config.audio_model_path, field="audio_model_path")
    check_width(
        encoder.config, networks.audio_projection.config.embedding_dim, "audio_model_path", config.audio_model_path
    )
    return describe_encoder(encoder, processor)


def load_frozen_vae(
    config: TrainConfig, networks: TrainingNetworks, dtype: torch.dtype, device: torch.device
) -> Autoencoder:
    """Loads the image autoencoder.

    Raises:
        InputError: it cannot be loaded, or the UNet takes other latents.
    """
    vae = load_vae(config.vae_model_path, dtype, device, "vae_model_path").requires_grad_(False)
    num_channels = networks.denoising_unet.config.in_channels
    if vae.config.latent_channels != num_channels:
        problem = f"has {vae.config.latent_channels} latent channels, the UNet takes {num_channels}"
        raise InputError(problem, "vae_model_path", config.vae_model_path)
    return vae


def describe_plan(config: TrainConfig) -> str:
    """Describes a run without starting it: configuration, parameters per network, memory."""
    networks = build_training_networks(config)
    set_trainable(networks, config.train_stage, config.module_training, config.lora)
    lines = [format_config(config).rstrip(), ""]
    for name, (trained, total) in count_parameters(networks).items():
        lines.append(f"{name}: {trained:,} of {total:,} parameters trained")
    gib = compute_memory_bytes(networks, config.solver.mixed_precision) / 2**30
    lines.append(f"weights, gradients and Adam's moments: {gib:.2f} GiB per process; activations come on top")
    if STAGES[config.train_stage].distils:
        lines.append(_describe_teacher(config, networks))
    return "\n".join(lines)


def _describe_teacher(config: TrainConfig, networks: TrainingNetworks) -> str:
    options = teacher_options(config)
    if config.distill.objective == "truth":
        return "teacher: not asked, the clips themselves are learned"
    counts = count_parameters(networks).values()
    gib = sum(total for _, total in counts) * (4 if config.solver.mixed_precision == "no" else 2) / 2**30
    line = f"teacher: {options.num_inference_steps} steps, guidance {options.guidance_scale:g}, {gib:.2f} GiB on top"
    if config.distill.objective == "consistency":
        return f"{line}, and {sum(trained for trained, _ in counts) * 4 / 2**30:.2f} GiB of the moving average"
    return f"{line} until its {config.distill.num_trajectories} trajectories are there"
