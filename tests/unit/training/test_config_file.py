"""Configurations: what ships is valid, and a typo never passes."""

from pathlib import Path

import pytest

from vexpress.errors import InputError
from vexpress.training.config_file import REPLACED_KEYS, load_config, save_config

CONFIGS_DIR = Path(__file__).parents[3] / "training_configs"
SHIPPED = sorted(path for path in CONFIGS_DIR.rglob("*.yaml"))


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
        ("train_stage=stage_4", "one of stage_1"),
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


def test_unreadable_files(tmp_path):
    cases = {"none.yaml": None, "list.yaml": "- 1", "broken.yaml": "a: [", "loop.yaml": "base: loop.yaml"}
    for name, content in cases.items():
        if content is not None:
            (tmp_path / name).write_text(content)
        with pytest.raises(InputError, match=name):
            load_config(tmp_path / name)
