"""What is random in a training step."""

from dataclasses import replace

import torch

from vexpress.training.config import TrainConfig
from vexpress.training.randomness import random_parts

SHAPE = (4, 6, 8, 8)


def parts(num_samples: int = 1, **changes):
    config = TrainConfig(**{key: value for key, value in changes.items() if key != "audio_drop_rate"})
    config.data = replace(config.data, audio_drop_rate=changes.get("audio_drop_rate", 0.0), kps_drop_rate=0.3)
    return random_parts(config, list(range(num_samples)), SHAPE, 1000)


def test_options_of_ours_leave_all_else_as_it_was():
    plain, ours = parts(20), parts(20, audio_drop_rate=0.5, shared_noise=0.5)
    for name in ("timesteps", "reference_keep", "kps_keep"):
        assert torch.equal(getattr(plain, name), getattr(ours, name))
    assert not torch.equal(plain.noise, ours.noise)


def test_audio_alone_is_dropped_for_a_whole_sample_at_its_rate():
    values = parts(2000, audio_drop_rate=0.2, uncond_ratio=0.0)
    assert torch.equal(values.audio_keep.amin(1), values.audio_keep.amax(1))
    assert abs(1 - values.audio_keep.mean() - 0.2) < 0.03
    assert values.reference_keep.all()


def test_shared_noise_is_common_to_a_sample_alone():
    noise = parts(2, shared_noise=1.0, noise_offset=0.0).noise
    assert torch.equal(noise[:, :, :1].expand_as(noise), noise)
    assert not torch.equal(noise[0], noise[1])
    per_frame = parts(200, shared_noise=0.4, noise_offset=0.0).noise
    assert abs((per_frame[:, :, 0] * per_frame[:, :, 1]).mean() - 0.4) < 0.03
