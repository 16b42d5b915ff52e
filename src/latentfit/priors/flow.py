"""What all flow priors share: whitening, flow, base, the units that q leaves at N(0, 1), and the fit."""

from __future__ import annotations

import math
import warnings
from abc import ABC
from collections.abc import Callable
from typing import Literal

import torch
from torch import Generator, Tensor, nn

from latentfit.data.batch import Batch
from latentfit.errors import CapabilityError, InputError, OutOfBoxWarning, ReliabilityWarning
from latentfit.flows.sequence import Sequence, outside_box
from latentfit.flows.whitening import Whitening
from latentfit.model.contracts import LOG_2PI, Density, Prior, Shape, as_shape
from latentfit.model.rows import CodeRows, FitOptions
from latentfit.priors.active import FULL_WHITENING_UP_TO, active_units, units_of
from latentfit.priors.fitting import fit_by_gradient
from latentfit.priors.mixture import MixturePrior
from latentfit.priors.moments import exact_moments
from latentfit.priors.standard import StandardNormalPrior
from latentfit.priors.transported import start_at
from latentfit.registry import registry
from latentfit.training import isolated_rng
from latentfit.training.rng import standard_normal

#: share of coordinates outside a spline's box, and round-trip error in standard deviations, that a fit warns of
LARGEST_SHARE_OUTSIDE, LARGEST_INVERSE_ERROR = 1e-3, 1e-3
#: rows, and samples, that these two are measured on
CHECKED_ROWS = 2_000


class FlowPrior(Prior, ABC):
    r"""p(z) = p_u(f(W (z - m))) |det df/dz| |det W| over the active units, N(0, 1) for every other one.

    f starts as a permutation of the coordinates, hence p at the base. The whitening is the
    identity in joint training; `fit` sets it from the exact moments of q(z). A unit whose q(z_j given x) is N(0, 1)
    for practically all rows is independent of the others in q(z) and has exactly that law: `fit` then leaves it out
    of the flow, and the configuration says which are `active` from then on. In joint training all are.

    Implement the constructor, which hands over how a flow of so many features is made.

    Args:
        latent_dim: D, or a shape (flattened).
        make_flow: features -> a flow that starts as a permutation.
        base: "normal", or another prior over the active units, such as a mixture, learned with the flow.
        context_features: width of a context (..., C) that the flow uses; with 0 a context is not used.
        active: the flattened units the flow acts on; None for all.
    """

    _units: Tensor
    _others: Tensor

    #: whether `round_trip` can be asked for
    invertible = True

    def __init__(
        self,
        latent_dim: Shape,
        make_flow: Callable[[int], Sequence],
        base: Literal["normal"] | Prior,
        context_features: int,
        active: tuple[int, ...] | None,
    ) -> None:
        super().__init__(latent_dim)
        self.context_features = context_features
        self._make_flow = make_flow
        self._act_on(active, base if isinstance(base, Prior) else None)

    @property
    def density(self) -> Density:  # type: ignore[override]  # the base's: a flow is exact
        return self.base.density

    def log_prob(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        u, rest = self._split(z, context)
        return self.base.log_prob(u) + rest

    def training_log_prob(self, z: Tensor, batch: Batch | None = None) -> Tensor:
        """With the base's own: z (S, N, *event_shape) -> (S, N)."""
        u, rest = self._split(z, None if batch is None else batch.context)
        return self.base.training_log_prob(u) + rest

    @torch.no_grad()
    def sample(
        self,
        n: Shape,
        context: Tensor | None = None,
        generator: Generator | None = None,
        temperature: float = 1.0,
    ) -> Tensor:
        """Draws: n an int or a shape -> (*n, *event_shape); context, where used, (*n, C) or (C,).

        `temperature` multiplies the draws of a normal base: below 1 they keep to the centre, and are not draws of p.

        Raises:
            CapabilityError: a temperature, and a base that has no one centre.
        """
        if temperature != 1 and not isinstance(self.base, StandardNormalPrior):
            raise CapabilityError(
                f"{self.name or 'flow'}: a temperature is for a normal base; this one is {self.base.name!r}."
            )
        shape = as_shape(n)
        z = self._from_base(temperature * self.base.sample(n, generator=generator), context)
        if self.active is not None:
            rows = temperature * standard_normal((*shape, self.event_shape.numel()), z, generator)
            rows[..., self._units] = z
            z = rows
        return z.reshape(*shape, *self.event_shape)

    @torch.no_grad()
    def round_trip(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """f^{-1}(f(z)): z (..., *event_shape) -> the same shape, equal to z but for rounding."""
        rows = z.flatten(-len(self.event_shape)).clone()
        units = slice(None) if self.active is None else self._units
        rows[..., units] = self._from_base(self._to_base(rows[..., units], context)[0], context)
        return rows.unflatten(-1, self.event_shape)

    def inverse_error(self, z: Tensor, context: Tensor | None = None) -> float:
        """max |f^{-1}(f(z)) - z| over z (..., *event_shape), in units of the latents and in their dtype."""
        return (self.round_trip(z, context) - z).abs().max().item()

    @torch.no_grad()
    def outside_box(self, z: Tensor, context: Tensor | None = None) -> float:
        """Share of coordinates that a spline leaves as they are, z (..., *event_shape); 0 for flows without splines."""
        rows = z.flatten(-len(self.event_shape))
        rows = rows if self.active is None else rows[..., self._units]
        return outside_box(self.flow, self.whitening(rows)[0], self._context(context))

    def fit_rows(self, rows: CodeRows, options: FitOptions, start: tuple[MixturePrior, CodeRows] | None = None) -> None:
        """Whiten by the exact moments of q(z), start the flow anew, and maximise log p on fresh draws.

        At most `max_steps` steps (2,000 to 4,000 by the number of dimensions), stopped by held-out rows, the best
        weights kept. A learnable base starts at its own fit, or at `start`: a mixture that is already fitted to these
        rows, and other rows, the only ones that can then be held out. p starts as that mixture. Determined by
        `random_state`.

        Raises:
            InputError: a `start` that this base cannot be.

        Warns:
            OutOfBoxWarning: more than 0.1 % of coordinates lie where the splines leave them as they are.
            ReliabilityWarning: the flow does not invert its own samples to 0.001 standard deviations.
        """
        self._choose_active(rows)
        self.whitening.set_moments(*exact_moments(self._seen(rows)))
        with isolated_rng(options.random_state, self.whitening.mean.device):
            self.flow.reset_parameters()
        if start is None:
            # apart before the base is fitted: rows that it has seen would call every step of the flow a loss
            fitted, held_out = rows.split(0.1, torch.Generator().manual_seed(options.random_state))
            self._fit_base(self._seen(fitted), options.random_state)
        else:
            (below, held_out), fitted = start, rows
            self._start_base(below)
        fit_by_gradient(self, fitted, options, held_out)
        self._check(rows, options.random_state)

    @property
    def awaits_codes(self) -> bool:
        """Whether the base does."""
        return self.base.awaits_codes

    def start_rows(self, rows: CodeRows, options: FitOptions) -> None:
        """Start the base at the codes as the flow shows them to it; the flow stays where it is."""
        self.base.start_rows(self._in_base(self._seen(rows), options.random_state), options)

    def bind(self, model: nn.Module | None = None, data: Batch | None = None) -> None:
        """Tell the base of the data; an encoder gives codes in z, where the base is not."""
        self.base.bind(None, data)

    def freeze(self) -> None:
        """As the base does."""
        self.base.freeze()

    def _act_on(self, active: tuple[int, ...] | None, base: Prior | None) -> None:
        """Whitening, flow and base over these units, as they start."""
        dim = self.event_shape.numel()
        units, others = units_of(active, dim, self.name or "flow")
        shape = self.event_shape if active is None else torch.Size([len(units)])
        if base is not None and base.event_shape != shape:
            got, wanted = tuple(base.event_shape), tuple(shape)
            raise InputError(
                f"{self.name or 'flow'}: the base is over latents of shape {got}, not {wanted}; give it the same."
            )
        self.active = None if active is None else tuple(units)
        self.register_buffer("_units", torch.tensor(units), persistent=False)
        self.register_buffer("_others", torch.tensor(others, dtype=torch.long), persistent=False)
        self.whitening = Whitening(len(units), full=len(units) <= FULL_WHITENING_UP_TO)
        self.flow = self._make_flow(len(units))
        self.base: Prior = StandardNormalPrior(tuple(shape)) if base is None else base

    def _seen(self, rows: CodeRows) -> CodeRows:
        """The rows in the units the flow acts on."""
        if self.active is None:
            return rows
        return rows.units(self.active)

    def _choose_active(self, rows: CodeRows) -> None:
        """Leave the collapsed units out of the flow."""
        arguments = self.base.config()["args"]
        if "latent_dim" not in arguments:
            return  # a base made of other priors cannot be made anew for fewer units
        active = active_units(rows)
        if active == self.active:
            return
        shape = self.event_shape if active is None else torch.Size([len(active)])
        base = registry.build("prior", {"name": self.base.name, "args": {**arguments, "latent_dim": list(shape)}})
        like = self.whitening.mean
        self._act_on(active, base)
        self.to(like)
        object.__setattr__(self, "_arguments", {**getattr(self, "_arguments", {}), "active": active})

    def _fit_base(self, seen: CodeRows, random_state: int) -> None:
        """Start a learnable base at its own fit to what it will see: the flow is still a permutation."""
        if self.base.n_parameters == 0:
            return
        self.base.fit_rows(self._in_base(seen, random_state), FitOptions(random_state=random_state))

    @torch.no_grad()
    def _in_base(self, seen: CodeRows, random_state: int) -> CodeRows:
        """One draw of every row in the base's coordinates, as rows without spread.

        Not several: the base counts rows, and holds some out, which draws of the same row are not.
        """
        seen = seen.to(self.whitening.mean.device, self.whitening.mean.dtype)
        draws = seen.draw(torch.Generator().manual_seed(random_state))
        u = self._to_base(draws, seen.context)[0].flatten(1)
        return CodeRows(u, torch.zeros_like(u))

    @torch.no_grad()
    def _start_base(self, start: MixturePrior) -> None:
        """Start the base at a mixture over all units, seen through the whitening and the permutation."""
        name, shape = self.name or "flow", tuple(self.event_shape)
        if not isinstance(self.base, MixturePrior) or self.context_features or start.event_shape != self.event_shape:
            raise InputError(
                f"{name}: to start at a mixture over latents of shape {shape} the base must be a mixture, and the flow "
                f"without a context; base is {self.base.name!r}, start over {tuple(start.event_shape)}."
            )
        whiten = self.whitening.weight if self.whitening.full else self.whitening.weight.diag()
        on_units = self.flow(whiten.T)[0].T  # (A, A): its biases are zero
        matrix = on_units.new_zeros(len(on_units), self.event_shape.numel())
        matrix[:, self._units] = on_units
        start_at(self.base, start, matrix, -(on_units @ self.whitening.mean))

    @torch.no_grad()
    def _check(self, rows: CodeRows, random_state: int) -> None:
        like = self.whitening.mean
        rows = rows[torch.arange(len(rows))[:: math.ceil(len(rows) / CHECKED_ROWS)]].to(like.device, like.dtype)
        generator = torch.Generator().manual_seed(random_state)
        z = rows.draw(generator).unflatten(-1, self.event_shape)
        share = self.outside_box(z, rows.context)
        if share > LARGEST_SHARE_OUTSIDE:
            warnings.warn(
                f"{share:.2%} of the coordinates lie outside the splines' box, where the density is the base's. Give a "
                "larger box, or another prior.",
                OutOfBoxWarning,
                stacklevel=3,
            )
        own = self.sample(len(rows), rows.context, generator)
        error = ((self.round_trip(own, rows.context) - own).abs() / z.std(0).clamp_min(1e-6)).max().item()
        if not error <= LARGEST_INVERSE_ERROR:
            warnings.warn(
                f"The flow inverts its own samples to {error:.1g} standard deviations only: where it does not, samples "
                "and density are of different distributions. Try double(), or a smaller max_log_scale.",
                ReliabilityWarning,
                stacklevel=3,
            )

    def _split(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """The base's latents, and what is to be added to their log-density: log |det|, and the units left out."""
        rows = z.flatten(-len(self.event_shape))
        if self.active is None:
            return self._to_base(rows, context)
        others = rows[..., self._others]
        u, log_det = self._to_base(rows[..., self._units], context)
        return u, log_det - 0.5 * (others.square().sum(-1) + others.shape[-1] * LOG_2PI)

    def _to_base(self, rows: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Rows of active units (..., A) -> the base's latents and log |det|."""
        whitened, log_det = self.whitening(rows)
        u, flow_log_det = self.flow(whitened, self._context(context))
        return u.unflatten(-1, self.base.event_shape), flow_log_det + log_det

    def _from_base(self, u: Tensor, context: Tensor | None) -> Tensor:
        z, _ = self.flow.inverse(u.flatten(-len(self.base.event_shape)), self._context(context))
        return self.whitening.inverse(z)[0]

    def _context(self, context: Tensor | None) -> Tensor | None:
        if not self.context_features:
            return None
        if context is None or context.shape[-1] != self.context_features:
            got = "none" if context is None else tuple(context.shape)
            raise InputError(f"This prior needs a context (..., {self.context_features}), got {got}.")
        return context


def hidden_widths(hidden_features: int | tuple[int, ...] | None, latent_dim: Shape) -> tuple[int, ...]:
    """An int for two layers; None for two layers of 4 D within 64 and 128, of 2 D from 64 dimensions on."""
    dim = as_shape(latent_dim).numel()
    width = max(64, min(128, 4 * dim), 2 * dim) if hidden_features is None else hidden_features
    return (width, width) if isinstance(width, int) else tuple(width)
