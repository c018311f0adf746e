"""Bars of the pack's head motion, on speech of unseen voices; the law says what the speech should do to a head."""

from pathlib import Path

import numpy as np
import pytest
import torch

from scripts.demo.head_motion_law import law_from_speech
from scripts.demo.measure_head_motion import (
    FRAME_PX,
    LAW_OF,
    correlations,
    distortion,
    random_portrait,
    spectrum_ratios,
)
from tests.demo.pack import PACK_DIR
from vexpress.audio_features import encode_audio
from vexpress.data.formats import load_metadata
from vexpress.media.audio import load_audio
from vexpress.media.retargeting import move_face
from vexpress.model_folder import LAYOUT
from vexpress.models.head_motion import HeadMotion, motion_from_speech
from vexpress.weights import load_audio_encoder
from vexpress.weights.head_motion import load_head_motion

FPS, NUM_SEEDS = 30.0, 8
SPEECH = load_metadata(PACK_DIR / "heldout" / "metadata.json")


@pytest.fixture(scope="module")
def network() -> HeadMotion:
    torch.set_num_threads(1)
    return load_head_motion(PACK_DIR / f"{LAYOUT['head_motion_path']}.safetensors")


@pytest.fixture(scope="module")
def joined() -> tuple[torch.Tensor, np.ndarray]:
    """The speech of all held-out clips in a row, equally loud: states, and what the law makes of it."""
    sounds = [load_audio(record.video).resampled_mono(16000).numpy() for record in SPEECH]
    waveform = np.concatenate([0.1 * sound / sound.std() for sound in sounds])
    encoder, processor = load_audio_encoder(PACK_DIR / LAYOUT["audio_encoder_path"])
    with torch.inference_mode():
        states = encode_audio(encoder, processor, torch.from_numpy(waveform)).float()
    num_frames = round(len(waveform) / 16000 * FPS)
    law = law_from_speech(waveform, 16000, num_frames, FPS)
    return states, np.stack([law[name] for name in LAW_OF.values()], 1)


@pytest.fixture(scope="module")
def made(network, joined) -> list[np.ndarray]:
    states, law = joined
    return [motion_from_speech(network, states, len(law), FPS, seed).numpy() for seed in range(NUM_SEEDS)]


def test_it_adds_little_to_the_pack():
    size = sum(path.stat().st_size for path in Path(PACK_DIR / "v-express").glob("head_motion.*"))
    assert size < 500_000


def test_motion_follows_the_speech_as_the_law_says(made, joined):
    laws = [joined[1]] * NUM_SEEDS
    r = correlations(made, laws)
    assert np.mean(list(r.values())) >= 0.6, r
    # Twenty seconds agree by chance at one shift or the other, and not on average over many.
    shifts = np.linspace(0.1, 0.9, 17) * len(joined[1])
    moved = [correlations(made, [np.roll(law, round(shift), axis=0) for law in laws]) for shift in shifts]
    shuffled = {name: np.mean([r[name] for r in moved]) for name in LAW_OF}
    assert np.abs(list(shuffled.values())).max() < 0.15, shuffled


def test_seeds_move_differently_and_equally_much(made):
    spread = np.stack(made).std(axis=0).mean(axis=0)
    whole = np.stack(made).std(axis=(0, 1))
    assert (spread[:5] > 0.3 * whole[:5]).all()
    ratios = spectrum_ratios(made[:4], made[4:], FPS, order=1)
    assert all(0.7 < ratio["all"] < 1.4 for ratio in ratios.values()), ratios


def test_no_face_is_distorted_or_leaves_the_frame(made):
    rng = np.random.default_rng(0)
    for motion in made:
        reference = random_portrait(rng)
        kps = move_face(reference, torch.from_numpy(1.5 * motion), FRAME_PX, FRAME_PX)
        assert kps.min() > 0 and kps.max() < FRAME_PX
        assert distortion(reference, kps) < 0.05


def test_ten_minutes_without_drift(network, joined):
    states = joined[0]
    num_states = 600 * 50
    states = states.repeat(num_states // len(states) + 1, 1)[:num_states]
    motion = motion_from_speech(network, states, round(600 * FPS), FPS, seed=1).numpy()[:, :5]
    minutes = motion.reshape(10, -1, 5)
    assert np.abs(minutes.mean(1) / motion.std(0)).max() < 0.8
    assert (np.abs(minutes[-1]).max(0) < 1.5 * np.abs(minutes[:5]).max((0, 1))).all()
