"""Training configurations in files: YAML with `base` files and `key=value` overrides. An unknown key is an error."""

import difflib
import io
from collections.abc import Sequence
from dataclasses import asdict, fields, is_dataclass
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from vexpress.errors import InputError, first_line
from vexpress.files import read_text, replacing
from vexpress.training.config import TrainConfig

Config = TypeVar("Config")

REPLACED_KEYS = {
    "solver.enable_xformers_memory_efficient_attention": "nothing, attention always is scaled_dot_product_attention",
    "enable_xformers_memory_efficient_attention": "nothing, attention always is scaled_dot_product_attention",
    "resume_from_checkpoint": "nothing, the same command with the same output_dir resumes",
    "save_model_epoch_interval": "checkpointing_steps",
    "image_encoder_path": "nothing, there is no image encoder",
    "module_training.motion_module": "module_training.denoising_unet, or STAGES in vexpress/training/stages.py",
    "stage1_ckpt_dir": "init.source=stage and init.path, the folder exported by the stage before",
    "stage2_ckpt_dir": "init.source=stage and init.path, the folder exported by the stage before",
    "motion_module_path": "init.motion_module_path",
    "unet_additional_kwargs": "model.unet_config_path, whose motion_* keys size the motion modules",
    "noise_scheduler_kwargs": "enable_zero_snr; the schedule itself is the released one",
    "solver.scale_lr": "solver.learning_rate, which is not scaled",
    "weight_dtype": "solver.mixed_precision",
    "exp_name": "output_dir",
    "val": "validation",
}
"""Keys of released configurations that are gone -> what to set instead."""

MAX_BASES = 8
MAX_BYTES = 2**20
MAX_NODES = 20_000
"""Keys and values of a file, those that an alias repeats included; more would be no configuration."""


def load_config(path: str | PathLike, overrides: Sequence[str] = (), table: type[Config] = TrainConfig) -> Config:
    """Reads a training configuration.

    Args:
        path: YAML file; its key `base` may name another file, relative to it, whose values it changes.
        overrides: `key=value`, with dots for nested keys; these take precedence.
        table: the class of the configuration.

    Raises:
        InputError: a file that cannot be read, an unknown key, or a value of the wrong type or out of range.
    """
    layers = _read_layers(path)
    for override in overrides:
        if "=" not in override:
            raise InputError(f"override {override!r}: must be key=value, e.g. solver.learning_rate=1e-5")
    try:
        merged = OmegaConf.merge(OmegaConf.structured(table), *layers, OmegaConf.from_dotlist(list(overrides)))
        return OmegaConf.to_object(merged)
    except InputError:
        raise
    except ConfigKeyError as error:
        key = error.full_key or str(error.key)
        if hint := next((text for old, text in REPLACED_KEYS.items() if key == old or key.startswith(f"{old}.")), None):
            raise InputError(f"{path}: key {key} is gone; instead: {hint}") from error
        near = difflib.get_close_matches(key, _all_keys(table), n=1)
        raise InputError(f"{path}: unknown key {key}{f'; did you mean {near[0]}?' if near else ''}") from error
    except yaml.YAMLError as error:
        raise InputError(f"{path}: an override is not valid YAML ({' '.join(str(error).split())})") from error
    except OmegaConfBaseException as error:
        raise InputError(f"{path}: {getattr(error, 'full_key', None) or 'value'}: {first_line(error)}") from error
    except Exception as error:  # of odd keys, indices and numbers, the library raises anything
        raise InputError(f"{path}: a value or override makes no configuration ({first_line(error)})") from error


def save_config(config: TrainConfig, path: str | PathLike) -> None:
    """Writes a configuration that `load_config` reads back."""
    with replacing(path) as temporary:
        temporary.write_text(format_config(config), encoding="utf-8")


def format_config(config: TrainConfig) -> str:
    """The configuration as YAML."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def differing_keys(first: TrainConfig, second: TrainConfig) -> list[str]:
    """Keys, with dots, in which two configurations differ."""

    def flatten(entry: Any, prefix: str) -> dict[str, Any]:
        if not isinstance(entry, dict) or not entry:
            return {prefix.rstrip("."): entry}
        return {key: value for name, part in entry.items() for key, value in flatten(part, f"{prefix}{name}.").items()}

    flat = [flatten(asdict(config), "") for config in (first, second)]
    return [key for key in {**flat[0], **flat[1]} if flat[0].get(key) != flat[1].get(key)]


def _read_layers(path: str | PathLike) -> list[DictConfig]:
    """The file and all that it is based on, the last one first."""
    if not isinstance(path, str | PathLike):
        raise InputError("must be a path", "config", repr(path))
    file = Path(path)
    layers = [_read_yaml(file)]
    while (base := layers[0].pop("base", None)) is not None:
        if len(layers) > MAX_BASES:
            raise InputError(f"{path}: more than {MAX_BASES} files name one another as base")
        file = file.parent / str(base)
        layers.insert(0, _read_yaml(file))
    return layers


def _read_yaml(path: Path) -> DictConfig:
    try:
        text = read_text(path, MAX_BYTES)
        if _count_nodes(yaml.compose(text, yaml.SafeLoader), {}) > MAX_NODES:
            raise InputError(f"configuration {path}: too large for a configuration")
        loaded = OmegaConf.load(io.StringIO(text))
    except OSError as error:
        raise InputError(f"configuration {path}: cannot be read ({error.strerror})") from error
    except InputError:
        raise
    except Exception as error:  # of odd keys, tags and numbers, the libraries raise anything
        raise InputError(f"configuration {path}: not valid YAML ({' '.join(str(error).split())})") from error
    if not isinstance(loaded, DictConfig):
        raise InputError(f"configuration {path}: must hold keys and values")
    return loaded


def _count_nodes(node: yaml.Node | None, counted: dict[int, int]) -> int:
    """Counts what a document holds once aliases are written out, without writing them out."""
    if node is None or isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) not in counted:
        counted[id(node)] = MAX_NODES  # of an alias to itself
        pairs = node.value if isinstance(node, yaml.SequenceNode) else [part for pair in node.value for part in pair]
        counted[id(node)] = 1 + sum(_count_nodes(part, counted) for part in pairs)
    return counted[id(node)]


def _all_keys(config_class: type, prefix: str = "") -> list[str]:
    keys = []
    for entry in fields(config_class):
        keys.append(f"{prefix}{entry.name}")
        if is_dataclass(entry.type):
            keys += _all_keys(entry.type, f"{prefix}{entry.name}.")
    return keys
