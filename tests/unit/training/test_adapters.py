"""Which layers get an adapter, and how large those of one person are."""

from pathlib import Path

import pytest
import torch

from tests import tiny
from vexpress.errors import InputError
from vexpress.models import AudioProjection, DenoisingUNet, ReferenceNet, VKpsGuider
from vexpress.models.lora import adapter_weights
from vexpress.training.adapters import choose_layers
from vexpress.training.config import LoraConfig, ModuleTrainingConfig
from vexpress.training.config_file import load_config
from vexpress.training.stages import TrainingNetworks, set_trainable

ROOT = Path(__file__).parents[3]


def test_patterns_choose_among_what_the_stage_trains():
    unet = tiny.denoising_unet()
    trained = [name for name, _ in unet.named_parameters() if "attn2" in name]
    layers = choose_layers(unet, trained, [r"mid_block.*to_[kv]\."], "lora.targets.denoising_unet")
    block = "mid_block.attentions.0.transformer_blocks.0.attn2"
    assert layers == [f"{block}.to_k", f"{block}.to_v"]
    for pattern in ("conv_in", "to_k", "nothing"):  # not trained; not from the start of a name; not there
        with pytest.raises(InputError, match="matches none of the") as caught:
            choose_layers(unet, trained, [".*to_k", pattern], "lora.targets.denoising_unet")
        assert (caught.value.field, caught.value.value) == ("lora.targets.denoising_unet", pattern)


def test_a_frozen_network_has_no_layers_to_choose():
    networks = TrainingNetworks(
        tiny.reference_net(), tiny.denoising_unet(), tiny.v_kps_guider(), tiny.audio_projection()
    )
    lora = LoraConfig(targets={"reference_net": [".*"]})
    with pytest.raises(InputError, match="none of the 0 layers"):
        set_trainable(networks, "stage_3", ModuleTrainingConfig(reference_net=False), lora)


def test_one_person_takes_less_than_25_mb_at_the_released_size():
    """Counted on the meta device, where nothing is allocated."""
    with torch.device("meta"):
        unet = DenoisingUNet()
        sizes = {key: value for key, value in unet.config.items() if not key.startswith(("motion_", "_"))}
        networks = TrainingNetworks(ReferenceNet.from_config(sizes), unet, VKpsGuider(), AudioProjection())
        config = load_config(ROOT / "training_configs" / "person.yaml")
        set_trainable(networks, config.train_stage, config.module_training, config.lora)
    parts = [adapter_weights(network.state_dict()) for network in networks.children()]
    num_bytes = sum(2 * tensor.numel() for part in parts for tensor in part.values())  # in fp16
    assert config.lora.rank == 16 and 15e6 < num_bytes < 25e6
    trained = sum(parameter.numel() for parameter in networks.parameters() if parameter.requires_grad)
    assert 2 * trained == num_bytes
