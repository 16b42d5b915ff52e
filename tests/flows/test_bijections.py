"""Laws of every bijection, and what is special to each."""

from __future__ import annotations

import math

import pytest
import torch

from latentfit.errors import InputError
from latentfit.flows import (
    ActNorm,
    AffineCoupling,
    AutoregressiveAffine,
    LUMixing,
    Permutation,
    Sequence,
    SplineCoupling,
    Whitening,
    autoregressive_flow,
    coupling_flow,
    spline_flow,
)


def whitening(dim, full):
    layer = Whitening(dim, full).double()
    scatter = torch.randn(50, dim, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    layer.set_moments(scatter.mean(0), scatter.T @ scatter / 50)
    return layer


def actnorm(dim):
    layer = ActNorm(dim).double()
    layer.initialise(3 + 2 * torch.randn(30, dim, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    return layer


BIJECTIONS = {
    "coupling": lambda d: AffineCoupling(d, (16,)),
    "coupling, flipped": lambda d: AffineCoupling(d, (16,), flip=True),
    "spline": lambda d: SplineCoupling(d, (16,)),
    "spline, flipped": lambda d: SplineCoupling(d, (16,), flip=True, bins=3),
    "autoregressive": lambda d: AutoregressiveAffine(d, (16, 7)),
    "autoregressive, no hidden": lambda d: AutoregressiveAffine(d, ()),
    "LU mixing": lambda d: LUMixing(d, torch.randperm(d, generator=torch.Generator().manual_seed(1))),
    "permutation": lambda d: Permutation(d),
    "shuffle": lambda d: Permutation(d, torch.randperm(d, generator=torch.Generator().manual_seed(1))),
    "actnorm": actnorm,
    "whitening": lambda d: whitening(d, True),
    "whitening, diagonal": lambda d: whitening(d, False),
    "sequence": lambda d: coupling_flow(d, transforms=4, hidden_features=(16,)),
    "spline flow": lambda d: spline_flow(d, transforms=3, hidden_features=(16,)),
    "autoregressive flow": lambda d: autoregressive_flow(d, transforms=3, hidden_features=(16, 16)),
}
DIMS = [1, 2, 5]


def make(name, dim, dtype=torch.float64):
    torch.manual_seed(0)
    layer = BIJECTIONS[name](dim).to(dtype)
    noise = {"spline flow": 0.03}.get(name, 0.1 if isinstance(layer, Sequence) else 0.3)
    with torch.no_grad():
        for parameter in layer.parameters():
            # a stack of steep layers is ill-conditioned: rounding alone would exceed 1e-10
            parameter.add_(noise * torch.randn_like(parameter))
    return layer


def points(*shape, dtype=torch.float64):
    return 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(5), dtype=dtype)


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("name", BIJECTIONS)
def test_inverse(name, dim):
    layer, z = make(name, dim), points(3, 4, dim)
    with torch.no_grad():
        u, log_det = layer(z)
        back, log_det_back = layer.inverse(u)
        forth, _ = layer(layer.inverse(z)[0])
    assert u.shape == z.shape
    assert log_det.shape == (3, 4)
    torch.testing.assert_close(back, z, rtol=0, atol=1e-10)
    torch.testing.assert_close(forth, z, rtol=0, atol=1e-10)
    torch.testing.assert_close(log_det_back, log_det, rtol=0, atol=1e-10)


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("name", BIJECTIONS)
def test_log_det_is_that_of_the_jacobian(name, dim):
    layer = make(name, dim)
    for z in points(4, dim):
        jacobian = torch.autograd.functional.jacobian(lambda z: layer(z)[0], z)
        _, wanted = torch.linalg.slogdet(jacobian)
        torch.testing.assert_close(layer(z)[1].detach(), wanted, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    "name", ["coupling", "spline", "autoregressive", "LU mixing", "sequence", "spline flow", "autoregressive flow"]
)
def test_finite_at_a_million_in_float32(name):
    layer = make(name, 4, torch.float32)
    z = torch.tensor([[1e6, -1e6, 1e6, 1.0], [-1e6, 0.0, 1e6, 1e6]]).requires_grad_()
    for direction in (layer, layer.inverse):
        layer.zero_grad()
        u, log_det = direction(z)
        (gradient,) = torch.autograd.grad(0.5 * u.square().sum() - log_det.sum(), z, retain_graph=True)
        (0.5 * u.square().sum() - log_det.sum()).backward()
        assert torch.isfinite(u).all()
        assert torch.isfinite(log_det).all()
        assert torch.isfinite(gradient).all()
        assert all(torch.isfinite(p.grad).all() for p in layer.parameters() if p.grad is not None)


@pytest.mark.parametrize("dim", DIMS)
def test_starts_are_identities(dim):
    z = points(6, dim)
    for layer in (
        AffineCoupling(dim, (8,)),
        AutoregressiveAffine(dim, (8,)),
        LUMixing(dim),
        ActNorm(dim),
        Whitening(dim),
    ):
        u, log_det = layer.double()(z)
        assert torch.equal(u, z)
        assert (log_det == 0).all()
    u, log_det = coupling_flow(dim, transforms=3, hidden_features=(8,)).double()(z)
    torch.testing.assert_close(u.sort(-1).values, z.sort(-1).values)  # a permutation
    assert (log_det == 0).all()


@pytest.mark.parametrize("transforms", [1, 4, 30])
def test_total_log_scale_is_bounded(transforms):
    """With the most violent weights there are, |log det| stays within D times the bound."""
    flow = coupling_flow(4, transforms, (8,), max_log_scale=3.0).double()
    assert sum(layer.max_log_scale for layer in flow.layers) <= 3.0 + 1e-12
    assert max(layer.max_log_scale for layer in flow.layers) <= 2.0
    with torch.no_grad():
        for name, parameter in flow.named_parameters():
            if "lower" not in name and "upper" not in name:
                parameter.copy_(1e3 * torch.randn_like(parameter))
        _, log_det = flow(points(50, 4))
    assert torch.isfinite(log_det).all()
    assert log_det.abs().max() <= 4 * 3.0 + 1e-9


def test_one_network_call_in_either_direction():
    layer = AffineCoupling(4, (8,))
    calls = []
    layer.conditioner.register_forward_hook(lambda *_: calls.append(1))
    layer(torch.zeros(2, 4))
    layer.inverse(torch.zeros(2, 4))
    assert len(calls) == 2


def test_context_is_used_and_asked_for():
    layer = make("coupling", 4)
    conditional = AffineCoupling(4, (16,), context_features=3).double()
    with torch.no_grad():
        for parameter in conditional.parameters():
            parameter.add_(0.3)
    z, context = points(2, 5, 4), points(5, 3)
    u, log_det = conditional(z, context)  # (S, N, D) with a context (N, C)
    back, _ = conditional.inverse(u, context)
    torch.testing.assert_close(back, z)
    assert not torch.allclose(u, conditional(z, context + 1)[0])
    assert log_det.shape == (2, 5)
    with pytest.raises(InputError, match="needs a context"):
        conditional(z)
    assert torch.equal(layer(z, context)[0], layer(z)[0])


@pytest.mark.parametrize("dim", DIMS)
def test_autoregressive_with_a_context(dim):
    """Each column, the first too, answers to the context, to the columns before it, and to no other."""
    torch.manual_seed(0)
    layer = AutoregressiveAffine(dim, (24, 24), context_features=3).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    z, context = points(2, 4, dim), points(4, 3)
    u, log_det = layer(z, context)
    back, log_det_back = layer.inverse(u, context)
    torch.testing.assert_close(back, z, rtol=0, atol=1e-10)
    torch.testing.assert_close(log_det_back, log_det, rtol=0, atol=1e-10)
    assert ((layer(z, context + 1)[0] - u).abs() > 1e-6).all()
    jacobian = torch.autograd.functional.jacobian(lambda z: layer(z, context[0])[0], z[0, 0])
    assert (jacobian.triu(1) == 0).all()
    assert (jacobian.tril() != 0).sum() == dim * (dim + 1) // 2
    with pytest.raises(InputError, match="needs a context"):
        layer(z)


def test_autoregressive_agrees_with_zukos_given_the_same_network():
    import zuko

    layer = make("autoregressive", 5)
    z = points(7, 5)

    def univariate(z):
        log_scale, shift = layer.conditioner(z).unbind(-2)
        bounded = 2 * torch.tanh(log_scale / 2)
        return zuko.transforms.MonotonicAffineTransform(
            shift, bounded / (1 - bounded.abs() / abs(math.log(1e-3))), slope=1e-3
        )

    other = zuko.transforms.AutoregressiveTransform(univariate, passes=5)
    u, log_det = other.call_and_ladj(z)
    found, found_log_det = layer(z)
    torch.testing.assert_close(found, u, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found_log_det, log_det.sum(-1), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(layer.inverse(z)[0], other.inv(z), rtol=1e-10, atol=1e-10)


def test_coupling_agrees_with_zukos_affine_transform():
    import zuko

    layer = make("coupling", 6)
    z = points(7, 6)
    log_scale, shift = layer.conditioner(z[:, :3]).chunk(2, -1)
    bounded = 2 * torch.tanh(log_scale / 2)
    # zuko bends its own scale by a / (1 + |a / c|) with c = |log slope|: undo that beforehand
    unbent = bounded / (1 - bounded.abs() / abs(math.log(1e-3)))
    u, log_det = zuko.transforms.MonotonicAffineTransform(shift, unbent, slope=1e-3).call_and_ladj(z[:, 3:])
    found, found_log_det = layer(z)
    torch.testing.assert_close(found[:, 3:], u, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found_log_det, log_det.sum(-1), rtol=1e-12, atol=1e-12)


def test_actnorm_is_initialised_once():
    layer = ActNorm(2)
    z = 5 + 3 * torch.randn(1000, 2, generator=torch.Generator().manual_seed(0))
    layer.initialise(z)
    u, _ = layer(z)
    torch.testing.assert_close(u.mean(0), torch.zeros(2), rtol=0, atol=1e-5)
    torch.testing.assert_close(u.std(0, unbiased=False), torch.ones(2), rtol=0, atol=1e-5)
    again = ActNorm(2)
    again.load_state_dict(layer.state_dict())
    again.initialise(100 * z)
    assert torch.equal(again(z)[0], u)


def test_actnorm_keeps_the_scale_of_a_constant():
    layer = ActNorm(2)
    layer.initialise(torch.tensor([[7.0, 1.0], [7.0, 3.0]]))
    assert torch.equal(layer.log_scale.exp(), torch.ones(2))
    assert torch.equal(layer.shift, torch.tensor([7.0, 2.0]))


def test_sequence_initialises_each_layer_on_what_it_sees():
    first, second = ActNorm(2), ActNorm(2)
    z = 5 + 3 * torch.randn(100, 2, generator=torch.Generator().manual_seed(0))
    Sequence([first, Permutation(2), second]).initialise(z)
    torch.testing.assert_close(second.log_scale.detach(), torch.zeros(2), rtol=0, atol=1e-5)


@pytest.mark.parametrize("full", [True, False])
def test_whitening_whitens(full):
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(4, 4, generator=generator, dtype=torch.float64)
    z = torch.randn(500, 4, generator=generator, dtype=torch.float64) @ mix + 10
    layer = Whitening(4, full).double()
    layer.set_moments(z.mean(0), z.T.cov())
    u, _ = layer(z)
    covariance = u.T.cov() if full else torch.diag(u.var(0))
    torch.testing.assert_close(u.mean(0), torch.zeros(4, dtype=torch.float64), rtol=0, atol=1e-10)
    torch.testing.assert_close(covariance, torch.eye(4, dtype=torch.float64), rtol=0, atol=1e-3)


def test_whitening_of_a_constant_coordinate_is_finite():
    layer = Whitening(2)
    layer.set_moments(torch.zeros(2), torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
    u, log_det = layer(torch.ones(3, 2))
    assert torch.isfinite(u).all()
    assert torch.isfinite(log_det).all()


def test_bad_moments_and_lengths_are_named():
    with pytest.raises(InputError, match="needs moments"):
        Whitening(2).set_moments(torch.zeros(3), torch.eye(3))
    with pytest.raises(InputError, match="not finite"):
        Whitening(2).set_moments(torch.full((2,), torch.nan), torch.eye(2))
    with pytest.raises(InputError, match="at least one layer"):
        Sequence([])
    with pytest.raises(InputError, match="transforms"):
        coupling_flow(2, transforms=0)


# torch's own tracing of any autograd function
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("make", [coupling_flow, spline_flow, autoregressive_flow])
@pytest.mark.parametrize("context_features", [0, 2])
def test_compiles_to_one_graph(make, context_features):
    """`fullgraph` refuses a graph break; the eager backend compiles nothing, so this is cheap."""
    torch.manual_seed(0)
    flow = make(6, transforms=2, hidden_features=(8,), context_features=context_features)
    context = torch.randn(5, 2) if context_features else None
    z = torch.randn(5, 6, requires_grad=True)
    u, log_det = torch.compile(flow, backend="eager", fullgraph=True)(z, context)
    wanted, wanted_log_det = flow(z, context)
    torch.testing.assert_close(u, wanted)
    torch.testing.assert_close(log_det, wanted_log_det)
    (u.square().sum() - log_det.sum()).backward()
    assert torch.isfinite(z.grad).all()
