"""An objective is all that decides a step's loss."""

import pytest
import torch

from tests.tiny import recorded, relative_error
from vexpress.data.config import DataConfig
from vexpress.diffusion.schedule import build_scheduler
from vexpress.training.config import TrainConfig
from vexpress.training.objectives import Batch, Denoising
from vexpress.training.randomness import RandomParts


@pytest.mark.parametrize("number", [1, 2, 3])
def test_loss_is_the_recorded_one_and_the_network_sees_the_recorded_target(number):
    case = recorded(f"training_stage_{number}")
    inputs = {name: torch.from_numpy(value) for name, value in case.items() if value.ndim and value.dtype.kind in "fi"}
    batch_size, _, num_frames = inputs["latents"].shape[:3]
    keep = torch.ones(batch_size, num_frames)
    parts = RandomParts(inputs["noise"], inputs["timesteps"], keep, keep, keep, keep[..., None], keep)
    config = TrainConfig(
        snr_gamma=float(case["snr_gamma"]), data=DataConfig(lip_loss_weight=float(case["lip_loss_weight"]))
    )
    seen = {}

    def predict(noisy, timesteps, **conditions):
        seen.update(noisy=noisy, timesteps=timesteps, **conditions)
        return inputs["prediction"]

    conditions = {"audio_windows": inputs["audio_windows"]}
    loss, mouth_error, mouth_size, sync_error = Denoising(config).loss(
        predict, Batch(inputs["latents"], conditions, inputs["lip_masks"]), parts
    )
    assert sync_error == 0
    assert float(loss) == pytest.approx(float(case["loss"]), rel=1e-5)
    noisy = build_scheduler("ddim").add_noise(inputs["latents"], inputs["noise"], inputs["timesteps"])
    assert torch.equal(seen["noisy"], noisy)
    assert seen["audio_windows"] is inputs["audio_windows"]
    assert {"reference_keep", "kps_keep", "audio_keep"} <= seen.keys()
    difference = (inputs["prediction"] - inputs["target"]) * inputs["lip_masks"]
    assert relative_error(mouth_error, difference.square().sum()) < 1e-5
    assert mouth_size == inputs["lip_masks"].sum() * inputs["latents"].shape[1]


def test_random_parts_are_those_of_the_sample_number():
    objective = Denoising(TrainConfig())
    one, other = (objective.random_parts([7], (4, 2, 8, 8), drop=True) for _ in range(2))
    assert torch.equal(one.noise, other.noise)
    kept = objective.random_parts([7], (4, 2, 8, 8), drop=False)
    assert torch.equal(kept.noise, one.noise)
    assert all(mask.all() for mask in kept.keep_masks().values())
