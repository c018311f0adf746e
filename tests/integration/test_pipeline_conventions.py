"""The pipeline is one of diffusers': each convention that its users rely on."""

import inspect
import json

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, DPMSolverMultistepScheduler
from diffusers.callbacks import PipelineCallback
from diffusers.utils import logging as diffusers_logging
from PIL import Image

from tests import tiny
from tests.integration.test_pipeline import inputs, latents, pipe  # noqa: F401
from vexpress.diffusion.schedule import build_scheduler
from vexpress.errors import InputError
from vexpress.pipeline import VExpressPipeline, VExpressPipelineOutput

# ruff: noqa: F811 - fixtures


def test_generator_in_place_of_a_seed(pipe, inputs):
    def generator():
        return torch.Generator("cpu").manual_seed(5)

    assert torch.equal(latents(pipe, inputs, generator=generator()), latents(pipe, inputs, seed=5))
    advanced = generator()
    torch.randn(3, generator=advanced)
    assert not torch.equal(latents(pipe, inputs, generator=advanced), latents(pipe, inputs, seed=5))


def test_return_dict(pipe, inputs):
    whole = pipe(**inputs, output_type="latent")
    assert isinstance(whole, VExpressPipelineOutput)
    plain = pipe(**inputs, output_type="latent", return_dict=False)
    assert isinstance(plain, tuple)
    assert torch.equal(plain[0], whole.frames)


def test_callback_sees_each_step_and_may_replace_latents(pipe, inputs):
    seen = []

    def callback(pipeline, step, timestep, tensors):
        assert pipeline is pipe
        seen.append((step, int(timestep), set(tensors)))
        return {"latents": torch.zeros_like(tensors["latents"])} if step == 1 else {}

    assert latents(pipe, inputs, callback_on_step_end=callback).abs().max() == 0
    assert [step for step, _, _ in seen] == [0, 1]
    assert seen[0][1:] == (999, {"latents"})
    seen.clear()
    watch = {"callback_on_step_end": lambda *arguments: seen.append(arguments[3])}
    latents(pipe, inputs, **watch, callback_on_step_end_tensor_inputs=())
    assert seen == [{}, {}]


@pytest.mark.parametrize("returned", [3, {"latents": torch.zeros(1)}, {"latents": None}])
def test_callback_that_returns_something_else(pipe, inputs, returned):
    with pytest.raises(InputError, match="callback_on_step_end|latents"):
        latents(pipe, inputs, callback_on_step_end=lambda *arguments: returned)


def test_callback_objects_of_diffusers(pipe, inputs):
    class Halved(PipelineCallback):
        tensor_inputs = ["latents"]

        def callback_fn(self, pipeline, step_index, timestep, callback_kwargs):
            assert pipeline.num_timesteps == 2
            return {"latents": callback_kwargs["latents"] / 2} if step_index == 1 else callback_kwargs

    halved = latents(pipe, inputs, callback_on_step_end=Halved(cutoff_step_ratio=1.0))
    assert torch.equal(halved, latents(pipe, inputs) / 2)


def test_callback_can_interrupt_and_raise(pipe, inputs):
    seen = []

    def interrupt(pipeline, step, timestep, tensors):
        seen.append(tensors["latents"].clone())
        pipeline._interrupt = True

    assert torch.equal(latents(pipe, inputs, callback_on_step_end=interrupt), seen[0])
    assert len(seen) == 1
    assert pipe.interrupt
    latents(pipe, inputs)
    assert not pipe.interrupt

    def stop(*arguments):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        latents(pipe, inputs, callback_on_step_end=stop)


def test_progress_bar(inputs, capfd):
    pipe = tiny.pipeline()
    pipe(**inputs, output_type="np")
    assert capfd.readouterr().err == ""
    pipe.set_progress_bar_config(disable=False)
    pipe(**inputs, output_type="np")
    shown = capfd.readouterr().err
    assert "denoising windows" in shown
    assert "decoding frames" in shown
    assert "6/6" in shown  # 3 windows, 2 steps
    assert "7/7" in shown


def test_model_offloading_without_an_accelerator_says_so_and_works(inputs, caplog):
    pipe = tiny.pipeline()
    for arguments in ({"device": "cpu"}, {} if not torch.cuda.is_available() else {"device": "cpu"}):
        caplog.clear()
        pipe.enable_model_cpu_offload(**arguments)
        assert "works on the CPU" in caplog.text
    assert torch.equal(latents(pipe, inputs), latents(tiny.pipeline(), inputs))


@pytest.mark.parametrize("output_type", ["latent", "np"])
def test_model_offloading_reaches_every_network(inputs, output_type, monkeypatch):
    """With the CPU in the accelerator's place: hooks are called for each network, and all is offloaded at the end."""
    expected = tiny.pipeline()(**inputs, output_type=output_type).frames
    pipe = tiny.pipeline()
    DiffusionPipeline.enable_model_cpu_offload(pipe, device="cpu")
    called = set()
    for name, part in pipe.components.items():
        if hasattr(part, "_hf_hook"):
            before = part._hf_hook.pre_forward

            def watched(*arguments, name=name, before=before, **keywords):
                called.add(name)
                return before(*arguments, **keywords)

            part._hf_hook.pre_forward = watched
    freed = []
    monkeypatch.setattr(pipe, "enable_model_cpu_offload", lambda **keywords: freed.append(keywords))
    frames = pipe(**inputs, output_type=output_type).frames
    assert np.array_equal(frames, expected)
    assert called == {"audio_encoder", "audio_projection", "reference_net", "denoising_unet", "vae"}
    assert len(freed) == 1
    with pytest.raises(InputError, match="device=cpu: is chosen by enable_model_cpu_offload"):
        pipe(**inputs, device="cpu")


def test_sequential_offloading_is_refused_in_one_line(pipe):
    with pytest.raises(InputError, match="enable_sequential_cpu_offload: is not supported: use"):
        pipe.enable_sequential_cpu_offload()


def test_vae_slicing_and_tiling(inputs):
    pipe = tiny.pipeline()
    expected = pipe(**inputs, output_type="np").frames
    pipe.vae.enable_slicing()
    assert np.abs(pipe(**inputs, output_type="np").frames - expected).max() < 1e-4
    pipe.vae.tile_latent_min_size, pipe.vae.tile_sample_min_size = 4, 32
    pipe.vae.enable_tiling()
    tiled = pipe(**inputs, output_type="np").frames
    assert tiled.shape == expected.shape
    assert 0 < np.abs(tiled - expected).mean() < 0.1


def test_from_pretrained_takes_dtype_and_parts(tmp_path, inputs):
    diffusers_logging.disable_progress_bar()
    folder = tiny.write_model_dir(tmp_path / "released")
    for name in ("dtype", "torch_dtype"):  # diffusers' new and old name
        assert VExpressPipeline.from_pretrained(folder, **{name: torch.float16}).dtype == torch.float16
    scheduler, vae = build_scheduler("unipc"), tiny.vae()
    pipe = VExpressPipeline.from_pretrained(folder, scheduler=scheduler, vae=vae)
    assert pipe.scheduler is scheduler
    assert pipe.vae is vae
    pipe.save_pretrained(tmp_path / "saved")
    other = DPMSolverMultistepScheduler.from_config(scheduler.config)
    saved = VExpressPipeline.from_pretrained(tmp_path / "saved", scheduler=other, dtype=torch.float16)
    assert saved.scheduler is other
    assert saved.dtype == torch.float16
    by_name = VExpressPipeline.from_pretrained(tmp_path / "saved", scheduler="dpmsolver++")
    assert type(by_name.scheduler) is DPMSolverMultistepScheduler
    for arguments in ({"vea": vae}, {"dtype": "half a float"}, {"scheduler": "ddpm"}):
        with pytest.raises(InputError, match=next(iter(arguments))):
            VExpressPipeline.from_pretrained(tmp_path / "saved", **arguments)
        with pytest.raises(InputError, match=next(iter(arguments))):
            VExpressPipeline.from_pretrained(folder, **arguments)


def test_audio_tokens_are_those_of_the_speech_or_refused(pipe, inputs):
    how = {**inputs, "output_type": "latent"}
    expected = pipe(**how).frames
    num_frames = len(inputs["kps_sequence"])
    tokens = pipe.encode_audio(torch.as_tensor(inputs["audio_waveform"]), num_frames, 2)
    how["audio_waveform"] = None
    assert torch.equal(pipe(**how, audio_tokens=tokens).frames, expected)
    assert torch.equal(pipe(**how, audio_tokens=tokens.double()).frames, expected)
    for odd in (tokens[:, :, :1], tokens[..., :-1], tokens.int(), tokens * float("nan"), "speech", tokens[:, 1:]):
        with pytest.raises(InputError, match="audio_tokens"):
            pipe(**how, audio_tokens=odd)


def test_portraits_are_taken_as_a_viewer_shows_them(pipe, inputs):
    """16-bit grey is scaled, and what is transparent is white; Pillow's own conversion clips, and uncovers colours."""
    ramp = np.tile(np.linspace(0, 255, 64).round().astype(np.uint8), (64, 1))
    clear = np.zeros((64, 64, 4), np.uint8)
    for image, same in (
        (Image.fromarray(ramp.astype(np.uint16) * 257), Image.fromarray(ramp)),
        (Image.fromarray(clear), Image.new("RGB", (64, 64), "white")),
    ):
        one, other = (
            pipe(**{**inputs, "reference_image": picture}, output_type="latent").frames for picture in (image, same)
        )
        assert torch.equal(one, other)


def test_a_part_given_need_not_be_in_the_folder(tmp_path):
    folder = tiny.write_model_dir(tmp_path)
    (folder / "sd-vae-ft-mse" / "config.json").unlink()
    with pytest.raises(InputError, match="vae_path"):
        VExpressPipeline.from_pretrained(folder)
    VExpressPipeline.from_pretrained(folder, vae=tiny.vae())


def test_a_saved_pipeline_cannot_choose_code(tmp_path):
    tiny.pipeline().save_pretrained(tmp_path)
    path = tmp_path / "audio_encoder" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"attn_implementation": "owner/kernel"}))
    with pytest.raises(InputError, match="attn_implementation is 'owner/kernel', which may run other code"):
        VExpressPipeline.from_pretrained(tmp_path)


def test_save_pretrained_keeps_the_result(inputs, tmp_path):
    pipe = tiny.pipeline()
    pipe.save_pretrained(tmp_path)
    loaded = VExpressPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert tiny.relative_error(latents(loaded, inputs), latents(pipe, inputs)) < 1e-3
    assert loaded.components.keys() == pipe.components.keys()
    assert loaded.to(torch.float16).dtype == torch.float16


def test_parts_work_on_their_own_and_without_gradients(pipe, inputs):
    """Their outputs are what the networks take."""
    tokens = pipe.encode_audio(inputs["audio_waveform"], 3)
    reference = pipe.encode_reference(inputs["reference_image"])
    kps = pipe.encode_kps(inputs["kps_sequence"][:3], 64, 64)
    assert tokens.shape[:2] == (1, 3)
    assert kps.shape == (1, 32, 3, 8, 8)
    assert not any(tensor.requires_grad for tensor in (tokens, kps, *reference.values()))
    with torch.no_grad():
        conditions = pipe.denoising_unet.prepare_conditions(reference, tokens, kps)
        assert pipe.denoising_unet(torch.zeros(1, 4, 3, 8, 8), torch.tensor(5), conditions).shape == (1, 4, 3, 8, 8)
    frames = list(pipe.decode(torch.zeros(1, 4, 3, 8, 8)))
    assert [frame.shape for frame in frames] == [(3, 64, 64)] * 3
    assert not frames[0].requires_grad


def test_conventional_names():
    """Names by which diffusers' users and tools find things."""
    names = inspect.signature(VExpressPipeline.__call__).parameters
    for name in ("height", "width", "latents", "generator", "output_type", "return_dict", "callback_on_step_end"):
        assert name in names
    assert issubclass(VExpressPipeline, DiffusionPipeline)
    assert VExpressPipeline._callback_tensor_inputs == ["latents"]
