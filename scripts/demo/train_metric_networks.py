"""Trains the small networks by which the demo pack measures drawn faces: features for FID and FVD, and a SyncNet.

    python -m scripts.demo.train_metric_networks --data_dir runs/demo/data --output_dir runs/demo/evaluation_networks

Writes fid.pt, fvd.pt (TorchScript with the released detectors' interfaces), syncnet.safetensors, syncnet.json and
report.json. The same command resumes from `states/`, which is removed at the end.

The features for FID and FVD come from regression: what a picture shows (colours, hair, pose, mouth) or how a
clip moves, and how much the picture or clip was degraded, so that features move with both content and quality.
"""

import functools
import json
import logging
import math
import shutil
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scripts.demo.metric_checks import measure_fid, measure_fvd, measure_sync
from scripts.demo.metric_tasks import (
    CLIP_PX,
    NUM_CLIP_TARGETS,
    NUM_DEGRADATIONS,
    PICTURE_PX,
    SYNC_SIZES,
    DrawnClip,
    clip_loss,
    frame_loss,
    load_drawn_clips,
    random_pictures,
    sync_loss,
)
from scripts.demo.training_state import SAVE_SECONDS, load_state, save_state
from vexpress.cli.parser import ArgumentParser
from vexpress.cli.program import run_program, set_up_logging
from vexpress.errors import InputError
from vexpress.evaluation.features import CLIP_FRAMES, EXTRA_FILE
from vexpress.evaluation.syncnet import SyncNet, save_syncnet
from vexpress.files import replacing

logger = logging.getLogger("train_metric_networks")

METRIC_SEED, METRIC_HELDOUT_SEED = 30_000, 40_000
FEATURES = 64
HELDOUT_SHARE = 0.1  # of the clips
KIND = "small, of drawn faces"
LEARNING_RATES = {"fid": 2e-3, "fvd": 2e-3, "syncnet": 1.5e-3}

Clips = Callable[[], tuple[list[DrawnClip], list[DrawnClip]]]
"""Reads clips once: to train on, and held out."""


# ---- networks ------------------------------------------------------------------------------------------------------


def _block(dimensions: int, width_in: int, width_out: int, kernel, stride, padding) -> nn.Sequential:
    conv, norm = {2: (nn.Conv2d, nn.BatchNorm2d), 3: (nn.Conv3d, nn.BatchNorm3d)}[dimensions]
    return nn.Sequential(conv(width_in, width_out, kernel, stride, padding, bias=False), norm(width_out), nn.ReLU())


class FrameNetwork(nn.Module):
    """Pictures (n 3 H W) uint8 -> features (n 64), or what they are trained on."""

    def __init__(self, num_targets: int, widths: tuple[int, ...] = (16, 32, 48, 64, 96)):
        super().__init__()
        pairs = zip((3, *widths), widths)
        self.layers = nn.Sequential(*(_block(2, a, b, 3, 2, 1) for a, b in pairs))
        self.features = nn.Linear(widths[-1] * (PICTURE_PX // 2 ** len(widths)) ** 2, FEATURES)
        self.head = nn.Linear(FEATURES, num_targets)
        self.size = PICTURE_PX

    def forward(self, images: Tensor, return_features: bool = True) -> Tensor:
        pixels = F.interpolate(
            images.float(), [self.size, self.size], mode="bilinear", align_corners=False, antialias=True
        )
        features = self.features(self.layers(pixels / 127.5 - 1).flatten(1))
        return features if return_features else self.head(features)


class ClipNetwork(nn.Module):
    """Clips (n 3 16 48 48) in -1..1 -> features (n 64), or what they are trained on."""

    def __init__(self, num_targets: int, widths: tuple[int, ...] = (12, 24, 48, 64)):
        super().__init__()
        layers = []
        for a, b in zip((3, *widths), widths):  # in space, then in time
            layers += [_block(3, a, b, (1, 3, 3), (1, 2, 2), (0, 1, 1)), _block(3, b, b, (3, 1, 1), 1, (1, 0, 0))]
        self.layers = nn.Sequential(*layers)
        side = CLIP_PX // 2 ** len(widths)
        self.mix = _block(3, widths[-1], 16, 1, 1, 0)
        self.features = nn.Linear(16 * CLIP_FRAMES * side**2, FEATURES)
        self.head = nn.Linear(FEATURES, num_targets)

    def forward(
        self, clips: Tensor, rescale: bool = False, resize: bool = False, return_features: bool = True
    ) -> Tensor:
        assert not rescale and not resize, "give clips of the right size in -1..1"
        features = self.features(self.mix(self.layers(clips)).flatten(1))
        return features if return_features else self.head(features)


# ---- training ------------------------------------------------------------------------------------------------------


def train_metric_network(
    name: str, network: nn.Module, num_steps: int, folder: Path, compute_loss: Callable[[np.random.Generator], Tensor]
) -> nn.Module:
    """Trains a network from where its state in `folder` is; batches depend on the step only."""
    rate = LEARNING_RATES[name]
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=1e-3)
    state_path, parts = folder / f"{name}.pt", {"network": network, "optimizer": optimizer}
    start = load_state(state_path, **parts)["step"]
    if start:
        logger.info("%s: resumed at step %d", name, start)
    network.train()
    losses: list[float] = []
    saved = begun = time.monotonic()
    for step in range(start, num_steps):
        warm_up = min(1.0, (step + 1) / 50)
        for group in optimizer.param_groups:
            group["lr"] = rate * warm_up * (0.02 + 0.49 * (1 + math.cos(math.pi * step / num_steps)))
        loss = compute_loss(np.random.default_rng((METRIC_SEED, step)))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
        if (step + 1) % 100 == 0:
            milliseconds = 1000 * (time.monotonic() - begun) / (step + 1 - start)
            logger.info(
                "%s: step %d of %d, loss %.4f, %.0f ms", name, step + 1, num_steps, np.mean(losses[-100:]), milliseconds
            )
        if time.monotonic() - saved > SAVE_SECONDS or step + 1 == num_steps:
            save_state(state_path, parts, step=step + 1)
            saved = time.monotonic()
    return network.eval()


def save_script(path: Path, network: nn.Module, facts: dict) -> torch.jit.ScriptModule:
    """Writes TorchScript with the facts that `vexpress.evaluation.features` reads."""
    script = torch.jit.script(network)
    with replacing(path) as temporary:
        torch.jit.save(script, str(temporary), _extra_files={EXTRA_FILE: json.dumps(facts)})
    return script


def train_fid(args: Namespace, clips: Clips) -> dict[str, float]:
    """Trains the features of pictures; returns figures of how good they are. So do the two others."""
    pictures = random_pictures(METRIC_SEED, args.num_people)
    torch.manual_seed(METRIC_SEED)
    network = FrameNetwork(pictures.targets.shape[1] + NUM_DEGRADATIONS["fid"])
    train_metric_network("fid", network, args.fid_steps, args.states_dir, partial(frame_loss, network, pictures))
    facts = {"kind": KIND, "resize": f"{PICTURE_PX} px (bilinear, antialiased), by the network itself"}
    script = save_script(args.output_dir / "fid.pt", network, facts)
    return measure_fid(script, random_pictures(METRIC_HELDOUT_SEED, max(8, args.num_people // 8)))


def train_fvd(args: Namespace, clips: Clips) -> dict[str, float]:
    """Trains the features of clips."""
    train, heldout = clips()
    torch.manual_seed(METRIC_SEED)
    network = ClipNetwork(NUM_CLIP_TARGETS)
    train_metric_network("fvd", network, args.fvd_steps, args.states_dir, partial(clip_loss, network, train))
    script = save_script(args.output_dir / "fvd.pt", network, {"kind": KIND, "frame_px": CLIP_PX})
    return measure_fvd(script, heldout)


def train_syncnet(args: Namespace, clips: Clips) -> dict[str, float]:
    """Trains the SyncNet."""
    train, heldout = clips()
    torch.manual_seed(METRIC_SEED)
    network = SyncNet(SYNC_SIZES)
    train_metric_network("syncnet", network, args.sync_steps, args.states_dir, partial(sync_loss, network, train))
    save_syncnet(args.output_dir / "syncnet.safetensors", network)
    return measure_sync(network, heldout)


def build_parser() -> ArgumentParser:
    """The flags."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_dir", type=Path, required=True, help="drawn clips, see make_drawn_dataset.py")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--num_people", type=int, default=2000, help="people in the pictures")
    parser.add_argument("--num_clips", type=int, default=400, help="most clips that are read; a tenth is for measuring")
    parser.add_argument("--fid_steps", type=int, default=2500)
    parser.add_argument("--fvd_steps", type=int, default=1500)
    parser.add_argument("--sync_steps", type=int, default=1200)
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Trains and measures the three networks."""
    args = build_parser().parse_args(arguments)
    for name in ("num_people", "num_clips", "fid_steps", "fvd_steps", "sync_steps"):
        if getattr(args, name) < 1:
            raise InputError("must be 1 or more", name, getattr(args, name))
    set_up_logging()
    output, args.states_dir = args.output_dir, args.output_dir / "states"
    args.states_dir.mkdir(parents=True, exist_ok=True)
    report_path = output / "report.json"
    report = json.loads(report_path.read_text()) if report_path.is_file() else {}

    @functools.cache
    def clips() -> tuple[list[DrawnClip], list[DrawnClip]]:
        """To train on, and held out."""
        found = load_drawn_clips(args.data_dir / "metadata.json", args.num_clips)
        num_heldout = max(2, round(HELDOUT_SHARE * len(found)))
        return found[:-num_heldout], found[-num_heldout:]

    for name, train in {"fid": train_fid, "fvd": train_fvd, "syncnet": train_syncnet}.items():
        if name not in report:
            report[name] = train(args, clips)
            logger.info("%s: %s", name, ", ".join(f"{what} {value:.3f}" for what, value in report[name].items()))
            with replacing(report_path) as temporary:
                temporary.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    shutil.rmtree(args.states_dir)
    num_bytes = sum(path.stat().st_size for path in output.iterdir())
    print(f"{output}: fid.pt, fvd.pt, syncnet.safetensors, {num_bytes / 1e6:.2f} MB")


if __name__ == "__main__":
    sys.exit(run_program(main))
