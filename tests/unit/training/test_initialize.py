"""Each source of starting weights, on files made here."""

import json

import pytest
import safetensors.torch
import torch
from diffusers import UNet2DConditionModel

from tests import tiny
from vexpress.errors import InputError
from vexpress.model_folder import LAYOUT
from vexpress.training.config import InitConfig, ModelConfig, TrainConfig
from vexpress.training.initialize import build_training_networks
from vexpress.training.setup import describe_audio_encoder
from vexpress.weights import read_state_dict

BLOCK = "mid_block.attentions.0.transformer_blocks.0"
MOTION = "mid_block.motion_modules.0.temporal_transformer"


@pytest.fixture
def base_dir(tmp_path):
    """A diffusers UNet folder as of Stable Diffusion 1.5, tiny."""
    unet = tiny.fill_by_rule(UNet2DConditionModel.from_config(tiny.UNET_CONFIG))
    unet.save_pretrained(tmp_path / "base" / "unet")
    return tmp_path / "base"


def config(base_dir, stage="stage_1", **init) -> TrainConfig:
    return TrainConfig(
        train_stage=stage,
        base_model_path=str(base_dir),
        init=InitConfig(**init),
        model=ModelConfig(
            v_kps_guider=tiny.CASES["v_kps_guider_config"], audio_projection=tiny.CASES["audio_projection_config"]
        ),
    )


def test_unet_folder_fills_both_and_copies_self_attention_to_reference_attention(base_dir, caplog):
    caplog.set_level("INFO")
    networks = build_training_networks(config(base_dir))
    source = read_state_dict(base_dir / "unet" / "diffusion_pytorch_model.safetensors")
    reference, unet = networks.reference_net.state_dict(), networks.denoising_unet.state_dict()
    assert all(torch.equal(reference[name], source[name]) for name in reference)
    assert torch.equal(unet["conv_in.weight"], source["conv_in.weight"])
    for name in ("attn1.to_k.weight", "norm1.weight"):
        copy = name.replace("attn1.", "attn1_5.").replace("norm1.", "norm1_5.")
        assert torch.equal(unet[f"{BLOCK}.{copy}"], source[f"{BLOCK}.{name}"])
    assert torch.equal(unet[f"{BLOCK}.attn2.to_q.weight"], source[f"{BLOCK}.attn2.to_q.weight"])
    assert unet[f"{BLOCK}.attn2.to_out.0.weight"].abs().max() == 0
    assert unet[f"{MOTION}.proj_out.weight"].abs().max() == 0
    report = [record.getMessage() for record in caplog.records]
    assert any("DenoisingUNet" in line and "loaded" in line and "0 unused" in line for line in report)
    assert any("missing: " in line and "motion_modules" in line for line in report)
    assert any("ReferenceNet" in line and "unused: conv_norm_out" in line for line in report)


def test_animate_anyone(base_dir, tmp_path):
    reference, unet, guider = tiny.reference_net(), tiny.denoising_unet(), tiny.v_kps_guider()
    theirs = {
        name: tensor for name, tensor in unet.state_dict().items() if "_5." not in name and "motion_modules" not in name
    }
    torch.save(reference.state_dict(), tmp_path / "reference_unet.pth")
    torch.save(theirs, tmp_path / "denoising_unet.pth")
    torch.save(guider.state_dict(), tmp_path / "pose_guider.pth")
    networks = build_training_networks(config(base_dir, source="animate_anyone", path=str(tmp_path)))
    loaded = networks.denoising_unet.state_dict()
    assert torch.equal(loaded[f"{BLOCK}.attn1_5.to_v.weight"], theirs[f"{BLOCK}.attn1.to_v.weight"])
    assert torch.equal(networks.v_kps_guider.conv_out.weight, guider.conv_out.weight)
    assert torch.equal(networks.reference_net.conv_in.weight, reference.conv_in.weight)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_animatediff_motion_with_or_without_prefix_and_other_position_length(base_dir, tmp_path, prefix):
    motion = {name: t for name, t in tiny.denoising_unet().state_dict().items() if "motion_modules" in name}
    theirs = {
        f"{prefix}{name}": torch.zeros(1, 24, t.shape[-1]) if name.endswith(".pe") else t for name, t in motion.items()
    }
    torch.save({"state_dict": theirs, "epoch": 3}, tmp_path / "mm.ckpt")
    unet = build_training_networks(
        config(base_dir, "stage_2", motion_module_path=str(tmp_path / "mm.ckpt"))
    ).denoising_unet
    loaded = unet.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in motion.items())


def test_stage_1_is_silent_whatever_is_loaded(base_dir, tmp_path):
    motion = {name: t for name, t in tiny.denoising_unet().state_dict().items() if "motion_modules" in name}
    torch.save(motion, tmp_path / "mm.ckpt")
    unet = build_training_networks(config(base_dir, motion_module_path=str(tmp_path / "mm.ckpt"))).denoising_unet
    assert unet.state_dict()[f"{MOTION}.proj_out.weight"].abs().max() == 0
    assert torch.equal(unet.state_dict()[f"{MOTION}.proj_in.weight"], motion[f"{MOTION}.proj_in.weight"])


def test_stage_folder_resets_nothing(tmp_path):
    tiny.write_model_dir(tmp_path)
    for stage in ("stage_2", "stage_3"):
        networks = build_training_networks(config(tmp_path, stage, source="stage", path=str(tmp_path)))
        for name, network in networks.named_children():
            expected = getattr(tiny, name)().state_dict()
            assert all(torch.equal(tensor, expected[key]) for key, tensor in network.state_dict().items())


def test_older_names_of_audio_attention(tmp_path):
    tiny.write_model_dir(tmp_path)
    path = tmp_path / f"{LAYOUT['denoising_unet_path']}.safetensors"
    weights, old = dict(safetensors.torch.load_file(path)), {}
    for name, tensor in weights.items():
        key = name
        for part in ("q", "k", "v"):
            key = key.replace(f"attn2.to_{part}.", f"attn2.processor.to_{part}_aud.")
        key = key.replace("attn2.to_out.0.", "attn2.processor.to_out_aud.0.")
        old[key] = tensor
        if key != name:
            old[name] = torch.zeros(3)  # text attention, of another shape
    safetensors.torch.save_file(old, path)
    networks = build_training_networks(config(tmp_path, "stage_3", source="stage", path=str(tmp_path)))
    loaded = networks.denoising_unet.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in weights.items())


def test_starting_twice_gives_the_same_weights(base_dir):
    first, second = (build_training_networks(config(base_dir)).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("name", ["hubert", "whisper"])
def test_the_audio_projection_takes_what_the_encoder_makes(base_dir, tmp_path, name):
    for part in tiny.speech_encoder(name):
        part.save_pretrained(tmp_path / "encoder")
    settings = config(base_dir, source="random")
    settings.audio_model_path = str(tmp_path / "encoder")
    sizes = settings.model.audio_projection
    settings.model.audio_projection = {key: size for key, size in sizes.items() if key != "embedding_dim"}
    networks = build_training_networks(settings)
    assert networks.audio_projection.config.embedding_dim == 24
    record = describe_audio_encoder(settings, networks)
    assert (record.type, len(record.digest)) == (name, 16)
    settings.model.audio_projection = {**sizes, "embedding_dim": 8}
    with pytest.raises(InputError, match="^audio_model_path=.*24 wide, the audio projection takes 8"):
        describe_audio_encoder(settings, build_training_networks(settings))


def test_what_does_not_fit_is_one_line(base_dir, tmp_path):
    cases = {
        "holds none of": {"source": "unet", "path": str(tmp_path)},
        "no such file": {"source": "animate_anyone", "path": str(tmp_path)},
        "model file not found": {"source": "stage", "path": str(tmp_path)},
    }
    for message, init in cases.items():
        with pytest.raises(InputError, match=message):
            build_training_networks(config(base_dir, **init))
    torch.save({"unknown": torch.zeros(1)}, tmp_path / "mm.ckpt")
    with pytest.raises(InputError, match="none of its 0 keys"):
        build_training_networks(config(base_dir, motion_module_path=str(tmp_path / "mm.ckpt")))
    unet_config = json.loads((base_dir / "unet" / "config.json").read_text())
    (base_dir / "unet" / "config.json").write_text(json.dumps({**unet_config, "block_out_channels": [32, 32, 64, 64]}))
    with pytest.raises(InputError, match="has shape"):
        build_training_networks(config(base_dir))
