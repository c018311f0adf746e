"""SyncNet judges predicted frames as it judges videos, and its gradient reaches them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from vexpress.data.config import DataConfig
from vexpress.data.dataset import TalkingFaceDataset
from vexpress.diffusion.latents import compute_latents, scale_latents, unscale_latents, vae_downsampling
from vexpress.syncnet import crop_corners, crop_face, load_syncnet
from vexpress.training.batches import prepare_batch
from vexpress.training.sync_loss import SyncLoss
from vexpress.weights import load_vae

PACK = Path(__file__).parents[3] / "vexpress" / "demo_pack"
SIZE = json.loads((PACK / "inference_defaults.json").read_text())["image_width"]


@pytest.fixture(scope="module")
def vae():
    return load_vae(PACK / "sd-vae-ft-mse", torch.float32, "cpu", "vae_path").requires_grad_(False)


@pytest.fixture(scope="module")
def syncnet():
    return load_syncnet(PACK / "evaluation" / "syncnet.safetensors")[0].requires_grad_(False)


@pytest.fixture(scope="module")
def batch(vae):
    config = DataConfig(
        meta_paths=[str(PACK / "heldout" / "metadata.json")], train_width=SIZE, train_height=SIZE, num_frames=8,
        crop_ratio=(1.0, 1.0), flip_rate=0.0, reference_margin=0,
    )  # fmt: skip
    dataset = TalkingFaceDataset(config, seed=3, latent_downsampling=vae_downsampling(vae), for_syncnet=True)
    samples = torch.utils.data.default_collate([dataset[number] for number in range(8)])
    return prepare_batch(samples, vae, torch.float32)


def test_true_mouths_fit_their_own_speech_better_than_another(vae, syncnet, batch):
    loss = SyncLoss(syncnet, vae, 500)
    timesteps = torch.zeros(8, dtype=torch.int64)
    with torch.no_grad():
        own = loss(batch.latents, timesteps, batch.sync_windows)
        others = {**batch.sync_windows, "sync_cepstra": batch.sync_windows["sync_cepstra"].roll(1, 0)}
        assert own < 0.75 * loss(batch.latents, timesteps, others)


def test_a_crop_is_that_of_evaluation(vae, syncnet, batch):
    loss = SyncLoss(syncnet, vae, 500)
    latents = torch.zeros_like(batch.latents[0, :, 0])
    place = np.array([25, 50, SIZE - 36])  # of whole pixels, as evaluation cuts; reaches out of the frame below
    corners = torch.from_numpy(crop_corners(place[None])[0]).float()
    with torch.no_grad():
        crop = loss._crop(latents, corners)
        pixels = vae.decode(unscale_latents(vae, latents[None])).sample[0]
    frame = ((pixels.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    expected = torch.from_numpy(crop_face(frame, place, syncnet.config.crop_px).copy()).permute(2, 0, 1)
    assert (crop - expected).abs().mean() < 1


def test_only_samples_of_little_noise_count(vae, syncnet, batch):
    loss = SyncLoss(syncnet, vae, 500)
    clean = batch.latents[:2].clone().requires_grad_()
    windows = {name: value[:2] for name, value in batch.sync_windows.items()}
    value = loss(clean, torch.tensor([500, 501]), windows)
    value.backward()
    assert value > 0 and clean.grad[0].abs().sum() > 0 and not clean.grad[1].any()
    seen = set(windows["sync_frames"][0].tolist())
    assert {i for i in range(8) if clean.grad[0, :, i].any()} == seen
    assert loss(clean, torch.tensor([900, 901]), windows) == 0


def test_descending_the_loss_brings_mouths_to_the_speech(vae, syncnet, batch):
    """Frames of silence, moved along the gradient, fit the speech better: what training uses."""
    loss = SyncLoss(syncnet, vae, 500)
    windows = {name: value[:1] for name, value in batch.sync_windows.items()}
    clean = batch.latents[1:2].clone().requires_grad_()
    before = None
    optimizer = torch.optim.Adam([clean], 0.02)
    for _ in range(5):
        value = loss(clean, torch.zeros(1), windows)
        before = value.item() if before is None else before
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    assert loss(clean, torch.zeros(1), windows) < before


def test_latents_survive_the_way_there_and_back(vae, batch):
    pixels = vae.decode(unscale_latents(vae, batch.latents[0, :, :1].transpose(0, 1))).sample
    again = scale_latents(vae, compute_latents(vae, pixels))
    assert (again[0] - batch.latents[0, :, 0]).abs().mean() < 0.3
