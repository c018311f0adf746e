"""Recorded results of the released networks. The numbers come from tests/data/parity."""

import gzip

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from PIL import Image

from tests import tiny
from tests.tiny import recorded, relative_error
from vexpress.audio_features import audio_windows
from vexpress.diffusion.schedule import build_scheduler
from vexpress.models import AudioProjection, DenoisingUNet, ReferenceNet, VKpsGuider

TOLERANCE = 1e-5  # the first recording machine's rounding; a wrong factor or order shows at 1e-2


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


def tensors(case: dict) -> dict:
    return {name: torch.from_numpy(value) for name, value in case.items() if value.dtype.kind == "f"}


@pytest.fixture(scope="module")
def features():
    with torch.no_grad():
        return tiny.reference_net()(torch.from_numpy(recorded("reference_net")["latents"]))


def test_v_kps_guider():
    case = tensors(recorded("v_kps_guider"))
    assert relative_error(tiny.v_kps_guider()(case["kps_images"]), case["output"]) < TOLERANCE


def test_audio_projection():
    case = tensors(recorded("audio_projection"))
    assert relative_error(tiny.audio_projection()(case["audio_windows"]), case["output"]) < TOLERANCE


def test_reference_net(features):
    expected = tensors(recorded("reference_net"))
    del expected["latents"]
    assert features.keys() == expected.keys()
    assert max(relative_error(features[name], expected[name]) for name in expected) < TOLERANCE


@pytest.mark.parametrize("kind", ["cond", "uncond"])
def test_denoising_unet(kind, features):
    case = tensors(recorded(f"denoising_unet_{kind}"))
    unet = tiny.denoising_unet()
    conditions = unet.prepare_conditions(
        features if kind == "cond" else None,
        case.get("audio_tokens"),
        case.get("kps_features"),
        reference_attention_weight=float(case["reference_attention_weight"]),
        audio_attention_weight=float(case["audio_attention_weight"]),
    )
    output = unet(case["latents"], torch.tensor(481), conditions)
    assert relative_error(output, case["output"]) < TOLERANCE


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_training_prediction(stage):
    case = recorded(f"training_stage_{stage}")
    inputs = tensors(case)
    windows, timesteps = inputs["audio_windows"], torch.from_numpy(case["timesteps"])
    scheduler = build_scheduler("ddim")
    unet = tiny.denoising_unet()
    conditions = unet.prepare_conditions(
        tiny.reference_net()(inputs["reference_latents"]),
        tiny.audio_projection()(windows.flatten(0, 1)).unflatten(0, windows.shape[:2]),
        tiny.v_kps_guider()(inputs["kps_images"].float()),
    )
    output = unet(scheduler.add_noise(inputs["latents"], inputs["noise"], timesteps), timesteps, conditions)
    # keypoint images were stored in half precision
    assert relative_error(output, inputs["prediction"]) < 1e-4


def test_pipeline():
    case = recorded("pipeline")
    output = tiny.pipeline()(
        Image.fromarray(case["reference_image"]),
        torch.from_numpy(case["audio_waveform"]),
        torch.from_numpy(case["kps_sequence"]),
        latents=torch.from_numpy(case["noise"]),
        output_type="latent",
        num_inference_steps=int(case["num_inference_steps"]),
        guidance_scale=float(case["guidance_scale"]),
        context_frames=int(case["context_frames"]),
        context_overlap=int(case["context_overlap"]),
        reference_attention_weight=float(case["reference_attention_weight"]),
        audio_attention_weight=float(case["audio_attention_weight"]),
    )
    assert relative_error(output.frames, case["output_latents"]) < 1e-4


def test_audio_windows():
    case = recorded("dataset")
    windows = audio_windows(torch.from_numpy(case["audio_hidden_states"])[:, 0], int(case["num_video_frames"]))
    assert relative_error(windows[case["frame_ids"]], case["audio_windows"]) < 1e-6


def test_scheduler():
    case = recorded("scheduler")
    scheduler = build_scheduler("ddim")
    assert isinstance(scheduler, DDIMScheduler)
    scheduler.set_timesteps(25)
    assert scheduler.timesteps.tolist() == case["timesteps_25"].tolist()
    np.testing.assert_allclose(scheduler.alphas_cumprod.numpy(), case["alphas_cumprod"], atol=1e-6)


def test_released_parameter_names_and_shapes():
    sd15 = {
        **tiny.UNET_CONFIG,
        "sample_size": 64,
        "block_out_channels": [320, 640, 1280, 1280],
        "layers_per_block": 2,
        "norm_num_groups": 32,
        "cross_attention_dim": 768,
        "attention_head_dim": 8,
    }
    with torch.device("meta"):
        networks = {
            "reference_net": ReferenceNet.from_config(sd15),
            "denoising_unet": DenoisingUNet.from_config(sd15),
            "v_kps_guider": VKpsGuider(),  # the released sizes are the defaults
            "audio_projection": AudioProjection(),
        }
    released: dict[str, dict[str, str]] = {name: {} for name in networks}
    with gzip.open(tiny.DATA_DIR / "parity" / "checkpoint_keys.tsv.gz", "rt") as rows:
        for row in rows:
            network, name, shape = row.rstrip("\n").split("\t")
            released[network][name] = shape
    for name in ("conv_out.weight", "conv_out.bias"):
        del released["reference_net"][name]  # used by nothing
    for name, network in networks.items():
        own = {key: "x".join(map(str, tensor.shape)) for key, tensor in network.state_dict().items()}
        assert own == released[name], name
