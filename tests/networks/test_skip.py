"""A network that starts as a linear map of its input, whatever its hidden layers are."""

from __future__ import annotations

import torch

from latentfit.networks import SkipMLP


def skip(context_features=0):
    torch.manual_seed(0)
    return SkipMLP(in_shape=[2, 3], out_shape=4, hidden=[8], context_features=context_features)


def test_it_starts_linear():
    network = skip()
    x, y = torch.randn(2, 7, 2, 3, generator=torch.Generator().manual_seed(1))
    offset = network(torch.zeros(7, 2, 3))
    torch.testing.assert_close(network(2 * x - y) - offset, 2 * (network(x) - offset) - (network(y) - offset))
    assert network(x).shape == (7, 4)


def test_away_from_its_start_all_of_it_learns_and_the_context_matters():
    network = skip(context_features=2)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1)
    x = torch.randn(7, 2, 3, generator=torch.Generator().manual_seed(1), requires_grad=True)
    context = torch.ones(7, 2)
    y = network(x, context)
    y.square().sum().backward()
    assert x.grad.abs().sum() > 0
    assert all(parameter.grad.abs().sum() > 0 for parameter in network.parameters())
    assert not torch.allclose(y, network(x, -context))
