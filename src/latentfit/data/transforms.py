"""Fixed bijections of the data, whose log-determinant keeps densities in the data's own units."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from latentfit.errors import InputError
from latentfit.registry import Component

if TYPE_CHECKING:
    from typing import Self

Shape = int | tuple[int, ...]

#: `resolution` looks at this many values at most
MAX_VALUES = 1_000_000


class Transform(Component, nn.Module, ABC):
    """y = T(x), entry by entry, applied to data before they are modelled.

    Densities stay in the units of x: log p(x) = log p_Y(T(x)) + log |dT/dx|.

    Implement `forward`, `inverse` and `log_det`. `fit` may be overridden; by default there is nothing to fit.
    """

    data_shape: torch.Size

    def __init__(self, data_shape: Shape) -> None:
        super().__init__()
        self.data_shape = torch.Size([data_shape] if isinstance(data_shape, int) else data_shape)
        if not self.data_shape or min(self.data_shape) < 1:
            raise InputError(f"data_shape must be positive, got {data_shape!r}.")

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Raw units -> the model's: (..., *data_shape) -> (..., *data_shape)."""

    @abstractmethod
    def inverse(self, y: Tensor) -> Tensor:
        """The model's units -> raw: (..., *data_shape) -> (..., *data_shape)."""

    @abstractmethod
    def log_det(self, x: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """log |dT/dx| summed over a row's observed entries, nats.

        Args:
            x: (N, *data_shape), where T is not affine.
            mask: (N, *data_shape), True where observed; unobserved entries are not scored.

        Returns:
            A scalar where it is the same for every row, else (N,).
        """

    def fit(self, x: Tensor, mask: Tensor | None = None) -> Self:
        """Set the numbers from training rows x (N, *data_shape); mask True where observed. Returns itself."""
        return self


class Identity(Transform):
    """T(x) = x.

    Example:
        >>> Identity(3).log_det()
        tensor(0.)
    """

    def __init__(self, data_shape: Shape) -> None:  # configurations are recorded by a class's own constructor
        super().__init__(data_shape)

    def forward(self, x: Tensor) -> Tensor:
        return x

    def inverse(self, y: Tensor) -> Tensor:
        return y

    def log_det(self, x: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        return torch.zeros(()) if x is None else x.new_zeros(())


class Standardise(Transform):
    r"""T(x) = (x - loc) / scale, to mean 0 and variance 1 on the training rows.

    .. math:: \log |dT/dx| = -\sum_d \log \mathrm{scale}_d

    Tables have one loc and scale per column; images share one, which keeps the contrast between pixels. A
    scale is at least the standard deviation of the data's rounding, resolution / sqrt(12), so that a column
    of nearly one value is not blown up to unit variance.

    Args:
        data_shape: shape of a row.
        per_column: one loc and scale per entry; by default for tables (one axis) only.

    Example:
        >>> x = torch.tensor([[0.0, 10.0], [2.0, 30.0]])
        >>> standardise = Standardise(2).fit(x)
        >>> standardise(x)
        tensor([[-1., -1.],
                [ 1.,  1.]])
    """

    loc: Tensor
    scale: Tensor

    def __init__(self, data_shape: Shape, per_column: bool | None = None) -> None:
        super().__init__(data_shape)
        self.per_column = len(self.data_shape) == 1 if per_column is None else per_column
        shape = self.data_shape if self.per_column else torch.Size()
        self.register_buffer("loc", torch.zeros(shape))
        self.register_buffer("scale", torch.ones(shape))

    def fit(self, x: Tensor, mask: Tensor | None = None) -> Self:
        """Set loc and scale to those of x (N, *data_shape), N at least 2.

        Raises:
            InputError: another shape, or columns that are constant (see `drop_constant_columns`).
        """
        loc, std, rounding = _moments(self, x, mask, self.per_column)
        constant = (rounding == 0).reshape(-1).nonzero().flatten().tolist()
        if constant:
            where = f"columns ({', '.join(map(str, constant[:8]))}{', ...' if len(constant) > 8 else ''})"
            raise InputError(
                f"{len(constant)} constant {where if self.per_column else 'data set'}: nothing to "
                "standardise; "
                "drop them with drop_constant_columns(x, names)."
            )
        self.loc.copy_(loc)
        self.scale.copy_(torch.maximum(std, rounding))
        return self

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.loc) / self.scale

    def inverse(self, y: Tensor) -> Tensor:
        return y * self.scale + self.loc

    def log_det(self, x: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        if mask is None:
            # a shared scale acts on every entry
            return -self.scale.log().sum() * (self.data_shape.numel() // self.scale.numel())
        return torch.where(mask, -self.scale.log(), 0.0).flatten(1).sum(1)


class LogStandardise(Transform):
    r"""T(x) = (log(1 + x) - loc) / scale per entry, for counts.

    .. math:: \log |dT/dx| = -\sum_d \log \mathrm{scale}_d - \sum_d \log(1 + x_d)

    What encoders of counts read. Entries that are constant on the training rows keep scale 1: a gene not seen
    there is no reason to refuse the others.

    Args:
        data_shape: shape of a row.

    Example:
        >>> x = torch.tensor([[0.0], [1.0]])
        >>> LogStandardise(1).fit(x)(x).flatten()
        tensor([-1.,  1.])
    """

    loc: Tensor
    scale: Tensor

    def __init__(self, data_shape: Shape) -> None:
        super().__init__(data_shape)
        self.register_buffer("loc", torch.zeros(self.data_shape))
        self.register_buffer("scale", torch.ones(self.data_shape))

    def fit(self, x: Tensor, mask: Tensor | None = None) -> Self:
        """Set loc and scale to those of log(1 + x), x (N, *data_shape) above -1, N at least 2.

        Raises:
            InputError: another shape, or values of -1 and below.
        """
        lowest = float(x.min() if mask is None else x[mask].min())
        if lowest <= -1:
            raise InputError(f"LogStandardise takes counts, got a value of {lowest:.3g}; use Standardise.")
        loc, std, rounding = _moments(self, x.double().log1p(), mask, per_column=True)
        scale = torch.maximum(std, rounding)
        self.loc.copy_(loc)
        self.scale.copy_(torch.where(rounding > 0, scale, torch.ones_like(scale)))
        return self

    def forward(self, x: Tensor) -> Tensor:
        return (x.log1p() - self.loc) / self.scale

    def inverse(self, y: Tensor) -> Tensor:
        return (y * self.scale + self.loc).expm1()

    def log_det(self, x: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        if x is None:
            raise InputError("LogStandardise.log_det depends on x; give it.")
        entries = -self.scale.log() - x.log1p()
        return (entries if mask is None else torch.where(mask, entries, 0.0)).flatten(1).sum(1)


def resolution(x: Tensor, per_column: bool = False) -> Tensor:
    """The smallest positive gap between sorted values: what the data can tell apart; 0 where all are equal.

    A Normal likelihood with a sigma far below it would earn unbounded nats from the storage format. Of more
    than a million values an even subset is looked at, which can only make the gap larger.

    Args:
        x: (N, *data_shape).
        per_column: one for each entry of a row, (*data_shape,); otherwise one for all, ().

    Example:
        >>> resolution(torch.tensor([[0.0, 0.5], [2.0, 0.5]]))
        tensor(0.5000)
    """
    if not per_column:
        return torch.tensor(_resolution(x), dtype=_floating(x))
    columns = x.flatten(1)
    gaps = [_resolution(columns[:, j]) for j in range(columns.shape[1])]
    return torch.tensor(gaps, dtype=_floating(x)).reshape(x.shape[1:])


def drop_constant_columns(
    x: np.ndarray, names: Sequence[str] | None = None
) -> tuple[np.ndarray, tuple[str, ...], tuple[str, ...]]:
    """A table without its constant columns, which have no density and carry no information.

    Args:
        x: (N, D).
        names: of the columns; their numbers by default.

    Returns:
        The table (N, D'), the names kept, the names dropped.

    Raises:
        InputError: not a table, or nothing but constant columns.

    Example:
        >>> drop_constant_columns(np.array([[1, 5], [2, 5]]), ["a", "b"])[1:]
        (('a',), ('b',))
    """
    if x.ndim != 2:
        raise InputError(f"drop_constant_columns takes a table (N, D), got shape {x.shape}.")
    labels = [str(j) for j in range(x.shape[1])] if names is None else [str(name) for name in names]
    if len(labels) != x.shape[1]:
        raise InputError(f"{len(labels)} names for {x.shape[1]} columns; they must agree.")
    varies = (x != x[:1]).any(axis=0)
    if not varies.any():
        raise InputError(f"All {x.shape[1]} columns are constant: there is nothing to model.")
    kept = tuple(label for label, v in zip(labels, varies, strict=True) if v)
    dropped = tuple(label for label, v in zip(labels, varies, strict=True) if not v)
    return (x[:, varies] if dropped else x), kept, dropped


def _moments(transform: Transform, x: Tensor, mask: Tensor | None, per_column: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, standard deviation and rounding error (its standard deviation; 0 where constant), in float64."""
    name = type(transform).__name__
    if x.shape[1:] != transform.data_shape:
        raise InputError(f"{name} was built for rows of shape {tuple(transform.data_shape)}, got {tuple(x.shape[1:])}.")
    observed = torch.ones_like(x, dtype=torch.bool) if mask is None else mask
    axes = (0,) if per_column else tuple(range(x.dim()))
    counts = observed.sum(axes)
    if int(counts.min()) < 2:
        raise InputError(f"{name} needs two observed values in every column; drop the emptier ones.")
    values = torch.where(observed, x, 0.0).double()
    loc = values.sum(axes) / counts
    std = (torch.where(observed, (values - loc).square(), 0.0).sum(axes) / counts).sqrt()
    if per_column:
        columns, seen = x.flatten(1), observed.flatten(1)
        gaps = [_resolution(columns[seen[:, j], j]) for j in range(columns.shape[1])]
    else:
        gaps = [_resolution(x[observed])]
    return (
        loc,
        std,
        torch.tensor(gaps, dtype=torch.float64, device=x.device).reshape(loc.shape) / math.sqrt(12),
    )


def _resolution(values: Tensor) -> float:
    flat = values.detach().reshape(-1)
    if flat.numel() < 2:
        return 0.0
    stride = -(-flat.numel() // MAX_VALUES)
    ordered = flat[::stride].double().sort().values
    gaps = ordered.diff()
    positive = gaps[gaps > 0]
    # an even subset of a column that is nearly constant may be constant
    return float(positive.min()) if positive.numel() else float((flat.max() - flat.min()).double())


def _floating(x: Tensor) -> torch.dtype:
    return x.dtype if x.is_floating_point() else torch.get_default_dtype()
