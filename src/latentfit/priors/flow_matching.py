"""Flow matching on the latents: a velocity field learned by regression, and its exact density."""

from __future__ import annotations

import math
import warnings

import torch
from torch import Generator, Tensor, nn

from latentfit.data.batch import Batch
from latentfit.errors import InputError, ReliabilityWarning
from latentfit.model.contracts import Density, Shape, as_shape
from latentfit.model.rows import CodeRows, FitOptions
from latentfit.priors.ode import Solver, State, integrate, integrate_adaptive
from latentfit.priors.second_model import SecondModel, ticks
from latentfit.priors.standard import StandardNormalPrior
from latentfit.priors.velocity import Velocity, VelocityConv, VelocityMLP
from latentfit.training import isolated_rng, minimise

QUARTER = math.pi / 2
#: nats that halving the steps may change log p by, in nine of ten held-out codes; steps tried; codes looked at
TOLERANCE, FEWEST_STEPS, MOST_STEPS, JUDGED = 0.01, 8, 128, 128


class FlowMatchingPrior(SecondModel):
    r"""p(z) of dy/dt = F(y, t) from y(0) = u ~ N(0, I) to y(pi/2) = z, whitened: log p(z) = log N(u) - int div F dt.

        F = argmin E |F(cos t u + sin t z, t) - (cos t z - sin t u)|^2,   t ~ U(0, pi/2), z ~ q(z), u ~ N(0, I)

    This is flow matching along straight paths (1 - s) u + s z, tan t = s / (1 - s), with the coordinates divided by
    their standard deviation at N(0, I): the regression and its weights are the same, the map too, but F = 0 is N(0, I)
    at any number of steps. The divergence of the two-layer F is a formula, so `log_prob` is exact at about the price of
    twice `4 n_steps` network calls; `fit` doubles the Runge-Kutta steps until that changes log p by less than 0.01
    nat. Spatial latents (C, H, W) take convolutions; above 64 numbers their divergence is Hutchinson's estimate, and
    the density "approximate".

    Args:
        latent_dim: D, or a shape; (C, H, W) with more than one pixel is spatial, any other is flattened.
        hidden_features: units of each of two hidden layers, or channels; None means 16 D within 128 and 512, or 32
            channels.
        context_features: width of a context (..., C) that F reads; with 0 a context is not used.
        solver: "rk4", "heun" or "euler".
        active: the units the flow acts on, found by `fit` for flat latents; None for all (see `SecondModel`).

    Source: Lipman et al. (2023), arXiv:2210.02747; Liu et al. (2023), arXiv:2209.03003; the circle Albergo &
    Vanden-Eijnden (2023), arXiv:2209.15571.

    Warning: a density costs some hundred network calls, so joint training by it is 20 to 50 times slower than with a
    coupling flow; it is meant to be fitted post hoc.

    Example:
        >>> prior = FlowMatchingPrior(4, hidden_features=16)
        >>> prior.log_prob(prior.sample(10)).shape
        torch.Size([10])
    """

    steps: Tensor
    step_error: Tensor

    def __init__(
        self,
        latent_dim: Shape,
        hidden_features: int | None = None,
        context_features: int = 0,
        solver: Solver = "rk4",
        active: tuple[int, ...] | None = None,
    ) -> None:
        shape = as_shape(latent_dim)
        self.spatial = len(shape) == 3 and math.prod(shape[1:]) > 1
        if self.spatial and context_features:
            raise InputError("flow_matching: a context goes with flat latents, not with spatial ones.")
        if hidden_features is not None and hidden_features < 1:
            raise InputError(f"flow_matching: hidden_features must be at least 1, got {hidden_features}.")
        self.solver, self.hidden_features = solver, hidden_features
        # a full whitening would mix the pixels that convolutions tell apart
        super().__init__(latent_dim, context_features, active, full=not self.spatial)
        self.register_buffer("steps", torch.tensor(FEWEST_STEPS))
        self.register_buffer("step_error", torch.tensor(0.0))  # nats; F = 0 has none
        self._contexts: Tensor | None = None

    def _build(self, dim: int) -> None:
        width = self.hidden_features
        self.velocity: Velocity = (
            VelocityConv(self.event_shape, width or 32)
            if self.spatial
            else VelocityMLP(dim, width or max(128, min(512, 16 * dim)), self.context_features)
        )
        self.base = StandardNormalPrior(self.event_shape if self.spatial else dim)

    @property
    def density(self) -> Density:  # type: ignore[override]
        """Exact where the divergence is, and the steps are known to be small enough."""
        return "exact" if self.velocity.exact and float(self.step_error) <= TOLERANCE else "approximate"

    @property
    def network_calls(self) -> int:  # type: ignore[override]
        """Calls for one draw."""
        return {"euler": 1, "heun": 2, "rk4": 4}[self.solver] * int(self.steps)

    def log_prob(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """log p(z); what training by it changes has an unknown error until `freeze` measures it."""
        if self.training and torch.is_grad_enabled():
            self.step_error.fill_(math.inf)
        rows, log_det = self._inside(z)
        batch = self._batch(rows, context)
        return self._log_prob(batch, int(self.steps)).view(rows.shape[:-1]) + log_det

    def bind(self, model: nn.Module | None = None, data: Batch | None = None) -> None:
        """Keep some contexts, for `freeze`."""
        if self.context_features and data is not None and data.context is not None:
            self._contexts = data.context[:JUDGED]

    def freeze(self) -> None:
        """Find the steps that log p needs at this prior's own draws, where training left that open."""
        if math.isinf(self.step_error) and (self._contexts is not None or not self.context_features):
            context = None if self._contexts is None else self._contexts.to(self.whitening.mean)
            n = JUDGED if context is None else len(context)
            device = self.whitening.mean.device
            with isolated_rng(0, device):
                z = self.sample(n, context)
            self._find_steps(self._batch(self._inside(z)[0], context), 0)
        self._contexts = None

    @torch.no_grad()
    def sample(
        self,
        n: Shape,
        context: Tensor | None = None,
        generator: Generator | None = None,
        tolerance: float | None = None,
        n_steps: int | None = None,
    ) -> Tensor:
        """Draws: n an int or a shape -> (*n, *event_shape).

        By as many steps as the density, by `n_steps`, or, with a `tolerance`, by steps adapted to it (Dormand-Prince).
        """
        shape = as_shape(n)
        u = self.base.sample(shape, generator=generator)
        batch = self._batch(u.flatten(-3) if self.spatial else u, context)

        def field(angle: float, state: State) -> State:
            return (self.velocity(state[0], batch.x.new_full((), angle), batch.context),)

        if tolerance is None or not len(batch):
            (y,) = integrate(field, (batch.x,), 0.0, QUARTER, n_steps or int(self.steps), self.solver)
        else:
            (y,), _ = integrate_adaptive(field, (batch.x,), 0.0, QUARTER, tolerance)
        return self._outside(y.flatten(1), shape, generator)

    def fit_rows(self, rows: CodeRows, options: FitOptions) -> None:
        """Whiten by the exact moments of q(z), start anew, regress on fresh draws, and find the steps log p needs.

        At most `max_steps` steps (2,000 to 4,000 by the number of dimensions), stopped by held-out rows, the best
        weights kept. Determined by `random_state`.

        Warns:
            ReliabilityWarning: 128 steps leave an error above 0.01 nat, so that the density is only approximate.
        """
        codes = self._codes(rows, options)
        device = self.whitening.mean.device
        with isolated_rng(options.random_state, device):
            self.velocity.reset_parameters()
            held_out = self._batch(codes.held_out.x, codes.held_out.context)
            fixed = torch.randn_like(held_out.x)

        def loss(batch: Batch, step: int) -> dict[str, Tensor]:
            given = self._batch(batch.x, batch.context)
            return {"loss": self._regression(given, torch.randn_like(given.x), float(torch.rand(())))}

        minimise(
            self.velocity,
            loss,
            codes.rows,
            codes.recipe,
            validate=torch.no_grad()(lambda: float(self._regression(held_out, fixed, 0.5))),
            random_state=options.random_state,
            progress=ticks(options.progress),
            what=f"fit {self.name}",
        )
        self._find_steps(held_out, options.random_state)

    def _regression(self, batch: Batch, u: Tensor, offset: float) -> Tensor:
        """Mean squared error per dimension, angles stratified over the batch."""
        n = len(batch)
        angle = QUARTER * (torch.arange(n, dtype=u.dtype, device=u.device) + offset) / n  # (R,)
        spread = angle.view(-1, *[1] * (u.dim() - 1))
        y = spread.cos() * u + spread.sin() * batch.x
        aim = spread.cos() * batch.x - spread.sin() * u
        return (self.velocity(y, angle, batch.context) - aim).square().mean()

    def _log_prob(self, batch: Batch, n_steps: int) -> Tensor:
        """log density of whitened rows: (R,)."""
        probe = None
        if not self.velocity.exact:
            probe = 1 - 2 * torch.randint_like(batch.x, 2)

        def field(angle: float, state: State) -> State:
            return self.velocity.with_divergence(state[0], batch.x.new_full((), angle), batch.context, probe)

        start = (batch.x, batch.x.new_zeros(len(batch)))
        u, log_det = integrate(field, start, QUARTER, 0.0, n_steps, self.solver)
        return self.base.log_prob(u) + log_det

    @torch.no_grad()
    def _find_steps(self, held_out: Batch, random_state: int) -> None:
        """Double the steps until that changes log p by less than `TOLERANCE` in nine of ten held-out codes."""
        some = held_out[slice(0, JUDGED)]

        def score(n_steps: int) -> Tensor:
            with isolated_rng(random_state, some.x.device):  # the same probe
                return self._log_prob(some, n_steps)

        n_steps, coarse = FEWEST_STEPS, score(FEWEST_STEPS)
        while True:
            fine = score(2 * n_steps)
            error = float((fine - coarse).abs().quantile(0.9))
            if error <= TOLERANCE or 2 * n_steps > MOST_STEPS:
                break
            n_steps, coarse = 2 * n_steps, fine
        self.steps.fill_(n_steps)
        self.step_error.fill_(error)
        if error > TOLERANCE:
            warnings.warn(
                f"flow_matching: with {n_steps} steps log p still changes by {error:.3f} nats when they are halved, so "
                "its density is only approximate.",
                ReliabilityWarning,
                stacklevel=3,
            )

    def _batch(self, rows: Tensor, context: Tensor | None) -> Batch:
        """Flat rows (..., d) as the field takes them, (R, *event), and their contexts."""
        if self.spatial:
            return Batch(rows.reshape(-1, *self.event_shape))
        return super()._batch(rows, context)
