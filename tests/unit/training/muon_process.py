"""What processes that share Muon's work do; a module of its own, which they can import."""

from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import nn

from vexpress.training.muon import Muon


def trained_three_alike() -> dict[str, torch.Tensor]:
    """Three matrices of one shape, and one each of two others."""
    torch.manual_seed(0)
    network = nn.Sequential(*(nn.Conv2d(3, 3, 3, padding=1) for _ in range(3)), nn.Conv2d(3, 5, 1), nn.Conv2d(5, 3, 1))
    optimizer = Muon(network.parameters(), lr=0.02)
    for _ in range(3):
        optimizer.zero_grad()
        network(torch.randn(2, 3, 8, 8)).square().mean().backward()
        optimizer.step()
    return network.state_dict()


def train_three_alike(rank: int, folder: Path) -> None:
    """One of two processes; leaves its weights in the folder."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    save_file(trained_three_alike(), folder / f"{rank}.safetensors")
    dist.barrier()  # gloo may abort where the other process has left
    dist.destroy_process_group()
