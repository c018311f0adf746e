"""Trains the demo pack's image autoencoder on drawn faces, which it renders as it goes.

    python -m scripts.demo.train_vae --output_dir runs/demo/vae

Two phases: encoder and decoder together, mostly on crops around the face, which are cheap; then the decoder alone on
whole pictures, so that latents are final when the first phase ends (`joint/`) and the networks that work on them can
train meanwhile. The same command resumes. Writes `joint/` and `final/`, folders that diffusers loads.
"""

import dataclasses
import logging
import math
import sys
import time
from argparse import Namespace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderDC
from torch import Tensor

from scripts.demo.drawn_faces import DrawnFrame, probe_errors, render_frame
from scripts.demo.drawn_people import random_motion, random_person
from scripts.demo.training_state import load_state, save_state
from vexpress.cli.parser import ArgumentParser
from vexpress.cli.program import run_program, set_up_logging
from vexpress.data.transforms import lip_mask_box
from vexpress.training.muon import Muon
from vexpress.weights import load_vae

logger = logging.getLogger("train_vae")

BLOCK_OUT_CHANNELS, LAYERS_PER_BLOCK = (32, 32, 64, 64, 128), (0, 1, 1, 2, 2)
LATENT_CHANNELS = 16
CROP_PX = 64
CROP_SHARE = 0.75  # of the steps of the joint phase
LIP_PIXEL_WEIGHT, EYE_PIXEL_WEIGHT, EDGE_WEIGHT = 6.0, 6.0, 0.1
EDGE_FLOOR, EDGE_WINDOW_PX = 0.02, 5
COLOUR_WEIGHTS = 1.0, 6.0
"""Before and after `COLOURS_FROM` of the joint phase: shapes come first, but edges alone would leave hair its hue."""
COLOURS_FROM = 0.65
LATENT_NOISE, LATENT_WEIGHT = 0.1, 1e-4
"""Noise on latents while the encoder learns, and the weight of their square, as of a posterior of fixed deviation."""
POOL_PX = 16
VAE_HELDOUT_SEED, VAE_SEED = 2**31, 0


def build_vae() -> AutoencoderDC:
    """The autoencoder: 16x smaller along each side, 16 channels; nothing is computed at full size."""
    no_attention = ((),) * len(BLOCK_OUT_CHANNELS)
    return AutoencoderDC(
        latent_channels=LATENT_CHANNELS,
        encoder_block_types="ResBlock",
        decoder_block_types="ResBlock",
        encoder_block_out_channels=BLOCK_OUT_CHANNELS,
        decoder_block_out_channels=BLOCK_OUT_CHANNELS,
        encoder_layers_per_block=LAYERS_PER_BLOCK,
        decoder_layers_per_block=LAYERS_PER_BLOCK,
        encoder_qkv_multiscales=no_attention,
        decoder_qkv_multiscales=no_attention,
        upsample_block_type="pixel_shuffle",
        downsample_block_type="pixel_unshuffle",
        encoder_out_shortcut=False,
        decoder_in_shortcut=False,
    )


def random_frame(rng: np.random.Generator, size_px: int) -> DrawnFrame:
    """A random person in a random moment."""
    person, motion = random_person(rng), random_motion(rng, 1, 30, amount=1.3)
    blink = rng.choice([1.0, 1.0, 1.0, rng.random()], (1, 2))
    row = dataclasses.replace(motion, lids=blink).row(0)
    aperture = 0.0 if rng.random() < 0.15 else rng.random() ** 1.3
    return render_frame(person, row, np.array([aperture, rng.random()]), size_px)


def unit_tensor(pixels: np.ndarray) -> Tensor:
    """(n H W 3) uint8 -> (n 3 H W) float32, -1..1."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous().float().div_(127.5).sub_(1)


def lip_weights(frame: DrawnFrame) -> np.ndarray:
    """(H W) float32 weights of the loss: more around the mouth and at the eyes."""
    weights = np.ones(frame.pixels.shape[:2], np.float32)
    x1, y1, x2, y2 = np.clip(lip_mask_box(frame.landmarks, 1.5), 0, len(weights))
    weights[y1:y2, x1:x2] = LIP_PIXEL_WEIGHT
    reach = (frame.bbox[2] - frame.bbox[0]) * 0.14
    for x, y in frame.kps[:2]:
        weights[round(y - 0.6 * reach) : round(y + 0.6 * reach), round(x - reach) : round(x + reach)] = EYE_PIXEL_WEIGHT
    return weights


def random_batch(rng: np.random.Generator, batch_size: int, size_px: int, crop: bool) -> tuple[Tensor, Tensor]:
    """Pictures (n 3 h w), -1..1, and weights (n 1 h w); two crops of each picture, or the whole of it."""
    pixels, weights = [], []
    for _ in range(batch_size):
        frame = random_frame(rng, size_px)
        whole = lip_weights(frame)
        if not crop:
            pixels.append(frame.pixels)
            weights.append(whole)
            continue
        anchors = [frame.kps[rng.integers(3)], frame.kps[3:].mean(0)]
        if rng.random() < 0.4:
            anchors[0] = rng.uniform(0, size_px, 2)
        for anchor in anchors:
            corner = anchor + rng.uniform(-0.4, 0.4, 2) * CROP_PX - CROP_PX / 2
            x, y = np.clip(corner, 0, size_px - CROP_PX).astype(int)
            pixels.append(frame.pixels[y : y + CROP_PX, x : x + CROP_PX])
            weights.append(whole[y : y + CROP_PX, x : x + CROP_PX])
    return unit_tensor(np.stack(pixels)), torch.from_numpy(np.stack(weights))[:, None]


def edge_error(difference: Tensor, pixels: Tensor) -> Tensor:
    """Errors of steps from pixel to pixel relative to the steps around: a nose, a pale jaw count as dark lines do."""
    error = torch.zeros(())
    for dim in (2, 3):
        contrast = F.avg_pool2d(pixels.diff(dim=dim).abs(), EDGE_WINDOW_PX, 1, EDGE_WINDOW_PX // 2)
        error = error + (difference.diff(dim=dim).abs() / (contrast + EDGE_FLOOR)).mean()
    return error


def compute_loss(
    vae: AutoencoderDC, pixels: Tensor, weights: Tensor, joint: bool, colour_weight: float = COLOUR_WEIGHTS[1]
) -> Tensor:
    """Weighted L1 + 2 MSE, terms on edges and on coarse colours, and a weak one on latents while the encoder learns."""
    with torch.autocast("cpu", torch.bfloat16):  # twice as fast on a CPU with AMX
        with torch.set_grad_enabled(joint):
            latents = vae.encode(pixels).latent.float()
        noisy = latents + LATENT_NOISE * torch.randn_like(latents) if joint else latents
        difference = vae.decode(noisy).sample.float() - pixels
    loss = (weights * (difference.abs() + 2 * difference.square())).sum() / (3 * weights.sum())
    loss = loss + EDGE_WEIGHT * edge_error(difference, pixels)
    loss = loss + colour_weight * F.avg_pool2d(difference, POOL_PX).abs().mean()
    if joint:
        loss = loss + LATENT_WEIGHT * latents.square().mean()
    return loss


@torch.inference_mode()
def measure_vae(vae: AutoencoderDC, frames: list[DrawnFrame]) -> dict[str, float]:
    """PSNR of the picture and of the lip box in dB, and the largest mean colour error of skin, hair and background."""
    batch = unit_tensor(np.stack([frame.pixels for frame in frames]))
    decoded = torch.cat([vae.decode(vae.encode(part).latent).sample for part in batch.split(16)])
    decoded = ((decoded.clamp(-1, 1) + 1) * 127.5).permute(0, 2, 3, 1).numpy()
    squares = [np.square(image - frame.pixels) for image, frame in zip(decoded, frames)]
    boxes = [np.clip(lip_mask_box(frame.landmarks, 1.0), 0, len(decoded[0])) for frame in frames]
    lips = [square[y1:y2, x1:x2].mean() for square, (x1, y1, x2, y2) in zip(squares, boxes)]
    colours = [probe_errors(image, frame.pixels, frame.probes) for image, frame in zip(decoded, frames)]
    psnr = lambda values: float(np.mean([10 * math.log10(255**2 / value) for value in values]))  # noqa: E731
    skin, hair, background = np.mean(colours, 0)
    return {
        "psnr": psnr([square.mean() for square in squares]), "psnr_lips": psnr(lips),
        "skin": float(skin), "hair": float(hair), "background": float(background),
    }  # fmt: skip


@torch.inference_mode()
def set_latent_statistics(vae: AutoencoderDC, rng: np.random.Generator, size_px: int) -> None:
    """Puts mean and standard deviation of each latent channel into the configuration."""
    latents = torch.cat([vae.encode(random_batch(rng, 16, size_px, crop=False)[0]).latent for _ in range(16)])
    vae.register_to_config(latents_mean=latents.mean((0, 2, 3)).tolist(), latents_std=latents.std((0, 2, 3)).tolist())


def train_vae(args: Namespace, folder: Path) -> None:
    """Trains both phases, from where the state in `folder` is; writes `joint/` and `final/`."""
    heldout_rng = np.random.default_rng(VAE_HELDOUT_SEED)
    heldout = [random_frame(heldout_rng, args.size) for _ in range(64)]
    vae = load_vae(args.start_path) if args.start_path else build_vae()
    optimizer = Muon(vae.parameters(), args.learning_rate)
    rates = [group["lr"] for group in optimizer.param_groups]
    state_path, parts = folder / "state.pt", {"vae": vae, "optimizer": optimizer}
    state = load_state(state_path, **parts)
    if state["step"]:
        vae.register_to_config(**state["statistics"])
        logger.info("resumed at step %d", state["step"])

    num_steps = args.joint_steps + args.decoder_steps
    losses, since = [], time.time()
    for step in range(state["step"], num_steps):
        joint = step < args.joint_steps
        done = step / args.joint_steps if joint else (step - args.joint_steps) / args.decoder_steps
        # The joint phase ends at a tenth of its rate: encoder and decoder must agree, the last polish comes later.
        first, last = (1.0, 0.1) if joint else (0.4, 0.0)
        for group, rate in zip(optimizer.param_groups, rates):
            group["lr"] = rate * (first + (last - first) * done) * min(1.0, (step + 1) / 50)
        rng = np.random.default_rng((VAE_SEED, step))
        crop = joint and rng.random() < CROP_SHARE and done < 0.9
        batch = random_batch(rng, args.batch_size, args.size, crop)
        loss = compute_loss(vae, *batch, joint, COLOUR_WEIGHTS[not joint or done > COLOURS_FROM])
        vae.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        ended = step + 1 in (args.joint_steps, num_steps)
        if ended and joint:
            set_latent_statistics(vae, np.random.default_rng((VAE_SEED, 1, 0)), args.size)
        if ended or (step + 1) % args.save_steps == 0:
            figures = {name: round(value, 2) for name, value in measure_vae(vae, heldout).items()}
            pace = (time.time() - since) / len(losses)
            logger.info("step %d loss %.4f %s %.2f s/step", step + 1, np.mean(losses), figures, pace)
            losses, since = [], time.time()
            statistics = {name: vae.config.get(name) for name in ("latents_mean", "latents_std")}
            save_state(state_path, parts, statistics=statistics, step=step + 1)
        if ended:
            vae.save_pretrained(folder / ("joint" if joint else "final"))


def main(arguments: list[str] | None = None) -> None:
    """Trains both phases."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output_dir", required=True, type=Path)
    parser.add_argument("--start_path", type=Path, help="autoencoder to go on from; unset: from nothing")
    parser.add_argument("--learning_rate", type=float, default=0.02)
    parser.add_argument("--joint_steps", type=int, default=5600)
    parser.add_argument("--decoder_steps", type=int, default=2500)
    parser.add_argument("--batch_size", type=int, default=8, help="pictures per step; twice as many crops")
    parser.add_argument("--size", type=int, default=128, help="px")
    parser.add_argument("--save_steps", type=int, default=250)
    args = parser.parse_args(arguments)
    set_up_logging()
    torch.manual_seed(VAE_SEED)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    train_vae(args, args.output_dir)
    print(f"{args.output_dir / 'final'}: image autoencoder")


if __name__ == "__main__":
    sys.exit(run_program(main))
