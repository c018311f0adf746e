"""The training loop of one stage: data -> latents -> noise -> prediction -> loss -> update, the same for all stages."""

import contextlib
import json
import logging
import resource
import signal
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from accelerate.utils import gather_object
from diffusers import AutoencoderKL
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from einops import rearrange
from torch import Tensor
from torch.utils.data import DataLoader

from vexpress.data.dataset import SampleStream, TalkingFaceDataset
from vexpress.data.formats import ClipRecord
from vexpress.devices import DTYPES
from vexpress.diffusion.latents import scale_latents, vae_downsampling
from vexpress.diffusion.losses import min_snr_weights, weighted_loss
from vexpress.diffusion.schedule import build_scheduler
from vexpress.errors import InputError
from vexpress.model_folder import SUFFIXES
from vexpress.training.config import TrainConfig
from vexpress.training.config_file import format_config, save_config
from vexpress.training.initialize import build_training_networks
from vexpress.training.randomness import random_parts
from vexpress.training.run_log import RunLog, describe_run
from vexpress.training.run_state import RunState
from vexpress.training.setup import build_accelerator, build_optimizer
from vexpress.training.stages import (
    TrainingNetworks,
    half_frozen,
    set_trainable,
)
from vexpress.weights import load_vae

logger = logging.getLogger(__name__)

FRAMES_PER_ENCODING = 8  # that the VAE encodes at once

OnValidation = Callable[[TrainingNetworks, AutoencoderKL, ClipRecord, int], None]
"""Called on the main process with the networks, in eval mode, a clip of the validation set, and the step."""


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
        if not Path(config.audio_model_path).is_dir():  # for the exported model
            raise InputError(f"audio_model_path {config.audio_model_path}: no such folder")

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
        self.state = RunState(config, self.accelerator, self.model, self.networks, lr_scheduler, self.ema)
        self.step, self.num_samples = self.state.resume()

    # ---- the loop ----------------------------------------------------------------------------------------------------

    def train(self) -> None:
        """Trains up to `solver.max_train_steps` updates, or until SIGTERM; then saves and exports.

        Raises:
            InputError: a loss or gradient is not finite, a clip cannot be read, or the disk is full.
        """
        previous_handler = signal.signal(signal.SIGTERM, self._request_stop)
        try:
            with contextlib.closing(self._batches()) as batches:  # else workers, deaf to SIGTERM, are waited for
                self._train(batches)
        finally:
            signal.signal(signal.SIGTERM, previous_handler)
            self.accelerator.end_training()

    def _train(self, batches: Iterator[dict]) -> None:
        config = self.config
        self._write_header()
        log = RunLog(self.folder, self.step) if self.accelerator.is_main_process else None
        sums: dict[str, float] = {}
        num_summed, since = 0, time.perf_counter()
        while self.step < config.solver.max_train_steps and not self._should_stop():
            # 1. one update
            measured = self._update(batches)
            self.step += 1
            self.num_samples += self.samples_per_update
            sums = {key: sums.get(key, 0.0) + value for key, value in measured.items()}
            num_summed += 1

            # 2. log
            if self.step % config.log_steps == 0 or self.step == config.solver.max_train_steps:
                means = {key: value / num_summed for key, value in sums.items()}
                self._log(log, means, (time.perf_counter() - since) / num_summed)
                sums, num_summed, since = {}, 0, time.perf_counter()

            # 3. validate and save, which the time per step leaves out
            paused = time.perf_counter()
            if config.validation.steps and self.step % config.validation.steps == 0:
                self._validate(log)
            if self.step % config.checkpointing_steps == 0:
                self.state.save(self.step, self.num_samples)
            since += time.perf_counter() - paused
        self.state.save(self.step, self.num_samples)
        if log:
            log.render_curve()

    @property
    def samples_per_update(self) -> int:
        """Samples of all processes together."""
        config = self.config
        return config.data.train_bs * config.solver.gradient_accumulation_steps * self.accelerator.num_processes

    def _update(self, batches: Iterator[dict]) -> dict[str, float]:
        """Micro-batches to one update of the weights; returns means over all samples of it."""
        num_batches = self.config.solver.gradient_accumulation_steps
        totals = torch.zeros(3)  # loss, and squared error and size of mouths
        data_seconds, lr = 0.0, self.lr_scheduler.get_last_lr()[0]
        for _ in range(num_batches):
            started = time.perf_counter()
            batch = next(batches)
            data_seconds += time.perf_counter() - started
            with self.accelerator.accumulate(self.model):
                loss, mouth = self.compute_loss(batch)
                gathered = self.accelerator.gather(torch.stack([loss.detach(), *mouth])[None]).cpu()
                self._check_finite(gathered[:, 0], "loss", batch)
                totals += torch.stack([gathered[:, 0].mean() / num_batches, *gathered[:, 1:].sum(dim=0)])
                self.accelerator.backward(loss)
                if self.accelerator.sync_gradients:
                    norm = self.accelerator.clip_grad_norm_(self._trained(), self.config.solver.max_grad_norm)
                    if self.accelerator.scaler is None:  # which else skips such an update
                        self._check_finite(torch.as_tensor(norm).reshape(1), "gradient", batch)
                self.optimizer.step()
                if self.accelerator.sync_gradients and not self.accelerator.optimizer_step_was_skipped:
                    self.lr_scheduler.step()
                    if self.ema is not None:
                        self.ema.step(self._trained())
                self.optimizer.zero_grad(set_to_none=True)
        mouth_loss = totals[1] / totals[2].clamp(min=1)
        measured = {"loss": totals[0].item(), "mouth_loss": mouth_loss.item(), "grad_norm": float(norm), "lr": lr}
        return {**measured, "data_seconds": data_seconds}

    def compute_loss(self, batch: dict, drop: bool = True) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """The loss of a batch of the dataset; and the plain squared error on mouths, as sum and number of elements.

        Args:
            batch: collated samples.
            drop: False keeps all conditions.
        """
        device = self.accelerator.device
        latents, reference_latents = self._encode(batch)
        numbers = batch["number"].tolist()
        parts = random_parts(self.config, numbers, latents.shape[1:], len(self.alphas_cumprod), drop=drop).to(device)
        noisy = self.scheduler.add_noise(latents, parts.noise, parts.timesteps)
        target = self.scheduler.get_velocity(latents, parts.noise, parts.timesteps)
        with self.accelerator.autocast():
            prediction = self.model(
                noisy.to(self.dtype),
                parts.timesteps,
                reference_latents.to(self.dtype),
                batch["kps_images"].to(device, self.dtype),
                batch["audio_windows"].to(device, self.dtype),
                reference_keep=parts.reference_keep,
                kps_keep=parts.kps_keep,
                audio_keep=parts.audio_keep,
            ).float()
        gamma = self.config.snr_gamma
        weights = torch.ones_like(parts.timesteps, dtype=torch.float32)
        if gamma is not None:
            weights = min_snr_weights(self.alphas_cumprod, parts.timesteps, gamma)
        lip_masks = batch["lip_masks"].to(device)
        loss_weights = self.config.data.lip_loss_weight, self.config.motion_loss_weight
        loss = weighted_loss(prediction, target, weights, lip_masks, *loss_weights)
        squared_error = (prediction.detach() - target).square() * lip_masks
        return loss, (squared_error.sum(), lip_masks.sum() * target.shape[1])

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

    def _batches(self) -> Generator[dict, None, None]:
        """Batches from where the run stands, without end."""
        accelerator = self.accelerator
        loader = DataLoader(
            self.dataset,
            batch_size=self.config.data.train_bs,
            sampler=SampleStream(self.num_samples, accelerator.process_index, accelerator.num_processes),
            num_workers=self.config.data.num_workers,
            pin_memory=accelerator.device.type == "cuda",
            worker_init_fn=_ignore_sigterm,
        )
        batches = iter(loader)
        while True:
            try:
                yield next(batches)
            except InputError as error:  # a worker's comes with its traceback in the text
                raise InputError(str(error).strip().splitlines()[-1].split("InputError: ")[-1]) from error

    def _trained(self) -> list[torch.nn.Parameter]:
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    # ---- watching ----------------------------------------------------------------------------------------------------

    def _check_finite(self, values: Tensor, what: str, batch: dict) -> None:
        """On all processes alike: one that stopped alone would leave the others waiting.

        Args:
            values: one per process, or (1,) where all have the same.
            what: for the message.
            batch: of this process.
        """
        if values.isfinite().all():
            return
        own = values[self.accelerator.process_index % len(values)]
        bad = gather_object([] if own.isfinite() else list(batch["name"]))
        raise InputError(
            f"the {what} is not finite at step {self.step + 1}, samples {', '.join(dict.fromkeys(bad))}: lower "
            "solver.learning_rate, or use solver.mixed_precision=bf16 or no; the last checkpoint is untouched"
        )

    def _log(self, log: RunLog | None, means: dict[str, float], seconds: float) -> None:
        """One line with all that one watches."""
        if log is None:
            return
        config = self.config
        entry = {"step": self.step, **means}
        entry |= {"seconds_per_step": seconds, "samples_per_second": self.samples_per_update / seconds}
        if self.accelerator.device.type == "cuda":
            entry["peak_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
        else:
            entry["peak_memory_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        log.add(entry)
        self.accelerator.log({key: value for key, value in entry.items() if key != "step"}, step=self.step)
        remaining = (config.solver.max_train_steps - self.step) * seconds / 60
        logger.info(
            "step %d/%d | loss %.4f | mouth %.4f | grad norm %.3f | lr %.2e | %.2f s/step, %.2f waiting for data | "
            "%.2f samples/s | peak %.1f GiB | %.0f min left",
            self.step,
            config.solver.max_train_steps,
            entry["loss"],
            entry["mouth_loss"],
            entry["grad_norm"],
            entry["lr"],
            seconds,
            entry["data_seconds"],
            entry["samples_per_second"],
            entry["peak_memory_gib"],
            remaining,
        )

    @torch.no_grad()
    def _validate(self, log: RunLog | None) -> None:
        """Loss on fixed samples with fixed noise and nothing dropped, and what `on_validation` makes."""
        training = {module: module.training for module in self.model.modules()}
        self.model.eval()
        totals = torch.zeros(3)
        for number in range(self.config.validation.num_samples):
            batch = torch.utils.data.default_collate([self.validation_set[number]])
            loss, mouth = self.compute_loss(batch, drop=False)
            totals += torch.stack([loss, *mouth]).cpu()
        if self.config.validation.num_samples and log is not None:
            loss = (totals[0] / self.config.validation.num_samples).item()
            mouth_loss = (totals[1] / totals[2].clamp(min=1)).item()
            log.add({"step": self.step, "validation_loss": loss, "validation_mouth_loss": mouth_loss})
            self.accelerator.log({"validation_loss": loss, "validation_mouth_loss": mouth_loss}, step=self.step)
            logger.info("step %d | validation loss %.4f | mouth %.4f", self.step, loss, mouth_loss)
            log.render_curve()
        if self.on_validation and self.accelerator.is_main_process and not self.config.solver.fsdp:
            try:
                with self.accelerator.autocast():  # trained networks are fp32, the others may be half
                    self.on_validation(self.networks, self.vae, self.validation_set.records[0], self.step)
            except InputError as error:  # not worth a run
                logger.warning("no validation video: %s", error)
        self.accelerator.wait_for_everyone()
        for module, mode in training.items():
            module.training = mode

    def _write_header(self) -> None:
        if not self.accelerator.is_main_process:
            return
        config = self.config
        save_config(config, self.folder / "config.yaml")
        folders = [Path(config.vae_model_path)]
        if config.init.source == "unet":
            folders.append(Path(config.init.path or Path(config.base_model_path) / "unet"))
        elif config.init.path:
            folders += [Path(config.init.path), Path(config.init.path) / "v-express"]
        files = [path for folder in folders for path in sorted(folder.glob("*")) if path.suffix in SUFFIXES]
        files += [Path(config.init.motion_module_path)] if config.init.motion_module_path else []
        header = {"step": self.step, **describe_run(files)}
        with open(self.folder / "runs.jsonl", "a") as file:
            file.write(f"{json.dumps(header)}\n")
        for key, value in header.items():
            logger.info("%s: %s", key, value)
        self.accelerator.init_trackers("vexpress", config={"yaml": format_config(config)})

    # ---- stopping ----------------------------------------------------------------------------------------------------

    def _request_stop(self, *_) -> None:
        self.stop_requested = True

    def _should_stop(self) -> bool:
        flag = torch.tensor([float(self.stop_requested)], device=self.accelerator.device)
        return bool(self.accelerator.gather(flag).any())


def _ignore_sigterm(worker: int) -> None:
    """A scheduler's SIGTERM goes to all processes of a job; workers are needed until the run is saved."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
