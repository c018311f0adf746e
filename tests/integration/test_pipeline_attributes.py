"""Attributes through the whole pipeline, with tiny networks."""

import numpy as np
import pytest
import torch

from tests import tiny
from tests.integration.test_pipeline import NUM_FRAMES, inputs, latents  # noqa: F401
from tests.unit.test_request import NUM_FRAMES as NUM_REQUESTED
from tests.unit.test_request import OPTIONS, PICTURE, SPEECH, OneFace
from vexpress.data.attribute_curves import make_attributes
from vexpress.errors import InputError
from vexpress.models import Conditions
from vexpress.options import MotionOptions
from vexpress.pipeline import VExpressPipeline
from vexpress.pipeline.conditioning import KpsFeatures, WindowConditions
from vexpress.request import Request, prepare_request
from vexpress.training.stages import TrainingNetworks

# ruff: noqa: F811 - fixtures
UNKNOWN = [torch.nan] * 6
OPEN = [1.0, 1, 0, 0, 0, 0]


@pytest.fixture(scope="module")
def pipe():
    pipe = tiny.pipeline()
    pipe.register_modules(attribute_projection=tiny.attribute_projection())
    return pipe


def test_they_change_the_video_and_may_be_given_in_many_forms(pipe, inputs):
    one = latents(pipe, inputs, attributes=OPEN)
    assert torch.equal(latents(pipe, inputs, attributes=np.tile(OPEN, (3, 1))), one)  # the last one stays
    assert not torch.equal(latents(pipe, inputs, attributes=UNKNOWN), one)
    half = torch.tensor([OPEN] * NUM_FRAMES)
    half[-1, 5] = 1
    assert not torch.equal(latents(pipe, inputs, attributes=half), one)


def test_lids_blink_by_themselves(pipe, inputs):
    fps = NUM_FRAMES * 16000 / 4800
    blinks = make_attributes(MotionOptions(), NUM_FRAMES, fps, seed=7)
    assert torch.equal(latents(pipe, inputs, seed=7), latents(pipe, inputs, seed=7, attributes=blinks))


def test_joint_rolling_and_stream_see_the_same(pipe, inputs):
    values = torch.rand(NUM_FRAMES, 6, generator=torch.Generator().manual_seed(0))
    one = {**inputs, "context_frames": 12, "attributes": values}
    assert tiny.relative_error(latents(pipe, one, sampling="rolling"), latents(pipe, one)) < 1e-3

    def frames(attributes):
        sampling = {name: inputs[name] for name in ("num_inference_steps", "context_frames", "context_overlap")}
        given = inputs["reference_image"], inputs["audio_waveform"], inputs["kps_sequence"][0]
        return np.stack([frame for frame, _ in pipe.stream(*given, fps=20, attributes=attributes, **sampling)])

    streamed = frames(values)
    assert np.array_equal(frames(lambda number: values[number]), streamed)
    assert np.array_equal(frames(iter(values)), streamed)
    assert not np.array_equal(frames(OPEN), streamed)


def test_guidance_on_attributes_alone_moves_away_from_the_unknown(pipe, inputs):
    unguided = {"guidance_scale": 1.0}
    options = {"guidance": "attributes", "guidance_scale": 3.0}
    unknown = latents(pipe, inputs, attributes=UNKNOWN, **unguided)
    assert tiny.relative_error(latents(pipe, inputs, attributes=UNKNOWN, **options), unknown) < 1e-4
    known = latents(pipe, inputs, attributes=OPEN, **unguided)
    assert tiny.relative_error(latents(pipe, inputs, attributes=OPEN, **options), known) > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("guidance", ["audio", "attributes"])
def test_what_guidance_leaves_out_is_what_training_drops(guidance):
    networks = TrainingNetworks(
        tiny.reference_net(), tiny.denoising_unet(), tiny.v_kps_guider(), tiny.audio_projection(),
        tiny.attribute_projection(),
    )  # fmt: skip
    noisy, timesteps = torch.randn(1, 4, 2, 8, 8), torch.tensor([400])
    reference, kps, audio = torch.randn(1, 4, 8, 8), torch.rand(1, 3, 2, 64, 64), torch.randn(1, 2, 10, 24)
    attributes = torch.rand(1, 2, 6)
    keep = {"audio_keep": torch.ones(1, 2), "attribute_keep": torch.ones(1, 2, 6), "any_keep": torch.ones(1, 2)}
    keep["audio_keep" if guidance == "audio" else "attribute_keep"].zero_()
    expected = networks(noisy, timesteps, reference, kps, audio, attributes=attributes, **keep)

    features = networks.v_kps_guider(kps)
    constant = networks.denoising_unet.prepare_conditions(networks.reference_net(reference))
    unknown = networks.attribute_projection(torch.tensor(UNKNOWN))
    encoded = KpsFeatures(lambda points: features[0].transpose(0, 1)[: len(points)])
    conditions_of = WindowConditions(networks.denoising_unet, constant, encoded, guidance, unknown)
    tokens = networks.audio_projection(audio[0])[None]
    tokens = torch.cat([tokens, networks.attribute_projection(attributes)], dim=2)
    conditions = conditions_of(torch.arange(12.0).reshape(1, 2, 3, 2), tokens).without(guidance)
    assert isinstance(conditions, Conditions)
    assert tiny.relative_error(networks.denoising_unet(noisy, timesteps, conditions), expected) < 1e-5


def test_a_model_without_the_network_says_so(pipe, inputs):
    plain = VExpressPipeline(**{**pipe.components, "attribute_projection": None})
    for changes in ({"attributes": OPEN}, {"guidance": "attributes"}):
        with pytest.raises(InputError, match="attribute_projection") as caught:
            latents(plain, inputs, **changes)
        assert caught.value.field in changes
    for odd in ([OPEN[:5]], [2.0] * 6, "wide", [[1.0, 2, 3]], torch.ones(2, 3, 6)):
        with pytest.raises(InputError) as caught:
            latents(pipe, inputs, attributes=odd)
        assert caught.value.field == "attributes" and "\n" not in str(caught.value)


# Requests -------------------------------------------------------------------------------------------------------------
def prepared(has_attributes: bool = True, **motion: str):
    request = Request(PICTURE, SPEECH, None, MotionOptions(retarget_strategy="fix_face", **motion))
    return prepare_request(request, OPTIONS, OneFace, None, has_attributes)


def test_a_request_gets_blinks_and_what_it_asks_for():
    motion = MotionOptions(smile="0.5")
    expected = make_attributes(motion, NUM_REQUESTED, OPTIONS.fps, OPTIONS.seed)
    found = prepared(smile="0.5")
    np.testing.assert_array_equal(found.pipeline_arguments(16000)["attributes"].numpy(), expected)
    assert np.nanmin(expected[:, 0]) < 0.2
    assert prepared(blink="none").attributes[:, :2].min() == 1
    assert "attributes" not in prepared(has_attributes=False).pipeline_arguments(16000)


def test_a_request_that_the_model_cannot_follow_is_one_line():
    for name, text in (("blink", "natural"), ("gaze", "0,0"), ("smile", "1")):
        with pytest.raises(InputError, match="attribute_projection") as caught:
            prepared(has_attributes=False, **{name: text})
        assert caught.value.field == name and "\n" not in str(caught.value)
