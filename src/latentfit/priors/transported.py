"""A mixture of Gaussians seen through an affine map: the same mixture in other coordinates."""

from __future__ import annotations

import torch
from torch import Tensor

from latentfit.errors import InputError
from latentfit.flows.mixing import lower_index
from latentfit.priors.mixture import MixturePrior


@torch.no_grad()
def start_at(target: MixturePrior, source: MixturePrior, matrix: Tensor, offset: Tensor) -> None:
    r"""Give `target` the law of u = A z + b for z of `source`, in place and exactly.

    N(m_k, C_k) becomes N(A m_k + b, A C_k A^T) and the weights stay. Fewer rows than columns in A make it the law of
    fewer coordinates, which is again the mixture's.

    Args:
        target: over u, with full covariances and as many components.
        source: over z.
        matrix: A (E, D), of full row rank.
        offset: b (E,).

    Raises:
        InputError: mixtures that cannot be the same.

    Example:
        >>> z = torch.randn(400, 2)
        >>> source = MixturePrior(2, n_components=3).fit(z, std=torch.ones_like(z))
        >>> target = MixturePrior(2, n_components=3)
        >>> start_at(target, source, 2 * torch.eye(2), torch.ones(2))
        >>> change = target.log_prob(2 * z + 1) - source.log_prob(z)
        >>> bool((change + 2 * torch.tensor(2.0).log()).abs().max() < 1e-4)
        True
    """
    if target.covariance != "full" or target.n_components != source.n_components:
        raise InputError(
            f"A mixture of {source.n_components} components cannot start one of {target.n_components} with "
            f"{target.covariance} covariances; make that one full, with as many components."
        )
    dim = source.event_shape.numel()
    factor = source._factor().detach().cpu().double()
    if factor.dim() == 2:
        factor = torch.diag_embed(factor)
    identity = torch.eye(dim, dtype=torch.float64)
    root = torch.linalg.solve_triangular(factor, identity.expand_as(factor), upper=False)  # C = root root^T
    matrix, offset = matrix.detach().cpu().double(), offset.detach().cpu().double()
    # a QR of the root and not a Cholesky of A C A^T, which squares the condition number
    upper = torch.linalg.qr((matrix @ root).mT, mode="r").R
    upper = upper * upper.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-1)
    inverse = torch.linalg.solve_triangular(upper.mT, torch.eye(len(matrix), dtype=torch.float64), upper=False)
    diagonal = inverse.diagonal(dim1=-2, dim2=-1)
    target.min_std.fill_(min(1e-3, 0.1 / diagonal.max().item()))
    target.logits.copy_(source.logits)
    target.mean.copy_(source.mean.detach().cpu().double() @ matrix.T + offset)
    target.log_diagonal.copy_(diagonal.log())
    target.lower.copy_(inverse.flatten(1)[:, lower_index(len(matrix))])
