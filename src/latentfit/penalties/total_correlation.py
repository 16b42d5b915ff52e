"""The dependence between the units of q(z)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from latentfit.data.batch import Batch
from latentfit.divergences.samples import slices
from latentfit.errors import CapabilityError, InputError
from latentfit.model.contracts import LatentDistribution, Penalty
from latentfit.penalties.matching import check_weight

#: log-densities of single units held at once
NUMBERS_AT_ONCE = 2**22


class TotalCorrelationPenalty(Penalty):
    r"""weight TC, TC = KL(q(z) || prod_d q(z_d)), each density estimated from the batch.

        q(z_i) ~ q(z_i|x_i) / N + (N - 1) / N  mean_{j != i} q(z_i|x_j)

    The row that z_i was drawn from has the weight 1/N it has among all N rows, the others of the batch stand for the
    rest: an unbiased estimate of q_N(z). It is the paper's stratified estimate, averaged over which of the other rows
    bears its odd weight. With KL weight 1, weight = beta - 1 is the beta-TCVAE.

    Args:
        weight: at least 0.

    Raises:
        CapabilityError: a posterior whose units depend on one another given x; row weights.
        InputError: the number of training rows is unknown.

    Warning: the logarithm of an unbiased estimate is biased downward, the more the smaller the batch.

    Source: Chen et al. (2018), arXiv:1802.04942, appendix C.2.
    """

    def __init__(self, weight: float = 5.0) -> None:
        super().__init__()
        check_weight(self, weight)
        self.weight = weight

    def forward(self, z: Tensor, q: LatentDistribution, model: Any, batch: Batch, step: int) -> Tensor:
        if batch.weight is not None:
            raise CapabilityError("The total_correlation penalty takes no row weights: resample the rows.")
        if self.n_train is None:
            raise InputError(
                "total_correlation must know the number of training rows: set objective.n_train, or use fit."
            )
        if z.shape[1] == 1:  # a last batch of one row says nothing of how units depend on one another
            return 0 * z.sum()
        log_q, log_units = aggregate_log_density(z, q, self.n_train)
        return self.weight * (log_q - log_units.sum(-1)).mean()


def aggregate_log_density(z: Tensor, q: LatentDistribution, n_train: int) -> tuple[Tensor, Tensor]:
    """Estimates of log q(z) (S, N) and of log q(z_d) (S, N, D) at draws z (S, N, *event_shape) of q.

    Raises:
        CapabilityError: a posterior whose units depend on one another given x.
        InputError: one row.
    """
    n = z.shape[1]
    if n < 2:
        raise InputError("total_correlation needs at least two rows in a batch.")
    # held-out rows may be more than those it was trained on
    n_train = max(n, n_train)
    others = math.log(n_train - 1) - math.log(n_train) - math.log(n - 1)
    log_weight = torch.full((n, n), others, dtype=z.dtype, device=z.device).fill_diagonal_(-math.log(n_train))
    wholes, units = [], []
    for rows in slices(n, max(1, NUMBERS_AT_ONCE // z[:, :1].numel() // n)):
        pairs = q.unit_log_prob(z[:, rows].flatten(0, 1).unsqueeze(1))  # (S B, 1, *E) against all rows: (S B, N, *E)
        if pairs is None:
            raise CapabilityError(
                f"total_correlation needs log q of single units; those of {type(q).__name__} depend on one another "
                "given x."
            )
        pairs = pairs.flatten(2).unflatten(0, (len(z), -1))  # (S, B, N, D)
        wholes.append((pairs.sum(-1) + log_weight[rows]).logsumexp(2))
        units.append((pairs + log_weight[rows, :, None]).logsumexp(2))
    return torch.cat(wholes, 1), torch.cat(units, 1)
