"""Noise, and what the teacher makes of it: sampled once, kept in files, and learned from over and over."""

import hashlib
import json
import logging
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from vexpress.data.dataset import TalkingFaceDataset
from vexpress.diffusion.latents import Autoencoder, vae_downsampling
from vexpress.errors import InputError, first_line
from vexpress.files import hash_file, replacing
from vexpress.model_folder import LAYOUT, SUFFIXES
from vexpress.training.batches import prepare_batch
from vexpress.training.config import TrainConfig
from vexpress.training.objectives import Objective
from vexpress.training.stages import STAGES
from vexpress.training.teacher import Teacher, teacher_folder, teacher_options

logger = logging.getLogger(__name__)

SAMPLING_KEYS = (
    "scheduler", "num_inference_steps", "guidance", "guidance_scale", "shared_noise", "reference_attention_weight",
    "audio_attention_weight",
)  # fmt: skip
DATA_KEYS = (
    "train_width", "train_height", "num_frames", "sample_rate", "reference_margin", "num_padding_audio_frames",
    "flip_rate", "crop_ratio", "attribute_drop_rate",
)  # fmt: skip
LOG_SECONDS = 30

Sampled = Callable[[dict], dict[str, Tensor]]
"""A sample of the dataset -> what replaces its parts: noise and latents (c f h w), and attributes (f 6), float32."""


class TaughtDataset(Dataset):
    """The first samples of a dataset, over and over, with `noise` and, as `latents`, the result; (c f h w) float32.

    Attributes of a face that were dropped for the teacher are not known in the sample.

    Args:
        dataset: numbered without end.
        folder: of the files, one per sample.
        num_samples: sample n has the content of sample n modulo this, and keeps its number.
    """

    def __init__(self, dataset: TalkingFaceDataset, folder: Path, num_samples: int):
        self.dataset, self.folder, self.num_samples = dataset, folder, num_samples
        self.config, self.records, self.summary = dataset.config, dataset.records, dataset.summary

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, number: int) -> dict[str, Tensor | str | int]:
        content = number % self.num_samples
        try:
            taught = safetensors.torch.load_file(self._path(content))
        except (OSError, SafetensorError) as error:
            raise InputError(
                f"trajectory {self._path(content)} cannot be read ({first_line(error)}): delete it, and the same "
                "command makes it again"
            ) from error
        return self.dataset[content] | taught | {"number": number}

    def complete(self, sampler: Callable[[], Sampled], rank: int = 0, num_processes: int = 1) -> None:
        """Has the teacher make what is not there yet, this process its share.

        Args:
            sampler: gives the teacher, which is not loaded if nothing is missing.
            rank: of this process, 0 to num_processes - 1.
            num_processes: that share the work.

        Raises:
            InputError: a file cannot be written, or a clip cannot be read.
        """
        own = range(rank, self.num_samples, num_processes)
        missing = [number for number in own if not self._path(number).is_file()]
        if not missing:
            return
        sampled, started = sampler(), time.perf_counter()
        logged = started
        for count, number in enumerate(missing, 1):
            taught = sampled(self.dataset[number])
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                with replacing(self._path(number)) as temporary:
                    safetensors.torch.save_file(taught, temporary)
            except OSError as error:
                problem = f"trajectories cannot be written ({error.strerror})"
                raise InputError(problem, "distill.trajectories_dir", self.folder) from error
            if (now := time.perf_counter()) - logged > LOG_SECONDS or count == len(missing):
                minutes = (now - started) / count * (len(missing) - count) / 60
                logger.info("the teacher has made %d of %d trajectories, %.0f min left", count, len(missing), minutes)
                logged = now

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:08d}.safetensors"


def learns_trajectories(config: TrainConfig) -> bool:
    """Whether a run learns from results that its teacher has sampled before."""
    return STAGES[config.train_stage].distils and config.distill.objective == "regression"


def add_trajectories(dataset: TalkingFaceDataset, config: TrainConfig, dtype: torch.dtype) -> TaughtDataset:
    """The dataset with trajectories, which may be missing still.

    Their folder is named by all that they depend on: the teacher's weights and sampling, the data, and the seed.
    """
    folder = Path(config.distill.trajectories_dir or Path(config.output_dir) / "trajectories")
    name = _digest(dataset, config, dtype)[:16]
    return TaughtDataset(dataset, folder / name, config.distill.num_trajectories)


def _digest(dataset: TalkingFaceDataset, config: TrainConfig, dtype: torch.dtype) -> str:
    teacher = teacher_folder(config)
    weights = [path for path in (teacher / "v-express").glob("*") if path.suffix in SUFFIXES]
    weights += [path for path in Path(config.vae_model_path).glob("*") if path.suffix in SUFFIXES]
    options, data = asdict(teacher_options(config)), asdict(dataset.config)
    facts = {
        "files": sorted(hash_file(path) for path in [*weights, teacher / LAYOUT["unet_config_path"]]),
        "sampling": {key: options[key] for key in SAMPLING_KEYS},
        "data": {key: data[key] for key in DATA_KEYS},
        "is_cached": dataset.config.latent_cache_dir is not None,
        "run": [config.seed, config.noise_offset, config.enable_zero_snr, str(dtype)],
        "clips": [
            [str(path), path.stat().st_size, path.stat().st_mtime_ns]
            for record in dataset.records
            for path in (record.video, record.face_info, record.audio_embeds)
        ]
        + [dataset.summary] * bool(dataset.indexed),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def sample_by_teacher(config: TrainConfig, objective: Objective, vae: Autoencoder, dtype: torch.dtype) -> Sampled:
    """Loads the teacher, and has it sample from the objective's noise.

    Args:
        config: of the stage.
        objective: whose random parts have the noise.
        vae: encodes the references; the teacher works on its device.
        dtype: of the teacher.

    Raises:
        InputError: a file is missing or does not fit.
    """
    teacher = Teacher.load(config, dtype, vae.device)
    data, factor = config.data, vae_downsampling(vae)
    shape = vae.config.latent_channels, data.num_frames, data.train_height // factor, data.train_width // factor

    def sampled(sample: dict) -> dict[str, Tensor]:
        parts = objective.random_parts([sample["number"]], shape, drop=True)
        attributes = sample["attributes"].where(parts.attribute_keep[0] > 0, torch.nan)
        taught = {"noise": parts.noise[0], "latents": parts.noise[0], "attributes": attributes}
        clip = prepare_batch(default_collate([sample | taught]), vae, dtype)
        return taught | {"latents": teacher.sample(clip.latents, clip.conditions)[0].cpu().contiguous()}

    return sampled
