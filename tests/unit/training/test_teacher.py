"""The teacher samples as the pipeline does, and its student's folder says how to sample the student."""

import json

import numpy as np
import pytest
import torch
from einops import rearrange
from PIL import Image

from tests import tiny
from vexpress.audio_features import audio_windows, encode_audio
from vexpress.data.config import DataConfig
from vexpress.diffusion.guidance import Carried
from vexpress.diffusion.latents import compute_latents, scale_latents
from vexpress.media.keypoints import render_v_kps
from vexpress.models import AttributeProjection
from vexpress.options import SamplingOptions, load_model_defaults
from vexpress.training.config import DistillConfig, InitConfig, TrainConfig
from vexpress.training.stages import TrainingNetworks
from vexpress.training.teacher import Teacher, student_values

SAMPLING = {"num_inference_steps": 3, "guidance_scale": 2.0, "guidance": "audio", "reference_attention_weight": 0.9}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tiny.write_model_dir(tmp_path_factory.mktemp("model"))
    (folder / "inference_defaults.json").write_text(json.dumps({"num_inference_steps": 7, "denoise_threshold": 8.0}))
    return folder


def config(folder) -> TrainConfig:
    return TrainConfig(
        train_stage="stage_4",
        init=InitConfig(source="stage", path=str(folder)),
        data=DataConfig(num_frames=4),
        distill=DistillConfig(teacher_sampling=SAMPLING, context_overlap=1),
    )


def test_a_teachers_result_is_the_pipelines(folder):
    pipe, noise = tiny.pipeline(), torch.randn(1, 4, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    speech = torch.randn(6400, generator=torch.Generator().manual_seed(1))
    kps = torch.tensor([[[20.0, 25], [40, 25], [30, 40]]]).repeat(4, 1, 1)
    options = SamplingOptions(**SAMPLING)
    made = pipe(image, speech, kps, options=options, latents=noise.clone(), output_type="latent").frames

    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 127.5 - 1
    images = np.stack([render_v_kps(points.numpy(), 64, 64) for points in kps])
    states = encode_audio(pipe.audio_encoder, pipe.audio_processor, speech, torch.device("cpu"))
    with torch.no_grad():
        conditions = {
            "reference_latents": scale_latents(pipe.vae, compute_latents(pipe.vae, pixels)),
            "kps_images": rearrange(torch.from_numpy(images), "f h w c -> 1 c f h w") / 255,
            "audio_windows": audio_windows(states, 4, 2)[None],
        }
    result = Teacher.load(config(folder), torch.float32, "cpu").sample(noise, conditions)
    assert tiny.relative_error(result, made) < 1e-4


@pytest.mark.parametrize("guidance", ["audio", "attributes"])
def test_with_attributes_guidance_leaves_out_one_of_two(guidance):
    """Where nothing of what is left out was told, guidance changes nothing; where it was, it does."""
    networks = TrainingNetworks(
        **{name: getattr(tiny, name)() for name in ("reference_net", "denoising_unet", "v_kps_guider")},
        audio_projection=tiny.audio_projection(),
        attribute_projection=tiny.fill_by_rule(AttributeProjection(8, tiny.UNET_CONFIG["cross_attention_dim"])),
    )
    noise = torch.randn(1, 4, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    conditions = {
        "reference_latents": noise[:, :, 0],
        "kps_images": torch.zeros(1, 3, 2, 64, 64),
        "audio_windows": torch.ones(1, 2, 10, 24),
        "attributes": torch.full((1, 2, 6), 0.5),
    }
    nothing = torch.zeros(1, 2, 6) if guidance == "attributes" else torch.zeros(1, 2)
    masks = {"attributes": "attribute_keep", "audio": "audio_keep"}[guidance]
    untold = {**conditions, masks: nothing, "any_keep": torch.ones(1, 2)}
    changes = []
    for told in (conditions, untold):
        plain, strong = (
            Teacher(networks, SamplingOptions(guidance=guidance, guidance_scale=scale)).denoiser(told)(
                noise, torch.tensor([500]), [], [Carried()]
            )
            for scale in (1.0, 3.0)
        )
        changes.append(tiny.relative_error(strong.detach(), plain.detach()))
    assert changes[1] < 1e-5 < changes[0]


def test_the_students_folder_needs_no_flag(folder):
    values = student_values(config(folder))
    assert values["denoise_threshold"] == 8.0  # the teacher's
    assert (values["num_inference_steps"], values["guidance_scale"], values["sampling"]) == (2, 1.0, "rolling")
    assert (values["context_frames"], values["context_overlap"]) == (4, 1)
    assert values["reference_attention_weight"] == 0.9
    other = folder / "student"
    other.mkdir()
    (other / "inference_defaults.json").write_text(json.dumps(values))
    assert load_model_defaults(other) == values
