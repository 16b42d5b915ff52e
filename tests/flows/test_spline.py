"""The spline's numerics: its laws, its derivatives written by hand, and what lies outside the box."""

from __future__ import annotations

import math

import pytest
import torch

from latentfit.flows import SplineCoupling, outside_box, rational_quadratic_spline, spline_flow
from latentfit.flows.spline import _Shares as Shares

BOX, SLOPE = 5.0, 3.0


def knots(n, bins=8, scale=1.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(n)
    x = 3 * torch.randn(n, generator=generator, dtype=dtype)
    return (
        x,
        scale * torch.randn(n, 2, bins, generator=generator, dtype=dtype),
        scale * torch.randn(n, bins - 1, generator=generator, dtype=dtype),
    )


def test_the_derivatives_are_those_of_finite_differences():
    """Of values and log slopes, to the input, bins and slopes, in both directions; the second derivatives too."""
    arguments = [t.requires_grad_() for t in knots(8, bins=3, scale=2.0)]
    for inverse in (False, True):
        assert torch.autograd.gradcheck(
            lambda x, bins, slopes, inverse=inverse: rational_quadratic_spline(x, bins, slopes, BOX, SLOPE, inverse),
            arguments,
        )
    few = [t[:3] for t in arguments]
    assert torch.autograd.gradgradcheck(
        lambda x, bins, slopes: rational_quadratic_spline(x, bins, slopes, BOX, SLOPE), few
    )


@pytest.mark.parametrize("scale", [0.0, 1.0, 1e3, 1e30])
def test_shares_are_the_softmax(scale):
    """To rounding, with its gradient, in float32."""
    logits = (scale * knots(60, dtype=torch.float32)[1]).requires_grad_()
    weight = knots(61, dtype=torch.float32)[1][:60]
    found, wanted = Shares.apply(logits), logits.softmax(-1)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-7)
    gradients = [torch.autograd.grad((weight * shares).sum(), logits)[0] for shares in (found, wanted)]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-6)


# torch's own tracing of any autograd function
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_gradients_of_single_rows_by_vmap():
    arguments = knots(5)

    def of_row(x, bins, slopes):
        y, log_slope = rational_quadratic_spline(x, bins, slopes, BOX, SLOPE)
        return y + log_slope

    found = torch.func.vmap(torch.func.grad(of_row, argnums=(0, 1, 2)))(*arguments)
    leaves = [t.clone().requires_grad_() for t in arguments]
    for gradient, wanted in zip(found, torch.autograd.grad(of_row(*leaves).sum(), leaves), strict=True):
        torch.testing.assert_close(gradient, wanted)


@pytest.mark.parametrize("bins", [2, 3, 8, 20])
def test_inverse_and_slope(bins):
    x, shares, slopes = knots(400, bins, scale=2.0)
    x.requires_grad_()
    y, log_slope = rational_quadratic_spline(x, shares, slopes, BOX, SLOPE)
    back, log_slope_back = rational_quadratic_spline(y, shares, slopes, BOX, SLOPE, inverse=True)
    torch.testing.assert_close(back, x, rtol=0, atol=1e-10)
    torch.testing.assert_close(log_slope_back, log_slope, rtol=0, atol=1e-9)
    (slope,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(slope.log(), log_slope, rtol=0, atol=1e-10)


def test_rises_through_its_box_and_is_the_identity_outside():
    _, shares, slopes = (t[0] for t in knots(1, scale=3.0))
    line = torch.linspace(-7, 7, 20_001, dtype=torch.float64)

    def image(x):
        n = len(x)
        return rational_quadratic_spline(x, shares.expand(n, -1, -1), slopes.expand(n, -1), BOX, SLOPE)

    y, log_slope = image(line)
    outside = line.abs() > BOX
    assert (y.diff() > 0).all()
    assert torch.equal(y[outside], line[outside])
    assert (log_slope[outside] == 0).all()
    edge = torch.tensor([-BOX, BOX], dtype=torch.float64)
    y, log_slope = image(edge)
    torch.testing.assert_close(y, edge)
    torch.testing.assert_close(log_slope, torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-10)


def test_agrees_with_zukos_given_the_same_knots():
    import zuko

    x, shares, slopes = knots(200)
    y, log_slope = rational_quadratic_spline(x, shares, slopes, BOX, SLOPE)
    # ours has a smallest bin, zuko bends the logarithms and the slopes: what it bends to ours is found by undoing that
    bound = abs(math.log(1e-3))
    share = 0.9 * shares.softmax(-1) + 0.1 / shares.shape[-1]
    share = share.log() - share.log().mean(-1, keepdim=True)
    share = share / (1 - 2 * share.abs() / bound)
    bent = SLOPE * torch.tanh(slopes / SLOPE)
    other = zuko.transforms.MonotonicRQSTransform(
        share[:, 0], share[:, 1], bent / (1 - bent.abs() / bound), bound=BOX, slope=1e-3
    )
    wanted, wanted_log_slope = other.call_and_ladj(x)
    torch.testing.assert_close(y, wanted, rtol=0, atol=1e-9)
    torch.testing.assert_close(log_slope, wanted_log_slope, rtol=0, atol=1e-9)


@pytest.mark.parametrize("scale", [0.0, 1.0, 1e3, 1e6])
@pytest.mark.parametrize("inverse", [False, True])
def test_never_nan(scale, inverse):
    """Knots, edges, the far outside, and the most violent weights, in float32."""
    _, shares, slopes = knots(60, scale=1.0, dtype=torch.float32)
    points = torch.tensor([-1e6, -5.0, -3.75, 0.0, 1.25, 5.0, 5.0001, 1e6, 1e30, -4.999999])
    x = points.repeat(6).requires_grad_()
    arguments = [x, (scale * shares).requires_grad_(), (scale * slopes).requires_grad_()]
    y, log_slope = rational_quadratic_spline(*arguments, BOX, SLOPE, inverse)
    gradients = torch.autograd.grad((y / 1e30 + log_slope).sum(), arguments)
    assert all(torch.isfinite(t).all() for t in (y, log_slope, *gradients))


def test_counts_what_lies_outside_the_box():
    flow = spline_flow(3, transforms=2, hidden_features=(8,), box=2.0)
    z = torch.tensor([[0.0, 3.0, 0.0], [1.0, -1.0, 5.0]])
    assert outside_box(flow, z) == pytest.approx(2 / 6)
    assert outside_box(spline_flow(3, 1, (8,), box=6.0), z) == 0


def test_one_network_call_in_either_direction():
    layer = SplineCoupling(4, (8,))
    calls = []
    layer.conditioner.register_forward_hook(lambda *_: calls.append(1))
    layer(torch.zeros(2, 4))
    layer.inverse(torch.zeros(2, 4))
    assert len(calls) == 2
