"""The law of every adapter: T is the held-out ELBO gained, through its own code path, and nothing is changed."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from latentfit.adapters import AdaptedVAE
from latentfit.evaluation.codes import encode_rows
from latentfit.evaluation.gap import log_ratios
from latentfit.evaluation.rows import decoder_rows, evaluation_rows
from latentfit.evaluation.terms import elbo_terms
from latentfit.model.contracts import Prior
from latentfit.priors import create

#: seeds of the draws; one draw a call, for several are drawn in another order by each side
SEEDS = (0, 1, 2)


class Drawn(Prior):
    """A prior whose KL is always by draws, so that both ELBOs use the same ones."""

    def __init__(self, prior: Prior) -> None:
        super().__init__(tuple(prior.event_shape))
        self.prior = prior

    def log_prob(self, z: Any, context: Any = None) -> Any:
        return self.prior.log_prob(z, context)

    def sample(self, n: Any, context: Any = None, generator: Any = None) -> Any:
        return self.prior.sample(n, context, generator)


def under(adapted: AdaptedVAE, prior: Prior) -> AdaptedVAE:
    """The same model and networks with another prior."""
    swapped = copy.copy(adapted)
    swapped._modules = {**adapted._modules, "prior": prior}
    return swapped


def gain_is_real(adapted: AdaptedVAE, rows: Any, *, atol: float = 1e-4) -> float:
    """T(r) of a prior fitted on half of the rows equals the ELBO gained on the others, per row; returns T.

    Rows: at most a few dozen, so that both walk over them in one block and draw the same z. A bare tensor or a Batch.
    """
    batch = evaluation_rows(rows, adapted)
    half = len(batch) // 2
    train, test = batch[slice(0, half)], batch[slice(half, len(batch))]
    assert len(test) <= decoder_rows(test, adapted.device)
    before, modes = adapted.weights_sha256(), [part.training for part in adapted.modules()]

    fitted = encode_rows(adapted, train)
    r = create("learned_gaussian", latent_dim=tuple(adapted.event_shape), covariance="diagonal")
    r.to(adapted.device).fit(fitted.mean, std=fitted.std)
    codes = encode_rows(adapted, test)
    gaps, differences = [], []
    for seed in SEEDS:
        gap = log_ratios(r, adapted.prior, codes, n_draws=1, random_state=seed)[0]
        won = elbo_terms(under(adapted, Drawn(r)), test, n_draws=1, random_state=seed)
        had = elbo_terms(under(adapted, Drawn(adapted.prior)), test, n_draws=1, random_state=seed)
        assert not won.analytic_kl
        assert not had.analytic_kl
        # the same draws, decoded alike: to the bit
        np.testing.assert_array_equal(won.log_likelihood_per_row, had.log_likelihood_per_row)
        gaps.append(gap)
        differences.append(won.elbo_per_row - had.elbo_per_row)
    gap, difference = np.mean(gaps, 0), np.mean(differences, 0)
    np.testing.assert_allclose(gap.mean(), difference.mean(), rtol=0, atol=atol)
    np.testing.assert_allclose(gap, difference, rtol=1e-5, atol=10 * atol)
    assert abs(gap).max() > 100 * atol  # otherwise nothing was tested

    assert adapted.weights_sha256() == before
    assert [part.training for part in adapted.modules()] == modes
    return float(gap.mean())
