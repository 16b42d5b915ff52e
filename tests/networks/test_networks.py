"""One contract over all networks: a new one is one line of `CASES`."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from latentfit import networks
from latentfit.errors import InputError
from latentfit.networks import Linear
from latentfit.registry import registry

CASES: list[tuple[str, dict[str, Any]]] = [
    ("mlp", {"in_shape": 5, "out_shape": 3}),
    ("mlp", {"in_shape": [2, 4], "out_shape": [3, 2], "hidden": [7], "activation": "relu"}),
    ("mlp", {"in_shape": 5, "out_shape": [2, 2], "hidden": []}),
    ("gated_mlp", {"in_shape": [4, 4], "out_shape": 6}),
    ("gated_mlp", {"in_shape": 3, "out_shape": [4, 4, 2], "hidden": [11, 9]}),
    *[
        (
            "residual_conv",
            {"in_shape": shape, "out_shape": 6, "direction": "encode", "width": 4, "hidden": 16},
        )
        for shape in ([8, 8], [28, 28], [3, 32, 32], [1, 64, 64], [2, 5, 9], [1, 3, 3])
    ],
    *[
        (
            "residual_conv",
            {"in_shape": 6, "out_shape": shape, "direction": "decode", "width": 4, "hidden": 16},
        )
        for shape in ([8, 8], [28, 28], [3, 32, 32], [1, 64, 64], [2, 5, 9], [1, 3, 3])
    ],
    (
        "residual_conv",
        {
            "in_shape": 6,
            "out_shape": [3, 9, 8, 2],
            "direction": "decode",
            "image_shape": [3, 9, 8],
            "width": 4,
        },
    ),
    (
        "residual_conv",
        {"in_shape": 6, "out_shape": [64, 5], "direction": "decode", "image_shape": [8, 8], "width": 4},
    ),
    (
        "residual_conv",
        {"in_shape": 64, "out_shape": 6, "direction": "encode", "image_shape": [8, 8], "width": 4},
    ),
]


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]}-{case[1]['in_shape']}-{case[1]['out_shape']}")
def case(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    return request.param


def make(name: str, seed: int = 0, **args: Any) -> networks.Network:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return networks.create(name, **args)


def shape_of(value: int | list[int]) -> tuple[int, ...]:
    return (value,) if isinstance(value, int) else tuple(value)


def rows(args: dict[str, Any], *lead: int) -> Tensor:
    return torch.randn(*lead, *shape_of(args["in_shape"]), generator=torch.Generator().manual_seed(1))


def test_every_registered_network_is_in_the_table() -> None:
    # skip_mlp starts as a linear map, where these laws do not hold: test_skip.py
    assert set(networks.names()) == {name for name, _ in CASES} | {"skip_mlp"}


def test_shapes_and_leading_dimensions(case: tuple[str, dict[str, Any]]) -> None:
    name, args = case
    network = make(name, **args)
    x = rows(args, 2, 3)
    y = network(x)
    assert y.shape == (2, 3, *shape_of(args["out_shape"]))
    torch.testing.assert_close(y[1], network(x[1]), rtol=1e-4, atol=1e-6)
    assert network(x[0, :0]).shape == (0, *shape_of(args["out_shape"]))


def test_rows_do_not_see_each_other(case: tuple[str, dict[str, Any]]) -> None:
    name, args = case
    network = make(name, **args).train()
    x = rows(args, 4)
    torch.testing.assert_close(network(x)[2:3], network(x[2:3]), rtol=1e-4, atol=1e-6)


def test_outputs_start_near_zero_and_differ(case: tuple[str, dict[str, Any]]) -> None:
    name, args = case
    y = make(name, **args)(rows(args, 64))
    assert y.abs().mean() < 0.5
    assert y.std(0).min() > 1e-4


def test_gradient_reaches_every_parameter_and_the_input(case: tuple[str, dict[str, Any]]) -> None:
    name, args = case
    network = make(name, context_features=2, **args)
    x = rows(args, 4).requires_grad_()
    context = torch.randn(4, 2, generator=torch.Generator().manual_seed(2)).requires_grad_()
    y = network(x, context)
    (y * torch.randn(y.shape, generator=torch.Generator().manual_seed(3))).sum().backward()
    named = {"x": x, "context": context, **dict(network.named_parameters())}
    for label, tensor in named.items():
        assert tensor.grad is not None, label
        assert torch.isfinite(tensor.grad).all(), label
        assert (tensor.grad != 0).any(), label


def test_context_changes_the_output_and_broadcasts(case: tuple[str, dict[str, Any]]) -> None:
    name, args = case
    network = make(name, context_features=2, **args)
    x = rows(args, 3, 4)
    context = torch.randn(4, 2, generator=torch.Generator().manual_seed(2))
    y = network(x, context)
    torch.testing.assert_close(y[2], network(x[2], context), rtol=1e-4, atol=1e-6)
    assert not torch.allclose(y, network(x, -context))


def test_context_is_refused_or_missed_clearly(case: tuple[str, dict[str, Any]]) -> None:
    name, args = case
    x = rows(args, 4)
    with pytest.raises(InputError, match=f"This {name} takes no context, but 2 columns"):
        make(name, **args)(x, torch.zeros(4, 2))
    network = make(name, context_features=2, **args)
    with pytest.raises(InputError, match="was built for 2 context columns; none"):
        network(x)
    with pytest.raises(InputError, match="was built for 2 context columns, got 3"):
        network(x, torch.zeros(4, 3))


def test_configuration_and_weights_round_trip(case: tuple[str, dict[str, Any]]) -> None:
    name, args = case
    network = make(name, **args)
    again = registry.build("network", network.config())
    assert again.config() == network.config()
    again.load_state_dict(network.state_dict())
    x = rows(args, 4)
    assert torch.equal(again(x), network(x))


def test_start_is_drawn_from_the_current_random_state(case: tuple[str, dict[str, Any]]) -> None:
    name, args = case
    x = rows(args, 4)
    assert torch.equal(make(name, seed=1, **args)(x), make(name, seed=1, **args)(x))
    assert not torch.equal(make(name, seed=1, **args)(x), make(name, seed=2, **args)(x))


def test_decoders_put_each_parameter_last() -> None:
    args = {"in_shape": 6, "direction": "decode", "image_shape": [3, 8, 8], "width": 4}
    network = make("residual_conv", out_shape=[3, 8, 8, 2], **args)
    final = network.stages[-1]  # its channels are (C, P)
    with torch.no_grad():
        final.weight.zero_()
        final.bias.copy_(torch.arange(6.0))
    y = network(rows({"in_shape": 6}, 1))
    expected = torch.arange(6.0).view(3, 2)[:, None, None, :].expand(3, 8, 8, 2)
    torch.testing.assert_close(y[0], expected)


def test_every_dense_layer_is_the_one_linear() -> None:
    for name, args in CASES:
        for module in make(name, **args).modules():
            assert not isinstance(module, torch.nn.Linear)


def test_linear_keeps_the_variance_its_gain_asks_for() -> None:
    g = torch.Generator().manual_seed(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = Linear(400, 300, gain=1.5)
    x = torch.randn(500, 400, generator=g)
    assert layer(x).std().item() == pytest.approx(1.5, rel=0.02)
    assert layer.weight.abs().max() <= 1.5 * math.sqrt(3 / 400)
    torch.testing.assert_close(layer(x), x @ layer.weight.T + layer.bias)


def test_gated_layer_is_value_times_gate() -> None:
    network = make("gated_mlp", in_shape=3, out_shape=2, hidden=[4])
    x = rows({"in_shape": 3}, 5)
    gated, last = network.layers
    a, b = (x @ gated.linear.weight.T + gated.linear.bias).chunk(2, -1)
    torch.testing.assert_close(network(x), last(a * torch.sigmoid(b)))


@pytest.mark.parametrize(
    ("name", "args", "match"),
    [
        ("mlp", {"in_shape": 0, "out_shape": 1}, "in_shape must be positive"),
        ("mlp", {"in_shape": 1, "out_shape": []}, "out_shape must be positive"),
        ("mlp", {"in_shape": 1, "out_shape": 1, "hidden": [0]}, "hidden widths"),
        ("mlp", {"in_shape": 1, "out_shape": 1, "activation": "tanh"}, "activation"),
        ("mlp", {"in_shape": 1, "out_shape": 1, "context_features": -1}, "context_features"),
        ("gated_mlp", {"in_shape": 1, "out_shape": 1, "hidden": [0]}, "hidden widths"),
        ("residual_conv", {"in_shape": 64, "out_shape": 2}, r"Flat rows\? Give image_shape"),
        (
            "residual_conv",
            {"in_shape": 2, "out_shape": [8, 8, 8, 2], "direction": "decode"},
            "needs an image",
        ),
        ("residual_conv", {"in_shape": 64, "out_shape": 2, "image_shape": [8, 9]}, "needs an image"),
        ("residual_conv", {"in_shape": [8, 8], "out_shape": 2, "direction": "up"}, "direction"),
        ("residual_conv", {"in_shape": [8, 8], "out_shape": 2, "width": 0}, "width"),
        ("mpl", {"in_shape": 1, "out_shape": 1}, "Did you mean 'mlp'"),
    ],
)
def test_bad_arguments_are_refused(name: str, args: dict[str, Any], match: str) -> None:
    with pytest.raises(InputError, match=match):
        networks.create(name, **args)


def test_rows_of_another_shape_are_refused() -> None:
    with pytest.raises(InputError, match=r"takes rows of shape \(3,\), got \(5, 4\)"):
        make("mlp", in_shape=3, out_shape=1)(torch.zeros(5, 4))


def test_integer_rows_are_taken_as_numbers() -> None:
    network = make("mlp", in_shape=3, out_shape=1)
    x = torch.tensor([[0, 128, 255]], dtype=torch.uint8)
    assert torch.equal(network(x), network(x.float()))
