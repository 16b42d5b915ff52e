"""Each likelihood against another implementation, and what is particular to it."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from scipy import stats
from torch import Tensor
from torch import distributions as td

from latentfit import likelihoods
from latentfit.errors import CapabilityError, InputError
from latentfit.likelihoods.numerics import (
    log_difference_of_sigmoids,
    log_exponential_mean,
    negative_binomial_log_prob,
    poisson_log_prob,
)
from latentfit.registry import registry

LOGITS = torch.linspace(-8, 8, 33, dtype=torch.float64).unsqueeze(-1)  # (33, 1)


def column(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).unsqueeze(-1)


REFERENCES: list[tuple[str, dict, list[float], Callable[[Tensor], td.Distribution]]] = [
    ("bernoulli", {}, [0, 1], lambda p: td.Bernoulli(logits=p)),
    (
        "continuous_bernoulli",
        {},
        [0, 0.1, 0.5, 1],
        # torch's own Taylor series is only good to 1e-5 in the default window around 1/2
        lambda p: td.ContinuousBernoulli(logits=p, lims=(0.499999, 0.500001)),
    ),
    ("binomial", {"n": 7}, [0, 1, 5, 7], lambda p: td.Binomial(7, logits=p)),
    ("normal", {"scale": 0.7}, [-3, 0.1, 4], lambda p: td.Normal(p, 0.7)),
    ("poisson", {}, [0, 1, 9, 400], lambda p: td.Poisson(p.exp())),
    ("negative_binomial", {}, [0, 1, 9, 400], lambda p: td.NegativeBinomial(2.0, logits=p - math.log(2.0))),
]


@pytest.mark.parametrize(("name", "args", "xs", "reference"), REFERENCES, ids=[r[0] for r in REFERENCES])
def test_agrees_with_torch(
    name: str, args: dict, xs: list[float], reference: Callable[[Tensor], td.Distribution]
) -> None:
    likelihood = likelihoods.create(name, **args).double()
    if name == "negative_binomial":
        torch.nn.init.constant_(likelihood.log_dispersion, math.log(2.0))
    for x in xs:
        rows = torch.full_like(LOGITS, x)
        expected = reference(LOGITS).log_prob(rows).squeeze(-1)
        torch.testing.assert_close(likelihood.log_prob(rows, LOGITS).detach(), expected, rtol=1e-6, atol=1e-6)


def test_categorical_agrees_with_torch() -> None:
    logits = torch.randn(3, 5, 2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = torch.randint(4, (5, 2), generator=torch.Generator().manual_seed(1))
    expected = td.Categorical(logits=logits).log_prob(x).sum(-1)
    likelihood = likelihoods.create("categorical", n_classes=4)
    torch.testing.assert_close(likelihood.log_prob(x, logits), expected)
    torch.testing.assert_close(likelihood.probabilities(logits), td.Categorical(logits=logits).probs)


@pytest.mark.parametrize("theta", [1e-3, 0.3, 5.0, 80.0, 1e4])
def test_negative_binomial_agrees_with_scipy(theta: float) -> None:
    log_mean = torch.linspace(-6, 8, 15, dtype=torch.float64)
    for x in (0, 1, 5, 30, 2000):
        p = theta / (theta + log_mean.exp().numpy())
        got = negative_binomial_log_prob(
            torch.tensor(float(x), dtype=torch.float64),
            log_mean,
            torch.tensor(math.log(theta), dtype=torch.float64),
        )
        torch.testing.assert_close(got, torch.from_numpy(stats.nbinom.logpmf(x, theta, p)), rtol=1e-9, atol=1e-7)


def test_zinb_is_the_mixture_it_says() -> None:
    likelihood = likelihoods.create("zinb").double()
    params = torch.tensor([[[0.4, -0.7]], [[0.4, -0.7]]], dtype=torch.float64)
    p = likelihood.log_prob(column([0, 3]), params).exp()
    pi, mean = 1 / (1 + math.exp(0.7)), math.exp(0.4)
    nb = stats.nbinom.pmf([0, 3], 1.0, 1 / (1 + mean))
    torch.testing.assert_close(p.tolist(), [pi + (1 - pi) * nb[0], (1 - pi) * nb[1]])


def test_discretised_logistic_agrees_with_scipy() -> None:
    likelihood = likelihoods.create("discretised_logistic", levels=9, scale="row")
    x = torch.arange(9, dtype=torch.float64).unsqueeze(-1)
    params = torch.tensor([0.3, -1.2], dtype=torch.float64).expand(9, 1, 2)
    edges = [-math.inf, *[(2 * k - 1) / 8 - 1 for k in range(1, 9)], math.inf]
    cdf = stats.logistic.cdf(edges, loc=0.3, scale=math.exp(-1.2))
    torch.testing.assert_close(likelihood.log_prob(x, params).exp().numpy(), cdf[1:] - cdf[:-1])


def test_float32_counts_do_not_cancel() -> None:
    # computed in float32 this would be off by whole nats, for float32 knows log Gamma(10^6) to about 1
    x = torch.tensor([0.0, 3.0, 1e3, 1e5, 1e6])
    log_rate = (x + 0.5).log()
    exact = poisson_log_prob(x.double(), log_rate.double())
    assert (poisson_log_prob(x, log_rate).double() - exact).abs().max() < 2e-3
    for log_theta in (-10.0, 0.0, 5.0, 14.0):
        theta = torch.tensor(log_theta)
        exact = negative_binomial_log_prob(x.double(), log_rate.double(), theta.double())
        assert (negative_binomial_log_prob(x, log_rate, theta).double() - exact).abs().max() < 2e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_continuous_bernoulli_constant_is_smooth_across_one_half(dtype: torch.dtype) -> None:
    a = torch.tensor([0.0, 1e-8, 1e-3, 0.1, 0.4999, 0.5001, 1.0, 30.0], dtype=dtype, requires_grad=True)
    value = log_exponential_mean(a)
    (slope,) = torch.autograd.grad(value.sum(), a)
    for i, s in enumerate(a.tolist()):
        t = torch.linspace(0, 1, 20_001, dtype=torch.float64)
        weight = torch.exp(-s * t)
        integral = torch.trapezoid(weight, t)
        assert value[i].item() == pytest.approx(math.log(integral), abs=1e-6)
        assert slope[i].item() == pytest.approx(-(torch.trapezoid(t * weight, t) / integral).item(), abs=2e-6)


def test_difference_of_sigmoids() -> None:
    u = torch.linspace(-5, 5, 11, dtype=torch.float64)
    for width in (1e-6, 0.1, 3.0):
        w = torch.tensor(width, dtype=torch.float64)
        expected = (torch.sigmoid(u) - torch.sigmoid(u - w)).log()
        torch.testing.assert_close(log_difference_of_sigmoids(u, w), expected, rtol=0, atol=1e-8)


# --- the Normal's scales ---


def test_optimal_scale_follows_the_batch_then_is_frozen() -> None:
    likelihood = likelihoods.create("normal", scale="optimal").double()
    g = torch.Generator().manual_seed(0)
    x, mean = (torch.randn(6, 4, dtype=torch.float64, generator=g) for _ in range(2))
    sigma = (x - mean).square().mean().sqrt()
    expected = td.Normal(mean, sigma).log_prob(x).sum(-1)
    torch.testing.assert_close(likelihood.train().log_prob(x, mean), expected)
    with pytest.raises(CapabilityError, match="freeze_scale"):
        likelihood.eval().log_prob(x, mean)
    with pytest.raises(CapabilityError, match="freeze_scale"):
        likelihood.sample(mean)
    likelihood.freeze_scale(x, mean)
    # other rows, however far, are scored with the training rows' sigma
    torch.testing.assert_close(likelihood.log_prob(x + 3, mean), td.Normal(mean, sigma).log_prob(x + 3).sum(-1))
    again = likelihoods.create("normal", scale="optimal").eval()
    again.load_state_dict(likelihood.state_dict())
    torch.testing.assert_close(again.log_prob(x, mean), expected)


def test_optimal_scale_has_the_gradient_of_the_log_of_the_residuals() -> None:
    likelihood = likelihoods.create("normal", scale="optimal").double().train()
    g = torch.Generator().manual_seed(0)
    x, mean = (torch.randn(6, 4, dtype=torch.float64, generator=g) for _ in range(2))
    mean.requires_grad_()
    (got,) = torch.autograd.grad(likelihood.log_prob(x, mean).sum(), mean)
    (expected,) = torch.autograd.grad(-0.5 * x.numel() * (x - mean).square().mean().log(), mean)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("args", [{"scale": "learned"}, {"scale": "column", "n_columns": 2}, {"scale": "row"}])
def test_the_floor_bounds_the_density(args: dict) -> None:
    likelihood = likelihoods.create("normal", floor=0.5, **args)
    for parameter in likelihood.parameters():
        torch.nn.init.constant_(parameter, -100.0)
    params = torch.zeros(1, 2) if args["scale"] != "row" else torch.tensor([[[0.0, -100.0], [0.0, -100.0]]])
    expected = 2 * td.Normal(0.0, 0.5).log_prob(torch.tensor(0.0))
    torch.testing.assert_close(likelihood.log_prob(torch.zeros(1, 2), params).squeeze().detach(), expected)


def test_learned_column_scale_is_the_maximum_likelihood_one() -> None:
    x = torch.randn(500, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = x * torch.tensor([0.2, 3.0], dtype=torch.float64)
    likelihood = likelihoods.create("normal", scale="column", n_columns=2, floor=0.0).double()
    torch.nn.init.zeros_(likelihood.log_scale)
    with torch.no_grad():
        likelihood.log_scale.copy_(x.square().mean(0).sqrt().log())
    likelihood.log_prob(x, torch.zeros_like(x)).mean().backward()
    torch.testing.assert_close(likelihood.log_scale.grad, torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-9)


# --- what is refused ---


def test_grey_and_count_data_are_refused_with_what_to_try() -> None:
    x = torch.zeros(10, 20)
    x[:6, 12] = 873.0
    with pytest.raises(InputError) as caught:
        likelihoods.create("bernoulli").check(x)
    assert str(caught.value) == (
        "likelihood 'bernoulli' needs 0 or 1; column 12 reaches 873.0 (3 % of entries outside [0, 1]). "
        "Grey? --likelihood continuous_bernoulli. Counts? --likelihood negative_binomial. "
        "Reals? --likelihood normal."
    )
    images = torch.zeros(2, 2, 3)
    images[1, 1, 2] = 0.5
    with pytest.raises(InputError, match=r"column 1, 2 holds 0.5 \(8 % of entries that do not fit\)"):
        likelihoods.create("bernoulli").check(images)


def test_integer_data_are_accepted() -> None:
    x = torch.tensor([[0, 1], [1, 1]], dtype=torch.uint8)
    for name, args in (("bernoulli", {}), ("binomial", {"n": 2}), ("poisson", {}), ("zinb", {})):
        likelihood = likelihoods.create(name, **args)
        likelihood.check(x)
        params = torch.zeros(2, 2, 2) if likelihood.n_parameters == 2 else torch.zeros(2, 2)
        got = likelihood.log_prob(x, params)
        assert torch.equal(got, likelihood.log_prob(x.float(), params))


@pytest.mark.parametrize(
    ("name", "args", "match"),
    [
        ("normal", {"scale": -1.0}, "positive and finite"),
        ("normal", {"scale": "shared"}, "scale"),
        ("normal", {"scale": "column"}, "n_columns goes with scale='column'"),
        ("normal", {"n_columns": 3}, "n_columns goes with scale='column'"),
        ("normal", {"floor": -1.0}, "floor"),
        ("binomial", {"n": 0}, "between 1 and"),
        ("binomial", {}, "needs the argument 'n'"),
        ("categorical", {"n_classes": 1}, "at least 2"),
        ("discretised_logistic", {"levels": 1}, "at least 2"),
        ("poisson", {"rate": 1.0}, "takes no argument 'rate'"),
        ("bernouli", {}, "Did you mean 'bernoulli'"),
    ],
)
def test_bad_arguments_are_refused(name: str, args: dict, match: str) -> None:
    with pytest.raises(InputError, match=match):
        likelihoods.create(name, **args)


def test_library_size_and_columns_are_checked() -> None:
    likelihood = likelihoods.create("negative_binomial", n_columns=3, library_size=True)
    x, params = torch.ones(2, 3), torch.zeros(2, 3)
    with pytest.raises(InputError, match="no context"):
        likelihood.log_prob(x, params)
    with pytest.raises(InputError, match="must be positive"):
        likelihood.log_prob(x, params, context=torch.tensor([[1.0], [0.0]]))
    mean = likelihood.mean(params, torch.tensor([[6.0], [9.0]]))
    torch.testing.assert_close(mean, torch.tensor([[2.0] * 3, [3.0] * 3]))
    with pytest.raises(InputError, match="made for 3 columns, the data has 4"):
        likelihood.check(torch.ones(2, 4))


@pytest.mark.parametrize(("accepted", "name"), [("gaussian", "normal"), ("nb", "negative_binomial")])
def test_other_names_are_accepted_and_stored_as_ours(accepted: str, name: str) -> None:
    assert likelihoods.create(accepted).config()["name"] == name
    assert registry.create("likelihood", accepted).config()["name"] == name
