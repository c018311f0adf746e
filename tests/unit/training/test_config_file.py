"""Configurations: what ships is valid, and a typo never passes."""

import dataclasses
import itertools
from pathlib import Path

import pytest

from vexpress import options
from vexpress.errors import InputError
from vexpress.training import stages
from vexpress.training.config import TRAINED_STAGES, TrainConfig
from vexpress.training.config_file import REPLACED_KEYS, load_config, save_config

CONFIGS_DIR = Path(__file__).parents[3] / "training_configs"
SHIPPED = sorted(path for path in CONFIGS_DIR.rglob("*.yaml") if path.stem.startswith(("base", "stage_")))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: str(path.relative_to(CONFIGS_DIR)))
def test_shipped_configurations_are_valid(path):
    load_config(path)


def test_default_stages_switch_the_papers_means_on():
    """Progressive stages, conditional dropout, and a heavier mouth; the preset `released` has the last two off."""
    first, second, third = (load_config(CONFIGS_DIR / f"stage_{i}.yaml") for i in (1, 2, 3))
    assert [config.data.num_frames for config in (first, second, third)] == [1, 20, 8]
    assert second.init.path == f"{first.output_dir}/export"
    assert third.init.path == f"{second.output_dir}/export"
    assert (first.data.lip_loss_weight, first.data.kps_drop_rate, first.data.reference_drop_rate) == (1, 0, 0)
    for config in (second, third):
        assert (config.data.lip_loss_weight, config.data.kps_drop_rate, config.data.reference_drop_rate) == (
            100,
            0.5,
            0.2,
        )
    for config in (first, second, third):
        assert (config.snr_gamma, config.noise_offset, config.uncond_ratio, config.enable_zero_snr) == (
            5,
            0.05,
            0.1,
            True,
        )
        assert (config.solver.learning_rate, config.solver.adam_weight_decay) == (1e-6, 1e-2)
        assert config.solver.max_grad_norm == 1
    released = load_config(CONFIGS_DIR / "stage_2_released.yaml")
    assert (released.data.lip_loss_weight, released.data.kps_drop_rate, released.data.reference_drop_rate) == (1, 0, 0)


def test_overrides_count_most_and_saved_configurations_load(tmp_path):
    config = load_config(
        CONFIGS_DIR / "stage_2.yaml", ["solver.learning_rate=1e-4", "data.meta_paths=[a.json, b.json]"]
    )
    assert config.solver.learning_rate == 1e-4
    assert config.data.meta_paths == ["a.json", "b.json"]
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.trian_bs=1", "unknown key data.trian_bs; did you mean data.train_bs?"),
        ("solver.max_steps=1", "unknown key solver.max_steps"),
        ("data.train_bs=many", "data.train_bs.*'many'"),
        ("data.kps_drop_rate=1.5", "data.kps_drop_rate=1.5: must be 0 to 1"),
        ("data.lip_loss_weight=nan", "data.lip_loss_weight=nan"),
        ("data.train_width=100", "multiple of 8"),
        ("data.crop_ratio=[1.2, 0.9]", "low <= high"),
        ("data.drop_granularity=pixel", "one of frame, clip"),
        ("train_stage=stage_5", "one of stage_1"),
        ("solver.mixed_precision=int8", "one of no, fp16"),
        ("init.source=stage", "set init.path"),
        ("export_suffix=.exe", "one of .safetensors"),
        ("no equals sign", "must be key=value"),
    ],
)
def test_mistakes_name_the_key(override, message):
    with pytest.raises(InputError, match=message) as caught:
        load_config(CONFIGS_DIR / "stage_1.yaml", [override])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", REPLACED_KEYS)
def test_keys_that_are_gone_say_what_replaced_them(key):
    with pytest.raises(InputError, match="is gone; instead: ") as caught:
        load_config(CONFIGS_DIR / "stage_1.yaml", [f"{key}=1"])
    assert REPLACED_KEYS[key] in str(caught.value)


BOMB = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi"))


def test_unreadable_files(tmp_path):
    cases = {"none.yaml": None, "list.yaml": "- 1", "broken.yaml": "a: [", "loop.yaml": "base: loop.yaml"}
    cases |= {"bomb.yaml": BOMB, "itself.yaml": "a: &a [*a]", "deep.yaml": "[" * 10**5, "large.yaml": "a: 1\n" * 10**6}
    cases |= {
        "code.yaml": "a: !!python/object/apply:os.getcwd []",
        "odd.yaml": "? [1]\n: 2",
        "date.yaml": "a: 2001-13-99",
    }
    for name, content in cases.items():
        if content is not None:
            (tmp_path / name).write_text(content)
        with pytest.raises(InputError, match=name):
            load_config(tmp_path / name)
    (tmp_path / "binary.yaml").write_bytes(bytes(range(256)))
    with pytest.raises(InputError, match="binary.yaml"):
        load_config(tmp_path / "binary.yaml")
    with pytest.raises(InputError, match="config=None: must be a path"):
        load_config(None)


HOSTILE = ["nan", "inf", "-1", "1e400", "9" * 30, "9" * 5000, "x", "[]", "{}", "null", "'a\\0b'", "${oc.env:NO}", "${a"]
HOSTILE += ["-inf", "???", "[1,[2]]", "true", "1.5", "2001-01-01", "${seed}", "!!python/name:os.system", ""]
NUM_VALUES_PER_KEY = 3


def leaves(config_class, prefix=""):
    for entry in dataclasses.fields(config_class):
        if dataclasses.is_dataclass(entry.type):
            yield from leaves(entry.type, f"{prefix}{entry.name}.")
        else:
            yield f"{prefix}{entry.name}", entry


def test_any_value_of_any_key_loads_or_is_one_line(tmp_path):
    """And numbers are within the bounds at their field."""
    (tmp_path / "empty.yaml").write_text("")
    values = itertools.cycle(HOSTILE)
    for key, field in leaves(TrainConfig):
        assert field.metadata["help"]
        for value in itertools.islice(values, NUM_VALUES_PER_KEY):
            check_value(tmp_path / "empty.yaml", key, field, value)


def check_value(path, key, field, value):
    try:
        config = load_config(path, [f"{key}={value}"])
    except InputError as error:
        assert "\n" not in str(error)
        return
    part = config
    for name in key.split("."):
        part = getattr(part, name)
    if isinstance(part, int | float) and not isinstance(part, bool):
        assert field.metadata["low"] <= part <= field.metadata["high"]


ODD_OVERRIDES = ["=", "=1", ".=1", "a.=1", "data=1", "data..x=1", "data.meta_paths.0=x", "[=1", "seed.x=1"]


@pytest.mark.parametrize("override", ODD_OVERRIDES)
def test_odd_overrides_are_one_line(override):
    with pytest.raises(InputError) as caught:
        load_config(CONFIGS_DIR / "stage_1.yaml", [override])
    assert "\n" not in str(caught.value)


def test_stages_are_named_in_one_place():
    assert tuple(stages.STAGES) == TRAINED_STAGES
    assert TRAINED_STAGES[:-1] == options.STAGES
