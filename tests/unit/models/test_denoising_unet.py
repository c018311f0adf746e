"""Properties of the denoising UNet that hold for any weights."""

import copy

import pytest
import torch
from diffusers import UNet2DConditionModel

from tests import tiny
from vexpress.models import Conditions, DenoisingUNet

NUM_FRAMES = 3


@pytest.fixture(scope="module")
def unet():
    return tiny.denoising_unet().requires_grad_(False)


@pytest.fixture(scope="module")
def inputs():
    """Two videos of 3 frames; 8x8 latents."""
    generator = torch.Generator().manual_seed(0)
    reference_latents = torch.randn(2, 4, 8, 8, generator=generator)
    with torch.no_grad():
        reference_features = tiny.reference_net()(reference_latents)
    return {
        "latents": torch.randn(2, 4, NUM_FRAMES, 8, 8, generator=generator),
        "timestep": torch.tensor([481, 20]),
        "audio_tokens": torch.randn(2, NUM_FRAMES, 5, 32, generator=generator),
        "kps_features": torch.randn(2, 32, NUM_FRAMES, 8, 8, generator=generator),
        "reference_features": reference_features,
    }


def predict(unet: DenoisingUNet, latents, timestep, **conditions) -> torch.Tensor:
    """One forward pass, conditions by name."""
    return unet(latents, timestep, unet.prepare_conditions(**conditions))


def video(inputs: dict, i: int) -> dict:
    """One of the videos."""
    features = {path: feature[i : i + 1] for path, feature in inputs["reference_features"].items()}
    rest = {name: value[i : i + 1] for name, value in inputs.items() if name != "reference_features"}
    return {**rest, "reference_features": features}


def test_prepared_conditions_equal_recomputed_ones(unet, inputs):
    weights = {"reference_attention_weight": 0.95, "audio_attention_weight": 3.0}
    plain = predict(unet, **inputs, **weights)
    parts = [
        unet.prepare_conditions(inputs["reference_features"]),
        unet.prepare_conditions(None, inputs["audio_tokens"]),
    ]
    prepared = Conditions(inputs["kps_features"], parts[0].reference_kv, parts[1].audio_kv, **weights)
    assert torch.equal(unet(inputs["latents"], inputs["timestep"], prepared), plain)


def test_conditions_without_some(unet, inputs):
    whole = unet.prepare_conditions(**{k: v for k, v in inputs.items() if k not in ("latents", "timestep")})
    for name, argument in (
        ("kps_features", "kps_features"),
        ("reference_kv", "reference_features"),
        ("audio_kv", "audio_tokens"),
    ):
        expected = predict(unet, **{**inputs, argument: None})
        assert torch.equal(unet(inputs["latents"], inputs["timestep"], whole.without(name)), expected)


def test_dropped_conditions_equal_keys_and_values_of_zeros(unet, inputs):
    """The saving in the unconditional branch is exact: zeros through attention leave the output bias."""
    zero_features = {path: torch.zeros_like(feature) for path, feature in inputs["reference_features"].items()}
    zero_tokens = torch.zeros_like(inputs["audio_tokens"])
    plain = predict(
        unet, inputs["latents"], inputs["timestep"], reference_features=zero_features, audio_tokens=zero_tokens
    )
    fast = predict(unet, inputs["latents"], inputs["timestep"])
    assert tiny.relative_error(fast, plain) < 1e-6


@pytest.mark.parametrize("name", ["reference", "audio"])
def test_a_masked_condition_equals_a_dropped_one(unet, inputs, name):
    argument = {"reference": "reference_features", "audio": "audio_tokens"}[name]
    dropped = predict(unet, **{**inputs, argument: None})
    kept = predict(unet, **inputs)
    masked = predict(unet, **inputs, **{f"{name}_keep": torch.tensor([[0.0] * NUM_FRAMES, [1.0] * NUM_FRAMES])})
    assert tiny.relative_error(masked[0], dropped[0]) < 1e-6
    assert tiny.relative_error(masked[1], kept[1]) < 1e-6
    assert tiny.relative_error(dropped, kept) > 1e-3


def test_masks_are_per_frame(inputs):
    """Without motion a frame's mask changes that frame and no other."""
    unet = tiny.denoising_unet()
    unet.silence_audio()
    unet.silence_motion()
    kept = predict(unet, **inputs)
    masked = predict(unet, **inputs, reference_keep=torch.tensor([[1.0, 0.0, 1.0], [1.0, 1.0, 1.0]]))
    changed = (masked - kept).abs().amax(dim=(1, 3, 4)) > 1e-4
    assert changed.tolist() == [[False, True, False], [False, False, False]]


def test_videos_of_a_batch_do_not_mix(unet, inputs):
    together = predict(unet, **inputs)
    for i in range(2):
        assert tiny.relative_error(together[i : i + 1], predict(unet, **video(inputs, i))) < 3e-4


def test_silent_motion_makes_frames_independent_and_motion_mixes_them(unet, inputs):
    def first_frame_depends_on_last(network: DenoisingUNet) -> bool:
        changed = inputs["latents"].clone()
        changed[:, :, -1] += 1
        difference = predict(network, **{**inputs, "latents": changed}) - predict(network, **inputs)
        return bool(difference[:, :, 0].abs().max() > 1e-4)

    silent = tiny.denoising_unet()
    silent.silence_audio()
    silent.silence_motion()
    assert first_frame_depends_on_last(unet)
    assert not first_frame_depends_on_last(silent)


def test_silenced_audio_attention_ignores_audio(inputs):
    silent = tiny.denoising_unet()
    silent.silence_audio()
    silent.silence_motion()
    assert torch.equal(
        predict(silent, **inputs), predict(silent, **{**inputs, "audio_tokens": -inputs["audio_tokens"]})
    )


@pytest.mark.parametrize("size", [(8, 8), (7, 9), (5, 12)])
def test_spatial_part_is_diffusers_unet(size):
    """With reference attention and motion silent, and audio in the place of text, at even and odd latent sizes."""
    ours = tiny.denoising_unet()
    spatial = ours.state_dict()
    for name in spatial:
        if "proj_out" in name and "motion" in name or "attn1_5.to_out" in name:
            spatial[name].zero_()
    theirs = UNet2DConditionModel.from_config(tiny.UNET_CONFIG).eval()
    theirs.load_state_dict({name: spatial[name] for name in theirs.state_dict()})
    latents, tokens = torch.randn(2, 4, *size), torch.randn(2, 5, 32)
    with torch.no_grad():
        expected = theirs(latents, 300, encoder_hidden_states=tokens).sample
        output = predict(ours, latents[:, :, None], torch.tensor(300), audio_tokens=tokens[:, None])
    assert tiny.relative_error(output[:, :, 0], expected) < 1e-5


@pytest.mark.parametrize("num_levels", [2, 3, 4])
def test_number_of_levels_and_norm_groups_are_configuration(num_levels):
    unet = DenoisingUNet(
        down_block_types=("CrossAttnDownBlock2D",) * (num_levels - 1) + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * (num_levels - 1),
        block_out_channels=(8, 16, 24, 24)[:num_levels],
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=12,
        attention_head_dim=2,
        motion_num_attention_heads=2,
        motion_norm_num_groups=2,
        in_channels=6,
        out_channels=6,
    )
    output = predict(unet, torch.randn(1, 6, 2, 8, 8), torch.tensor(0), audio_tokens=torch.randn(1, 2, 3, 12))
    assert output.shape == (1, 6, 2, 8, 8)


def test_gradient_checkpointing_gives_the_same_gradients(inputs):
    """Also to the ReferenceNet, the guider and the projection, whose outputs are arguments."""

    def gradients(checkpointing: bool) -> list[torch.Tensor]:
        unet, reference_net = tiny.denoising_unet().train(), tiny.reference_net().train()
        if checkpointing:
            unet.enable_gradient_checkpointing()
            reference_net.enable_gradient_checkpointing()
        tokens = inputs["audio_tokens"].clone().requires_grad_()
        features = reference_net(torch.ones(2, 4, 8, 8))
        predict(unet, **{**inputs, "audio_tokens": tokens, "reference_features": features}).square().mean().backward()
        return [
            tokens.grad,
            reference_net.conv_in.weight.grad,
            unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1_5.to_k.weight.grad,
            unet.mid_block.motion_modules[0].temporal_transformer.proj_out.weight.grad,
        ]

    for plain, checkpointed in zip(gradients(False), gradients(True), strict=True):
        assert plain.abs().max() > 0
        assert tiny.relative_error(checkpointed, plain) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("size", [(8, 8), (9, 11)])
def test_deep_blocks_of_another_step_take_the_place_of_this_ones(unet, size):
    latents, timestep = torch.randn(1, 4, 2, *size), torch.tensor(7)
    plain = unet(latents, timestep, Conditions())
    whole, deep = unet(latents, timestep, Conditions(), returns_deep=True)
    assert torch.equal(whole, plain)
    without = copy.deepcopy(unet)
    for block in (*without.down_blocks[1:], without.mid_block, *without.up_blocks[:-2]):
        for parameter in block.parameters():
            parameter.fill_(torch.nan)  # so that whatever runs it shows
    shallow, same = without(latents, timestep, Conditions(), deep=deep, returns_deep=True)
    assert torch.equal(shallow, plain) and same is deep
    assert not torch.equal(unet(latents, timestep, Conditions(), deep=2 * deep), plain)


def test_compiles_as_one_graph(unet, inputs):
    conditions = unet.prepare_conditions(inputs["reference_features"], inputs["audio_tokens"], inputs["kps_features"])
    compiled = torch.compile(unet, fullgraph=True, backend="aot_eager")
    for given in (conditions, Conditions()):
        arguments = (inputs["latents"], inputs["timestep"], given)
        assert tiny.relative_error(compiled(*arguments), unet(*arguments)) < 1e-5


def test_save_and_load(unet, inputs, tmp_path):
    unet.save_pretrained(tmp_path)
    loaded = DenoisingUNet.from_pretrained(tmp_path)
    weights = unet.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in loaded.state_dict().items())
    assert loaded.config.motion_num_attention_heads == unet.config.motion_num_attention_heads
    # not bit for bit: weights in a mapped file are aligned otherwise, and then sums are rounded otherwise
    assert tiny.relative_error(predict(loaded, **inputs).detach(), predict(unet, **inputs)) < 3e-4


def test_errors_name_what_is_wrong(unet, inputs):
    with pytest.raises(ValueError, match="33 frames in one window: motion modules have 32"):
        predict(unet, torch.zeros(1, 4, 33, 8, 8), torch.tensor(0))
    with pytest.raises(ValueError, match="reference_features lack"):
        predict(unet, inputs["latents"], inputs["timestep"], reference_features={})
    with pytest.raises(ValueError, match="use_linear_projection=True"):
        DenoisingUNet.from_config({**tiny.UNET_CONFIG, "use_linear_projection": True})
    with pytest.raises(ValueError, match="AttnDownBlock2D"):
        DenoisingUNet.from_config({**tiny.UNET_CONFIG, "down_block_types": ["AttnDownBlock2D"] * 4})
    with pytest.raises(ValueError, match="7 attention heads do not divide"):
        DenoisingUNet.from_config({**tiny.UNET_CONFIG, "attention_head_dim": 7})
