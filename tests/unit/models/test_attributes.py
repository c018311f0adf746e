"""Attributes as tokens: one each, with one of its own for what is not known."""

import torch

from tests import tiny
from vexpress.models.attributes import ATTRIBUTES

NAN = torch.nan


def test_each_token_depends_on_its_own_attribute_alone():
    network = tiny.attribute_projection()
    rest = torch.tensor([1.0, 1, 0, 0, 0, 0])
    tokens = network(rest)
    assert tokens.shape == (len(ATTRIBUTES), network.config.output_dim)
    for column, value in enumerate([0.5, 0.2, -1, 0.7, 1, 0.3]):
        changed = network(rest.index_fill(0, torch.tensor([column]), value))
        differs = (changed != tokens).any(dim=-1)
        assert differs.tolist() == [i == column for i in range(len(ATTRIBUTES))]


def test_what_is_not_known_is_what_is_dropped_whatever_it_was():
    network = tiny.attribute_projection()
    values, other = torch.rand(2, 3, 6), torch.rand(2, 3, 6)
    keep = torch.ones(2, 3, 6)
    keep[1, :, 2:] = 0
    unknown = values.masked_fill(keep == 0, NAN)
    assert torch.equal(network(values, keep), network(unknown))
    assert torch.equal(network(values, keep)[1, :, 2:], network(other, keep)[1, :, 2:])
    assert not torch.equal(network(values, keep)[0], network(other, keep)[0])


def test_gradients_are_finite_and_everywhere_with_unknown_values():
    network = tiny.attribute_projection()
    network(torch.full((1, 2, 6), NAN)).square().mean().backward()
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())
    assert network.unknown.grad.abs().sum() > 0
