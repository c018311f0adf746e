"""Properties of ReferenceNet, V-Kps guider and audio projection."""

import pytest
import torch
from diffusers import UNet2DConditionModel

from tests import tiny
from vexpress.models import AudioProjection, ReferenceNet, VKpsGuider


@pytest.mark.parametrize("size", [(8, 8), (7, 9)])
def test_reference_net_reads_norm2_of_diffusers_unet(size):
    """Against hooks on diffusers' own forward with an all-zero text token, at even and odd latent sizes."""
    ours = tiny.reference_net()
    theirs = tiny.fill_by_rule(UNet2DConditionModel.from_config(tiny.UNET_CONFIG))
    expected = {}
    for name, module in theirs.named_modules():
        if name.endswith("norm2") and "transformer_blocks" in name:
            module.register_forward_hook(
                lambda _, __, output, name=name: expected.update({name.removesuffix(".norm2"): output})
            )
    latents = torch.randn(2, 4, *size)
    with torch.no_grad():
        theirs(latents, 0, encoder_hidden_states=torch.zeros(2, 1, 32))
        features = ours(latents)
    assert features.keys() == expected.keys()
    assert max(tiny.relative_error(features[name], expected[name]) for name in expected) < 1e-5


def test_reference_features_pair_with_the_denoising_unet_by_path():
    with torch.no_grad():
        features = tiny.reference_net()(torch.randn(1, 4, 8, 8))
    assert {block.path for block in tiny.denoising_unet().transformer_blocks()} == set(features)


def test_block_paths_are_module_paths():
    unet = tiny.denoising_unet()
    assert all(unet.get_submodule(block.path) is block for block in unet.transformer_blocks())


@pytest.mark.parametrize(("in_channels", "factor"), [(3, 4), (12, 8), (27, 12)])
def test_guider_starts_as_if_there_were_none_and_downsamples_by_its_configuration(in_channels, factor):
    guider = VKpsGuider(out_channels=12, in_channels=in_channels, block_out_channels=(4, 8, 8))
    assert guider.downsampling == factor
    features = guider(torch.rand(2, 3, 5, 2 * factor, 3 * factor))
    assert features.shape == (2, 12, 5, 2, 3)
    assert features.abs().max() == 0


def test_guider_refuses_channels_that_no_patch_has():
    with pytest.raises(ValueError, match="in_channels is 6: must be 3, 12, 27"):
        VKpsGuider(in_channels=6)


def test_guider_does_not_mix_frames_or_videos():
    guider = tiny.v_kps_guider()
    images = torch.rand(2, 3, 4, 64, 64)
    with torch.no_grad():
        one = guider(images[1:, :, 2:3])
        assert tiny.relative_error(guider(images)[1:, :, 2:3], one) < 1e-5


def test_audio_projection_sizes_are_configuration():
    projection = AudioProjection(
        dim=16, depth=1, dim_head=4, heads=2, num_queries=3, embedding_dim=6, output_dim=10, max_seq_len=14
    )
    assert projection(torch.randn(7, 14, 6)).shape == (7, 3, 10)


def test_audio_projection_hears_the_order_of_steps():
    projection, windows = tiny.audio_projection(), torch.randn(1, 10, 24)
    with torch.no_grad():
        assert tiny.relative_error(projection(windows.flip(1)), projection(windows)) > 1e-3


@pytest.mark.parametrize("build", [tiny.reference_net, tiny.v_kps_guider, tiny.audio_projection])
def test_save_and_load(build, tmp_path):
    network = build()
    network.save_pretrained(tmp_path)
    loaded = type(network).from_pretrained(tmp_path)
    for name, tensor in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)


def test_reference_net_has_nothing_after_the_last_block():
    names = ReferenceNet.from_config(tiny.UNET_CONFIG).state_dict()
    assert not any(name.startswith(("conv_out", "conv_norm_out")) for name in names)
