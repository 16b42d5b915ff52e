"""The units of z that a prior's network acts on; collapsed ones stay at N(0, 1)."""

from __future__ import annotations

from latentfit.errors import InputError
from latentfit.model.rows import CodeRows

#: above this many dimensions the whitening uses variances alone: a (D, D) matrix would dominate the network
FULL_WHITENING_UP_TO = 512
#: nats per row that leaving collapsed units at N(0, 1) may cost in all
LEAST_NATS = 0.01


def active_units(rows: CodeRows) -> tuple[int, ...] | None:
    r"""All but the collapsed units, which together cost at most `LEAST_NATS`; None where that is every unit.

    KL(q(z_j | z_others) || N(0, 1)) <= E KL(q(z_j | z_others, x) || N(0, 1)) by convexity: the latter's sum over the
    units left out bounds what it costs.
    """
    kl = 0.5 * (rows.mean.square() + rows.std.square() - 1) - rows.conditional_std().log()
    kl = kl.double().mean(0).cpu()
    order = kl.argsort()
    n_others = int((kl[order].cumsum(0) <= LEAST_NATS).sum())
    return None if n_others in (0, len(kl)) else tuple(sorted(order[n_others:].tolist()))


def units_of(active: tuple[int, ...] | None, dim: int, name: str) -> tuple[list[int], list[int]]:
    """The units that are active, all where None is given, and the others.

    Raises:
        InputError: none, or not rising units of the D there are.
    """
    units = list(range(dim)) if active is None else list(active)
    if not units or sorted({*units} & {*range(dim)}) != units:
        raise InputError(f"{name}: active must be rising units of {dim}, got {active}.")
    return units, sorted({*range(dim)} - {*units})
