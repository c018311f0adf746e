"""Trains the small networks by which the demo pack measures drawn faces: features for FID and FVD, and a SyncNet.

    python -m scripts.demo.train_metric_networks --data_dir runs/demo/data --output_dir runs/demo/evaluation_networks

Writes fid.safetensors, fvd.safetensors, syncnet.safetensors, syncnet.json and report.json. The same command resumes
from `states/`, which is removed at the end.

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
from vexpress.evaluation.metric_networks import ClipNetwork, FrameNetwork, save_metric_network
from vexpress.files import replacing
from vexpress.syncnet import SyncNet, save_syncnet

logger = logging.getLogger("train_metric_networks")

METRIC_SEED, METRIC_HELDOUT_SEED = 30_000, 40_000
HELDOUT_SHARE = 0.1  # of the clips
KIND = "small, of drawn faces"
LEARNING_RATES = {"fid": 2e-3, "fvd": 2e-3, "syncnet": 1.5e-3}

Clips = Callable[[], tuple[list[DrawnClip], list[DrawnClip]]]
"""Reads clips once: to train on, and held out."""


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


def with_head(network: FrameNetwork | ClipNetwork, num_targets: int) -> nn.Sequential:
    """A network of features, and a layer that tells what it is trained on from them; only the first is kept."""
    return nn.Sequential(network, nn.Linear(network.features.out_features, num_targets))


def train_fid(args: Namespace, clips: Clips) -> dict[str, float]:
    """Trains the features of pictures; returns figures of how good they are. So do the two others."""
    pictures = random_pictures(METRIC_SEED, args.num_people)
    torch.manual_seed(METRIC_SEED)
    network = FrameNetwork(PICTURE_PX)
    regression = with_head(network, pictures.targets.shape[1] + NUM_DEGRADATIONS["fid"])
    train_metric_network("fid", regression, args.fid_steps, args.states_dir, partial(frame_loss, regression, pictures))
    save_metric_network(args.output_dir / "fid.safetensors", network, KIND)
    return measure_fid(network, random_pictures(METRIC_HELDOUT_SEED, max(8, args.num_people // 8)))


def train_fvd(args: Namespace, clips: Clips) -> dict[str, float]:
    """Trains the features of clips."""
    train, heldout = clips()
    torch.manual_seed(METRIC_SEED)
    network = ClipNetwork(CLIP_PX)
    regression = with_head(network, NUM_CLIP_TARGETS)
    train_metric_network("fvd", regression, args.fvd_steps, args.states_dir, partial(clip_loss, regression, train))
    save_metric_network(args.output_dir / "fvd.safetensors", network, KIND)
    return measure_fvd(network, heldout)


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
    print(f"{output}: fid, fvd and syncnet.safetensors, {num_bytes / 1e6:.2f} MB")


if __name__ == "__main__":
    sys.exit(run_program(main))
