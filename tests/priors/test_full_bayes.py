"""Full Bayes over the prior: known posteriors, known numbers of clusters, few rows."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from scipy import stats

from latentfit import priors
from latentfit.data.batch import Batch
from latentfit.model import ELBO, VAEModule
from latentfit.model.rows import CodeRows
from latentfit.posteriors import DiagonalGaussian
from latentfit.priors import sticks
from latentfit.priors.hierarchical import _statistics
from latentfit.priors.normal_wishart import Hyper, Statistics, divergence

COVARIANCES = ("full", "diagonal")


def rows(n, dim, seed=0):
    """Correlated codes off the origin, spread 0.3."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dim, dim, generator=generator)
    mean = (torch.randn(n, dim, generator=generator) @ mixing + 1).double()
    return mean, torch.full_like(mean, 0.3)


def fitted(covariance, n=80, dim=3):
    mean, std = rows(n, dim)
    return priors.create("hierarchical", latent_dim=dim, covariance=covariance).double().fit(mean, std=std)


def conjugate(prior, n):
    """(m, kappa, nu, Psi) of the posterior, by its definition."""
    s, kappa0, _ = (value.item() for value in prior.hyper.numbers())
    dim = len(prior.mean)
    factor = prior._factor().detach().numpy()
    return prior.mean.detach().numpy(), kappa0 + n, dim + 1 + s + n, (s + n) * np.linalg.inv(factor.T @ factor)


def test_the_predictive_is_scipys_student_t():
    prior, n, dim = fitted("full"), 80, 3
    m, kappa, nu, psi = conjugate(prior, n)
    oracle = stats.multivariate_t(m, psi * (kappa + 1) / (kappa * (nu - dim + 1)), df=nu - dim + 1)
    z = 3 * torch.randn(40, dim, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    np.testing.assert_allclose(prior.log_prob(z).detach().numpy(), oracle.logpdf(z.numpy()), rtol=0, atol=1e-6)


def test_the_diagonal_predictive_is_a_product_of_scipys_student_ts():
    prior, n = fitted("diagonal"), 80
    s, kappa0, _ = (value.item() for value in prior.hyper.numbers())
    a, b = (s + 2 + n) / 2, (s + n) / 2 * torch.exp(-2 * prior.log_diagonal).detach().numpy()  # inverse gamma
    kappa = kappa0 + n
    oracle = stats.t(2 * a, prior.mean.detach().numpy(), np.sqrt(b / a * (kappa + 1) / kappa))
    z = 3 * torch.randn(40, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    np.testing.assert_allclose(prior.log_prob(z).detach().numpy(), oracle.logpdf(z.numpy()).sum(1), rtol=0, atol=1e-6)


def test_training_takes_the_expectation_over_the_posterior():
    """Against 4,000 draws of mean and precision, within 4.5 standard errors."""
    prior, n, dim = fitted("full"), 80, 3
    m, kappa, nu, psi = conjugate(prior, n)
    z = 2 * torch.randn(10, dim, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    rng = np.random.default_rng(0)
    precision = stats.wishart(nu, np.linalg.inv(psi)).rvs(4000, random_state=rng)
    mean = np.stack([rng.multivariate_normal(m, np.linalg.inv(kappa * p)) for p in precision])
    offset = z.numpy() - mean[:, None]
    energy = np.einsum("mni,mij,mnj->mn", offset, precision, offset)
    draws = 0.5 * (np.linalg.slogdet(precision)[1][:, None] - energy - dim * math.log(2 * math.pi))
    error = draws.std(0) / math.sqrt(len(draws))
    assert (np.abs(draws.mean(0) - prior.training_log_prob(z).detach().numpy()) < 4.5 * error).all()


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_the_bound_is_the_evidence_at_the_conjugate_posterior(covariance):
    """Expected log density minus KL equals log p(rows) there, and is less anywhere else."""
    mean, std = rows(80, 3)
    std = torch.zeros_like(std)
    prior = priors.create("hierarchical", latent_dim=3, covariance=covariance).double().fit(mean, std=std)
    evidence = _statistics(CodeRows(mean, std), covariance).evidence(prior.hyper).sum().item()

    def bound():
        return (prior.training_log_prob(mean).sum() - prior.parameter_kl()).item()

    assert bound() == pytest.approx(evidence, abs=1e-7)
    gradient = torch.autograd.grad(
        prior.training_log_prob(mean).sum() - prior.parameter_kl(), [prior.mean, prior.log_diagonal]
    )
    assert max(g.abs().max().item() for g in gradient) < 1e-6
    with torch.no_grad():
        prior.log_diagonal.add_(0.05)
        prior.mean.add_(0.05)
    assert bound() < evidence


def test_the_evidence_is_the_product_of_predictives():
    """p(z_1) p(z_2 | z_1) ...: an identity of the conjugate family."""
    z, _ = rows(6, 2)
    hyper = Hyper(*torch.tensor([3.0, 0.5, 2.0], dtype=torch.float64).log())
    prior = priors.create("hierarchical", latent_dim=2).double()
    total = 0.0
    for i in range(len(z)):
        part = z[:i]
        n = torch.tensor([float(i)], dtype=torch.float64)
        mean = part.mean(0, keepdim=True) if i else z.new_zeros(1, 2)
        posterior = Statistics(n, mean, ((part - mean).T @ (part - mean))[None]).posterior(hyper)
        factor = torch.linalg.inv(torch.linalg.cholesky(posterior[1]))[0]
        with torch.no_grad():
            prior.n_rows.fill_(i)
            prior.log_rows.fill_(hyper.log_rows.item())
            prior.log_mean_rows.fill_(hyper.log_mean_rows.item())
            prior.log_variance.fill_(hyper.log_variance.item())
            prior.mean.copy_(posterior[0][0])
            prior.log_diagonal.copy_(factor.diagonal().log())
            prior.lower.copy_(factor[1, :1])
            total += prior.log_prob(z[i]).item()
    mean = z.mean(0, keepdim=True)
    whole = Statistics(torch.tensor([6.0], dtype=torch.float64), mean, ((z - mean).T @ (z - mean))[None])
    assert whole.evidence(hyper).item() == pytest.approx(total, abs=1e-6)


def test_known_hyper_parameters_are_recovered():
    """300 variances and means drawn from the hyper-prior, 200 rows each: within a third of the truth."""
    rng = np.random.default_rng(0)
    dim, s, kappa0, variance = 300, 12.0, 0.4, 2.5
    own = stats.invgamma((s + 2) / 2, scale=s * variance / 2).rvs(dim, random_state=rng)
    mean = rng.normal(size=dim) * np.sqrt(own / kappa0)
    z = torch.tensor(mean + np.sqrt(own) * rng.normal(size=(200, dim)))
    prior = priors.create("hierarchical", latent_dim=dim, covariance="diagonal").fit(z, std=torch.zeros_like(z))
    found = [value.exp().item() for value in (prior.log_rows, prior.log_mean_rows, prior.log_variance)]
    for value, truth in zip(found, (s, kappa0, variance), strict=True):
        assert 0.67 < value / truth < 1.5


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_moments_are_recovered_where_rows_are_many(covariance):
    mean, std = rows(20_000, 3)
    prior = priors.create("hierarchical", latent_dim=3, covariance=covariance).fit(mean, std=std)
    wanted = mean.var(0) + 0.09
    z = prior.sample(100_000, generator=torch.Generator().manual_seed(0)).double()
    torch.testing.assert_close(z.var(0), wanted, rtol=0.03, atol=0)
    torch.testing.assert_close(z.mean(0), mean.mean(0), rtol=0, atol=0.05)


def test_rows_count_and_draws_do_not():
    """The same rows twice are two rows; a spread adds variance and no certainty."""
    mean, std = rows(50, 2)
    once = priors.create("hierarchical", latent_dim=2).fit(mean, std=std)
    twice = priors.create("hierarchical", latent_dim=2).fit(torch.cat((mean, mean)), std=torch.cat((std, std)))
    assert (once.n_rows.item(), twice.n_rows.item()) == (50, 100)
    assert once.degrees_of_freedom < twice.degrees_of_freedom


def test_gradient_descent_ends_at_the_conjugate_posterior():
    """Joint training's route, the codes held still: nats of its bound within 0.01 of the closed form's."""
    mean, std = rows(200, 2)
    closed = priors.create("hierarchical", latent_dim=2).fit(mean.float(), std=std.float())
    prior = priors.create("hierarchical", latent_dim=2)
    prior.bind(data=Batch(mean))
    q = DiagonalGaussian(mean.float(), std.float())
    optimiser = torch.optim.Adam(prior.parameters(), lr=0.05)
    generator = torch.Generator().manual_seed(0)

    def bound(p, n_draws):
        z, _ = q.rsample_with_log_prob(n_draws, generator)
        return p.training_log_prob(z).mean() - p.parameter_kl() / len(mean)

    for _ in range(300):
        optimiser.zero_grad()
        (-bound(prior, 1)).backward()
        optimiser.step()
    with torch.no_grad():
        assert bound(prior, 400).item() == pytest.approx(bound(closed, 400).item(), abs=0.01)


@pytest.mark.parametrize("name", ["hierarchical", "dp_mixture"])
def test_the_parameters_kl_enters_once_for_all_rows(name):
    prior = priors.create(name, latent_dim=2)
    vae = VAEModule(torch.nn.Linear(3, 4), torch.nn.Linear(2, 3), prior, likelihood="normal")
    x = Batch(torch.randn(10, 3, generator=torch.Generator().manual_seed(0)))
    prior.bind(vae, Batch(torch.zeros(250, 3)))
    with torch.no_grad():
        prior.mean.add_(0.5)
    objective = ELBO()
    objective.n_train = 250
    terms = objective(vae, x)
    assert terms["parameter_kl"].item() == pytest.approx(prior.parameter_kl().item() / 250)
    assert terms["parameter_kl"].item() > 0
    assert terms["loss"].item() == pytest.approx((terms["parameter_kl"] - terms["elbo"]).item(), rel=1e-5)


# Dirichlet process


def clusters(k, n, dim, seed=1, apart=6.0):
    """k clusters of standard deviation 0.86; the means of codes, their spread, draws."""
    generator = torch.Generator().manual_seed(seed)
    centres = apart * torch.randn(k, dim, generator=generator) if k > 1 else torch.zeros(1, dim)
    which = torch.randint(k, (n,), generator=generator)
    mean = centres[which] + 0.7 * torch.randn(n, dim, generator=generator)
    std = torch.full_like(mean, 0.5)
    return mean, std, mean + std * torch.randn(n, dim, generator=generator), which


@pytest.mark.parametrize("k", [1, 3, 12])
def test_as_many_clusters_as_there_are(k):
    mean, std, z, which = clusters(k, 2000, 6)
    prior = priors.create("dp_mixture", latent_dim=6).fit(mean, std=std)
    assert prior.n_clusters == k
    assert prior.weights.sum().item() == pytest.approx(1.0, abs=1e-5)
    found = prior.responsibilities(z).argmax(-1)
    table = torch.zeros(k, found.max() + 1).index_put_((which, found), torch.ones(len(z)), accumulate=True)
    assert table.max(1).values.sum() / len(z) > 0.99


def test_stick_breaking_weights_are_those_of_draws():
    n = torch.tensor([40.0, 25.0, 3.0, 0.0], dtype=torch.float64)
    alpha, rng, total = 1.5, np.random.default_rng(0), 200_000
    after = n.flip(0).cumsum(0).flip(0) - n
    v = np.stack([rng.beta(1 + n[k].item(), alpha + after[k].item(), total) for k in range(3)] + [np.ones(total)], 1)
    pi = v * np.cumprod(np.concatenate((np.ones((total, 1)), 1 - v[:, :-1]), 1), 1)
    np.testing.assert_allclose(sticks.log_mean_weights(n, alpha).exp(), pi.mean(0), atol=6 * pi.std(0).max() / 447)
    logs = np.log(pi)
    assert (np.abs(sticks.mean_log_weights(n, alpha).numpy() - logs.mean(0)) < 5 * logs.std(0) / 447).all()
    assert sticks.divergence(0 * n, alpha).item() == pytest.approx(0, abs=1e-12)


def test_a_component_without_rows_costs_nothing():
    hyper = Hyper(*torch.tensor([3.0, 0.5, 2.0], dtype=torch.float64).log())
    dim = 4
    trace, log_det = torch.tensor([dim / 2.0]), torch.tensor([-0.5 * dim * math.log(2.0)], dtype=torch.float64)
    kl = divergence(torch.zeros(1), trace, log_det, torch.zeros(1), dim, hyper)
    assert kl.item() == pytest.approx(0, abs=1e-9)


def test_the_training_bound_is_below_the_predictive():
    mean, std, z, _ = clusters(3, 200, 2)
    prior = priors.create("dp_mixture", latent_dim=2).fit(mean, std=std)
    with torch.no_grad():
        assert (prior.training_log_prob(z) < prior.log_prob(z)).all()


@pytest.mark.parametrize("overlap", [6.0, 1.5])
def test_as_good_as_scikit_learns(overlap):
    """Held-out nats within 0.02 of BayesianGaussianMixture and of GaussianMixture with the true number."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import BayesianGaussianMixture, GaussianMixture

    _, _, z, _ = clusters(5, 6000, 4, apart=overlap)
    train, test = z[:3000], z[3000:]
    prior = priors.create("dp_mixture", latent_dim=4).fit(train, std=torch.zeros_like(train))
    with torch.no_grad():
        own = prior.log_prob(test).mean().item()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        bayes = BayesianGaussianMixture(n_components=15, max_iter=200, random_state=0).fit(train.numpy())
        best = GaussianMixture(5, n_init=3, random_state=0).fit(train.numpy())
    assert own > bayes.score(test.numpy()) - 0.02
    assert own > best.score(test.numpy()) - 0.02


# few rows


@pytest.mark.parametrize("n", [100, 300, 1000, 5000])
def test_few_rows_never_cost_more_than_the_null_model(n):
    """Codes of a VAE whose q(z) is N(0, I): ten components by maximum likelihood lose, full Bayes does not."""
    from sklearn.mixture import GaussianMixture

    dim = 8
    generator = torch.Generator().manual_seed(n)
    mean = math.sqrt(0.7) * torch.randn(n, dim, generator=generator)
    std = torch.full_like(mean, math.sqrt(0.3))
    z = torch.randn(5000, dim, generator=generator)
    null = priors.create("standard", latent_dim=dim).log_prob(z)

    def gap(log_prob):
        won = log_prob - null
        return won.mean().item(), won.std().item() / math.sqrt(len(won))

    for name in ("hierarchical", "dp_mixture"):
        prior = priors.create(name, latent_dim=dim).fit(mean, std=std)
        with torch.no_grad():
            value, error = gap(prior.log_prob(z))
        assert value > -max(2.6 * error, 0.05), name
    if n <= 1000:
        draws = (mean + std * torch.randn(n, dim, generator=generator)).numpy()
        ten = GaussianMixture(10, random_state=0, reg_covar=1e-6).fit(draws)
        assert gap(torch.as_tensor(ten.score_samples(z.numpy())))[0] < -0.15
