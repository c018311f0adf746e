"""What a run stands on: processes and what shards over them, the optimizer, and the plan in words."""

from importlib.util import find_spec

import torch
from accelerate import Accelerator, DeepSpeedPlugin, FullyShardedDataParallelPlugin
from accelerate.utils import DistributedType, ProjectConfiguration

from vexpress.errors import InputError
from vexpress.training.config import TrainConfig
from vexpress.training.config_file import format_config
from vexpress.training.initialize import build_training_networks
from vexpress.training.muon import Muon
from vexpress.training.stages import compute_memory_bytes, count_parameters, set_trainable


def build_accelerator(config: TrainConfig) -> Accelerator:
    """The launcher's processes, with what shards over them.

    Raises:
        InputError: DeepSpeed or FSDP is asked for where it is not installed or would not be used.
    """
    solver = config.solver
    plugins, wanted = {}, None
    try:
        if solver.deepspeed_config:
            plugin = DeepSpeedPlugin(hf_ds_config=solver.deepspeed_config)
            plugin.deepspeed_config["train_micro_batch_size_per_gpu"] = config.data.train_bs
            plugin.deepspeed_config["gradient_clipping"] = solver.max_grad_norm
            plugins, wanted = {"deepspeed_plugin": plugin}, DistributedType.DEEPSPEED
    except (ImportError, ValueError, OSError) as error:
        raise InputError(f"{error} (is it installed?)", "solver.deepspeed_config", solver.deepspeed_config) from error
    if solver.fsdp:
        plugin = FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy="transformer_based_wrap")
        plugins, wanted = {"fsdp_plugin": plugin}, DistributedType.FSDP
    if config.tracker and find_spec(config.tracker) is None:  # accelerate would log nothing
        raise InputError(f"is not installed; pip install {config.tracker}, or tracker=null", "tracker", config.tracker)
    try:
        accelerator = Accelerator(
            gradient_accumulation_steps=solver.gradient_accumulation_steps,
            mixed_precision=solver.mixed_precision,
            cpu=not torch.cuda.is_available(),
            log_with=config.tracker,
            project_config=ProjectConfiguration(project_dir=config.output_dir, logging_dir=config.output_dir),
            **plugins,
        )
    except ValueError as error:  # such as fp16 on a CPU, or against the DeepSpeed file
        raise InputError(f"{error}", "solver.mixed_precision", solver.mixed_precision) from error
    if wanted and accelerator.distributed_type != wanted:  # accelerate would train on without it
        raise InputError(
            "solver.deepspeed_config and solver.fsdp need CUDA devices and processes started by train_stage.sh; "
            f"here is {accelerator.distributed_type.value}: unset them"
        )
    return accelerator


def build_optimizer(config: TrainConfig, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """AdamW, in 8 bits if asked for; or Muon.

    Raises:
        InputError: bitsandbytes is asked for and not installed.
    """
    solver = config.solver
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


def describe_plan(config: TrainConfig) -> str:
    """What a run would do, without doing it: configuration, parameters per network, memory."""
    networks = build_training_networks(config)
    set_trainable(networks, config.train_stage, config.module_training)
    lines = [format_config(config).rstrip(), ""]
    for name, (trained, total) in count_parameters(networks).items():
        lines.append(f"{name}: {trained:,} of {total:,} parameters trained")
    gib = compute_memory_bytes(networks, config.solver.mixed_precision) / 2**30
    lines.append(f"weights, gradients and Adam's moments: {gib:.2f} GiB per process; activations come on top")
    return "\n".join(lines)
