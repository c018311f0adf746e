"""Sampling in a node: the program's pictures, progress of every window and frame, and an end where it is asked for."""

import numpy as np
import pytest
import torch
from diffusers.configuration_utils import FrozenDict
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTinyOutput
from PIL import Image

from tests import tiny
from vexpress.comfyui.generation import (
    LatentColours,
    NodePipeline,
    Progress,
    contact_sheet,
    generate,
    memory_needed,
    sheet_numbers,
)
from vexpress.media.audio import Audio
from vexpress.media.keypoints import KpsSequence
from vexpress.options import MotionOptions, SamplingOptions
from vexpress.request import ClipInputs, Request, prepare_request

NUM_FRAMES = 10
OPTIONS = SamplingOptions(
    image_width=64, image_height=64, fps=10, num_inference_steps=2, context_frames=4, context_overlap=2
)


@pytest.fixture(scope="module")
def pipeline() -> NodePipeline:
    return NodePipeline(**tiny.pipeline().components)


@pytest.fixture
def inputs() -> ClipInputs:
    rng = np.random.default_rng(0)
    kps = torch.tensor([[20.0, 20], [40, 20], [30, 30]]).expand(NUM_FRAMES, -1, -1)
    sound = rng.normal(0, 0.1, (1, 16000)).astype(np.float32)
    portrait = Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    motion = MotionOptions(retarget_strategy="no_retarget")
    request = Request(portrait, Audio(sound, 16000), KpsSequence(kps, 10.0, 64, 64), motion)
    return prepare_request(request, OPTIONS, no_faces)


def no_faces():
    raise AssertionError("no face is looked for")


@pytest.mark.parametrize("sampling", ["joint", "rolling"])
def test_every_window_and_frame_is_reported(pipeline, inputs, sampling):
    told = []
    options = OPTIONS.changed(sampling=sampling)
    clip = generate(pipeline, inputs, options, lambda *values: told.append(values))
    frames = list(clip.frames)
    assert len(frames) == NUM_FRAMES and frames[0].shape == (64, 64, 3)
    windows = [done for done, total, _ in told if total == 2 * 4]  # steps x windows
    if sampling == "joint":
        assert sorted(set(windows)) == list(range(9))
    assert {done for done, total, _ in told if total == NUM_FRAMES} >= {1, NUM_FRAMES}
    assert all(preview is None or preview.size == (64, 64) for _, _, preview in told)
    assert sum(preview is not None for _, _, preview in told) >= 2


def test_the_frames_are_the_packages(pipeline, inputs):
    clip = generate(pipeline, inputs, OPTIONS, lambda *_: None)
    rate = pipeline.audio_processor.sampling_rate
    expected = tiny.pipeline()(**clip.inputs.pipeline_arguments(rate), options=OPTIONS, output_type="generator").frames
    assert all(np.array_equal(one, other) for one, other in zip(clip.frames, expected, strict=True))


@pytest.mark.parametrize("sampling", ["joint", "rolling"])
@pytest.mark.parametrize("last", [3, 11])
def test_a_report_ends_the_work_at_once(pipeline, inputs, last, sampling):
    told = []

    class Stop(Exception):
        pass

    def report(done: int, total: int, preview: Image.Image | None = None) -> None:
        told.append(done)
        if len(told) == last:
            raise Stop

    with pytest.raises(Stop):
        list(generate(pipeline, inputs, OPTIONS.changed(sampling=sampling), report).frames)
    assert len(told) == last
    again = generate(pipeline, inputs, OPTIONS, lambda *_: None)
    assert len(list(again.frames)) == NUM_FRAMES


def test_networks_are_loaded_before_the_work(pipeline, inputs):
    order = []

    class Report:
        def __call__(self, *_):
            order.append("work")

    generate(pipeline, inputs, OPTIONS, Report(), lambda num_bytes: order.append(num_bytes))
    assert isinstance(order[0], int) and order[1] == "work"


def test_memory_grows_with_windows_and_size():
    assert memory_needed(OPTIONS.changed(image_width=128), 2) > memory_needed(OPTIONS, 2)
    assert 1e9 < memory_needed(SamplingOptions(), 2) < 8e9


def test_latents_of_the_portrait_look_like_it(pipeline):
    class Mean:
        """A VAE whose latents are the picture, smaller."""

        device, dtype = torch.device("cpu"), torch.float32
        config = FrozenDict(scaling_factor=1.0)

        def encode(self, pixels):
            return AutoencoderTinyOutput(torch.nn.functional.avg_pool2d(pixels, 8))

    portrait = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    colours = LatentColours(type("Pipeline", (), {"vae": Mean()}), portrait)
    latents = Mean().encode(torch.from_numpy(np.array(portrait)).permute(2, 0, 1)[None] / 127.5 - 1).latents
    shown = np.asarray(colours.picture(latents[0]).resize((8, 8), Image.Resampling.BOX), float)
    small = np.asarray(portrait.resize((8, 8), Image.Resampling.BOX), float)
    assert np.abs(shown - small).mean() < 12


def test_inner_progress_shows_the_outer_one():
    told = []
    outer = Progress(10, lambda *values: told.append(values))
    with outer, Progress(3, outer._report, outer) as inner:
        outer.update()
        inner.update(2)
    assert told[-1][:2] == (1, 10)


def test_a_contact_sheet_shows_eight_frames():
    frames = [np.zeros((64, 64, 3), np.uint8)] * 8
    kps = torch.tensor([[20.0, 20], [40, 20], [30, 30]]).expand(30, -1, -1)
    assert len(sheet_numbers(30)) == 8
    assert contact_sheet(Image.new("RGB", (64, 64)), frames, kps, np.zeros(100, np.float32)).dtype == np.uint8
