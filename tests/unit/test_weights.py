"""The released layout, read strictly and safely."""

import json
import os
import pickle
import re
import zipfile

import pytest
import safetensors.torch
import torch

from tests import tiny
from vexpress.errors import InputError
from vexpress.model_folder import LAYOUT, ModelPaths
from vexpress.models.head_motion import HeadMotion
from vexpress.pipeline import VExpressPipeline
from vexpress.weights import load_audio_encoder, load_networks, load_vae, read_state_dict
from vexpress.weights.head_motion import load_head_motion, save_head_motion


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
        ("a.bin", b"this is a text file, and no weights", "damaged"),
        ("a.pth", b"\x80\x02}q\x00." + b"\x00" * 9, "damaged|does not hold"),
        ("a.safetensors", (100_000).to_bytes(8, "little") + b"[" * 100_000, "damaged"),
    ],
)
def test_damaged_files(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read_state_dict(path)
    assert "\n" not in str(caught.value)


def write_packed(path):
    """An archive of 0.1 MB, as PyTorch opens them, whose pickle unpacks to 80 MB of zeros."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(80_000_000))
        archive.writestr("archive/version", "3\n")


def test_packed_archives_are_refused_before_they_are_unpacked(tmp_path, model_dir):
    write_packed(tmp_path / "weights.pth")
    with pytest.raises(InputError, match=r"weights file .*weights\.pth: unpacks to 76 MiB"):
        read_state_dict(tmp_path / "weights.pth")
    for part, (load, folder, path) in library_parts(model_dir).items():
        path.unlink()
        write_packed(folder / "pytorch_model.bin")
        with pytest.raises(InputError, match=rf"^{part}_path=.*pytorch_model\.bin: unpacks to 76 MiB"):
            load(folder)


def test_wrong_contents(tmp_path):
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    with pytest.raises(InputError, match="does not hold a dictionary of tensors"):
        read_state_dict(tmp_path / "list.pth")
    with pytest.raises(InputError, match="no such file"):
        read_state_dict(tmp_path / "none.pth")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_truncated_files(tmp_path, share):
    torch.save({f"weight {i}": torch.randn(100) for i in range(9)}, tmp_path / "whole.bin")
    content = (tmp_path / "whole.bin").read_bytes()
    path = tmp_path / "half.bin"
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(InputError, match="half.bin: damaged"):
        read_state_dict(path)


@pytest.mark.parametrize("kind", ["sparse", "complex", "meta", "nested"])
def test_odd_kinds_of_tensors(tmp_path, kind):
    tensor = torch.zeros(4, device="meta" if kind == "meta" else "cpu", dtype=torch.complex64)
    tensor = torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]) if kind == "nested" else tensor
    torch.save({"odd": tensor.to_sparse() if kind == "sparse" else tensor}, tmp_path / "odd.pth")
    with pytest.raises(InputError, match="odd.pth: .*(odd is no plain tensor|damaged|refused)"):
        read_state_dict(tmp_path / "odd.pth")


def test_keys_that_are_no_names(tmp_path):
    torch.save({3: torch.zeros(1)}, tmp_path / "numbered.pth")
    with pytest.raises(InputError, match="does not hold a dictionary of tensors"):
        read_state_dict(tmp_path / "numbered.pth")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_refused(model_dir, value):
    path = edit(model_dir, "v_kps_guider", lambda weights: weights["conv_in.weight"][1].fill_(value))
    with pytest.raises(InputError, match="conv_in.weight is not finite in float32") as caught:
        load_networks(ModelPaths.from_model_dir(model_dir))
    assert str(path) in str(caught.value)


def test_weights_too_large_for_half_precision_are_refused(model_dir):
    edit(model_dir, "v_kps_guider", lambda weights: weights["conv_in.weight"][1].fill_(1e6))
    load_networks(ModelPaths.from_model_dir(model_dir))
    with pytest.raises(InputError, match="conv_in.weight is not finite in float16"):
        load_networks(ModelPaths.from_model_dir(model_dir), torch.float16)


def test_weights_of_whole_numbers_are_refused(model_dir):
    def change(weights):
        weights["conv_in.bias"] = weights["conv_in.bias"].long()

    edit(model_dir, "v_kps_guider", change)
    with pytest.raises(InputError, match="1 of whole numbers: conv_in.bias"):
        load_networks(ModelPaths.from_model_dir(model_dir))


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


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("audio_encoder", "num_hidden_layers", 1000),
        ("audio_encoder", "num_labels", 10**6),
        ("audio_encoder", "conv_dim", [8] * 2000),
        ("vae", "layers_per_block", 1000),
        ("vae", "block_out_channels", [8] * 2000),
        ("unet_config", "layers_per_block", [1, 1000]),
        ("unet_config", "block_out_channels", [8] * 2000),
        ("head_motion", "num_blocks", 1000),
        ("head_motion", "num_audio_blocks", 1000),
    ],
)
def test_numbers_of_layers_are_bounded(model_dir, part, key, value):
    """A million of them would be built for hours before anything is compared with the weights."""
    save_head_motion(model_dir, HeadMotion(audio_width=8, width=8, num_audio_blocks=1, num_blocks=1))
    place = model_dir / LAYOUT[f"{part}_path"]
    path = place / "config.json" if place.is_dir() else place.with_suffix(".json")
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    load = {
        "audio_encoder": load_audio_encoder,
        "vae": load_vae,
        "head_motion": lambda place: load_head_motion(place.with_suffix(".safetensors")),
        "unet_config": lambda _: load_networks(ModelPaths.from_model_dir(model_dir)),
    }
    with pytest.raises(InputError, match=f"{key}.*(must be at most|has 2000 entries)") as caught:
        load[part](place)
    assert len(str(caught.value).splitlines()) == 1 and len(str(caught.value)) < 500


def test_broken_library_folders_are_one_line(model_dir):
    paths = ModelPaths.from_model_dir(model_dir)
    (paths.vae_path / "config.json").write_text("{")
    (paths.audio_encoder_path / "model.safetensors").write_bytes(b"123")
    for load, folder, field in (
        (load_vae, paths.vae_path, "^vae_path="),
        (load_audio_encoder, paths.audio_encoder_path, "^audio_encoder_path="),
    ):
        with pytest.raises(InputError, match=field) as caught:
            load(folder)
        assert "\n" not in str(caught.value)


def library_parts(model_dir):
    paths = ModelPaths.from_model_dir(model_dir)
    return {
        "vae": (load_vae, paths.vae_path, paths.vae_path / "diffusion_pytorch_model.safetensors"),
        "audio_encoder": (load_audio_encoder, paths.audio_encoder_path, paths.audio_encoder_path / "model.safetensors"),
    }


def change_weights(path, change):
    weights = dict(safetensors.torch.load_file(path))
    change(weights)
    path.unlink()  # the tensors are a mapping of the old file
    safetensors.torch.save_file(weights, path, metadata={"format": "pt"})


@pytest.mark.parametrize("part", ["vae", "audio_encoder"])
def test_library_weights_are_as_strict_as_ours(model_dir, part):
    load, folder, path = library_parts(model_dir)[part]
    whole = path.read_bytes()
    first = min(name for name in safetensors.torch.load(whole) if name != "masked_spec_embed")

    def poison(weights):
        weights[first] = weights[first].clone()
        weights[first].view(-1)[0] = float("nan")

    for change, message in (
        (lambda weights: weights.update({"stranger.weight": torch.zeros(3)}), "1 unexpected: stranger.weight"),
        (lambda weights: weights.pop(first), "1 missing: "),
        (lambda weights: weights.update({first: torch.zeros(1, 2, 3)}), "_path"),
        (poison, "not finite"),
    ):
        path.write_bytes(whole)
        change_weights(path, change)
        with pytest.raises(InputError, match=message) as caught:
            load(folder)
        assert str(folder) in str(caught.value)
        assert "\n" not in str(caught.value)
    for content in (b"", b"text", whole[:1000], whole[:-7]):
        path.write_bytes(content)
        with pytest.raises(InputError, match=f"^{part}_path="):
            load(folder)


def test_old_names_and_heads_of_library_weights_are_harmless(model_dir):
    """The released files have them: the VAE's attention in older words, and wav2vec2 with a head for letters."""
    parts = library_parts(model_dir)
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def age(weights):
        for name in [name for name in weights if "mid_block.attentions" in name]:
            weights[re.sub("to_q|to_k|to_v|to_out.0", lambda match: names[match[0]], name)] = weights.pop(name)

    def add_head(weights):
        for name in list(weights):
            weights[f"wav2vec2.{name}"] = weights.pop(name)
        weights["lm_head.weight"] = torch.zeros(3, 24)

    for part, change in (("vae", age), ("audio_encoder", add_head)):
        load, folder, path = parts[part]
        expected = load(folder)
        change_weights(path, change)
        found = load(folder)
        if part == "audio_encoder":
            expected, found = expected[0], found[0]
        assert all(torch.equal(found.state_dict()[name], t) for name, t in expected.state_dict().items())


@pytest.mark.parametrize(
    ("part", "file", "name", "value"),
    [
        ("vae", "config.json", "act_fn", "relu"),
        ("vae", "config.json", "use_quant_conv", False),
        ("vae", "config.json", "scaling_factor", "0.18215"),
        ("vae", "config.json", "scaling_factor", 0),
        ("vae", "config.json", "latents_std", [1.0, 1.0]),
        ("vae", "config.json", "new_switch", True),
        ("vae", "config.json", "block_out_channels", 7),
        ("audio_encoder", "config.json", "do_stable_layer_norm", True),
        ("audio_encoder", "config.json", "hidden_act", "relu"),
        ("audio_encoder", "config.json", "feat_extract_activation", "relu"),
        ("audio_encoder", "config.json", "add_adapter", True),
        ("audio_encoder", "config.json", "conv_dim", "wide"),
        ("audio_encoder", "preprocessor_config.json", "do_normalize", False),
        ("audio_encoder", "preprocessor_config.json", "sampling_rate", "fast"),
    ],
)
def test_changed_switches_of_library_configurations_are_refused(model_dir, part, file, name, value):
    load, folder, _ = library_parts(model_dir)[part]
    config = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps({**config, name: value}))
    with pytest.raises(InputError, match=f"^{part}_path=") as caught:
        load(folder)
    assert "\n" not in str(caught.value)


STATISTICS = {"latents_mean": [1.0, 2.0, 3.0, 4.0], "latents_std": [0.5, 1.0, 2.0, 4.0]}


@pytest.mark.parametrize("vae", [tiny.autoencoder_tiny(num_stages=5, **STATISTICS), tiny.autoencoder_dc(**STATISTICS)])
def test_autoencoder_without_posterior_is_loaded_with_its_latents_statistics(tmp_path, caplog, capsys, vae):
    vae.save_pretrained(tmp_path / "vae")
    load_vae(tmp_path / "vae", torch.float16).save_pretrained(tmp_path / "again")
    loaded = load_vae(tmp_path / "again")
    assert type(loaded) is type(vae) and {name: loaded.config[name] for name in STATISTICS} == STATISTICS
    for name, tensor in vae.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], tensor, atol=1e-3, rtol=1e-3)
    assert "latents_mean" not in caplog.text + capsys.readouterr().err  # diffusers says that it ignores them


@pytest.mark.parametrize(
    "changes",
    [
        {"_class_name": "AutoencoderRAE"},
        {"_class_name": ["AutoencoderTiny"]},
        {"num_encoder_blocks": [1, 1, 1]},
        {"num_encoder_blocks": 7},
        {"encoder_block_out_channels": [8, 8, 8], "num_encoder_blocks": [1, 1, 1]},
        {"encoder_block_out_channels": [4, 4, 8, 8]},
        {"upsampling_scaling_factor": 3},
        {"latents_std": [1.0, 1.0, 1.0, 0.0]},
        {"latents_mean": [1.0, 2.0, 3.0, 4.0]},
        {"new_switch": True},
    ],
)
def test_tiny_autoencoders_that_do_not_work_are_refused(tmp_path, changes):
    tiny.autoencoder_tiny().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **changes}))
    with pytest.raises(InputError, match="^vae_path=") as caught:
        load_vae(tmp_path)
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
