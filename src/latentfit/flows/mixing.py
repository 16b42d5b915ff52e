"""Linear layers that let every coordinate meet every other: a learned one and a plain permutation."""

from __future__ import annotations

import torch
from torch import Tensor, nn

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
        order = torch.arange(features) if permutation is None else permutation
        self.register_buffer("order", order)
        positions, start = _layout(features, order.cpu())
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
        permuted_lower, upper, log_diagonal = self._triangles()
        log_det = log_diagonal.sum().expand(z.shape[:-1])
        return nn.functional.linear(z, permuted_lower @ upper, self.bias), log_det

    def inverse(self, u: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        permuted_lower, upper, log_diagonal = self._triangles()
        back = self.order.argsort()
        rows = (u - self.bias).flatten(0, -2) if u.dim() > 1 else (u - self.bias)[None]
        columns = rows[:, back].T  # (D, R)
        lower = permuted_lower[back]
        columns = torch.linalg.solve_triangular(lower, columns, upper=False, unitriangular=True)
        columns = torch.linalg.solve_triangular(upper, columns, upper=True)
        return columns.T.reshape(u.shape), log_diagonal.sum().expand(u.shape[:-1])

    def _triangles(self) -> tuple[Tensor, Tensor, Tensor]:
        """P L, U and log diag U, both matrices by one scatter: this runs in every training step."""
        log_diagonal = soft_bound(self.log_diagonal, self.max_log_scale)
        numbers = torch.cat((self.lower, self.upper, log_diagonal.exp()))
        both = self.start.index_copy(0, self.positions, numbers).view(2, self.features, self.features)
        return both[0], both[1], log_diagonal


def _layout(features: int, order: Tensor) -> tuple[Tensor, Tensor]:
    """Where (lower, upper, diagonal) lie in the flattened (P L, U), and these with nothing there yet: (2 D^2,)."""
    rows, columns = torch.tril_indices(features, features, -1)
    back, diagonal = order.argsort(), torch.arange(features)
    lower = back[rows] * features + columns
    upper = (columns + features) * features + rows
    positions = torch.cat((lower, upper, (diagonal + features) * features + diagonal))
    return positions, torch.stack((torch.eye(features)[order], torch.zeros(features, features))).flatten()


class Rotation(Bijection):
    r"""u = Q z with Q a fixed orthogonal matrix, drawn once (uniformly) and saved.

    Q is stored rounded, so that log |det Q| is some 1e-7 and not 0: it is kept beside it, and the inverse solves the
    system, so that both directions agree in every dtype.

    Args:
        features: D.
        random_state: seeds Q.

    Example:
        >>> layer = Rotation(3)
        >>> layer(torch.ones(3))[0].square().sum()
        tensor(3.0000)
    """

    weight: Tensor
    log_det: Tensor

    def __init__(self, features: int, random_state: int = 0) -> None:
        super().__init__(features)
        generator = torch.Generator().manual_seed(random_state)
        q, r = torch.linalg.qr(torch.randn(features, features, generator=generator, dtype=torch.float64))
        # the signs of R's diagonal make Q uniform
        self.register_buffer("weight", (q * r.diagonal().sign()).to(torch.get_default_dtype()))
        self.register_buffer("log_det", torch.linalg.slogdet(self.weight.double())[1].to(self.weight))

    def forward(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return z @ self.weight.T, self.log_det.expand(z.shape[:-1])

    def inverse(self, u: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        z = torch.linalg.solve(self.weight, u.reshape(-1, self.features).T).T  # (R, D)
        return z.reshape(u.shape), self.log_det.expand(u.shape[:-1])


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
