"""How unlike the training data a row is, by what draws of the weights say of it."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from latentfit.errors import InputError, ReliabilityWarning
from latentfit.evaluation.likelihood import log_likelihood
from latentfit.evaluation.pooling import effective_draws
from latentfit.evaluation.proposal import Proposal
from latentfit.evaluation.rows import as_models
from latentfit.model.vae import VAEModule

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class OODScores:
    """Scores of N rows by M draws of the weights; l_m = log p(x given w_m), nats.

    Attributes:
        per_draw: (M, N) l_m; all scores follow from it.
    """

    per_draw: np.ndarray

    @property
    def score(self) -> np.ndarray:
        """(N,) the one fixed in advance, `disagreement`: the higher, the more unlike the training data."""
        return self.disagreement

    @property
    def expected(self) -> np.ndarray:
        """(N,) mean of l_m over draws, nats."""
        return self.per_draw.mean(0)

    @property
    def log_p(self) -> np.ndarray:
        """(N,) log 1/M sum_m exp l_m, log p(x) of the mixture, nats."""
        return np.logaddexp.reduce(self.per_draw, 0) - math.log(len(self.per_draw))

    @property
    def disagreement(self) -> np.ndarray:
        """(N,) variance of l_m over draws, nats squared."""
        return self.per_draw.var(0, ddof=1)

    @property
    def waic(self) -> np.ndarray:
        """(N,) `expected` less `disagreement`: the lower, the more unlike."""
        return self.expected - self.disagreement

    @property
    def effective_draws(self) -> np.ndarray:
        """(N,) (sum w)^2 / sum w^2 of w_m = p(x given w_m), from 1 to M: how many draws explain x."""
        return effective_draws(self.per_draw)

    @property
    def table(self) -> pd.DataFrame:
        """One line for each row, all scores; `score` is the one fixed in advance."""
        import pandas as pd

        names = ("score", "log_p", "expected", "disagreement", "waic", "effective_draws")
        return pd.DataFrame({name: getattr(self, name) for name in names})

    def to_json(self) -> str:
        """The scores of every draw, from which all others follow."""
        return json.dumps({"n_draws": len(self.per_draw), "per_draw": self.per_draw.tolist()})

    def __len__(self) -> int:
        return self.per_draw.shape[1]

    def __str__(self) -> str:
        low, middle, high = np.quantile(self.score, [0.05, 0.5, 0.95])
        return (
            f"{len(self):,} rows, {len(self.per_draw)} draws of the weights: disagreement {middle:.3g} "
            f"(5 % to 95 %: {low:.3g} to {high:.3g}), log p(x) {self.log_p.mean():.1f} nats"
        )


def score_ood(
    vae: VAEModule | Sequence[VAEModule],
    X: Any,
    *,
    draws: int | None = None,
    n_importance_samples: int = 50,
    proposal: Proposal | Sequence[Proposal] | None = None,
    X_train: Any = None,
    random_state: int = 0,
    refinement_steps: int = 30,
) -> OODScores:
    r"""Score rows by how much draws of the weights disagree about them.

        disagreement(x) = Var_w[log p(x given w)]

    Where there were training rows like x, every plausible set of weights gives it about the same probability; where
    there were none, nothing made them agree. A plain likelihood says how probable x is, which is another question:
    smooth or empty pictures may be more probable than any of the training set. The score was chosen before any was
    tried on data: of the two that disagreement can be summed up in, the effective number of draws (Daxberger and
    Hernandez-Lobato 2019, arXiv 1912.05651) is 1 for nearly every row once draws differ by some nats, and then ranks
    nothing. WAIC (Choi et al. 2018, arXiv 1810.01392) adds the likelihood, and with it what is wrong with it.

    All draws are scored with the same noise, so that the noise of importance sampling cancels in the variance.

    Args:
        vae: a VAE with a distribution over its weights, or several VAEs, such as some trained from different seeds.
        X: (N, *data_shape).
        draws: how many; `vae.n_draws` by default.
        n_importance_samples, proposal, X_train, refinement_steps: of each draw, see `log_likelihood`.
        random_state: seed.

    Raises:
        InputError: fewer than two draws, or a VAE without a distribution over its weights.
        CapabilityError: a prior whose density cannot enter log p(x).
    """
    models = drawn(vae, draws, random_state)
    if len(models) < 2:
        raise InputError("score_ood compares draws of the weights: give a Bayesian VAE, or at least two VAEs.")
    shared = isinstance(proposal, Proposal) or proposal is None
    proposals: list[Any] = [proposal] * len(models) if shared else list(proposal)  # type: ignore[arg-type]
    if len(proposals) != len(models):
        raise InputError(f"score_ood: {len(models)} models need as many proposals, got {len(proposals)}.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ReliabilityWarning)  # unlike rows have poor proposals; noise is shared
        values = [
            log_likelihood(
                model,
                X,
                n_importance_samples=n_importance_samples,
                proposal=e,
                X_train=X_train,
                random_state=random_state,
                refinement_steps=refinement_steps,
            ).values
            for model, e in zip(models, proposals, strict=True)
        ]
    return OODScores(np.stack(values))


def drawn(vae: VAEModule | Sequence[VAEModule], draws: int | None, random_state: int) -> list[VAEModule]:
    """Ordinary VAEs: so many draws of a distribution over weights, or the VAEs given.

    Raises:
        InputError: a number of draws below 1, or asked of several VAEs.
    """
    models = as_models(vae)
    if len(models) > 1 or not models[0].uncertain:
        if draws is not None:
            raise InputError("draws= is a number of draws from one Bayesian VAE; this is no such VAE, or several.")
        return models
    if draws is not None and draws < 1:
        raise InputError(f"draws must be at least 1, got {draws}.")
    model = models[0]
    generator = torch.Generator(device=model.device).manual_seed(random_state)
    return list(model.draws(draws or model.n_draws, generator))
