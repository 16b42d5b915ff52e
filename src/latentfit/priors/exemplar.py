"""The exemplar prior: a Gaussian around every training row's code."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Generator, Tensor, nn

from latentfit.data.batch import Batch
from latentfit.errors import InputError
from latentfit.model.contracts import LOG_2PI, Prior, Shape, as_shape
from latentfit.model.rows import CodeRows, FitOptions
from latentfit.priors.following import ENCODED, gaussian, resize
from latentfit.priors.gaussians import log_sum_exp_of_product, rows_at_once
from latentfit.training.modes import in_eval
from latentfit.training.rng import standard_normal

if TYPE_CHECKING:
    from typing import Self

    from latentfit.model.vae import VAEModule

#: rows that find the one width of a post hoc fit, at most, and its iterations and tolerance
WIDTH_ROWS, WIDTH_ITERATIONS, WIDTH_TOLERANCE = 2_000, 100, 1e-4
#: draws that are searched for at once on a CPU: their energies stay in the cache
NEAR_AT_ONCE = 50
#: exemplars as many standard deviations from their centre: float32 loses the distances in its squares
FAR = 300.0
#: exemplars encoded in a step are a multiple of it
ROUND_NUMBER = 256


class ExemplarPrior(Prior):
    r"""p(z) = 1/M sum_n N(z; m_n, s^2 I), with m_n the encoder's mean of training row n and one learned s.

    In training a row is never its own exemplar:

        log p(z_i) >= log 1/(M - 1) sum_{n in U, n != i} N(z_i; m_n, s^2 I),

    where U are the exemplars nearest to the batch's draws by a cache of the means. Those are encoded anew, so that
    the gradient reaches the encoder through them, and the cache takes in their means and the batch's own; each
    validation renews all of it. The rows left out of U only lower the bound. `Batch.index` says which row is which.

    `bind(model, data)` and `freeze()` are called by `latentfit.fit`: the first takes the rows, the second keeps
    their final means and lets go of rows and encoder. `fit` takes the means of codes and finds s by leave-one-out.
    A context is not used.

    Privacy: the means of training rows are saved with the prior, and decoding one gives the reconstruction of a
    person's row. Where that must not be, take `mixture` or `dp_mixture`.

    Args:
        latent_dim: D, or a shape.
        n_exemplars: M, at most; drawn at random where there are more rows.
        n_neighbours: of each draw that are encoded anew in a training step.

    Source: Norouzi, Fleet & Norouzi (2020), Exemplar VAE, arXiv:2004.04795.

    Example:
        >>> mean = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
        >>> prior = ExemplarPrior(2).fit(mean, std=0.1 * torch.ones(50, 2))
        >>> prior.sample(3).shape
        torch.Size([3, 2])
    """

    of_rows = True
    means: Tensor | None
    rows: Tensor | None

    def __init__(self, latent_dim: Shape, n_exemplars: int = 25_000, n_neighbours: int = 10) -> None:
        super().__init__(latent_dim)
        if n_exemplars < 2 or n_neighbours < 1:
            raise InputError(
                f"exemplar: at least 2 exemplars and 1 neighbour are needed, got {n_exemplars} and {n_neighbours}."
            )
        self.n_exemplars, self.n_neighbours = n_exemplars, n_neighbours
        self.log_std = nn.Parameter(torch.tensor(0.0))
        self.register_buffer("means", None)  # (M, D)
        #: numbers of the exemplars' rows, increasing; of no use once training is over
        self.register_buffer("rows", None, persistent=False)
        #: the model and the exemplars' rows while training goes on; in a tuple, so that neither is registered here
        self._followed: tuple[VAEModule, Batch] | None = None
        self._stale = False

    @property
    def n_stored(self) -> int:
        return 0 if self.means is None else self.means.numel()

    def bind(self, model: nn.Module | None = None, data: Batch | None = None) -> None:
        """Take the training rows as exemplars, and the encoder that gives their means.

        Raises:
            CapabilityError: a posterior that is no Gaussian.
        """
        if model is None or data is None:
            return
        device = self.log_std.device
        order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
        picked = order[: self.n_exemplars].sort().values.to(data.x.device)
        self.rows = (picked if data.index is None else data.index[picked]).to(device)
        self.rows, by_number = self.rows.sort()
        # the tuple's model has encode; that is all that is asked of it
        self._followed = (model, data[picked[by_number.to(picked.device)]])  # type: ignore[assignment]
        self.means = self.log_std.new_zeros(len(picked), self.event_shape.numel())
        self._refresh()

    def freeze(self) -> None:
        """Keep the exemplars' means as the encoder gives them now, and let go of their rows."""
        if self._followed is not None:
            self._refresh()
            self._followed = self.rows = None

    def train(self, mode: bool = True) -> Self:
        """As of any module; the means are renewed at their next use in eval mode, for the weights may have moved."""
        self._stale = True
        return super().train(mode)

    def log_prob(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        means = self._current()
        flat = z.flatten(-len(self.event_shape))
        rows = flat.reshape(-1, flat.shape[-1])
        scale = (-self.log_std).exp()
        left, right = _augmented(rows, means, scale)
        if right[:, -1].min() < -0.5 * FAR**2:
            left, right = _augmented(rows.double(), means.double(), scale.double())
        total = log_sum_exp_of_product(left, right.T).to(flat.dtype)
        constant = flat.shape[-1] * (self.log_std + 0.5 * LOG_2PI) + math.log(len(means))
        return total.view(flat.shape[:-1]) - constant

    @torch.no_grad()
    def component_means(self) -> Tensor:
        """The codes of training rows: (M, *event_shape)."""
        return self._current().unflatten(-1, self.event_shape)

    @torch.no_grad()
    def responsibilities(self, z: Tensor) -> Tensor:
        """p(exemplar given z): (..., *event_shape) -> (..., M)."""
        flat = z.flatten(-len(self.event_shape))
        joint = self._around(flat.reshape(-1, flat.shape[-1]), self._current())
        return joint.softmax(-1).view(*flat.shape[:-1], -1)

    def training_log_prob(self, z: Tensor, batch: Batch | None = None) -> Tensor:
        """Leave-one-out over the nearest exemplars in training, `log_prob` elsewhere: (S, N, *event) -> (S, N).

        Raises:
            InputError: a batch without the numbers of its rows.
        """
        if self._followed is None or not self.training:
            return self.log_prob(z)
        if batch is None or batch.index is None:
            raise InputError("exemplar leaves each row out of its own prior: give Batch.index, the rows' numbers.")
        if self.means is None or self.rows is None:
            raise InputError("exemplar: not bound to data.")
        flat = z.flatten(2)  # (S, N, D)
        own = torch.searchsorted(self.rows, batch.index).clamp_max(len(self.rows) - 1)
        is_own = self.rows[own] == batch.index  # rows beyond `n_exemplars` are none
        near = self._nearest(flat.detach().flatten(0, 1), own.repeat(len(z)), is_own.repeat(len(z)))
        used = self._to_encode(torch.cat((near.flatten(), own[is_own])))
        means = self._encoded(used)
        self.means.index_copy_(0, used, means.detach())
        joint = self._around(flat.flatten(0, 1), means).view(*flat.shape[:2], -1)  # (S, N, U)
        itself = (used == own.unsqueeze(-1)) & is_own.unsqueeze(-1)
        joint = joint.masked_fill(itself, -math.inf)
        return joint.logsumexp(-1) - (len(self.means) - is_own.to(joint)).log()

    @torch.no_grad()
    def sample(self, n: Shape, context: Tensor | None = None, generator: Generator | None = None) -> Tensor:
        shape = as_shape(n)
        means = self._current()
        device = None if generator is None else generator.device
        which = torch.randint(len(means), (shape.numel(),), generator=generator, device=device).to(means.device)
        noise = standard_normal((shape.numel(), means.shape[1]), means, generator)
        return (means[which] + self.log_std.exp() * noise).view(*shape, *self.event_shape)

    @torch.no_grad()
    def fit_rows(self, rows: CodeRows, options: FitOptions) -> None:
        """The codes' means as exemplars; s by EM on the leave-one-out density of draws of q(z given x).

        At most `max_steps` iterations (100 by default), on at most 2,000 rows. Determined by `random_state`.
        """
        generator = torch.Generator().manual_seed(options.random_state)
        order = torch.randperm(len(rows), generator=generator).to(rows.mean.device)
        rows = rows[order[: self.n_exemplars]]
        self.means = rows.mean.to(self.log_std)
        self.rows = self._followed = None
        iterations = WIDTH_ITERATIONS if options.max_steps is None else options.max_steps
        self._fit_width(rows, iterations, generator, options.progress)

    def _fit_width(
        self, rows: CodeRows, iterations: int, generator: Generator, progress: Callable[[int, int], None] | None
    ) -> None:
        """s^2 <- mean over rows of sum_n r_n |z - m_n|^2 / D, each row's own exemplar left out."""
        exemplars = rows.mean.double()
        n, dim = min(len(rows), WIDTH_ROWS), exemplars.shape[1]
        some = rows[torch.arange(n, device=rows.mean.device)].to(rows.mean.device, torch.float64)
        energy = _energy(some.draw(generator), exemplars)  # (n, M), the rows are shuffled already
        energy.fill_diagonal_(math.inf)
        nearest = energy.amin(1)
        # distances above float64's rounding of the exemplars' own size are all that can be told apart
        variance = (nearest.mean() / dim).clamp_min(1e-12 * exemplars.square().mean()).clamp_min(1e-30)
        for i in range(iterations):
            responsibility = (-0.5 * (energy - nearest[:, None]) / variance).softmax(1)
            new = (responsibility * energy.nan_to_num(posinf=0.0)).sum(1).mean() / dim
            new = new.clamp_min(1e-12 * exemplars.square().mean()).clamp_min(1e-30)
            moved = (new / variance).log().abs().item()
            variance = new
            if progress is not None:
                progress(i + 1, iterations)
            if moved < WIDTH_TOLERANCE:
                break
        self.log_std.copy_(0.5 * variance.log())

    def _current(self) -> Tensor:
        """The exemplars' means (M, D), by the encoder as it is now where there is one."""
        if self._followed is not None and (self.training or self._stale):
            self._refresh()
        if self.means is None:
            raise InputError(
                "exemplar has no exemplars yet: train it in a VAEModule with latentfit.fit, call "
                "prior.bind(model, data) before a loop of your own, or fit it to codes."
            )
        return self.means

    @torch.no_grad()
    def _refresh(self) -> None:
        if self._followed is None or self.means is None:
            return
        with in_eval(self._followed[0]):
            for part in torch.arange(len(self.means), device=self.means.device).split(ENCODED):
                self.means.index_copy_(0, part, self._encoded(part))
        self._stale = False

    def _encoded(self, which: Tensor) -> Tensor:
        """Means (R, D) of some exemplars, with their gradient to the encoder."""
        if self._followed is None:
            raise InputError("exemplar: not bound to a model.")
        model, data = self._followed
        if data.x.device != model.device:  # once, not a copy of some rows in each step
            data = data.to(model.device)
            self._followed = (model, data)
        return gaussian(model.encode(data[which.to(model.device)]), "exemplar").mean.flatten(1).to(self.log_std)

    def _to_encode(self, which: Tensor) -> Tensor:
        """Each of them once, in order, and others up to a round number: kernels are set up anew for each new shape."""
        if self.means is None:
            raise InputError("exemplar: not bound to data.")
        unused = torch.ones(len(self.means), dtype=torch.bool, device=which.device)
        unused[which] = False
        spare = unused.nonzero().squeeze(-1)
        n = len(self.means) - len(spare)
        unused[spare[: -n % ROUND_NUMBER]] = False
        return (~unused).nonzero().squeeze(-1)

    @torch.no_grad()
    def _nearest(self, z: Tensor, own: Tensor, is_own: Tensor) -> Tensor:
        """Exemplars nearest to each z (R, D) by the cached means, its own left out: (R, k)."""
        if self.means is None:
            raise InputError("exemplar: not bound to data.")
        k = min(self.n_neighbours, len(self.means) - 1)
        left, right = _augmented(z, self.means)
        at_once = min(len(z), NEAR_AT_ONCE if z.device.type == "cpu" else rows_at_once(z, len(right)))
        energy, found = z.new_empty(at_once, len(right)), []
        for some, mine, is_mine in zip(*(each.split(at_once) for each in (left, own, is_own)), strict=True):
            part = torch.mm(some, right.T, out=energy[: len(some)])  # |z - m_n|^2 / -2
            itself = part.gather(1, mine[:, None]).masked_fill(is_mine[:, None], -math.inf)
            found.append(part.scatter_(1, mine[:, None], itself).topk(k, sorted=False).indices)
        return torch.cat(found)

    def _around(self, z: Tensor, means: Tensor) -> Tensor:
        """log N(z; m_n, s^2 I): (R, D), (M, D) -> (R, M)."""
        left, right = _augmented(z, means, (-self.log_std).exp())
        return left @ right.T - z.shape[1] * (self.log_std + 0.5 * LOG_2PI)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        self._refresh()
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        resize(self, state_dict, prefix)
        self._followed = self.rows = None
        super()._load_from_state_dict(state_dict, prefix, *rest)


def _augmented(z: Tensor, means: Tensor, scale: Tensor | float = 1.0) -> tuple[Tensor, Tensor]:
    """Rows whose inner products are -|z - m_n|^2 scale^2 / 2: (R, D), (M, D) -> (R, D + 2), (M, D + 2).

    Both squares are columns of the product, which is ten times faster than passes over all R M distances; centred
    first against cancellation.
    """
    centre = means.detach().mean(0)
    z, means = (z - centre) * scale, (means - centre) * scale
    squares = [-0.5 * each.square().sum(-1, keepdim=True) for each in (z, means)]
    left = torch.cat((z, squares[0], torch.ones_like(squares[0])), 1)
    return left, torch.cat((means, torch.ones_like(squares[1]), squares[1]), 1)


def _energy(z: Tensor, means: Tensor) -> Tensor:
    """|z - m_n|^2 : (R, D), (M, D) -> (R, M)."""
    left, right = _augmented(z, means)
    return (-2 * left @ right.T).clamp_min(0)
