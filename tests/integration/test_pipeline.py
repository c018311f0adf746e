"""Properties of the pipeline, with tiny networks."""

import numpy as np
import pytest
import torch
from PIL import Image

from tests import tiny
from vexpress import audio_features
from vexpress.audio_features import audio_windows, encode_audio
from vexpress.diffusion.schedule import SCHEDULERS, build_scheduler
from vexpress.errors import InputError
from vexpress.media.smoothing import stream_denoise

NUM_FRAMES = 7
SIZE = 64


@pytest.fixture(scope="module")
def pipe():
    return tiny.pipeline()


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(0)
    centers = np.array([[24, 24], [40, 24], [32, 40]], dtype=np.float32)
    return {
        "reference_image": Image.fromarray(rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)),
        "audio_waveform": torch.from_numpy(rng.standard_normal(4800).astype(np.float32)),
        "kps_sequence": torch.from_numpy(centers + rng.uniform(-3, 3, (NUM_FRAMES, 1, 2)).astype(np.float32)),
        "num_inference_steps": 2,
        "context_frames": 4,
        "context_overlap": 2,
    }


def latents(pipe, inputs, **changes) -> torch.Tensor:
    return pipe(**{**inputs, "output_type": "latent", **changes}).frames


def test_same_seed_same_video(pipe, inputs):
    assert torch.equal(latents(pipe, inputs, seed=1), latents(pipe, inputs, seed=1))
    assert not torch.equal(latents(pipe, inputs, seed=1), latents(pipe, inputs, seed=2))


def test_memory_saving_and_batching_change_nothing(pipe, inputs):
    expected = latents(pipe, inputs)
    assert torch.equal(latents(pipe, inputs, save_gpu_memory=True, device="cpu"), expected)
    assert tiny.relative_error(latents(pipe, inputs, windows_per_batch=3), expected) < 1e-4


def test_guidance_1_is_the_conditional_prediction(pipe, inputs):
    """It skips the unconditional branch; a scale of nearly 1 runs it."""
    assert (
        tiny.relative_error(latents(pipe, inputs, guidance_scale=1 + 1e-6), latents(pipe, inputs, guidance_scale=1))
        < 1e-4
    )


@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers_run_from_one_frame_up(inputs, name):
    pipe = tiny.pipeline()
    pipe.scheduler = build_scheduler(name)
    one = {**inputs, "kps_sequence": inputs["kps_sequence"][:1], "audio_waveform": inputs["audio_waveform"][:300]}
    assert torch.isfinite(latents(pipe, one)).all()
    assert latents(pipe, inputs).shape == (1, 4, NUM_FRAMES, SIZE // 8, SIZE // 8)


def test_more_steps_than_a_scheduler_can_take(inputs):
    pipe = tiny.pipeline()
    pipe.scheduler = build_scheduler("lcm")
    with pytest.raises(ValueError, match="num_inference_steps 200 with this scheduler"):
        latents(pipe, {**inputs, "num_inference_steps": 200})


def test_odd_latent_sizes(pipe, inputs):
    assert latents(pipe, inputs, height=72, width=88).shape == (1, 4, NUM_FRAMES, 9, 11)


def test_output_types_agree(pipe, inputs):
    arrays = pipe(**inputs, output_type="np").frames
    assert arrays.shape == (NUM_FRAMES, SIZE, SIZE, 3)
    assert arrays.dtype == np.float32
    assert 0 <= arrays.min() < arrays.max() <= 1
    tensors = pipe(**inputs, output_type="pt").frames
    assert torch.equal(tensors, torch.from_numpy(arrays).permute(0, 3, 1, 2))
    images = pipe(**inputs, output_type="pil").frames
    stream = pipe(**inputs, output_type="generator").frames
    for array, image, frame in zip(arrays, images, stream, strict=True):
        assert np.array_equal(frame, np.round(array * 255).astype(np.uint8))
        assert np.array_equal(np.asarray(image), frame)


def test_median_filter_is_what_the_flag_says(pipe, inputs):
    plain = pipe(**inputs, output_type="pt", median_filter=False).frames
    smooth = pipe(**inputs, output_type="pt").frames
    from vexpress.media.smoothing import median_filter

    expected = median_filter(plain.transpose(0, 1), 3).transpose(0, 1)
    torch.testing.assert_close(smooth, expected)


@pytest.mark.parametrize("median_filter", [False, True])
def test_denoising_comes_last(pipe, inputs, median_filter):
    plain = pipe(**inputs, output_type="pt", median_filter=median_filter).frames
    denoised = pipe(**inputs, output_type="pt", median_filter=median_filter, denoise_threshold=25.5).frames
    torch.testing.assert_close(denoised, torch.stack(list(stream_denoise(plain, 0.1))))
    assert not torch.equal(denoised, plain)


def test_callback_can_watch_and_stop(pipe, inputs):
    def stop(step, timestep, current):
        assert current.shape == (1, 4, NUM_FRAMES, SIZE // 8, SIZE // 8)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        latents(pipe, inputs, callback=stop)


def test_audio_and_keypoints_matter(pipe, inputs):
    expected = latents(pipe, inputs)
    assert (
        tiny.relative_error(latents(pipe, {**inputs, "audio_waveform": inputs["audio_waveform"].flip(0)}), expected)
        > 1e-3
    )
    assert tiny.relative_error(latents(pipe, {**inputs, "kps_sequence": inputs["kps_sequence"] + 9}), expected) > 1e-3
    assert torch.equal(
        latents(pipe, {**inputs, "audio_waveform": inputs["audio_waveform"].flip(0)}, audio_attention_weight=0.0),
        latents(pipe, inputs, audio_attention_weight=0.0),
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"height": 100}, "multiples of 8"),
        ({"output_type": "gif"}, "allowed are pil"),
        ({"num_inference_steps": 0}, "must be 1 to 1000"),
        ({"audio_waveform": torch.zeros(0)}, "must be .n,., n > 0"),
        ({"audio_waveform": torch.zeros(1, 100)}, "must be .n,., n > 0"),
        ({"kps_sequence": torch.full((2, 3, 2), torch.nan)}, "and finite"),
        ({"latents": torch.zeros(1, 4, 2, 8, 8)}, "latents of shape"),
        ({"num_pad_audio_frames": 3}, "num_pad_audio_frames 3: makes 14 audio steps"),
        ({"save_gpu_memory": True}, "save_gpu_memory needs device"),
        ({"context_overlap": 4}, "context_overlap 4"),
        ({"context_frames": 33, "kps_sequence": torch.ones(40, 3, 2)}, "context_frames 33: .* up to 32 frames"),
    ],
)
def test_errors(pipe, inputs, change, message):
    with pytest.raises(ValueError, match=message):
        latents(pipe, inputs, **change)


def test_guider_and_vae_must_downsample_alike(pipe):
    from vexpress.models import VKpsGuider
    from vexpress.pipeline import VExpressPipeline

    parts = {**pipe.components, "v_kps_guider": VKpsGuider(out_channels=32, block_out_channels=(8, 8))}
    with pytest.raises(ValueError, match="downsamples by 2, the VAE by 8"):
        VExpressPipeline(**parts)


def test_audio_shorter_than_a_hidden_state():
    states = encode_audio(tiny.audio_encoder(), tiny.audio_processor(), torch.ones(100))
    assert states.shape == (1, 24)
    assert audio_windows(states, 1).shape == (1, 10, 24)


def test_long_audio_in_chunks_is_close_and_aligned(monkeypatch):
    """Chunks keep every hidden state at its time, and come near to the whole clip's result."""
    encoder, processor = tiny.audio_encoder(), tiny.audio_processor()
    noise = torch.randn(16000 * 9, generator=torch.Generator().manual_seed(0))
    envelope = torch.sin(torch.arange(len(noise)) / 16000 * 3).square()
    with torch.no_grad():
        whole = encode_audio(encoder, processor, noise * envelope)
        monkeypatch.setattr(audio_features, "WHOLE_CLIP_SECONDS", 4.0)
        monkeypatch.setattr(audio_features, "CHUNK_SECONDS", 2.0)
        monkeypatch.setattr(audio_features, "CONTEXT_SECONDS", 1.0)
        chunked = encode_audio(encoder, processor, noise * envelope)
    assert chunked.shape == whole.shape
    near = tiny.relative_error(chunked, whole)
    assert near < 0.2
    for shift in (-1, 1):
        assert tiny.relative_error(chunked.roll(shift, 0), whole) > 2 * near


def test_guidance_on_audio_alone_leaves_what_audio_does_not_touch(inputs):
    pipe = tiny.pipeline()
    scales = [latents(pipe, inputs, guidance="audio", guidance_scale=scale) for scale in (1, 4)]
    assert tiny.relative_error(*scales) > 1e-2
    pipe.denoising_unet.silence_audio()  # now both predictions are the same, whatever the scale
    scales = [latents(pipe, inputs, guidance="audio", guidance_scale=scale) for scale in (1, 4)]
    assert tiny.relative_error(*scales) < 1e-4
    assert tiny.relative_error(latents(pipe, inputs, guidance="all", guidance_scale=4), scales[0]) > 1e-2


def test_frames_that_share_all_noise_and_conditions_are_alike(inputs):
    pipe = tiny.pipeline()
    pipe.denoising_unet.silence_audio()
    pipe.denoising_unet.silence_motion()
    still = {**inputs, "kps_sequence": inputs["kps_sequence"][:1].expand(NUM_FRAMES, -1, -1)}
    frames = latents(pipe, still, shared_noise=1.0)
    assert tiny.relative_error(frames, frames[:, :, :1].expand_as(frames)) < 1e-4
    apart = latents(pipe, still, shared_noise=0.0)
    assert tiny.relative_error(apart, apart[:, :, :1].expand_as(apart)) > 1e-1


@pytest.mark.parametrize(
    ("name", "value"),
    [("guidance", "kps"), ("shared_noise", 1.5), ("shared_noise", float("nan")), ("denoise_threshold", -1)],
)
def test_sampling_out_of_range(pipe, inputs, name, value):
    with pytest.raises(InputError, match=name):
        pipe(**{**inputs, name: value})
