"""The released layout, read strictly and safely."""

import os
import pickle
import re

import pytest
import safetensors.torch
import torch

from tests import tiny
from vexpress.errors import InputError
from vexpress.model_folder import LAYOUT, ModelPaths
from vexpress.pipeline import VExpressPipeline
from vexpress.weights import load_audio_encoder, load_networks, load_vae, read_state_dict


@pytest.fixture
def model_dir(tmp_path):
    return tiny.write_model_dir(tmp_path / "model [1] 'ü'")


def edit(model_dir, name, change):
    path = model_dir / f"{LAYOUT[f'{name}_path']}.safetensors"
    weights = dict(safetensors.torch.load_file(path))
    change(weights)
    safetensors.torch.save_file(weights, path)
    return path


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_what_is_saved_is_loaded(tmp_path, suffix):
    networks = load_networks(ModelPaths.from_model_dir(tiny.write_model_dir(tmp_path, suffix)))
    for name, network in networks.items():
        expected = getattr(tiny, name)().state_dict()
        assert network.state_dict().keys() == expected.keys()
        assert all(torch.equal(network.state_dict()[key], tensor) for key, tensor in expected.items())
        assert not network.training
        assert all(parameter.device.type == "cpu" for parameter in network.parameters())


def test_motion_rows_lie_in_their_own_file(model_dir):
    motion = read_state_dict(model_dir / "v-express/motion_module.safetensors")
    rest = read_state_dict(model_dir / "v-express/denoising_unet.safetensors")
    assert all("motion_modules." in name for name in motion)
    assert not any("motion_modules." in name for name in rest)
    assert {*motion, *rest} == set(tiny.denoising_unet().state_dict())


def test_denoising_unet_file_that_holds_motion_rows_too(model_dir):
    """As the released one does; the motion file counts, and may even be absent."""
    motion_path = model_dir / "v-express/motion_module.safetensors"
    motion = dict(safetensors.torch.load_file(motion_path))
    edit(model_dir, "denoising_unet", lambda weights: weights.update({k: v + 1 for k, v in motion.items()}))
    name = "mid_block.motion_modules.0.temporal_transformer.norm.bias"
    paths = ModelPaths.from_model_dir(model_dir)
    assert torch.equal(load_networks(paths)["denoising_unet"].state_dict()[name], motion[name])
    motion_path.unlink()
    paths = ModelPaths.from_model_dir(model_dir)
    assert torch.equal(load_networks(paths)["denoising_unet"].state_dict()[name], motion[name] + 1)


def test_dtype(model_dir):
    networks = load_networks(ModelPaths.from_model_dir(model_dir), torch.float16)
    assert {p.dtype for network in networks.values() for p in network.state_dict().values()} == {torch.float16}


def test_stage_1_ignores_audio_and_motion(model_dir):
    unet = load_networks(ModelPaths.from_model_dir(model_dir), test_stage="stage_1")["denoising_unet"]
    assert unet.mid_block.motion_modules[0].temporal_transformer.proj_out.weight.abs().max() == 0
    assert unet.transformer_blocks()[0].attn2.to_out[0].bias.abs().max() == 0
    assert unet.transformer_blocks()[0].attn1_5.to_out[0].bias.abs().max() > 0


def test_only_named_keys_are_ignored(model_dir):
    edit(model_dir, "reference_net", lambda weights: weights.update({"conv_out.weight": torch.zeros(4)}))
    load_networks(ModelPaths.from_model_dir(model_dir))
    edit(model_dir, "denoising_unet", lambda weights: weights.update({"stranger.weight": torch.zeros(4)}))
    with pytest.raises(InputError, match="1 unexpected: stranger.weight"):
        load_networks(ModelPaths.from_model_dir(model_dir))


def test_missing_and_misshapen_keys_are_listed(model_dir):
    def change(weights):
        del weights["conv_in.weight"]
        weights["conv_out.bias"] = torch.zeros(7)

    path = edit(model_dir, "v_kps_guider", change)
    with pytest.raises(InputError, match=r"1 missing: conv_in.weight; 1 misshapen: conv_out.bias \(7,\)") as caught:
        load_networks(ModelPaths.from_model_dir(model_dir))
    assert str(path) in str(caught.value)


def test_missing_motion_modules_are_an_error(model_dir):
    (model_dir / "v-express/motion_module.safetensors").unlink()
    with pytest.raises(InputError, match="missing: .*motion_modules"):
        load_networks(ModelPaths.from_model_dir(model_dir))


@pytest.mark.parametrize("name", ["unet_config_path", "vae_path", "reference_net_path"])
def test_missing_parts_name_the_place_and_the_flag(tmp_path, name):
    tiny.write_model_dir(tmp_path)
    place = tmp_path / LAYOUT[name]
    target = place if place.exists() else place.with_suffix(".safetensors")
    target.rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=f"--{name}") as caught:
        ModelPaths.from_model_dir(tmp_path)
    assert str(place) in str(caught.value)
    assert getattr(ModelPaths.from_model_dir(tmp_path, **{name: str(tmp_path / "elsewhere")}), name).exists()


class Attack:
    """Runs a command when unpickled without care."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize("zipped", [True, False])
def test_pickles_that_run_code_are_refused(tmp_path, zipped):
    path, proof = tmp_path / "weights.bin", tmp_path / "executed"
    if zipped:
        torch.save({"conv_in.weight": Attack(proof)}, path)
    else:
        path.write_bytes(pickle.dumps({"conv_in.weight": Attack(proof)}))
    with pytest.raises(InputError, match="refused|damaged"):
        read_state_dict(path)
    assert not proof.exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.bin", b"", "damaged"),
        ("a.bin", b"PK\x03\x04 half of a file", "damaged"),
        ("a.safetensors", b"\xff" * 20, "damaged"),
        ("a.pth", pickle.dumps([1, 2], protocol=2), "damaged|does not hold"),
    ],
)
def test_damaged_files(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read_state_dict(path)
    assert "\n" not in str(caught.value)


def test_wrong_contents(tmp_path):
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    with pytest.raises(InputError, match="does not hold a dictionary of tensors"):
        read_state_dict(tmp_path / "list.pth")
    with pytest.raises(InputError, match="no such file"):
        read_state_dict(tmp_path / "none.pth")


def test_old_torch_format_and_state_dict_wrapper(tmp_path):
    path = tmp_path / "old.pth"
    torch.save({"state_dict": {"a": torch.ones(2)}}, path, _use_new_zipfile_serialization=False)
    assert torch.equal(read_state_dict(path)["a"], torch.ones(2))


def test_configurations_that_do_not_fit(model_dir):
    path = model_dir / LAYOUT["unet_config_path"]
    content = path.read_text()
    for broken, message in (
        ("{", "not valid JSON"),
        ("[]", "must hold a JSON object"),
        (content.replace('"cross_attention_dim"', '"encoder_hid_dim"'), "encoder_hid_dim"),
    ):
        path.write_text(broken)
        with pytest.raises(InputError, match=message):
            load_networks(ModelPaths.from_model_dir(model_dir))


def test_broken_library_folders_are_one_line(model_dir):
    paths = ModelPaths.from_model_dir(model_dir)
    (paths.vae_path / "config.json").write_text("{")
    (paths.audio_encoder_path / "model.safetensors").write_bytes(b"123")
    for load, folder, flag in (
        (load_vae, paths.vae_path, "--vae_path"),
        (load_audio_encoder, paths.audio_encoder_path, "--audio_encoder_path"),
    ):
        with pytest.raises(InputError, match=flag) as caught:
            load(folder)
        assert "\n" not in str(caught.value)


def test_pipeline_from_released_layout_and_round_trip(model_dir, tmp_path):
    pipeline = VExpressPipeline.from_pretrained(model_dir)
    pipeline.save_pretrained(tmp_path / "saved")
    loaded = VExpressPipeline.from_pretrained(tmp_path / "saved")
    for name in ("vae", "reference_net", "denoising_unet", "v_kps_guider", "audio_projection", "audio_encoder"):
        expected, found = getattr(pipeline, name).state_dict(), getattr(loaded, name).state_dict()
        assert all(torch.equal(found[key], tensor) for key, tensor in expected.items())
    assert loaded.scheduler.config.rescale_betas_zero_snr


def test_saving_leaves_no_temporary_files(model_dir):
    assert not [path for path in model_dir.rglob("*") if re.search(r"\.part|^\.", path.name)]
