"""A run on disk: full states to resume from, and the exported model; each is written whole or not at all."""

import contextlib
import json
import logging
import shutil
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException

from vexpress.errors import InputError, first_line
from vexpress.files import former_folder, remove_folder, remove_leftovers, replace_folder
from vexpress.model_folder import INFERENCE_DEFAULTS, LAYOUT, read_config
from vexpress.models.lora import adapter_weights
from vexpress.options import SamplingOptions
from vexpress.training.checkpoints import (
    STATE_FILE,
    Progress,
    checkpoint_path,
    find_checkpoints,
    find_leftovers,
    partial_path,
    read_newest,
    write_progress,
)
from vexpress.training.config import TrainConfig
from vexpress.training.config_file import differing_keys, load_config
from vexpress.training.sharded import harmless
from vexpress.training.stages import STAGES, TrainingNetworks
from vexpress.training.teacher import student_values
from vexpress.weights import Adapter, save_adapter, save_networks

logger = logging.getLogger(__name__)

CONFIG_FILE = "config.yaml"
SCHEDULE_FILE = "schedule.pt"
ADAPTER_FILE = "adapter.safetensors"
"""In `export/`, of a run that trains adapters."""
EFFECTIVE_ON_RESUME = (
    "data.",
    "distill.",
    "validation.",
    "solver.max_",
    "solver.gradient_",
    "log_steps",
    "keep_",
    "checkpointing_",
    "snr_gamma",
    "motion_loss_",
    "shared_noise",
    "noise_offset",
    "uncond_ratio",
)


class RunState:
    """Saves and resumes a run in `output_dir`, which all nodes must share.

    Args:
        config: of the run.
        accelerator: its processes.
        model: the prepared networks.
        networks: the same, unprepared.
        lr_scheduler: saved here and not by accelerate, which would execute a pickle to read it back.
        ema: moving average of the trained weights, likewise; None for none.
        base_model: digest of what adapters are trained on; None where there are none.
        clips: what the samples are of, for `Progress`.
    """

    def __init__(
        self,
        config: TrainConfig,
        accelerator: Accelerator,
        model: torch.nn.Module,
        networks: TrainingNetworks,
        lr_scheduler: torch.optim.lr_scheduler.LRScheduler,
        ema: EMAModel | None,
        base_model: str | None = None,
        clips: str = "",
    ):
        self.config, self.accelerator, self.model, self.networks = config, accelerator, model, networks
        self.lr_scheduler, self.ema, self.base_model, self.clips = lr_scheduler, ema, base_model, clips
        self.folder = Path(config.output_dir)
        self.export_folder = self.folder / "export"

    # ---- resuming ----------------------------------------------------------------------------------------------------

    def resume(self) -> tuple[int, int]:
        """Loads the newest checkpoint, if there is one, and removes what killed runs have left.

        Returns:
            Its step, and the number of samples trained on until then; zeros at the start.

        Raises:
            InputError: the checkpoint is damaged, of another stage, or does not fit the configuration; or the folder is
                not shared by all nodes.
        """
        is_main = self.accelerator.is_main_process
        if is_main:
            self._clean_up()
        path, progress = read_newest(self.folder, verify=is_main)
        steps = self.accelerator.gather(torch.tensor([progress.step], device=self.accelerator.device))
        if len(steps.unique()) > 1:
            raise InputError("nodes find different checkpoints; it must be on a shared disk", "output_dir", self.folder)
        if path is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            return 0, 0
        if progress.stage != self.config.train_stage:
            raise InputError(
                f"holds checkpoints of {progress.stage}, and this is {self.config.train_stage}: change `output_dir`",
                "output_dir",
                self.folder,
            )
        self._warn_of_changes(progress)
        self._load(path)
        logger.info("resuming at step %d from %s", progress.step, path)
        return progress.step, progress.num_samples

    def _clean_up(self) -> None:
        """Puts right what a killed run has left in the middle of its work."""
        former = former_folder(self.export_folder)
        if former.exists() and not self.export_folder.exists():
            former.rename(self.export_folder)  # killed between the two moves of `replace_folder`
        for leftover in (*find_leftovers(self.folder), partial_path(self.export_folder), former):
            remove_folder(leftover)
        for folder in (self.folder, self.folder / "validation"):
            remove_leftovers(folder)

    def _warn_of_changes(self, progress: Progress) -> None:
        if progress.clips and progress.clips != self.clips:
            logger.warning(
                "data.meta_paths: the run so far saw %s, this one sees %s; it goes on with other samples than it would "
                "have had",
                progress.clips,
                self.clips,
            )
        path = self.folder / CONFIG_FILE
        if not path.exists():
            return
        try:
            changed = differing_keys(load_config(path), self.config)
        except InputError as error:
            logger.warning("settings are not compared with those of the run so far: %s", error)
            return
        ignored = [key for key in changed if not key.startswith(EFFECTIVE_ON_RESUME)]
        if ignored:
            logger.warning(
                "resuming a run whose settings were others: %s; weights, optimizer and its settings go on as saved",
                ", ".join(ignored),
            )

    def _load(self, path: Path) -> None:
        try:
            with harmless(path):
                self.accelerator.load_state(str(path))
                schedule = torch.load(path / SCHEDULE_FILE, map_location="cpu", weights_only=True)
            self.lr_scheduler.load_state_dict(schedule["lr_scheduler"])
            if schedule.get("base_model") != self.base_model:
                raise ValueError("it is of adapters on another base model, or of none")
            if (self.ema is None) != (schedule["ema"] is None):
                raise ValueError(f"solver.ema_decay is {'not ' if self.ema is None else ''}set, and was otherwise")
            if self.ema is not None:
                self.ema.load_state_dict(schedule["ema"])
                self.ema.to(self.accelerator.device)
        except InputError:
            raise
        except (Exception, CheckpointException) as error:  # of states that do not fit, the libraries raise anything
            raise InputError(
                f"checkpoint {path} does not fit this configuration ({first_line(error)}); change `output_dir` to "
                "start anew"
            ) from error

    # ---- saving ------------------------------------------------------------------------------------------------------

    def save(self, step: int, num_samples: int) -> None:
        """Writes the full state and the exported model of a step, unless they are there.

        Raises:
            InputError: they cannot be written; what was there before is untouched.
        """
        final = checkpoint_path(self.folder, step)
        try:
            if not final.exists():
                self._save_state(partial_path(final), Progress(step, num_samples, self.config.train_stage, self.clips))
                logger.info("step %d | saved %s", step, final)
            if self._exported_step() != step:
                self._export(step)
        except BaseException as error:
            if self.accelerator.is_main_process:
                for partial in (partial_path(final), partial_path(self.export_folder)):
                    remove_folder(partial)
            if isinstance(error, OSError | RuntimeError | SafetensorError | CheckpointException):
                raise InputError(
                    f"checkpoint of step {step} cannot be written to {self.folder} ({first_line(error)}); earlier ones "
                    "are untouched; free space or change output_dir, and run the same command again"
                ) from error
            raise

    def _save_state(self, partial: Path, progress: Progress) -> None:
        """Writes a checkpoint with all processes, and removes the oldest."""
        if self.accelerator.is_main_process:
            partial.mkdir(parents=True)
        self.accelerator.wait_for_everyone()
        self.accelerator.save_state(str(partial))
        if self.accelerator.is_main_process:
            schedule = {"lr_scheduler": self.lr_scheduler.state_dict(), "ema": self.ema and self.ema.state_dict()}
            torch.save(schedule | {"base_model": self.base_model}, partial / SCHEDULE_FILE)
        self.accelerator.wait_for_everyone()  # all have written their parts
        if self.accelerator.is_main_process:
            write_progress(partial, progress)
            replace_folder(partial, checkpoint_path(self.folder, progress.step))
            for old in find_checkpoints(self.folder)[: -self.config.keep_checkpoints]:
                remove_folder(old)

    def _exported_step(self) -> int | None:
        try:
            step = read_config(self.export_folder / STATE_FILE).get("step")
        except InputError:  # not there, or damaged: it is written anew
            step = None
        self.accelerator.wait_for_everyone()  # all have looked before one writes
        return step

    def _export(self, step: int) -> None:
        """Writes `export/`, a model folder that inference loads as it is, or an adapter; averages if there are any."""
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        if self.ema is not None:
            self.ema.store(trained)
            self.ema.copy_to(trained)
        state = self.accelerator.get_state_dict(self.model)  # from all processes, if it is sharded
        if self.accelerator.is_main_process:
            self._write_export(state, step)
        self.accelerator.wait_for_everyone()  # who leaves first takes the others' connections along
        if self.ema is not None:  # not before: the state dict is no copy
            self.ema.restore(trained)

    def _write_export(self, state: dict[str, Tensor], step: int) -> None:
        partial = partial_path(self.export_folder)
        networks = dict(self.networks.named_children())
        weights = {
            name: {key.removeprefix(f"{name}."): tensor for key, tensor in state.items() if key.startswith(f"{name}.")}
            for name in networks
        }
        if self.base_model is None:
            self._write_model(partial, networks, weights)
        else:
            lora = self.config.lora
            adapters = {name: adapter_weights(part) for name, part in weights.items() if lora.targets.get(name)}
            partial.mkdir(parents=True)
            save_adapter(partial / ADAPTER_FILE, Adapter(lora.rank, lora.targets, self.base_model, adapters))
        (partial / STATE_FILE).write_text(json.dumps({"step": step, "stage": self.config.train_stage}))
        replace_folder(partial, self.export_folder)

    def _write_model(
        self, partial: Path, networks: dict[str, nn.Module], weights: dict[str, dict[str, Tensor]]
    ) -> None:
        save_networks(partial, **networks, weights=weights, dtype=torch.float32, suffix=self.config.export_suffix)
        copies = {"vae_path": self.config.vae_model_path, "audio_encoder_path": self.config.audio_model_path}
        copies["insightface_model_path"] = self.config.insightface_model_path
        for name, source in copies.items():
            if source:
                shutil.copytree(source, partial / LAYOUT[name])
        data = self.config.data
        defaults = {
            "num_pad_audio_frames": data.num_padding_audio_frames,
            "shared_noise": self.config.shared_noise,
        }
        if STAGES[self.config.train_stage].distils:
            defaults |= student_values(self.config)
        with contextlib.suppress(InputError):  # trained at a size that no video may have
            size = {"image_width": data.train_width, "image_height": data.train_height}
            SamplingOptions(**size)
            defaults |= size
        (partial / INFERENCE_DEFAULTS).write_text(json.dumps(defaults, indent=1) + "\n")
