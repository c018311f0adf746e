"""The training loop of one stage: data -> latents -> noise -> prediction -> loss -> update, the same for all stages."""

import json
import logging
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator, DeepSpeedPlugin, FullyShardedDataParallelPlugin
from accelerate.utils import DistributedType, ProjectConfiguration
from diffusers import AutoencoderKL
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from einops import rearrange
from safetensors import SafetensorError
from torch import Tensor
from torch.utils.data import DataLoader

from vexpress.checkpoints import LAYOUT, SUFFIXES, load_vae, read_config, save_networks
from vexpress.config import TrainConfig, format_config, save_config
from vexpress.data.dataset import SampleStream, TalkingFaceDataset
from vexpress.diffusion import build_scheduler, min_snr_weights, scale_latents, vae_downsampling, weighted_loss
from vexpress.runtime import DTYPES, InputError
from vexpress.training.draws import draw
from vexpress.training.initialize import build_training_networks
from vexpress.training.run_log import RunLog, describe_run
from vexpress.training.stages import (
    TrainingNetworks,
    compute_memory_bytes,
    count_parameters,
    half_frozen,
    set_trainable,
)

logger = logging.getLogger(__name__)

FRAMES_PER_ENCODING = 8  # that the VAE encodes at once
STATE_FILE = "trainer.json"
EXTRA_STATE_FILE = "schedule.pt"

OnValidation = Callable[[TrainingNetworks, AutoencoderKL, int], None]
"""Called on the main process with the networks, in eval mode, and the step."""


class Trainer:
    """Trains one stage; constructing it again with the same configuration resumes from the last checkpoint.

    Args:
        config: of the stage.
        on_validation: makes videos, say; called every `validation.steps` updates.

    Raises:
        InputError: files, data or settings that do not fit.
    """

    def __init__(self, config: TrainConfig, on_validation: OnValidation | None = None):
        self.config, self.on_validation = config, on_validation
        self.folder = Path(config.output_dir)
        self.accelerator = build_accelerator(config)
        self.stop_requested = False

        # 1. networks
        self.networks = build_training_networks(config)
        set_trainable(self.networks, config.train_stage, config.module_training)
        if config.solver.gradient_checkpointing:
            self.networks.denoising_unet.enable_gradient_checkpointing()
            self.networks.reference_net.enable_gradient_checkpointing()
        self.dtype = {"no": torch.float32, **DTYPES}[config.solver.mixed_precision]
        if self.dtype != torch.float32 and not config.solver.fsdp:  # FSDP shards weights of one dtype
            half_frozen(self.networks, self.dtype)
        self.vae = load_vae(config.vae_model_path, self.dtype, self.accelerator.device, "vae_model_path")
        self.vae.requires_grad_(False)
        self.scheduler = build_scheduler("ddim", config.enable_zero_snr)
        self.alphas_cumprod = self.scheduler.alphas_cumprod.to(self.accelerator.device)

        # 2. data
        self.dataset = self._build_dataset(config.data.meta_paths)
        self.validation_set = self.dataset
        if config.validation.meta_paths:
            self.validation_set = self._build_dataset(config.validation.meta_paths)

        # 3. optimizer
        parameters = [parameter for parameter in self.networks.parameters() if parameter.requires_grad]
        optimizer = build_optimizer(config, parameters)
        lr_scheduler = get_scheduler(
            config.solver.lr_scheduler,
            optimizer,
            num_warmup_steps=config.solver.lr_warmup_steps,
            num_training_steps=config.solver.max_train_steps,
        )
        self.model, self.optimizer = self.accelerator.prepare(self.networks, optimizer)
        # Not prepared: it would step once per process, and it must step once per update.
        self.lr_scheduler = lr_scheduler
        self.ema = None
        if config.solver.ema_decay is not None:
            self.ema = EMAModel(self._trained(), decay=config.solver.ema_decay)
            self.ema.to(self.accelerator.device)
        self.step = self._resume()

    # ---- the loop ----------------------------------------------------------------------------------------------------

    def train(self) -> None:
        """Trains up to `solver.max_train_steps` updates, or until SIGTERM; then saves and exports.

        Raises:
            InputError: the loss is not finite, or the disk is full.
        """
        config = self.config
        self._write_header()
        previous_handler = signal.signal(signal.SIGTERM, self._request_stop)
        log = RunLog(self.folder, self.step) if self.accelerator.is_main_process else None
        batches = self._batches()
        sums, since = {}, time.perf_counter()
        first_step = self.step
        while self.step < config.solver.max_train_steps and not self._should_stop():
            # 1. one update
            measured = self._update(batches)
            self.step += 1
            sums = {key: sums.get(key, 0.0) + value for key, value in measured.items()}

            # 2. log
            if self.step % config.log_steps == 0 or self.step == config.solver.max_train_steps:
                num_steps = self.step - max(first_step, (self.step - 1) // config.log_steps * config.log_steps)
                seconds = (time.perf_counter() - since) / num_steps
                self._log(log, {key: value / num_steps for key, value in sums.items()}, seconds)
                sums, since = {}, time.perf_counter()

            # 3. validate
            if config.validation.steps and self.step % config.validation.steps == 0:
                self._validate(log)
                since = time.perf_counter()

            # 4. save
            if self.step % config.checkpointing_steps == 0 and self.step < config.solver.max_train_steps:
                self.save()
                since = time.perf_counter()
        if self.step > first_step or not (self.folder / "export").exists():
            self.save()
        if log:
            log.draw_curve()
        self.accelerator.end_training()
        signal.signal(signal.SIGTERM, previous_handler)

    def _update(self, batches: Iterator[dict]) -> dict[str, float]:
        """Micro-batches to one update of the weights; returns means over all samples of it."""
        measured: dict[str, float] = {}
        data_seconds, num_batches = 0.0, self.config.solver.gradient_accumulation_steps
        for _ in range(num_batches):
            started = time.perf_counter()
            batch = next(batches)
            data_seconds += time.perf_counter() - started
            with self.accelerator.accumulate(self.model):
                loss, mouth_loss = self.compute_loss(batch)
                self._check_finite(loss, batch)
                self.accelerator.backward(loss)
                if self.accelerator.sync_gradients:
                    norm = self.accelerator.clip_grad_norm_(self._trained(), self.config.solver.max_grad_norm)
                self.optimizer.step()
                if self.accelerator.sync_gradients:
                    self.lr_scheduler.step()
                self.optimizer.zero_grad(set_to_none=True)
            losses = self.accelerator.gather(torch.stack([loss, mouth_loss]).detach()[None]).mean(dim=0) / num_batches
            measured["loss"] = measured.get("loss", 0.0) + losses[0].item()
            measured["mouth_loss"] = measured.get("mouth_loss", 0.0) + losses[1].item()
        if self.ema is not None:
            self.ema.step(self._trained())
        return {**measured, "grad_norm": float(norm), "data_seconds": data_seconds}

    def compute_loss(self, batch: dict, drop: bool = True) -> tuple[Tensor, Tensor]:
        """The loss of a batch of the dataset, and the plain squared error on the mouth.

        Args:
            batch: collated samples.
            drop: False keeps all conditions.
        """
        device = self.accelerator.device
        latents, reference_latents = self._encode(batch)
        draws = draw(self.config, batch["number"].tolist(), latents.shape[1:], len(self.alphas_cumprod), drop=drop).to(
            device
        )
        noisy = self.scheduler.add_noise(latents, draws.noise, draws.timesteps)
        target = self.scheduler.get_velocity(latents, draws.noise, draws.timesteps)
        with self.accelerator.autocast():
            prediction = self.model(
                noisy.to(self.dtype),
                draws.timesteps,
                reference_latents.to(self.dtype),
                batch["kps_images"].to(device, self.dtype),
                batch["audio_windows"].to(device, self.dtype),
                reference_keep=draws.reference_keep,
                kps_keep=draws.kps_keep,
                audio_keep=draws.audio_keep,
            ).float()
        gamma = self.config.snr_gamma
        weights = torch.ones_like(draws.timesteps, dtype=torch.float32)
        if gamma is not None:
            weights = min_snr_weights(self.alphas_cumprod, draws.timesteps, gamma)
        lip_masks = batch["lip_masks"].to(device)
        loss = weighted_loss(prediction, target, weights, lip_masks, self.config.data.lip_loss_weight)
        mouth = (prediction.detach() - target).square() * lip_masks
        return loss, mouth.sum() / (lip_masks.sum() * target.shape[1]).clamp(min=1)

    @torch.no_grad()
    def _encode(self, batch: dict) -> tuple[Tensor, Tensor]:
        """Latents (b c f h w) and reference latents (b c h w), float32: cached ones, or the posterior's mean."""
        device = self.accelerator.device
        if "latents" in batch:
            return batch["latents"].to(device), batch["reference_latents"].to(device)
        videos = batch["pixel_values"]
        frames = torch.cat([rearrange(videos, "b c f h w -> (b f) c h w"), batch["reference_image"]])
        latents = torch.cat(
            [
                scale_latents(self.vae, self.vae.encode(part.to(device, self.dtype)).latent_dist.mean.float())
                for part in frames.split(FRAMES_PER_ENCODING)
            ]
        )
        num_references = len(videos)
        clips = rearrange(latents[:-num_references], "(b f) c h w -> b c f h w", b=len(videos))
        return clips, latents[-num_references:]

    # ---- data --------------------------------------------------------------------------------------------------------

    def _build_dataset(self, meta_paths: list[str]) -> TalkingFaceDataset:
        return TalkingFaceDataset(
            replace(self.config.data, meta_paths=meta_paths),
            seed=self.config.seed,
            latent_downsampling=vae_downsampling(self.vae),
            audio_dim=self.networks.audio_projection.config.embedding_dim,
        )

    def _batches(self) -> Iterator[dict]:
        """Batches from where the run stands, without end."""
        config, accelerator = self.config, self.accelerator
        samples_per_update = (
            config.data.train_bs * config.solver.gradient_accumulation_steps * accelerator.num_processes
        )
        stream = SampleStream(self.step * samples_per_update, accelerator.process_index, accelerator.num_processes)
        loader = DataLoader(
            self.dataset,
            batch_size=config.data.train_bs,
            sampler=stream,
            num_workers=config.data.num_workers,
            pin_memory=accelerator.device.type == "cuda",
        )
        return iter(loader)

    def _trained(self) -> list[torch.nn.Parameter]:
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    # ---- watching ----------------------------------------------------------------------------------------------------

    def _check_finite(self, loss: Tensor, batch: dict) -> None:
        """On all processes alike: one that stopped alone would leave the others waiting."""
        if self.accelerator.gather(loss.detach().reshape(1)).isfinite().all():
            return
        names = ", ".join(batch["name"])
        raise InputError(
            f"the loss is {float(loss)} at step {self.step + 1}, samples {names}: lower solver.learning_rate, "
            "or use solver.mixed_precision=bf16 or no; the last checkpoint is untouched"
        )

    def _log(self, log: RunLog | None, means: dict[str, float], seconds: float) -> None:
        """One line with all that one watches."""
        if log is None:
            return
        config = self.config
        samples = config.data.train_bs * config.solver.gradient_accumulation_steps * self.accelerator.num_processes
        entry = {"step": self.step, **means, "lr": self.lr_scheduler.get_last_lr()[0]}
        entry |= {"seconds_per_step": seconds, "samples_per_second": samples / seconds}
        if self.accelerator.device.type == "cuda":
            entry["peak_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
        log.add(entry)
        self.accelerator.log({key: value for key, value in entry.items() if key != "step"}, step=self.step)
        remaining = (config.solver.max_train_steps - self.step) * seconds / 60
        memory = f" | {entry['peak_memory_gib']:.1f} GiB" if "peak_memory_gib" in entry else ""
        logger.info(
            "step %d/%d | loss %.4f | mouth %.4f | grad norm %.3f | lr %.2e | %.2f s/step, %.2f waiting for data | "
            "%.2f samples/s%s | %.0f min left",
            self.step,
            config.solver.max_train_steps,
            entry["loss"],
            entry["mouth_loss"],
            entry["grad_norm"],
            entry["lr"],
            seconds,
            entry["data_seconds"],
            entry["samples_per_second"],
            memory,
            remaining,
        )

    @torch.no_grad()
    def _validate(self, log: RunLog | None) -> None:
        """Loss on fixed samples with fixed noise and nothing dropped, and what `on_validation` makes."""
        training = {name: network.training for name, network in self.networks.named_children()}
        self.model.eval()
        losses = []
        for number in range(self.config.validation.num_samples):
            batch = torch.utils.data.default_collate([self.validation_set[number]])
            losses.append(torch.stack(self.compute_loss(batch, drop=False)).cpu())
        if losses and log is not None:
            loss, mouth_loss = torch.stack(losses).mean(dim=0).tolist()
            log.add({"step": self.step, "validation_loss": loss, "validation_mouth_loss": mouth_loss})
            self.accelerator.log({"validation_loss": loss, "validation_mouth_loss": mouth_loss}, step=self.step)
            logger.info("step %d | validation loss %.4f | mouth %.4f", self.step, loss, mouth_loss)
            log.draw_curve()
        if self.on_validation and self.accelerator.is_main_process and not self.config.solver.fsdp:
            self.on_validation(self.networks, self.vae, self.step)
        self.accelerator.wait_for_everyone()
        for name, network in self.networks.named_children():
            network.train(training[name])

    def _write_header(self) -> None:
        if not self.accelerator.is_main_process:
            return
        config = self.config
        save_config(config, self.folder / "config.yaml")
        source = Path(config.init.path or Path(config.base_model_path) / "unet")
        files = sorted(source.rglob("*")) if config.init.source != "random" else []
        weights = [path for path in files if path.suffix in SUFFIXES and path.is_file()]
        header = describe_run(weights)
        (self.folder / "run.json").write_text(json.dumps(header, indent=2) + "\n")
        for key, value in header.items():
            logger.info("%s: %s", key, value)
        self.accelerator.init_trackers("vexpress", config={"yaml": format_config(config)})

    # ---- saving ------------------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Writes the full state and the exported model, each under a temporary name first.

        Raises:
            InputError: it cannot be written; what was there before is untouched.
        """
        final = self.folder / "checkpoints" / f"step_{self.step:08d}"
        partial = final.with_name(f".{final.name}.part")
        try:
            if self.accelerator.is_main_process:
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True)
            self.accelerator.wait_for_everyone()
            self.accelerator.save_state(str(partial))
            if self.accelerator.is_main_process:
                (partial / STATE_FILE).write_text(json.dumps({"step": self.step, "stage": self.config.train_stage}))
                # Not registered with accelerate, which would read it back with all that a pickle may do.
                extra = {"lr_scheduler": self.lr_scheduler.state_dict(), "ema": self.ema and self.ema.state_dict()}
                torch.save(extra, partial / EXTRA_STATE_FILE)
            self.accelerator.wait_for_everyone()
            if self.accelerator.is_main_process:
                shutil.rmtree(final, ignore_errors=True)
                partial.rename(final)
                for old in sorted(final.parent.glob("step_*"))[: -self.config.keep_checkpoints]:
                    shutil.rmtree(old)
            self._export()
        except (OSError, RuntimeError, SafetensorError) as error:
            shutil.rmtree(partial, ignore_errors=True)
            shutil.rmtree(self.folder / ".export.part", ignore_errors=True)
            raise InputError(
                f"checkpoint of step {self.step} cannot be written to {self.folder} ({error}); earlier ones are "
                "untouched; free space or change output_dir, and run the same command again"
            ) from error
        logger.info("step %d | saved %s", self.step, final)

    def _export(self) -> None:
        """Writes `export/`, a model folder that inference loads as it is; averaged weights where there are any."""
        trained = self._trained()
        if self.ema is not None:
            self.ema.store(trained)
            self.ema.copy_to(trained)
        state = self.accelerator.get_state_dict(self.model)  # from all processes, if it is sharded
        if self.accelerator.is_main_process:
            self._write_export(state)
        if self.ema is not None:  # not before: the state dict is no copy
            self.ema.restore(trained)

    def _write_export(self, state: dict[str, Tensor]) -> None:
        final, partial = self.folder / "export", self.folder / ".export.part"
        shutil.rmtree(partial, ignore_errors=True)
        networks = dict(self.networks.named_children())
        weights = {
            name: {key.removeprefix(f"{name}."): tensor for key, tensor in state.items() if key.startswith(f"{name}.")}
            for name in networks
        }
        save_networks(partial, **networks, weights=weights, dtype=torch.float32, suffix=self.config.export_suffix)
        copies = {"vae_path": self.config.vae_model_path, "audio_encoder_path": self.config.audio_model_path}
        copies["insightface_model_path"] = self.config.insightface_model_path
        for name, source in copies.items():
            if source and Path(source).is_dir():
                shutil.copytree(source, partial / LAYOUT[name])
        former = self.folder / ".export.former"
        shutil.rmtree(former, ignore_errors=True)
        if final.exists():
            final.rename(former)
        partial.rename(final)
        shutil.rmtree(former, ignore_errors=True)

    def _resume(self) -> int:
        """Loads the last checkpoint, if there is one; returns its step."""
        found = sorted((self.folder / "checkpoints").glob("step_*"))
        if not found:
            self.folder.mkdir(parents=True, exist_ok=True)
            return 0
        state = read_config(found[-1] / STATE_FILE)
        if state.get("stage") != self.config.train_stage:
            raise InputError(
                f"output_dir={self.folder} holds checkpoints of {state.get('stage')}, and this is "
                f"{self.config.train_stage}: change output_dir"
            )
        try:
            self.accelerator.load_state(str(found[-1]))
            extra = torch.load(found[-1] / EXTRA_STATE_FILE, map_location="cpu", weights_only=True)
            self.lr_scheduler.load_state_dict(extra["lr_scheduler"])
            if self.ema is not None:
                self.ema.load_state_dict(extra["ema"] or {})
                self.ema.to(self.accelerator.device)
        except (RuntimeError, ValueError, KeyError, OSError, SafetensorError) as error:
            reason = str(error).strip().splitlines()[0]
            raise InputError(
                f"{found[-1]} does not fit this configuration ({reason}); change output_dir to start anew"
            ) from error
        logger.info("resuming at step %d from %s", state["step"], found[-1])
        return state["step"]

    # ---- stopping ----------------------------------------------------------------------------------------------------

    def _request_stop(self, *_) -> None:
        self.stop_requested = True

    def _should_stop(self) -> bool:
        flag = torch.tensor([float(self.stop_requested)], device=self.accelerator.device)
        return bool(self.accelerator.gather(flag).any())


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
            plugins, wanted = {"deepspeed_plugin": plugin}, DistributedType.DEEPSPEED
    except (ImportError, ValueError, OSError) as error:
        raise InputError(f"solver.deepspeed_config={solver.deepspeed_config}: {error} (is it installed?)") from error
    if solver.fsdp:
        plugin = FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy="transformer_based_wrap")
        plugins, wanted = {"fsdp_plugin": plugin}, DistributedType.FSDP
    accelerator = Accelerator(
        gradient_accumulation_steps=solver.gradient_accumulation_steps,
        mixed_precision=solver.mixed_precision,
        cpu=not torch.cuda.is_available(),
        log_with=config.tracker,
        project_config=ProjectConfiguration(project_dir=config.output_dir, logging_dir=config.output_dir),
        **plugins,
    )
    if wanted and accelerator.distributed_type != wanted:  # accelerate would train on without it
        raise InputError(
            "solver.deepspeed_config and solver.fsdp need CUDA devices and processes started by train_stage.sh; "
            f"here is {accelerator.distributed_type.value}: unset them"
        )
    return accelerator


def build_optimizer(config: TrainConfig, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """AdamW, in 8 bits if asked for.

    Raises:
        InputError: bitsandbytes is asked for and not installed.
    """
    solver = config.solver
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
        betas=(solver.adam_beta1, solver.adam_beta2),
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
