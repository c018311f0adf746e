"""The ablation's models: trained, measured on the test clips, and their results kept in files."""

import itertools
import json
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from scripts.demo.ablation_report import Result
from scripts.demo.ablation_variants import (
    PLAIN,
    SHORTCUT,
    VARIANTS,
    AblationSettings,
    Variant,
    build_configs,
    clip_sampling,
    digest_of,
)
from scripts.demo.clip_figures import colour_error, follow, least_alike, swapped_difference
from scripts.demo.heldout_clips import HeldoutClip, load_heldout_clips, regenerate
from scripts.demo.mouth_meter import measure_mouth
from scripts.demo.shortcut_dataset import NeighbourReferenceDataset
from vexpress.devices import resolve_device
from vexpress.diffusion.latents import vae_downsampling
from vexpress.errors import InputError
from vexpress.files import replacing
from vexpress.model_folder import ModelPaths
from vexpress.options import STAGES, SamplingOptions
from vexpress.pipeline import VExpressPipeline
from vexpress.training.config import TrainConfig
from vexpress.training.trainer import Trainer

EXIT_TERMINATED = 128 + signal.SIGTERM


# ---- training --------------------------------------------------------------------------------------------------------


def train_stage(config: TrainConfig, data_kind: str) -> None:
    """Trains a stage, unless that was done before.

    Raises:
        InputError: data or settings that do not fit.
        SystemExit: after SIGTERM; the state is saved.
    """
    folder = Path(config.output_dir)
    if (folder / "done").exists():
        return
    trainer = Trainer(config)
    if data_kind == SHORTCUT:
        trainer.dataset = NeighbourReferenceDataset(
            config.data,
            seed=config.seed,
            latent_downsampling=vae_downsampling(trainer.vae),
            audio_dim=trainer.networks.audio_projection.config.embedding_dim,
            for_syncnet=bool(config.sync_loss_weight),
        )
    trainer.train()
    if trainer.step < config.solver.max_train_steps:
        sys.exit(EXIT_TERMINATED)
    (folder / "done").touch()
    shutil.rmtree(folder / "checkpoints")  # four times the size of what is needed from here on


def train_variant(variant: Variant, configs: dict[str, TrainConfig], data_kind: str) -> Path:
    """Trains the last stage and the stages it starts from; returns the model's folder."""
    needed = [STAGES[-1]]
    while start := variant.starts_from.get(needed[0]):
        needed.insert(0, start)
    for stage in needed:
        train_stage(configs[stage], data_kind)
    return Path(configs[STAGES[-1]].output_dir) / "export"


# ---- measuring -------------------------------------------------------------------------------------------------------


def measure_model(
    pipeline: VExpressPipeline, clips: list[HeldoutClip], options: SamplingOptions
) -> dict[str, list[float]]:
    """The figures of `ablation_report.FIGURES`, each with one number per clip."""
    generated = [regenerate(pipeline, clip, options) for clip in clips]
    r, mouths = follow(generated, clips)
    swapped = []
    for clip in clips:
        other = least_alike(clip, clips)
        mouth = measure_mouth(regenerate(pipeline, clip, options, speech_of=other), clip.kps)
        swapped.append(swapped_difference(mouth[:, 0], heard=other, shown=clip))
    figures = {
        "aperture_r": r[:, 0],
        "swapped": swapped,
        "width_r": r[:, 1],
        "movement": [amplitude(mouth[:, 0]) / amplitude(clip.mouth[:, 0]) for mouth, clip in zip(mouths, clips)],
        "colour_error": [colour_error(frames, clip).mean() for frames, clip in zip(generated, clips)],
    }
    return {name: [float(value) for value in values] for name, values in figures.items()}


def amplitude(aperture: np.ndarray) -> float:
    """Standard deviation over the frames where the mouth is found; 0 where it never is."""
    known = aperture[np.isfinite(aperture)]
    return float(known.std()) if len(known) else 0.0


def measure_export(
    folder: Path, clips: list[HeldoutClip], config: TrainConfig, settings: AblationSettings
) -> dict[str, list[float]]:
    """Measures a trained model; `config` is that of its last stage."""
    device = resolve_device()
    pipeline = VExpressPipeline.from_released(ModelPaths.from_model_dir(folder), device=device).to(device)
    pipeline.set_progress_bar_config(disable=True)
    options = SamplingOptions(
        **clip_sampling(settings), num_pad_audio_frames=config.data.num_padding_audio_frames, median_filter=False
    )
    return measure_model(pipeline, clips, options)


def load_test_clips(settings: AblationSettings, config: TrainConfig) -> list[HeldoutClip]:
    """Reads the test clips.

    Raises:
        InputError: they are missing, too few, too short, or not of the size that is trained.
    """
    folder = settings.test_dir
    try:
        clips = load_heldout_clips(folder, settings.num_frames)[: settings.num_clips]
    except (OSError, KeyError) as error:
        raise InputError(
            f"is no drawn dataset ({error}); docs/ablation.md says how to make one", "test_dir", folder
        ) from error
    size = (config.data.train_height, config.data.train_width)
    wrong = [clip.name for clip in clips if clip.frames.shape[1:3] != size]
    if wrong:
        problem = f"{wrong[0]} is not {size[1]}x{size[0]} px, the size that is trained; see make_drawn_dataset --size"
        raise InputError(problem, "test_dir", folder)
    if len(clips) < 2:
        raise InputError(f"has {len(clips)} clips, needed are 2 or more", "test_dir", folder)
    return clips


# ---- results ---------------------------------------------------------------------------------------------------------


def result_path(seed: int, data_kind: str, variant: str, settings: AblationSettings) -> Path:
    """The file of a model's figures; its name holds a digest of all settings they depend on."""
    configs = build_configs(VARIANTS[variant], data_kind, seed, settings)
    test = (str(settings.test_dir), settings.num_clips, settings.num_frames, clip_sampling(settings))
    digest = digest_of(f"{Path(configs[STAGES[-1]].output_dir).name} {test}", settings)
    return settings.output_dir / "results" / f"{data_kind}_{variant}_seed{seed}_{digest}.json"


def read_result(path: Path) -> Result:
    """Reads the figures of one trained model.

    Raises:
        InputError: the file is damaged.
    """
    try:
        return Result(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise InputError(f"result {path}: damaged ({error}); delete it, and the same command makes it again") from error


def write_result(path: Path, result: Result) -> None:
    """Writes the figures of one trained model."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(asdict(result), indent=1) + "\n", encoding="utf-8")


def find_results(seeds: Sequence[int], settings: AblationSettings) -> Iterator[Result]:
    """All results of these seeds that are there, of whichever variants and kinds of data."""
    for kind, variant, seed in itertools.product((PLAIN, SHORTCUT), VARIANTS, seeds):
        path = result_path(seed, kind, variant, settings)
        if path.exists():
            yield read_result(path)
