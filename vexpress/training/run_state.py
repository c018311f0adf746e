"""A run on disk: full states to resume from, and the exported model; each is written whole or not at all."""

import json
import logging
import shutil
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from safetensors import SafetensorError
from torch import Tensor

from vexpress.errors import InputError, first_line
from vexpress.model_folder import INFERENCE_DEFAULTS, LAYOUT, read_config
from vexpress.training.config import TrainConfig
from vexpress.training.config_file import differing_keys, load_config
from vexpress.training.stages import TrainingNetworks
from vexpress.weights import save_networks

logger = logging.getLogger(__name__)

STATE_FILE = "trainer.json"
SCHEDULE_FILE = "schedule.pt"
EFFECTIVE_ON_RESUME = (
    "data.",
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
        lr_scheduler: saved here and not by accelerate, which would read it back with all that a pickle may do.
        ema: moving average of the trained weights, likewise; None for none.
    """

    def __init__(
        self,
        config: TrainConfig,
        accelerator: Accelerator,
        model: torch.nn.Module,
        networks: TrainingNetworks,
        lr_scheduler: torch.optim.lr_scheduler.LRScheduler,
        ema: EMAModel | None,
    ):
        self.config, self.accelerator, self.model, self.networks = config, accelerator, model, networks
        self.lr_scheduler, self.ema = lr_scheduler, ema
        self.folder = Path(config.output_dir)

    def resume(self) -> tuple[int, int]:
        """Loads the last checkpoint, if there is one.

        Returns:
            Its step, and the number of samples trained on until then; zeros at the start.

        Raises:
            InputError: the folder is another stage's, not shared, or does not fit the configuration.
        """
        found = sorted((self.folder / "checkpoints").glob("step_*"))
        state = read_config(found[-1] / STATE_FILE) if found else {"step": 0, "num_samples": 0}
        steps = self.accelerator.gather(torch.tensor([state["step"]], device=self.accelerator.device))
        if len(steps.unique()) > 1:
            raise InputError("nodes find different checkpoints; it must be on a shared disk", "output_dir", self.folder)
        if not found:
            self.folder.mkdir(parents=True, exist_ok=True)
            return 0, 0
        if state["stage"] != self.config.train_stage:
            raise InputError(
                f"output_dir={self.folder} holds checkpoints of {state['stage']}, and this is "
                f"{self.config.train_stage}: change output_dir"
            )
        self._warn_of_changes()
        try:
            self.accelerator.load_state(str(found[-1]))
            schedule = torch.load(found[-1] / SCHEDULE_FILE, map_location="cpu", weights_only=True)
            self.lr_scheduler.load_state_dict(schedule["lr_scheduler"])
            if self.ema is not None and schedule["ema"] is None:
                raise ValueError("solver.ema_decay is set, and was not")
            if self.ema is not None:
                self.ema.load_state_dict(schedule["ema"])
                self.ema.to(self.accelerator.device)
        except (RuntimeError, ValueError, KeyError, OSError, SafetensorError) as error:
            raise InputError(
                f"{found[-1]} does not fit this configuration ({first_line(error)}); change output_dir to start anew"
            ) from error
        logger.info("resuming at step %d from %s", state["step"], found[-1])
        return state["step"], state["num_samples"]

    def _warn_of_changes(self) -> None:
        path = self.folder / "config.yaml"
        if not path.exists():
            return
        changed = differing_keys(load_config(path), self.config)
        ignored = [key for key in changed if not key.startswith(EFFECTIVE_ON_RESUME)]
        if ignored:
            logger.warning(
                "resuming a run whose settings were others: %s; weights, optimizer and its settings go on as saved",
                ", ".join(ignored),
            )

    def save(self, step: int, num_samples: int) -> None:
        """Writes the full state and the exported model of a step, unless they are there.

        Raises:
            InputError: they cannot be written; what was there before is untouched.
        """
        final = self.folder / "checkpoints" / f"step_{step:08d}"
        partial = final.with_name(f".{final.name}.part")
        try:
            if not final.exists():
                self._save_state(partial, step, num_samples)
                self.accelerator.wait_for_everyone()
                if self.accelerator.is_main_process:
                    partial.rename(final)
                    for old in sorted(final.parent.glob("step_*"))[: -self.config.keep_checkpoints]:
                        shutil.rmtree(old)
                logger.info("step %d | saved %s", step, final)
            if self._exported_step() != step:
                self._export(step)
        except (OSError, RuntimeError, SafetensorError) as error:
            shutil.rmtree(partial, ignore_errors=True)
            shutil.rmtree(self.folder / ".export.part", ignore_errors=True)
            raise InputError(
                f"checkpoint of step {step} cannot be written to {self.folder} ({error}); earlier ones are untouched; "
                "free space or change output_dir, and run the same command again"
            ) from error

    def _save_state(self, partial: Path, step: int, num_samples: int) -> None:
        if self.accelerator.is_main_process:
            for leftover in partial.parent.glob(".step_*.part"):  # of runs that were killed
                shutil.rmtree(leftover)
            partial.mkdir(parents=True)
        self.accelerator.wait_for_everyone()
        self.accelerator.save_state(str(partial))
        if self.accelerator.is_main_process:
            state = {"step": step, "num_samples": num_samples, "stage": self.config.train_stage}
            (partial / STATE_FILE).write_text(json.dumps(state))
            schedule = {"lr_scheduler": self.lr_scheduler.state_dict(), "ema": self.ema and self.ema.state_dict()}
            torch.save(schedule, partial / SCHEDULE_FILE)

    def _exported_step(self) -> int | None:
        path = self.folder / "export" / STATE_FILE
        step = read_config(path)["step"] if path.exists() else None
        self.accelerator.wait_for_everyone()  # all have looked before one writes
        return step

    def _export(self, step: int) -> None:
        """Writes `export/`, a model folder that inference loads as it is; averaged weights where there are any."""
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        if self.ema is not None:
            self.ema.store(trained)
            self.ema.copy_to(trained)
        state = self.accelerator.get_state_dict(self.model)  # from all processes, if it is sharded
        if self.accelerator.is_main_process:
            self._write_export(state, step)
        if self.ema is not None:  # not before: the state dict is no copy
            self.ema.restore(trained)

    def _write_export(self, state: dict[str, Tensor], step: int) -> None:
        final, partial, former = (self.folder / name for name in ("export", ".export.part", ".export.former"))
        for leftover in (partial, former):
            shutil.rmtree(leftover, ignore_errors=True)
        networks = dict(self.networks.named_children())
        weights = {
            name: {key.removeprefix(f"{name}."): tensor for key, tensor in state.items() if key.startswith(f"{name}.")}
            for name in networks
        }
        save_networks(partial, **networks, weights=weights, dtype=torch.float32, suffix=self.config.export_suffix)
        copies = {"vae_path": self.config.vae_model_path, "audio_encoder_path": self.config.audio_model_path}
        copies["insightface_model_path"] = self.config.insightface_model_path
        for name, source in copies.items():
            if source:
                shutil.copytree(source, partial / LAYOUT[name])
        defaults = {
            "image_width": self.config.data.train_width,
            "image_height": self.config.data.train_height,
            "num_pad_audio_frames": self.config.data.num_padding_audio_frames,
            "shared_noise": self.config.shared_noise,
        }
        (partial / INFERENCE_DEFAULTS).write_text(json.dumps(defaults, indent=1) + "\n")
        (partial / STATE_FILE).write_text(json.dumps({"step": step, "stage": self.config.train_stage}))
        if final.exists():
            final.rename(former)
        partial.rename(final)
        shutil.rmtree(former, ignore_errors=True)
