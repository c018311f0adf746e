"""What a student of few steps learns: its own sampler's inputs, and targets of its teacher or of its moving average."""

import copy
from dataclasses import replace

import pytest
import torch
from diffusers.training_utils import EMAModel

from tests import tiny
from vexpress.data.config import DataConfig
from vexpress.diffusion.rolling import roll
from vexpress.diffusion.schedule import build_scheduler
from vexpress.errors import InputError
from vexpress.options import SamplingOptions
from vexpress.training.config import DistillConfig, InitConfig, SolverConfig, TrainConfig
from vexpress.training.distillation import Consistency, Regression
from vexpress.training.objectives import Batch
from vexpress.training.stages import TrainingNetworks
from vexpress.training.teacher import Teacher

NETWORKS = ("reference_net", "denoising_unet", "v_kps_guider", "audio_projection")


def config(**distill) -> TrainConfig:
    return TrainConfig(
        train_stage="stage_4",
        init=InitConfig(source="stage", path="nowhere"),
        uncond_ratio=0,
        noise_offset=0,
        data=DataConfig(num_frames=4, lip_loss_weight=3.0),
        solver=SolverConfig(ema_decay=0.5),
        distill=DistillConfig(
            **{
                "context_overlap": 2,
                "teacher_sampling": {"shared_noise": 1.0, "audio_attention_weight": 2.0},
                **distill,
            }
        ),
    )


def batch(num_frames: int = 4) -> Batch:
    torch.manual_seed(0)
    noise, latents = torch.randn(2, 2, 4, num_frames, 8, 8)
    conditions = {
        "reference_latents": torch.randn(2, 4, 8, 8),
        "kps_images": torch.rand(2, 3, num_frames, 64, 64),
        "audio_windows": torch.randn(2, num_frames, 10, 24),
    }
    return Batch(latents, conditions, torch.ones(2, 1, num_frames, 8, 8), noise)


def velocity_to(clean, noisy, timestep):
    """What predicts `clean`, in terms of velocity."""
    alpha = build_scheduler().alphas_cumprod[timestep].reshape(-1, 1, 1, 1, 1)
    return (alpha.sqrt() * noisy - clean) / (1 - alpha).sqrt()


def test_who_predicts_the_teachers_result_at_each_step_has_no_loss():
    clips, seen = batch(), []

    def predict(noisy, timesteps, **conditions):
        seen.append((timesteps.tolist(), conditions["audio_attention_weight"]))
        return velocity_to(clips.latents, noisy, timesteps)

    objective = Regression(config(num_steps=4))
    parts = objective.random_parts([0, 1], clips.latents.shape[1:], drop=True)
    assert objective.loss(predict, clips, parts).loss < 1e-8
    assert seen == [([timestep] * 2, 2.0) for timestep in (999, 749, 499, 249)]


@pytest.mark.parametrize("num_steps", [2, 4])
def test_inputs_are_those_of_rolling_sampling(num_steps):
    """Of a second window, whose first frames are held to a first window that has come out as the teacher's."""
    clips = batch(num_frames=6)
    noise, target = clips.noise[:1], clips.latents[:1]
    seen = {"rolling": [], "training": []}

    def student(noisy, timesteps, kind):
        seen[kind].append(noisy)
        return velocity_to(noisy.roll(1, dims=2).tanh(), noisy, timesteps)

    def denoise(noisy, timestep, windows, carried):
        if windows == [[0, 1, 2, 3]]:
            return velocity_to(target[:, :, :4], noisy, timestep)
        return student(noisy, timestep, "rolling")

    scheduler = build_scheduler()
    scheduler.set_timesteps(num_steps)
    pieces = iter([noise[:, :, :4], noise[:, :, 4:]])
    list(roll(denoise, [[0, 1, 2, 3], [2, 3, 4, 5]], lambda count: next(pieces), scheduler, context_overlap=2))

    objective = Regression(config(num_steps=num_steps, history_rate=1))
    second = Batch(target[:, :, 2:], {}, torch.zeros(1, 1, 4, 8, 8), noise[:, :, 2:])
    parts = objective.random_parts([0], second.latents.shape[1:], drop=True)
    objective.loss(lambda noisy, timesteps, **_: student(noisy, timesteps, "training"), second, parts)
    assert len(seen["training"]) == num_steps
    for one, other in zip(seen["training"], seen["rolling"], strict=True):
        assert tiny.relative_error(one, other) < 1e-5


def test_the_truth_is_learned_from_noise_of_its_own_with_what_is_known_of_attributes():
    clips, seen = replace(batch(), noise=None), []

    def predict(noisy, timesteps, **conditions):
        seen.append((noisy, conditions["attribute_keep"]))
        return velocity_to(clips.latents, noisy, timesteps)

    changed = config(objective="truth", num_steps=1)
    objective = Regression(replace(changed, data=replace(changed.data, attribute_drop_rate=0.5)))
    parts = objective.random_parts([0, 1], clips.latents.shape[1:], drop=True)
    assert objective.loss(predict, clips, parts).loss < 1e-8
    ((noisy, attribute_keep),) = seen
    assert torch.equal(noisy, parts.noise)
    assert torch.equal(attribute_keep, parts.attribute_keep) and 0 < attribute_keep.mean() < 1


def test_history_is_there_at_its_rate_and_follows_the_number():
    objective = Regression(config(history_rate=0.25))
    parts = objective.random_parts(list(range(400)), (1, 1, 1, 1), drop=True)
    assert parts.has_history.mean() == pytest.approx(0.25, abs=0.06)
    assert objective.random_parts([7], (1, 1, 1, 1), drop=True).has_history == parts.has_history[7]


def test_noise_is_the_teachers_kind():
    noise = Regression(config()).random_parts([3], (4, 5, 2, 2), drop=True).noise
    assert torch.equal(noise, noise[:, :, :1].expand_as(noise))  # all of it shared
    other = Regression(config(teacher_sampling={})).random_parts([3], (4, 5, 2, 2), drop=True).noise
    assert not torch.equal(other[:, :, 0], other[:, :, 1])


def build_consistency(guidance_scale: float) -> tuple[Consistency, TrainingNetworks, EMAModel]:
    networks = TrainingNetworks(**{name: getattr(tiny, name)() for name in NETWORKS})
    options = SamplingOptions(num_inference_steps=4, guidance_scale=guidance_scale, audio_attention_weight=2.0)
    ema = EMAModel(list(networks.parameters()), decay=0.5)
    teacher = Teacher(copy.deepcopy(networks), options)
    return Consistency(config(objective="consistency"), "cpu", teacher, networks, ema, torch.no_grad), networks, ema


def at_level(objective: Consistency, level: int, clips: Batch, has_history: float = 0.0):
    parts = objective.random_parts([0, 1], clips.latents.shape[1:], drop=True)
    timesteps = torch.full((2,), 250 * level)
    return replace(parts, timesteps=timesteps, has_history=torch.full((2,), has_history))


def test_at_the_last_level_the_target_is_the_teachers_guided_prediction():
    clips = batch()
    for guidance_scale in (1.0, 3.0):
        objective, networks, _ = build_consistency(guidance_scale)
        loss = objective.loss(networks, clips, at_level(objective, 3, clips)).loss
        assert (loss.item() < 1e-6) == (guidance_scale == 1)  # the student is the teacher, but for guidance


def test_elsewhere_the_target_is_the_moving_averages_and_has_no_gradient():
    clips = batch()
    objective, networks, ema = build_consistency(1.0)
    parts = at_level(objective, 1, clips)
    before = objective.loss(networks, clips, parts).loss
    ema.load_state_dict({**ema.state_dict(), "shadow_params": [0.9 * p for p in ema.shadow_params]})  # as resuming does
    after = objective.loss(networks, clips, parts)
    assert after.loss.item() != pytest.approx(before.item(), rel=1e-3)
    after.loss.backward()
    assert all(parameter.grad is None for parameter in objective.average.parameters())
    held = objective.loss(networks, clips, at_level(objective, 1, clips, has_history=1.0)).loss
    assert held.item() != pytest.approx(after.loss.item(), rel=1e-4)


def test_what_cannot_be_is_said():
    for changes, message in (
        ({"context_overlap": 4}, "distill.context_overlap=4: must be below data.num_frames, which is 4"),
        ({"num_steps": 3}, "distill.num_steps=3: must be one of 1, 2, 4"),
    ):
        with pytest.raises(InputError, match=message):
            config(**changes)
    with pytest.raises(InputError, match="init.source=unet: stage_4 starts from its teacher"):
        TrainConfig(train_stage="stage_4")
    with pytest.raises(InputError, match="needs solver.ema_decay"):
        replace(config(objective="consistency"), solver=SolverConfig())
    with pytest.raises(InputError, match="distill.teacher_sampling.guidance=none: must be one of all, audio"):
        Regression(config(teacher_sampling={"guidance": "none"}))
    with pytest.raises(InputError, match="distill.teacher_sampling.scheduler=lcm: makes other results each time"):
        Regression(config(teacher_sampling={"scheduler": "lcm"}))
