"""One contract over all likelihoods: a new one is one line of `CASES`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from latentfit import likelihoods
from latentfit.errors import InputError
from latentfit.registry import registry

D = 3  # columns
SHIFT = (-1.0, 0.2, 1.3)  # one parameter value for each column


@dataclass(frozen=True)
class Case:
    """A likelihood, the grid its entries live on, and an x it must refuse."""

    name: str
    support: tuple[float, float]  # of the grid: all of the support but for a tail below 1e-7
    bad: float
    args: dict[str, Any] = field(default_factory=dict)
    library: float | None = None

    def __str__(self) -> str:
        return "-".join([self.name, *map(str, self.args.values())])


CASES = [
    Case("bernoulli", (0, 1), 0.5),
    Case("continuous_bernoulli", (0, 1), 1.5),
    Case("binomial", (0, 16), 17.0, {"n": 16}),
    Case("normal", (-40, 40), math.nan, {"scale": 1.5}),
    Case("normal", (-40, 40), math.inf, {"scale": "learned"}),
    Case("normal", (-40, 40), math.nan, {"scale": "column", "n_columns": D}),
    Case("normal", (-60, 60), math.nan, {"scale": "row"}),
    Case("normal", (-40, 40), math.nan, {"scale": "optimal"}),
    Case("discretised_logistic", (0, 15), 16.0, {"levels": 16}),
    Case("discretised_logistic", (0, 255), 0.5, {"levels": 256, "scale": "row"}),
    Case("categorical", (0, 4), 5.0, {"n_classes": 5}),
    Case("poisson", (0, 60), -1.0),
    Case("negative_binomial", (0, 900), 0.5),
    Case("negative_binomial", (0, 900), -2.0, {"n_columns": D, "library_size": True}, library=12.0),
    Case("zinb", (0, 900), 0.5),
    Case("zinb", (0, 900), math.nan, {"n_columns": D, "library_size": True}, library=12.0),
]


@pytest.fixture(params=CASES, ids=str)
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


def make(case: Case, dtype: torch.dtype = torch.float64) -> likelihoods.Likelihood:
    """The likelihood with its own parameters moved from their start, in eval mode, its scale frozen."""
    likelihood = likelihoods.create(case.name, **case.args).to(dtype)
    with torch.no_grad():
        for parameter in likelihood.parameters():
            parameter.add_(torch.linspace(0.1, 0.5, parameter.numel(), dtype=dtype).view(parameter.shape))
    residuals = torch.tensor([[1.0, -2.0, 0.5], [0.3, 1.1, -0.4]])
    likelihood.freeze_scale(residuals, torch.zeros_like(residuals))
    return likelihood.eval()


def parameters_for(case: Case, *lead: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """(*lead, D) or (*lead, D, P): different in every column, the same in every row."""
    base = torch.tensor(SHIFT, dtype=dtype)
    p = make(case).n_parameters
    if p > 1:
        base = torch.stack([base * (0.7**k) * (-1) ** k for k in range(p)], -1)
    return base.expand(*lead, *base.shape)


def context_for(case: Case, n: int) -> Tensor | None:
    return None if case.library is None else torch.full((n, 2), case.library)


def grid_for(case: Case) -> tuple[Tensor, Tensor]:
    """Points (G,) and their weights: the counting measure, or Simpson's rule for dx."""
    low, high = case.support
    if make(case).base_measure == "mass":
        x = torch.arange(low, high + 1, dtype=torch.float64)
        return x, torch.ones_like(x)
    n = 8001
    weight = torch.full((n,), 2.0, dtype=torch.float64)
    weight[1::2] = 4.0
    weight[0] = weight[-1] = 1.0
    return torch.linspace(low, high, n, dtype=torch.float64), weight * (high - low) / (n - 1) / 3


def density_on_grid(case: Case) -> tuple[Tensor, Tensor]:
    """Points (G, 1) and weight times p of each column (G, D)."""
    x, weight = grid_for(case)
    x = x.unsqueeze(-1).expand(-1, D)
    with torch.no_grad():
        log_p = make(case).entry_log_prob(x, parameters_for(case, len(x)), context_for(case, len(x)))
    return x[:, :1], weight.unsqueeze(-1) * log_p.exp()


def some_x(case: Case, n: int) -> Tensor:
    """Rows that the likelihood accepts, different in every entry where it has more than two values."""
    draws = make(case).sample(parameters_for(case, n), context_for(case, n), torch.Generator().manual_seed(11))
    return draws.detach()


def test_every_registered_likelihood_is_in_the_table() -> None:
    assert set(likelihoods.names()) == {case.name for case in CASES}


def test_sums_to_one(case: Case) -> None:
    _, p = density_on_grid(case)
    torch.testing.assert_close(p.sum(0), torch.ones(D, dtype=torch.float64), rtol=0, atol=1e-6)


def test_mean_is_the_densitys_mean(case: Case) -> None:
    x, p = density_on_grid(case)
    mean = make(case).mean(parameters_for(case, 1), context_for(case, 1))
    assert mean.shape == (1, D)
    torch.testing.assert_close(mean[0].detach(), (x * p).sum(0), rtol=1e-5, atol=1e-5)


def test_samples_have_the_densitys_moments(case: Case) -> None:
    x, p = density_on_grid(case)
    n = 40_000
    generator = torch.Generator().manual_seed(3)
    s = make(case).sample(parameters_for(case, n), context_for(case, n), generator).detach()
    make(case).check(s)
    mean = (x * p).sum(0)
    for power in (1, 2):  # the mean, then the variance around the density's own mean
        f_grid, f = (x, s) if power == 1 else ((x - mean) ** 2, (s - mean) ** 2)
        expected = (f_grid * p).sum(0)
        sd = ((f_grid - expected) ** 2 * p).sum(0).sqrt()
        z = (f.mean(0) - expected) / (sd / math.sqrt(n))
        # 3 columns x 2 moments x 16 cases at 5 standard errors: a false alarm in 20,000 choices of the seed
        assert z.abs().max() < 5.0


def test_samples_have_the_densitys_frequencies(case: Case) -> None:
    x, p = density_on_grid(case)
    n = 40_000
    generator = torch.Generator().manual_seed(4)
    s = make(case).sample(parameters_for(case, n), context_for(case, n), generator).detach()
    cdf = p.cumsum(0)
    # a grid of a density knows its distribution function up to one cell
    slack = 0.0 if make(case).base_measure == "mass" else float(p.max())
    for column in range(D):
        empirical = (s[:, column].unsqueeze(0) <= x[:: max(1, len(x) // 200)]).double().mean(1)
        gap = (empirical - cdf[:: max(1, len(x) // 200), column]).abs().max()
        # Dvoretzky-Kiefer-Wolfowitz: 2 exp(-2 n gap^2) = 1e-7
        assert gap < math.sqrt(math.log(2e7) / (2 * n)) + slack


def test_same_generator_same_draw_and_global_state_is_left_alone(case: Case) -> None:
    likelihood, params, context = make(case), parameters_for(case, 50), context_for(case, 50)
    before = torch.get_rng_state()
    a, b, c = (likelihood.sample(params, context, torch.Generator().manual_seed(k)) for k in (5, 5, 6))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_rows_are_the_sum_of_entries_and_leading_dimensions_broadcast(case: Case) -> None:
    n, s = 4, 5
    likelihood, x, context = make(case), some_x(case, n), context_for(case, n)
    params = parameters_for(case, s, n).clone()
    params += 0.1 * torch.arange(s, dtype=params.dtype).view(s, *[1] * (params.dim() - 1))
    rows = likelihood.log_prob(x, params, context=context)
    assert rows.shape == (s, n)
    entries = likelihood.entry_log_prob(x, params, context)
    assert entries.shape == (s, n, D)
    torch.testing.assert_close(rows, entries.sum(-1))
    alone = torch.stack([likelihood.log_prob(x, params[k], context=context) for k in range(s)])
    torch.testing.assert_close(rows, alone)
    assert likelihood.mean(params, context).shape == (s, n, D)
    assert likelihood.sample(params, context).shape == (s, n, D)


@pytest.mark.parametrize("case", [c for c in CASES if c.library is None], ids=str)
def test_image_shaped_rows(case: Case) -> None:
    likelihood, n = make(case), 4
    params, x = parameters_for(case, 2, n, 2), torch.stack([some_x(case, n), some_x(case, n)], 1)
    rows = likelihood.log_prob(x, params)
    assert rows.shape == (2, n)
    torch.testing.assert_close(rows, likelihood.entry_log_prob(x, params).sum((-1, -2)))


def test_mask_drops_exactly_the_masked_entries(case: Case) -> None:
    n = 6
    likelihood, x, context, params = (
        make(case),
        some_x(case, n),
        context_for(case, n),
        parameters_for(case, 2, n),
    )
    mask = torch.rand(n, D, generator=torch.Generator().manual_seed(0)) < 0.5
    entries = likelihood.entry_log_prob(x, params, context)
    expected = (entries * mask).sum(-1)
    torch.testing.assert_close(likelihood.log_prob(x, params, context=context, mask=mask), expected)


def test_gradient_reaches_params_and_own_parameters(case: Case) -> None:
    n = 8
    likelihood, x = make(case).train(), some_x(case, n)
    params = parameters_for(case, n).clone().requires_grad_()
    likelihood.log_prob(x, params, context=context_for(case, n)).sum().backward()
    for tensor in (params, *likelihood.parameters()):
        assert tensor.grad is not None
        assert torch.isfinite(tensor.grad).all()
        assert (tensor.grad != 0).any()


def test_gradient_is_the_derivative(case: Case) -> None:
    n = 2
    likelihood, x = make(case), some_x(case, n)
    params = parameters_for(case, n).clone().requires_grad_()
    context = context_for(case, n)
    assert torch.autograd.gradcheck(lambda p: likelihood.log_prob(x, p, context=context), params)


def test_float32_is_float64_and_bfloat16_is_lifted(case: Case) -> None:
    n = 16
    x, params, context = some_x(case, n), parameters_for(case, n), context_for(case, n)
    exact = make(case).log_prob(x, params, context=context)
    single = make(case, torch.float32).log_prob(x.float(), params.float(), context=context)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), exact, rtol=2e-5, atol=2e-5)
    low = make(case, torch.float32).log_prob(x.float(), params.bfloat16(), context=context)
    assert low.dtype == torch.float32


def test_stays_finite_far_out(case: Case) -> None:
    likelihood, x = make(case, torch.float32).train(), some_x(case, 1).float()
    counts = case.name in ("poisson", "negative_binomial", "zinb")
    low, high = case.support
    top = 1e6 if counts else high
    rows = torch.stack([torch.full((D,), float(v)) for v in (low, top)] + [x[0]])
    # outputs for rates 1e-8 .. 1e6, and what a decoder gives that has gone wild
    for value in (-1e4, math.log(1e-8), -1e-6, 0.0, 1e-6, math.log(1e6), 1e4):
        params = torch.full_like(parameters_for(case, 3, dtype=torch.float32), value).requires_grad_()
        log_p = likelihood.log_prob(rows, params, context=context_for(case, 3))
        assert torch.isfinite(log_p).all(), value
        log_p.sum().backward()
        assert torch.isfinite(params.grad).all(), value
        assert all(p.grad is None or torch.isfinite(p.grad).all() for p in likelihood.parameters()), value


def test_configuration_round_trip(case: Case) -> None:
    likelihood = make(case)
    again = registry.build("likelihood", likelihood.config()).double().eval()
    assert again.config() == likelihood.config()
    again.load_state_dict(likelihood.state_dict())
    x, params, context = some_x(case, 4), parameters_for(case, 4), context_for(case, 4)
    assert torch.equal(again.log_prob(x, params, context=context), likelihood.log_prob(x, params, context=context))


def test_check_accepts_its_samples_and_names_the_bad_column(case: Case) -> None:
    likelihood, x = make(case), some_x(case, 50)
    likelihood.check(x)
    x[7, 1] = case.bad
    with pytest.raises(InputError, match=rf"^likelihood '{case.name}' needs .*; column 1 (reaches|holds) ") as caught:
        likelihood.check(x)
    message = str(caught.value)
    assert f" {case.bad!r} (1 of 150 entries" in message
    assert "\n" not in message
    assert message.endswith(".")
