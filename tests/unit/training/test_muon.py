"""The Muon optimizer."""

import copy

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tests.runs import assert_equal
from tests.unit.training.muon_process import train_three_alike, trained_three_alike
from vexpress.errors import InputError
from vexpress.training.config_file import load_config
from vexpress.training.muon import VECTOR_RATE, Muon, orthogonal


@pytest.mark.parametrize("shape", [(8, 8), (5, 40), (40, 5)])
def test_singular_values_become_about_one(shape):
    matrix = torch.randn(*shape, generator=torch.Generator().manual_seed(0)) * 37
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    values = left.T @ orthogonal(matrix[None])[0] @ right.T  # diagonal, if the singular vectors stay
    assert ((values.diagonal() > 0.6) & (values.diagonal() < 1.3)).all()
    assert (values - values.diagonal().diag()).abs().max() < 1e-2


def fit(num_steps: int, network: nn.Module, optimizer: Muon) -> float:
    generator = torch.Generator().manual_seed(1)
    for _ in range(num_steps):
        pixels = torch.randn(4, 3, 8, 8, generator=generator)
        loss = (network(pixels).mean((2, 3)) - pixels.mean((2, 3)) * 2 - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()


def build() -> tuple[nn.Module, Muon]:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.GroupNorm(2, 6), nn.Conv2d(6, 3, 3, padding=1))
    return network, Muon(network.parameters(), lr=0.02)


def test_it_trains_and_the_scheduler_reaches_both_rates():
    network, optimizer = build()
    assert [group["lr"] for group in optimizer.param_groups] == [0.02, 0.02 * VECTOR_RATE]
    first = fit(1, *build())
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [0.01, 0.01 * VECTOR_RATE]
    assert fit(150, network, optimizer) < first / 10


def test_a_step_of_a_matrix_has_the_length_of_the_rate():
    network, optimizer = build()
    before = network[0].weight.detach().clone()
    fit(1, network, optimizer)
    step = (network[0].weight.detach() - before).flatten(1)
    assert torch.linalg.matrix_norm(step, 2) == pytest.approx(0.02, rel=0.3)


def test_its_state_goes_on_where_it_was():
    network, optimizer = build()
    fit(3, network, optimizer)
    again, resumed = build()
    again.load_state_dict(network.state_dict())
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    fit(3, network, optimizer)
    fit(3, again, resumed)
    for one, other in zip(network.parameters(), again.parameters()):
        assert torch.equal(one, other)


def test_processes_that_share_the_work_have_the_weights_of_one(tmp_path):
    torch.multiprocessing.spawn(train_three_alike, (tmp_path,), nprocs=2)
    alone = trained_three_alike()
    for rank in range(2):
        assert_equal(load_file(tmp_path / f"{rank}.safetensors"), alone)


@pytest.mark.parametrize("override", ["solver.optimizer=sgd", "solver.optimizer=muon solver.use_8bit_adam=true"])
def test_what_does_not_go_is_said(override):
    with pytest.raises(InputError, match="solver.optimizer="):
        load_config("training_configs/stage_1.yaml", override.split())
