"""Linear layers that let every coordinate meet every other: a learned one and a plain permutation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latentfit.flows.bijection import Bijection, soft_bound


class LUMixing(Bijection):
    r"""u = P L U z + b with P a fixed permutation, L unit lower and U upper triangular.

    log |det| = sum log diag U, and the inverse is two triangular solves. L and U start as the identity, so
    the layer starts as the permutation; log diag U is bounded by `max_log_scale` nats.

    Args:
        features: D.
        permutation: P as the order in which coordinates are read, None for the identity.
        max_log_scale: bound on |log diag U|, in nats.

    Source: Kingma & Dhariwal (2018), Glow, arXiv:1807.03039; Oliva et al. (2018), arXiv:1801.09819.

    Example:
        >>> layer = LUMixing(3)
        >>> u, log_det = layer(torch.ones(2, 3))
        >>> bool((u == 1).all()), log_det.tolist()
        (True, [0.0, 0.0])
    """

    order: Tensor
    positions: Tensor
    start: Tensor

    def __init__(self, features: int, permutation: Tensor | None = None, max_log_scale: float = 2.0) -> None:
        super().__init__(features)
        self.max_log_scale = max_log_scale
        self.register_buffer("order", torch.arange(features) if permutation is None else permutation)
        positions, start = _layout(features)
        self.register_buffer("positions", positions, persistent=False)
        self.register_buffer("start", start, persistent=False)
        n_below = features * (features - 1) // 2
        self.lower = nn.Parameter(torch.zeros(n_below))
        self.upper = nn.Parameter(torch.zeros(n_below))
        self.log_diagonal = nn.Parameter(torch.zeros(features))
        self.bias = nn.Parameter(torch.zeros(features))

    def reset_parameters(self) -> None:
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    def forward(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        (matrix,), (log_det,) = lu_matrices([self])
        return F.linear(z, matrix, self.bias), log_det.expand(z.shape[:-1])

    def inverse(self, u: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        (lower,), (upper,), (log_det,) = _triangles([self])
        columns = (u - self.bias)[..., self.order.argsort()].reshape(-1, self.features).T  # (D, R)
        columns = torch.linalg.solve_triangular(lower, columns, upper=False, unitriangular=True)
        columns = torch.linalg.solve_triangular(upper, columns, upper=True)
        return columns.T.reshape(u.shape), log_det.expand(u.shape[:-1])


def lu_matrices(layers: Sequence[LUMixing]) -> tuple[Tensor, Tensor]:
    """P L U of layers with the same features, all at once, since this runs in every step: (T, D, D), log |det| (T,)."""
    lower, upper, log_det = _triangles(layers)
    n, features, _ = lower.shape
    orders = torch.cat([layer.order + t * features for t, layer in enumerate(layers)])
    rows = torch.bmm(lower, upper).flatten(0, 1).index_select(0, orders)
    return rows.view(n, features, features), log_det


def _triangles(layers: Sequence[LUMixing]) -> tuple[Tensor, Tensor, Tensor]:
    """L (T, D, D), U (T, D, D) and log |det| (T,), both triangles by one scatter."""
    raw = torch.stack([layer.log_diagonal for layer in layers])  # (T, D)
    # filled where they are: numbers from the host would hold up a GPU in every step, and cannot be captured
    bounds = torch.cat([raw.new_full((1, 1), layer.max_log_scale) for layer in layers])
    log_diagonal = soft_bound(raw, bounds)
    below, above = (torch.stack([getattr(layer, name) for layer in layers]) for name in ("lower", "upper"))
    numbers = torch.cat((below, above, log_diagonal.exp()), 1)
    both = layers[0].start.expand(len(layers), -1).scatter(1, layers[0].positions.expand_as(numbers), numbers)
    lower, upper = both.view(len(layers), 2, raw.shape[1], raw.shape[1]).unbind(1)
    return lower, upper, log_diagonal.sum(1)


def _layout(features: int) -> tuple[Tensor, Tensor]:
    """Where (lower, upper, diagonal) go in the flattened (L, U), and these before anything is there: (2 D^2,)."""
    rows, columns = torch.tril_indices(features, features, -1)
    diagonal = torch.arange(features) * (features + 1)
    size = features * features
    positions = torch.cat((rows * features + columns, columns * features + rows + size, diagonal + size))
    return positions, torch.cat((torch.eye(features).flatten(), torch.zeros(size)))


class Permutation(Bijection):
    r"""u_i = z_{order(i)}, volume preserving.

    Args:
        features: D.
        order: a permutation of 0..D-1; None reverses the coordinates.

    Example:
        >>> Permutation(3)(torch.tensor([1.0, 2.0, 3.0]))[0]
        tensor([3., 2., 1.])
    """

    order: Tensor

    def __init__(self, features: int, order: Tensor | None = None) -> None:
        super().__init__(features)
        self.register_buffer("order", torch.arange(features).flip(0) if order is None else order)

    def forward(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return z[..., self.order], z.new_zeros(z.shape[:-1])

    def inverse(self, u: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return u[..., self.order.argsort()], u.new_zeros(u.shape[:-1])


def lower_index(features: int) -> Tensor:
    """Where the entries strictly below the diagonal lie in a flattened (D, D) matrix: (D (D - 1) / 2,)."""
    rows, columns = torch.tril_indices(features, features, -1)
    return rows * features + columns


def unpack_lower(diagonal: Tensor, below: Tensor, index: Tensor) -> Tensor:
    """Lower triangular matrices from their diagonal (..., D) and the entries below it (..., D (D - 1) / 2).

    `index` comes from `lower_index`. Only learned numbers are parameters then: no unused upper triangle is
    counted or saved.
    """
    features = diagonal.shape[-1]
    flat = torch.zeros_like(below[..., :1]).expand(*below.shape[:-1], features * features) if below.numel() else None
    if flat is None:
        return torch.diag_embed(diagonal)
    return flat.index_copy(-1, index, below).unflatten(-1, (features, features)) + torch.diag_embed(diagonal)
