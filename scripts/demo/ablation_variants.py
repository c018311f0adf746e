"""What the ablation compares: ways to train the demo model, their configurations, and how test clips are made."""

import copy
import functools
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from scripts.demo.shortcut_dataset import NOSE_SHIFT
from vexpress.options import STAGES
from vexpress.training.config import TrainConfig
from vexpress.training.config_file import load_config

FULL, PLAIN, SHORTCUT = "full", "plain", "shortcut"
"""Key of the recipe itself among `VARIANTS`; the two kinds of training data."""
WITH_AUDIO = STAGES[1:]
SYNCNET = "vexpress/demo_pack/evaluation/syncnet.safetensors"
CLIP_SAMPLING = {
    "num_inference_steps": 6,
    "guidance": "audio",
    "guidance_scale": 2.0,
    "shared_noise": 1.0,
    "reference_attention_weight": 1.0,
    "audio_attention_weight": 1.0,
}
"""How test clips are made. Not the demo pack's sampling, so that tuning that one leaves results valid."""


def changed(stages: Sequence[str], *overrides: str) -> dict[str, tuple[str, ...]]:
    """The same overrides for several stages."""
    return dict.fromkeys(stages, overrides)


@dataclass(frozen=True)
class Variant:
    """A way to train the demo model.

    Attributes:
        title: in tables.
        overrides: stage -> what differs from its configuration.
        starts_from: stage -> the one whose export it starts from.
        only_last: there is only stage 3, for the budget of all three.
    """

    title: str
    overrides: dict[str, tuple[str, ...]] = field(default_factory=dict)
    starts_from: dict[str, str] = field(default_factory=lambda: {"stage_2": "stage_1", "stage_3": "stage_2"})
    only_last: bool = False


VARIANTS = {
    FULL: Variant("full recipe"),
    # Samples that lose audio or all conditions stay, since guidance needs them.
    "no_dropout": Variant(
        "no conditional dropout", changed(STAGES, "data.kps_drop_rate=0.0", "data.reference_drop_rate=0.0")
    ),
    "strong_dropout": Variant(  # the rates of training_configs/stage_2.yaml and stage_3.yaml
        "dropout of 0.5 and 0.2", changed(WITH_AUDIO, "data.kps_drop_rate=0.5", "data.reference_drop_rate=0.2")
    ),
    "even_loss": Variant("mouth weight 1", changed(STAGES, "data.lip_loss_weight=1.0")),
    # At the learning rate of stage 1, which also starts from nothing; that of stage 3 only refines.
    "all_at_once": Variant(
        "all at once",
        {"stage_3": ("init.source=random", "init.path=null", "solver.learning_rate=0.02")},
        starts_from={},
        only_last=True,
    ),
    # Audio projection, audio attention and motion modules, untrained in stage 1, start from scratch, as in the release.
    # Stage 2 counts in the budget but is not trained, since nothing of it would remain.
    "reset": Variant("stage 3 resets stage 2", starts_from={"stage_2": "stage_1", "stage_3": "stage_1"}),
    "no_context": Variant("audio of 1 frame", changed(WITH_AUDIO, "data.num_padding_audio_frames=0")),
    "motion_loss": Variant("loss on motion, too", changed(WITH_AUDIO, "motion_loss_weight=2.0")),  # not the paper's
    # Not the paper's, either. SyncNet is the pack's, which has never seen the test clips' people, voices or sentences.
    "sync_loss": Variant("SyncNet as a teacher", {"stage_3": ("sync_loss_weight=0.5", f"syncnet_path={SYNCNET}")}),
}
VARIANT_TITLES = {name: variant.title for name, variant in VARIANTS.items()}


@dataclass(frozen=True)
class AblationSettings:
    """What all variants have in common.

    Attributes:
        config_dir: folder of stage_1.yaml, stage_2.yaml and stage_3.yaml.
        output_dir: folder for everything that is written.
        scale: share of the recipe's updates that is trained.
        test_dir: drawn dataset that is measured on; none of its conditions leaks.
        num_clips: clips of it that are measured.
        num_frames: frames of each clip.
        num_inference_steps: denoising steps for each clip.
    """

    config_dir: Path
    output_dir: Path
    scale: float
    test_dir: Path
    num_clips: int
    num_frames: int
    num_inference_steps: int = CLIP_SAMPLING["num_inference_steps"]


load_config_once = functools.cache(load_config)  # a report asks for dozens of configurations


def frames_per_update(config: TrainConfig) -> int:
    """Frames that an update of the weights learns from."""
    return config.data.train_bs * config.data.num_frames * config.solver.gradient_accumulation_steps


def frames_seen(configs: dict[str, TrainConfig]) -> int:
    """Frames that all stages together learn from."""
    return sum(config.solver.max_train_steps * frames_per_update(config) for config in configs.values())


def build_configs(variant: Variant, data_kind: str, seed: int, settings: AblationSettings) -> dict[str, TrainConfig]:
    """Stage -> its configuration. A digest of all settings names a run's folder, so variants share equal stages.

    Raises:
        InputError: a configuration that cannot be read.
    """

    def load(stage: str, *overrides: str) -> TrainConfig:
        return copy.deepcopy(load_config_once(settings.config_dir / f"{stage}.yaml", overrides))

    def scaled(count: int) -> int:
        return max(1, round(count * settings.scale))

    recipe = {stage: load(stage) for stage in STAGES}
    num_steps = {stage: scaled(config.solver.max_train_steps) for stage, config in recipe.items()}
    if variant.only_last:
        last = STAGES[-1]
        budget = sum(num_steps[stage] * frames_per_update(config) for stage, config in recipe.items())
        num_steps = {last: round(budget / frames_per_update(recipe[last]))}
    configs: dict[str, TrainConfig] = {}
    for stage, steps in num_steps.items():
        config = load(stage, *variant.overrides.get(stage, ()))
        if start := variant.starts_from.get(stage):
            config.init.source, config.init.path = "stage", f"{configs[start].output_dir}/export"
        config.seed = seed
        config.solver.max_train_steps = steps
        config.solver.lr_warmup_steps = round(config.solver.lr_warmup_steps * settings.scale)
        config.output_dir = ""
        if data_kind == SHORTCUT:
            folders = [leaking_dir(number, settings) for number in range(len(config.data.meta_paths))]
            config.data.meta_paths = [str(folder / "metadata.json") for folder in folders]
        digest = digest_of(json.dumps(asdict(config)), settings)
        config.output_dir = str(settings.output_dir / "runs" / f"{data_kind}_seed{seed}" / f"{stage}_{digest}")
        configs[stage] = config
    return configs


def leaking_dir(number: int, settings: AblationSettings) -> Path:
    """Folder of the leaking copy of one of the recipe's datasets; its name holds the strength of the leak."""
    return settings.output_dir / SHORTCUT / f"{number}_nose_{NOSE_SHIFT}"


def digest_of(text: str, settings: AblationSettings) -> str:
    """A short digest of a text, independent of where the output folder is."""
    return hashlib.sha256(text.replace(str(settings.output_dir), "").encode()).hexdigest()[:10]


def clip_sampling(settings: AblationSettings) -> dict[str, Any]:
    """How test clips are made: values of `SamplingOptions`."""
    return CLIP_SAMPLING | {"num_inference_steps": settings.num_inference_steps}
