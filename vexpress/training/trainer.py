"""The training loop, the same for all stages: data -> latents -> objective -> gradient -> update."""

import contextlib
import logging
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from accelerate.utils import gather_object
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch import Tensor

from vexpress.data.dataset import TalkingFaceDataset
from vexpress.data.formats import ClipRecord
from vexpress.data.latent_cache import autoencoder_digest
from vexpress.data.loading import SampleStream
from vexpress.devices import DTYPES, process_number
from vexpress.diffusion.latents import Autoencoder, vae_downsampling
from vexpress.errors import InputError
from vexpress.training.batches import prepare_batch, stream_batches
from vexpress.training.config import TrainConfig
from vexpress.training.config_file import format_config, save_config
from vexpress.training.initialize import build_training_networks
from vexpress.training.objectives import StepLoss
from vexpress.training.run_lock import hold_run_folder
from vexpress.training.run_log import RunLog, append_header, describe_run, peak_memory_gib
from vexpress.training.run_state import CONFIG_FILE, RunState
from vexpress.training.setup import (
    build_accelerator,
    build_objective,
    build_optimizer,
    describe_audio_encoder,
    load_frozen_vae,
    weight_files,
)
from vexpress.training.stages import TrainingNetworks, half_frozen, set_trainable
from vexpress.training.trajectories import TaughtDataset, add_trajectories, learns_trajectories, sample_by_teacher
from vexpress.weights import base_digest

logger = logging.getLogger(__name__)

OnValidation = Callable[[TrainingNetworks, Autoencoder, ClipRecord, int], None]
"""Called on the main process with the networks, in eval mode, a clip of the validation set, and the step."""


class Trainer:
    """Trains one stage; constructed again with the same configuration, it resumes from the newest checkpoint.

    It holds its folder against other runs until `train` returns.

    Args:
        config: of the stage.
        on_validation: called every `validation.steps` updates, for example to make a video.

    Raises:
        InputError: files, data or settings do not fit, or another run works in the folder.
    """

    def __init__(self, config: TrainConfig, on_validation: OnValidation | None = None):
        self.config, self.on_validation = config, on_validation
        self.folder = Path(config.output_dir)
        self.stop_requested = False
        with contextlib.ExitStack() as stack:
            if process_number("RANK", 0) == 0:
                stack.enter_context(hold_run_folder(self.folder))
            self.accelerator = build_accelerator(config)
            self._build_networks()
            self._build_data()
            self._build_optimizer()
            self.objective = build_objective(config, self.accelerator, self.networks, self.ema, self.vae, self.dtype)
            made = self.accelerator, self.model, self.networks, self.lr_scheduler, self.ema, self.base_model
            self.state = RunState(config, *made, self.dataset.summary)
            self.step, self.num_samples = self.state.resume()
            self._held = stack.pop_all()

    def _build_networks(self) -> None:
        config = self.config
        self.networks = build_training_networks(config)
        self.audio_encoder = describe_audio_encoder(config, self.networks)
        self.base_model = base_digest(dict(self.networks.named_children())) if config.lora.is_on else None
        set_trainable(self.networks, config.train_stage, config.module_training, config.lora)
        if config.solver.gradient_checkpointing:
            self.networks.denoising_unet.enable_gradient_checkpointing()
            self.networks.reference_net.enable_gradient_checkpointing()
        if config.solver.compile:  # not the ReferenceNet, of which torch 2.13's compiler for CPUs makes wrong gradients
            self.networks.denoising_unet.compile()
        self.dtype = {"no": torch.float32, **DTYPES}[config.solver.mixed_precision]
        if self.dtype != torch.float32 and not config.solver.fsdp:  # FSDP shards weights of one dtype
            half_frozen(self.networks, self.dtype)
        self.vae = load_frozen_vae(config, self.networks, self.dtype, self.accelerator.device)

    def _build_data(self) -> None:
        is_cached = self.config.data.latent_cache_dir is not None
        self.autoencoder = autoencoder_digest(self.vae, self.config.vae_model_path) if is_cached else None
        self.dataset = self._build_dataset(self.config.data.meta_paths)
        self._check_same_clips()
        self.validation_set = self.dataset
        if self.config.validation.meta_paths:
            self.validation_set = self._build_dataset(self.config.validation.meta_paths, balance_by=None)
        most_frames = self.networks.denoising_unet.config.motion_max_seq_length
        if self.config.data.num_frames > most_frames:
            problem = f"the UNet's motion_max_seq_length is {most_frames}"
            raise InputError(problem, "data.num_frames", self.config.data.num_frames)

    def _check_same_clips(self) -> None:
        """Raises an InputError if processes see other clips: sample n would be another one on each."""
        seen = gather_object([self.dataset.summary])
        for process, clips in enumerate(seen):
            if clips != seen[0]:
                problem = f"process {process} can use {clips}, and process 0 {seen[0]}"
                paths = self.config.data.meta_paths
                raise InputError(f"{problem}: all must see the same files", "data.meta_paths", paths)

    def _build_dataset(self, meta_paths: list[str], **changes) -> TalkingFaceDataset | TaughtDataset:
        is_taught = learns_trajectories(self.config)
        dataset = TalkingFaceDataset(
            replace(self.config.data, meta_paths=meta_paths, **changes),
            seed=self.config.seed,
            latent_downsampling=vae_downsampling(self.vae),
            audio_dim=self.networks.audio_projection.config.embedding_dim,
            audio_encoder=self.audio_encoder,
            latent_channels=self.vae.config.latent_channels,
            autoencoder=self.autoencoder,
            only_reference=is_taught,
            for_syncnet=bool(self.config.sync_loss_weight),
        )
        return add_trajectories(dataset, self.config, self.dtype) if is_taught else dataset

    def _build_optimizer(self) -> None:
        solver = self.config.solver
        parameters = [parameter for parameter in self.networks.parameters() if parameter.requires_grad]
        optimizer = build_optimizer(self.config, parameters)
        # Not prepared with the rest: it would step once per process, and it must step once per update.
        self.lr_scheduler = get_scheduler(
            solver.lr_scheduler,
            optimizer,
            num_warmup_steps=solver.lr_warmup_steps,
            num_training_steps=solver.max_train_steps,
        )
        self.model, self.optimizer = self.accelerator.prepare(self.networks, optimizer)
        self.ema = None
        if solver.ema_decay is not None:
            self.ema = EMAModel(self._trained(), decay=solver.ema_decay)
            self.ema.to(self.accelerator.device)

    # ---- the loop ----------------------------------------------------------------------------------------------------

    def train(self) -> None:
        """Trains up to `solver.max_train_steps` updates, or until SIGTERM; then saves and exports.

        Raises:
            InputError: a loss or gradient is not finite, a clip cannot be read, or the disk is full.
        """
        if learns_trajectories(self.config):
            self._make_trajectories()  # before SIGTERM is caught: each is whole, and all are kept
        previous_handler = signal.signal(signal.SIGTERM, self._request_stop)
        try:
            accelerator = self.accelerator
            samples = SampleStream(self.num_samples, accelerator.process_index, accelerator.num_processes)
            stream = stream_batches(self.dataset, samples, pin_memory=accelerator.device.type == "cuda")
            # Closed at once: workers, which ignore SIGTERM, would be waited for.
            with self._held, contextlib.closing(stream) as batches:
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
            # 1. one update of the weights
            measured = self._update(batches)
            self.step += 1
            self.num_samples += self.samples_per_update
            sums = {key: sums.get(key, 0.0) + value for key, value in measured.items()}
            num_summed += 1

            # 2. log means since the last line
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
        """Turns micro-batches into one update of the weights; returns means over all its samples."""
        num_batches = self.config.solver.gradient_accumulation_steps
        totals = torch.zeros(4)  # loss, squared error and size of mouths, and error of sync
        data_seconds, lr = 0.0, self.lr_scheduler.get_last_lr()[0]
        for _ in range(num_batches):
            # 1. data
            started = time.perf_counter()
            batch = next(batches)
            data_seconds += time.perf_counter() - started
            with self.accelerator.accumulate(self.model):
                # 2. loss, of this process and for the log of all
                step_loss = self.compute_loss(batch)
                gathered = self.accelerator.gather(torch.stack(step_loss).detach()[None]).cpu()  # (processes 4)
                self._check_finite(gathered[:, 0], "loss", batch)
                means, sums = gathered[:, [0, 3]].mean(dim=0) / num_batches, gathered[:, 1:3].sum(dim=0)
                totals += torch.stack([means[0], *sums, means[1]])

                # 3. gradient; accelerate divides the loss by the number of micro-batches
                self.accelerator.backward(step_loss.loss)
                if self.accelerator.sync_gradients:
                    norm = self.accelerator.clip_grad_norm_(self._trained(), self.config.solver.max_grad_norm)
                    if self.accelerator.scaler is None:  # fp16's scaler skips such an update, and goes on
                        self._check_finite(torch.as_tensor(norm).reshape(1), "gradient", batch)

                # 4. update, which accelerate does with the last micro-batch only
                self.optimizer.step()
                if self.accelerator.sync_gradients and not self.accelerator.optimizer_step_was_skipped:
                    self.lr_scheduler.step()
                    if self.ema is not None:
                        self.ema.step(self._trained())
                self.optimizer.zero_grad(set_to_none=True)
        mouth_loss = totals[1] / totals[2].clamp(min=1)  # no mouth in any frame: 0
        measured = {"loss": totals[0].item(), "mouth_loss": mouth_loss.item(), "grad_norm": float(norm), "lr": lr}
        if self.config.sync_loss_weight:
            measured["sync_loss"] = totals[3].item()
        return {**measured, "data_seconds": data_seconds}

    def compute_loss(self, batch: dict, drop: bool = True) -> StepLoss:
        """Computes the objective's loss of a batch of the dataset.

        Args:
            batch: collated samples.
            drop: False keeps all conditions.
        """
        clips = prepare_batch(batch, self.vae, self.dtype)
        parts = self.objective.random_parts(batch["number"].tolist(), clips.latents.shape[1:], drop)
        return self.objective.loss(self._predict, clips, parts.to(self.accelerator.device))

    def _predict(self, noisy_latents: Tensor, timesteps: Tensor, **conditions: Tensor) -> Tensor:
        with self.accelerator.autocast():
            return self.model(noisy_latents.to(self.dtype), timesteps, **conditions).float()

    def _trained(self) -> list[torch.nn.Parameter]:
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def _make_trajectories(self) -> None:
        """Has the teacher make what regression learns from, and lets go of it."""
        processes = self.accelerator.process_index, self.accelerator.num_processes
        for dataset in (self.dataset, self.validation_set):
            dataset.complete(lambda: sample_by_teacher(self.config, self.objective, self.vae, self.dtype), *processes)
        self.accelerator.wait_for_everyone()

    # ---- monitoring --------------------------------------------------------------------------------------------------

    def _check_finite(self, values: Tensor, what: str, batch: dict) -> None:
        """Raises on all processes alike: one that stopped alone would leave the others waiting.

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
        """Logs one line of metrics."""
        if log is None:
            return
        entry = {"step": self.step, **means}
        entry |= {"seconds_per_step": seconds, "samples_per_second": self.samples_per_update / seconds}
        entry["peak_memory_gib"] = peak_memory_gib(self.accelerator.device)
        log.add_update(entry, self.config.solver.max_train_steps)
        self.accelerator.log({key: value for key, value in entry.items() if key != "step"}, step=self.step)

    @torch.no_grad()
    def _validate(self, log: RunLog | None) -> None:
        """Measures the loss on fixed samples with fixed noise and nothing dropped, and calls `on_validation`."""
        training = {module: module.training for module in self.model.modules()}
        self.model.eval()
        num_samples = self.config.validation.num_samples
        totals = torch.zeros(4)
        for number in range(num_samples):
            batch = torch.utils.data.default_collate([self.validation_set[number]])
            totals += torch.stack(self.compute_loss(batch, drop=False)).cpu()
        if num_samples and log is not None:
            loss, mouth_loss = (totals[0] / num_samples).item(), (totals[1] / totals[2].clamp(min=1)).item()
            log.add({"step": self.step, "validation_loss": loss, "validation_mouth_loss": mouth_loss})
            self.accelerator.log({"validation_loss": loss, "validation_mouth_loss": mouth_loss}, step=self.step)
            logger.info("step %d | validation loss %.4f | mouth %.4f", self.step, loss, mouth_loss)
            log.render_curve()
        if self.on_validation and self.accelerator.is_main_process and not self.config.solver.fsdp:
            try:
                # Trained networks are fp32, the others may be half.
                with self.accelerator.autocast(), self.validation_set.open(0) as (clip, _):
                    self.on_validation(self.networks, self.vae, clip.record, self.step)
            except InputError as error:  # not worth a run
                logger.warning("no validation video: %s", error)
        self.accelerator.wait_for_everyone()
        for module, mode in training.items():
            module.training = mode

    def _write_header(self) -> None:
        """Writes down the configuration and what the run is made with."""
        if not self.accelerator.is_main_process:
            return
        config = self.config
        save_config(config, self.folder / CONFIG_FILE)
        header = {"step": self.step, **describe_run(weight_files(config))}
        append_header(self.folder / "runs.jsonl", header)
        for key, value in header.items():
            logger.info("%s: %s", key, value)
        self.accelerator.init_trackers("vexpress", config={"yaml": format_config(config)})

    # ---- stopping ----------------------------------------------------------------------------------------------------

    def _request_stop(self, *_) -> None:
        self.stop_requested = True

    def _should_stop(self) -> bool:
        """Whether any process was asked to stop."""
        flag = torch.tensor([float(self.stop_requested)], device=self.accelerator.device)
        return bool(self.accelerator.gather(flag).any())
