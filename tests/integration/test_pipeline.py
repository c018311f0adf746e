"""Properties of the pipeline, with tiny networks."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from tests import tiny
from vexpress import audio_features
from vexpress.audio_features import audio_windows, encode_audio
from vexpress.diffusion.schedule import build_scheduler
from vexpress.errors import InputError
from vexpress.media.smoothing import stream_denoise
from vexpress.model_folder import ModelPaths
from vexpress.options import CALL, SCHEDULERS, SamplingOptions, option_fields
from vexpress.pipeline import VExpressPipeline

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


def test_batching_changes_nothing(pipe, inputs):
    expected = latents(pipe, inputs)
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
    with pytest.raises(ValueError, match="num_inference_steps=200: does not go with this scheduler"):
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


NAN = float("nan")
ERRORS = [
    ({"reference_image": "portrait.png"}, "reference_image=str: must be a PIL image"),
    ({"reference_image": np.zeros((64, 64), np.uint8)}, "reference_image=ndarray: must be"),
    ({"reference_image": np.zeros((64, 64, 3), np.float32)}, "reference_image=ndarray: must be"),
    ({"height": 100}, "height=100: must be a multiple of 8"),
    ({"height": 64.0}, "height=64.0: must be a multiple"),
    ({"height": "64"}, "height=64: must be a multiple"),
    ({"width": 0}, "width=0: must be a multiple"),
    ({"width": -8}, "width=-8: must be a multiple"),
    ({"width": 200_000}, "width=200000: must be a multiple of 8, up to 2048"),
    ({"output_type": "gif"}, "output_type='gif': must be one of pil"),
    ({"output_type": None}, "output_type=None: must be one of"),
    ({"audio_waveform": torch.zeros(0)}, r"audio_waveform=\(0,\): must be of shape \(n,\)"),
    ({"audio_waveform": torch.zeros(1, 100)}, r"audio_waveform=\(1, 100\): must be of shape"),
    ({"audio_waveform": torch.full((100,), NAN)}, "audio_waveform: must be finite"),
    ({"audio_waveform": torch.zeros(100, dtype=torch.int16)}, "audio_waveform: must be of floating point"),
    ({"audio_waveform": torch.zeros(100, dtype=torch.complex64)}, "audio_waveform: must be of floating point"),
    ({"audio_waveform": "speech.wav"}, "audio_waveform=str: must be a tensor"),
    ({"audio_waveform": ["a"]}, "audio_waveform: must be a tensor"),
    ({"audio_waveform": np.array([object()])}, "audio_waveform: must be a tensor"),
    ({"audio_waveform": None}, "audio_waveform=NoneType: must be a tensor"),
    ({"audio_waveform": torch.zeros(9).to_sparse()}, "audio_waveform: must be a plain tensor"),
    ({"audio_waveform": torch.zeros(9, device="meta")}, "audio_waveform: must be a plain tensor"),
    ({"kps_sequence": torch.full((2, 3, 2), NAN)}, "kps_sequence: must be finite"),
    ({"kps_sequence": torch.full((2, 3, 2), 1e30)}, "kps_sequence: is .* px from 0; allowed are up to 100000 px"),
    ({"kps_sequence": torch.zeros(0, 3, 2)}, "kps_sequence=.0, 3, 2.: must be of shape"),
    ({"kps_sequence": torch.zeros(7, 5, 2)}, "kps_sequence=.7, 5, 2.: must be of shape"),
    ({"kps_sequence": torch.zeros(3, 2)}, "kps_sequence=.3, 2.: must be of shape"),
    ({"kps_sequence": torch.zeros(2, 3, 2, dtype=torch.bool)}, "kps_sequence: must hold real numbers"),
    ({"kps_sequence": [[[1, 2], [3, 4]], [[1]]]}, "kps_sequence: must be a tensor"),
    ({"kps_sequence": {}}, "kps_sequence=dict: must be"),
    ({"latents": torch.zeros(1, 4, 2, 8, 8)}, "latents=.1, 4, 2, 8, 8.: must be of shape"),
    ({"latents": torch.full((1, 4, NUM_FRAMES, 8, 8), float("inf"))}, "latents: must be finite"),
    ({"latents": torch.zeros(1, 4, NUM_FRAMES, 8, 8, dtype=torch.int64)}, "latents: must be of floating point"),
    ({"latents": 3}, "latents=int: must be"),
    ({"generator": 42}, "generator=int: must be one torch.Generator"),
    ({"device": "tpu"}, "device=tpu: is no device"),
    ({"device": 1.5}, "device=1.5: is no device"),
    ({"options": {"seed": 1}}, "options=dict: must be SamplingOptions"),
    ({"callback_on_step_end": 3}, "callback_on_step_end=int: must be callable"),
    ({"callback_on_step_end_tensor_inputs": ["prompt_embeds"]}, "callback_on_step_end_tensor_inputs=.*latents"),
    ({"num_inference_steps": 0}, "num_inference_steps=0: must be 1 to 1000"),
    ({"num_inference_steps": "2"}, "num_inference_steps=2: must be 1 to 1000"),
    ({"num_inference_steps": 2.0}, "num_inference_steps=2.0: must be 1 to 1000"),
    ({"num_inference_steps": True}, "num_inference_steps=True: must be"),
    ({"windows_per_batch": -1}, "windows_per_batch=-1: must be 1 to"),
    ({"guidance_scale": NAN}, "guidance_scale=nan: must be 0 to 100"),
    ({"guidance_scale": None}, "guidance_scale: must be"),
    ({"guidance": "kps"}, "guidance=kps: must be one of all, audio"),
    ({"shared_noise": 1.5}, "shared_noise=1.5: must be 0"),
    ({"shared_noise": NAN}, "shared_noise=nan: must be 0"),
    ({"denoise_threshold": -1}, "denoise_threshold=-1: must be 0"),
    ({"median_filter": "yes"}, "median_filter=yes: must be true or false"),
    ({"seed": -1}, "seed=-1: must be 0"),
    ({"reference_attention_weight": [1]}, "reference_attention_weight=.1.: must be"),
    ({"num_pad_audio_frames": 3}, "num_pad_audio_frames=3: makes 14 audio steps"),
    ({"context_overlap": 4}, "context_overlap=4: must be 0 to 3"),
    ({"context_frames": 33, "kps_sequence": torch.ones(40, 3, 2)}, "context_frames=33: .* up to 32 frames"),
    ({"fps": 25.0}, "fps: is no option of the pipeline"),
    ({"save_gpu_memory": True}, "save_gpu_memory: is no option of the pipeline"),
]


@pytest.mark.parametrize(("change", "message"), ERRORS)
def test_errors(pipe, inputs, change, message):
    with pytest.raises(InputError, match=message) as caught:
        latents(pipe, inputs, **change)
    assert "\n" not in str(caught.value)
    assert caught.value.field in change


def test_broken_pictures_are_errors(pipe, inputs):
    """Pillow reads a picture when it is used, not when it is opened."""
    data = io.BytesIO()
    inputs["reference_image"].save(data, "PNG")
    broken = Image.open(io.BytesIO(data.getvalue()[:2000]))
    with pytest.raises(InputError, match="reference_image: cannot be read"):
        latents(pipe, inputs, reference_image=broken)


def test_numbers_arrays_and_lists_are_converted(pipe, inputs):
    expected = latents(pipe, inputs)
    kps = inputs["kps_sequence"]
    same = {
        "reference_image": np.asarray(inputs["reference_image"]),
        "audio_waveform": inputs["audio_waveform"].tolist(),
        "kps_sequence": kps.numpy().astype(">f8"),
        "num_inference_steps": np.int64(2),
        "guidance_scale": np.float64(3.5),
        "context_frames": torch.tensor(4),
        "height": np.int32(SIZE),
    }
    for name, value in same.items():
        assert torch.equal(latents(pipe, inputs, **{name: value}), expected), name
    read_only = kps.numpy().copy()
    read_only.flags.writeable = False
    assert torch.equal(latents(pipe, inputs, kps_sequence=read_only), expected)


def test_options_of_the_table_are_keyword_arguments(pipe, inputs):
    """A new option is one field of the table, and its use."""
    given = {name: value for name, value in inputs.items() if name not in SamplingOptions.__dataclass_fields__}
    options = SamplingOptions(num_inference_steps=2, context_frames=4, context_overlap=2, seed=7)
    expected = latents(pipe, inputs, seed=7)
    assert torch.equal(latents(pipe, given, options=options), expected)
    assert torch.equal(latents(pipe, given, options=SamplingOptions(seed=3), **options.values_at(CALL)), expected)
    for field in option_fields():
        if field.metadata["where"] != CALL:
            with pytest.raises(InputError, match=f"^{field.name}: is no option of the pipeline"):
                latents(pipe, inputs, **{field.name: field.default})


def test_guider_and_vae_must_downsample_alike(pipe):
    from vexpress.models import VKpsGuider

    parts = {**pipe.components, "v_kps_guider": VKpsGuider(out_channels=32, block_out_channels=(8, 8))}
    with pytest.raises(ValueError, match="downsamples by 2, the VAE by 8"):
        VExpressPipeline(**parts)


def test_intervals_change_nothing_within_the_first_step_and_little_later(pipe, inputs):
    def made(num_steps, **options):
        return latents(pipe, inputs, num_inference_steps=num_steps, **options)

    intervals = {"guidance_interval": 2, "deep_block_interval": 2}
    assert torch.equal(made(1, **intervals), made(1))
    exact, reused = made(2), made(2, **intervals)
    assert 0 < tiny.relative_error(reused, exact) < 0.5
    assert tiny.relative_error(made(2, windows_per_batch=2, **intervals), reused) < 1e-4
    one_window = {"context_frames": 24, "context_overlap": 0, **intervals}
    rolled = made(2, sampling="rolling", **one_window)  # hears the speech in another way, which differs by rounding
    assert tiny.relative_error(rolled, made(2, **one_window)) < 1e-4


def test_another_autoencoder_may_decode(pipe, inputs):
    decoder = tiny.autoencoder_tiny()
    other = VExpressPipeline(**{**pipe.components, "vae_decoder": decoder})
    other.set_progress_bar_config(disable=True)
    denoised = latents(other, inputs)
    assert torch.equal(denoised, latents(pipe, inputs))  # the portrait is encoded by the model's own
    with torch.no_grad():  # TAESD's latents are at diffusion's scale, which the model's own divides by 0.18215
        expected = (decoder.decode(denoised[0].transpose(0, 1)).sample / 2 + 0.5).clamp(0, 1)
    frames = other(**inputs, output_type="pt", median_filter=False).frames
    torch.testing.assert_close(frames, expected, atol=1e-5, rtol=0)


def test_a_decoder_of_other_latents_is_refused(tmp_path):
    paths = ModelPaths.from_model_dir(tiny.write_model_dir(tmp_path / "model"))
    tiny.autoencoder_tiny(num_stages=5).save_pretrained(tmp_path / "decoder")
    with pytest.raises(InputError, match="^vae_decoder_path=.*16 px and 4 channels, and the model has 8 px"):
        VExpressPipeline.from_released(paths, vae_decoder_path=tmp_path / "decoder")
    tiny.autoencoder_tiny().save_pretrained(tmp_path / "tiny")
    pipe = VExpressPipeline.from_released(paths, vae_decoder_path=tmp_path / "tiny")
    pipe.save_pretrained(tmp_path / "saved")
    assert type(VExpressPipeline.from_pretrained(tmp_path / "saved").vae_decoder) is type(pipe.vae_decoder)


def test_a_tiny_autoencoder_of_another_downsampling(pipe, inputs):
    from vexpress.models import VKpsGuider

    guider = VKpsGuider(**{**tiny.CASES["v_kps_guider_config"], "block_out_channels": (8, 8, 8, 8, 8)})
    pipe = VExpressPipeline(**{**pipe.components, "vae": tiny.autoencoder_tiny(5), "v_kps_guider": guider})
    pipe.set_progress_bar_config(disable=True)
    assert latents(pipe, inputs).shape == (1, 4, NUM_FRAMES, SIZE // 16, SIZE // 16)
    assert pipe(**inputs, output_type="np").frames.shape == (NUM_FRAMES, SIZE, SIZE, 3)
    with pytest.raises(InputError, match="^width=.*must be a multiple of 16"):
        pipe(**inputs, width=SIZE + 8, height=SIZE)


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
