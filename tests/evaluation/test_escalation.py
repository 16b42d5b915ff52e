"""The number of importance samples, the gate, and the same estimator for every model."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch

from latentfit.data.synthetic import LinearGaussian
from latentfit.errors import CapabilityError, InputError, ReliabilityWarning
from latentfit.evaluation import (
    Estimate,
    LogLikelihood,
    ais_log_likelihood,
    encoder_proposal,
    escalate,
    escalation,
    fit_proposal,
    local,
    log_likelihood,
)
from latentfit.evaluation.escalation import MOST, TOLERANCE
from latentfit.evaluation.rows import RowNoise
from latentfit.priors import EmpiricalPrior, LearnedGaussianPrior, StandardNormalPrior


def escalate_one(vae, X, **options):
    """Of one model."""
    return escalate([vae], X, **options)[0]


class NoisyPrior(StandardNormalPrior):
    density = "unbiased"


@pytest.fixture(scope="module")
def truth():
    return LinearGaussian(data_dim=6, latent_dim=3)


@pytest.fixture(scope="module")
def rows(truth):
    return truth.sample(60, random_state=2)[0]


@pytest.fixture
def quick(monkeypatch):
    """Annealing and refinement at a tenth of their price; the refinement off leaves poor proposals poor."""
    monkeypatch.setattr(escalation, "REFINEMENT_STEPS", 0)
    real = ais_log_likelihood
    monkeypatch.setattr(escalation, "ais_log_likelihood", lambda *a, **k: real(*a, **k, n_temperatures=60))


def test_an_easy_model_is_settled_with_few_draws(exact_vae, truth, rows):
    scored = escalate_one(exact_vae(truth), rows)
    assert scored.method == "importance sampling"
    assert scored.ais is None
    assert scored.k == scored.log_likelihood.n_importance_samples < 512
    assert scored.log_likelihood.doubling < TOLERANCE
    assert abs(scored.estimate.value - float(truth.log_prob(rows).mean())) < 0.02
    assert str(scored.k) in scored.reason


def test_the_rows_are_a_random_subset_and_say_which(exact_vae, truth, rows):
    scored = escalate_one(exact_vae(truth), rows, n_rows=20, random_state=5)
    assert len(set(scored.rows)) == len(scored.rows) == 20
    assert list(scored.rows) != sorted(scored.rows)
    np.testing.assert_array_equal(scored.scored_rows, scored.rows)
    np.testing.assert_allclose(scored.values, truth.log_prob(rows[scored.rows]).numpy(), atol=0.2)
    other = escalate_one(exact_vae(truth), rows, n_rows=20, random_state=6)
    assert set(other.rows) != set(scored.rows)


def test_the_result_is_that_of_the_estimator_alone_and_repeats(exact_vae, truth, rows):
    vae = exact_vae(truth)
    scored, again = (escalate_one(vae, rows, n_rows=15) for _ in range(2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ReliabilityWarning)
        alone = log_likelihood(vae, rows[scored.rows], n_importance_samples=scored.k)
    np.testing.assert_array_equal(scored.values, alone.values)
    np.testing.assert_array_equal(scored.values, again.values)


def test_rows_are_refined_once_whatever_the_number_of_draws(exact_vae, truth, rows, monkeypatch):
    refined = []
    real = local.refine

    def counting(vae, batch, *rest):
        refined.append(len(batch))
        return real(vae, batch, *rest)

    monkeypatch.setattr(local, "refine", counting)
    monkeypatch.setattr(escalation, "TOLERANCE", 1e-12)
    scored = escalate_one(exact_vae(truth, 0.25), rows, n_rows=20)
    assert scored.k == MOST > escalation.FEWEST
    assert sum(refined) == 20


@pytest.mark.parametrize("dim", [1, 3, 16])
def test_more_draws_begin_with_the_same_noise(dim):
    noise, like = RowNoise(3, 0), torch.zeros(())
    few, many = (noise.draw(slice(0, 3), k, (dim,), like) for k in (64, 256))
    assert torch.equal(few, many[:, :64])


def test_a_gate_that_fails_is_answered_by_annealing_some_of_the_same_rows(quick, exact_vae, truth, rows):
    stages: list[tuple[str, int, int]] = []
    scored = escalate_one(
        exact_vae(truth, 0.25), rows, n_rows=40, n_ais_rows=25, progress=lambda *step: stages.append(step)
    )
    assert scored.method == "ais"
    assert scored.k == MOST  # cheaper remedies first
    assert "failed its gate" in scored.reason
    assert scored.ais is not None
    assert len(scored.log_likelihood.values) == 40
    assert len(scored.values) == len(scored.scored_rows) == 25
    assert scored.estimate == scored.ais.estimate
    exact = truth.log_prob(rows[scored.scored_rows]).numpy()
    assert abs((scored.values - exact).mean()) < 0.25
    assert {stage for stage, _, _ in stages} == {"importance sampling", "annealing"}
    assert stages[-1] == ("annealing", stages[-1][2], stages[-1][2])


def test_all_models_are_scored_by_what_one_of_them_needs(quick, exact_vae, truth, rows):
    easy, hard = exact_vae(truth), exact_vae(truth, 0.25)
    proposals = [fit_proposal(easy, truth.sample(200, random_state=1)[0]), encoder_proposal(hard)]
    scored = escalate([easy, hard], rows, proposal=proposals, n_rows=20, n_ais_rows=10)
    assert [one.method for one in scored] == ["ais", "ais"]
    assert scored[0].k == scored[1].k
    np.testing.assert_array_equal(scored[0].rows, scored[1].rows)
    assert "every model" in scored[0].reason
    assert escalate_one(easy, rows, proposal=proposals[:1], n_rows=20).method == "importance sampling"


def test_a_prior_swap_is_paired(exact_vae, truth, rows):
    before, after = exact_vae(truth), exact_vae(truth)
    after.prior = LearnedGaussianPrior(3).double()
    torch.nn.init.constant_(after.prior.mean, 0.3)
    one, other = escalate([before, after], rows, n_importance_samples=64)
    gain = torch.distributions.MultivariateNormal(
        truth.bias + truth.weight @ torch.full((3,), 0.3, dtype=torch.float64), truth.covariance
    ).log_prob(rows[one.rows]) - truth.log_prob(rows[one.rows])
    difference = other.values - one.values
    np.testing.assert_allclose(difference.mean(), gain.mean().item(), atol=0.01)


def test_a_number_of_draws_is_kept(exact_vae, truth, rows):
    scored = escalate_one(exact_vae(truth), rows, n_rows=10, n_importance_samples=333)
    assert scored.k == scored.log_likelihood.n_importance_samples == 333


def test_time_that_is_up_ends_it_with_what_there_is(quick, exact_vae, truth, rows):
    with pytest.warns(ReliabilityWarning, match="no time for annealing"):
        scored = escalate_one(exact_vae(truth, 0.25), rows, n_rows=20, max_seconds=0.0)
    assert scored.k == 64
    assert scored.ais is None
    assert scored.method == "importance sampling"


def test_where_the_prior_cannot_be_annealed_it_says_so(quick, exact_vae, truth, rows):
    vae = exact_vae(truth, 0.25)
    vae.prior = NoisyPrior(3)
    with pytest.warns(ReliabilityWarning, match="cannot be annealed"):
        scored = escalate_one(vae, rows, n_rows=10)
    assert scored.method == "importance sampling"


def test_groups_follow_their_rows(exact_vae, truth, rows):
    groups = np.arange(60) // 2
    scored = escalate_one(exact_vae(truth), rows, n_rows=30, groups=groups)
    plain = escalate_one(exact_vae(truth), rows, n_rows=30)
    np.testing.assert_array_equal(scored.values, plain.values)
    assert scored.estimate == Estimate.of(scored.values, groups=groups[scored.rows])


@pytest.mark.parametrize(("k", "change", "expected"), [(64, 0.03, 128), (64, 0.1, 512), (64, 3.0, 4096)])
def test_a_change_says_how_many_doublings_are_next(k, change, expected):
    assert escalation._more(k, change) == expected


def test_without_a_finite_change_all_draws_are_next():
    assert escalation._more(64, math.nan) == escalation._more(64, math.inf) == MOST


def test_the_gate_is_pareto_k_or_the_effective_sample_size(exact_vae, truth, rows):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ReliabilityWarning)
        good = log_likelihood(exact_vae(truth), rows[:20], n_importance_samples=300)
    assert not escalation.gate_fails(good)

    def changed(**fields) -> LogLikelihood:
        return LogLikelihood(**{**vars(good), **fields})

    heavy = np.where(np.arange(20) < 3, 0.8, 0.1)
    assert escalation.gate_fails(changed(pareto_k=heavy))
    assert not escalation.gate_fails(changed(pareto_k=np.where(np.arange(20) < 2, 0.8, 0.1)))
    assert escalation.gate_fails(changed(effective_sample_size=np.full(20, 9.0)))


def test_what_cannot_be_scored_is_refused(exact_vae, truth, rows):
    vae = exact_vae(truth)
    for bad in ({"n_importance_samples": 0}, {"n_importance_samples": "many"}, {"n_rows": 0}, {"n_ais_rows": 0}):
        with pytest.raises(InputError, match="got"):
            escalate_one(vae, rows, **bad)
    with pytest.raises(InputError, match="groups has shape"):
        escalate_one(vae, rows, groups=np.zeros(3))
    with pytest.raises(InputError, match="as many proposals"):
        escalate([vae, vae], rows, proposal=[])
    vae.prior = EmpiricalPrior(3, lambda n, generator=None: torch.zeros(n, 3))
    with pytest.raises(CapabilityError, match="only samples"):
        escalate_one(vae, rows)
