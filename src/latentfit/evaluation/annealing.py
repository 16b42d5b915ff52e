"""Chains that walk from a row's Gaussian proposal to its posterior, and back: what AIS and BDMC are made of."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from latentfit.data.batch import Batch
from latentfit.errors import CapabilityError, InputError
from latentfit.evaluation.codes import encode_rows
from latentfit.evaluation.likelihood import require_density
from latentfit.evaluation.local import PAIRS, REFINEMENT_STREAM, Refinement
from latentfit.evaluation.proposal import Frame, Proposal, log_joint
from latentfit.evaluation.rows import RowNoise, blocks, decoder_rows
from latentfit.model.contracts import LOG_2PI
from latentfit.model.vae import VAEModule

#: where the sigmoid of the temperatures is cut (Wu et al. 2017, arXiv 1611.04273)
SIGMOID_RANGE = 4.0
#: chains of the preliminary run, the acceptance it steers to, and its gain per temperature
PILOT_CHAINS, TARGET_ACCEPTANCE, GAIN = 4, 0.8, 0.3
#: sd of each trajectory's log step size: without it a trajectory of a full period ends where it began
JITTER = 0.2
#: first of the noise streams, one per temperature, of each use
CHAIN_STREAM, PILOT_STREAM, REVERSE_STREAM = 100_000, 200_000, 300_000


def temperatures(n: int) -> list[float]:
    """0 = b_0 < ... < b_n = 1, a sigmoid: close together where the path leaves either end."""
    s = torch.sigmoid(SIGMOID_RANGE * torch.linspace(-1, 1, n + 1, dtype=torch.float64))
    return [float(b) for b in (s - s[0]) / (s[-1] - s[0])]


@dataclass(frozen=True, slots=True)
class Settings:
    """How a posterior is annealed: C chains, K temperatures, L leapfrog steps, the seed, the refinement's steps.

    Raises:
        InputError: a count below 1, or more temperatures than there are noise streams.
    """

    n_chains: int
    n_temperatures: int
    n_leapfrog: int
    random_state: int
    refinement_steps: int

    def __post_init__(self) -> None:
        for name in ("n_chains", "n_temperatures", "n_leapfrog"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.n_temperatures > PILOT_STREAM - CHAIN_STREAM:
            raise InputError(f"n_temperatures is at most {PILOT_STREAM - CHAIN_STREAM:,}, got {self.n_temperatures:,}.")


@dataclass(frozen=True, slots=True)
class Run:
    """One pass over the temperatures: log_w (R, C), float64; log_step (K - 1, R); acceptance (R,)."""

    log_w: Tensor
    log_step: Tensor
    acceptance: Tensor


def require_exact(vae: VAEModule) -> None:
    """Refuse priors whose density is not the same each time it is asked: a chain cannot walk on noise.

    Raises:
        CapabilityError: with the reason in one line.
    """
    require_density(vae)
    if vae.prior.density != "exact":
        name = vae.prior.name or type(vae.prior).__name__
        raise CapabilityError(
            f"Annealing needs p(z) exactly at every z; the density of the prior {name!r} is {vae.prior.density}. "
            "Importance sampling (log_likelihood) takes it."
        )


class Annealer:
    r"""The path of a block of R rows, in whitened coordinates u = S^-1 (z - m), where each row's problem has scale 1.

        log f_b(u) = (1 - b) log N(u; 0, I) + b [log p(x, m + S u) + log |S|]

    Args:
        vae: frozen.
        batch: R rows.
        frame: their Gaussians.
        n_leapfrog: leapfrog steps per transition.
        tick: called once per temperature.
    """

    def __init__(
        self, vae: VAEModule, batch: Batch, frame: Frame, n_leapfrog: int, tick: Callable[[], None] | None = None
    ) -> None:
        self.vae, self.batch, self.n_leapfrog, self.tick = vae, batch, n_leapfrog, tick
        # what was made under inference_mode has no gradient
        parts = (frame.location, frame.own, frame.shared, frame.log_det)
        self.frame = Frame(*(part.detach().clone() for part in parts))

    def joint(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """log p(x, m + S u) + log |S| (R, C), float64, and its gradient (R, C, D): u (R, C, D)."""
        with torch.enable_grad():
            # a diverged trajectory is rejected by its energy; the networks need not see it
            leaf = u.detach().nan_to_num(0.0, 0.0, 0.0).requires_grad_()
            z = self.frame.place(leaf).transpose(0, 1)  # (C, R, D)
            value = log_joint(self.vae, self.batch, z.reshape(*z.shape[:2], *self.vae.event_shape)).T
            if not value.requires_grad:
                raise CapabilityError("Annealing needs the gradient of log p(x, z) in z; this model gives none.")
            (slope,) = torch.autograd.grad(value.sum(), leaf)
        value = value.detach().double() + self.frame.log_det.double().unsqueeze(1)
        return torch.where(value.isnan(), -math.inf, value), slope.nan_to_num(0.0, 0.0, 0.0)

    def whiten(self, z: Tensor) -> Tensor:
        """u = S^-1 (z - m): z (R, *event_shape) -> (R, D)."""
        u = z.flatten(1) - self.frame.location
        own, shared = self.frame.own, self.frame.shared
        u = _solve(own, u) if own.dim() == 3 else u / own
        return _solve(shared, u) if shared.dim() == 2 else u / shared

    def run(
        self, start: Tensor, betas: list[float], noise: Callable[[int], Tensor], log_step: Tensor | None = None
    ) -> Run:
        """Chains from `start` (R, C, D) over `betas`, which rise (annealing) or fall (the way back).

        Args:
            start: drawn from f at betas[0].
            betas: K + 1 numbers.
            noise: stage -> (R, C, D + 2) standard normal.
            log_step: (K - 1, R) log step sizes; where None they are adapted on the way, which leaves weights that are
                good for nothing.

        Returns:
            log_w = sum_k (b_k - b_{k-1}) log [p(x, z_{k-1}) / N(z_{k-1}; m, S S^T)], and the rest.
        """
        u, dim = start, start.shape[-1]
        value, slope = self.joint(u)
        log_w = torch.zeros_like(value)
        steps, accepted = [], []
        log_size = u.new_full((len(u),), -0.25 * math.log(dim))
        for stage in range(1, len(betas)):
            log_w = log_w + (betas[stage] - betas[stage - 1]) * (value - _standard_normal(u))
            if stage < len(betas) - 1:
                size = log_size if log_step is None else log_step[stage - 1]
                u, value, slope, acceptance = self._transition(u, value, slope, betas[stage], size, noise(stage))
                steps.append(size)
                accepted.append(acceptance)
                log_size = size + GAIN * (acceptance - TARGET_ACCEPTANCE)
            if self.tick is not None:
                self.tick()
        if not steps:
            return Run(log_w, u.new_zeros(0, len(u)), u.new_full((len(u),), math.nan))
        return Run(log_w, torch.stack(steps), torch.stack(accepted).mean(0))

    def _transition(
        self, u: Tensor, value: Tensor, slope: Tensor, b: float, log_size: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """One Hamiltonian step that leaves f_b in place (Neal 2011, arXiv 1206.1901), and its acceptance (R,)."""
        momentum, log_uniform, jitter = noise[..., :-2], torch.special.log_ndtr(noise[..., -2]), noise[..., -1:]
        size = (log_size.view(-1, 1, 1) + JITTER * jitter).exp()  # (R, C, 1)

        def energy(u: Tensor, value: Tensor, momentum: Tensor) -> Tensor:
            return (1 - b) * _standard_normal(u) + b * value + _standard_normal(momentum)

        before = energy(u, value, momentum)
        moved, new_value, new_slope = u, value, slope
        for _ in range(self.n_leapfrog):
            momentum = momentum + 0.5 * size * (b * new_slope - (1 - b) * moved)
            moved = moved + size * momentum
            new_value, new_slope = self.joint(moved)
            momentum = momentum + 0.5 * size * (b * new_slope - (1 - b) * moved)
        gain = torch.nan_to_num(energy(moved, new_value, momentum) - before, nan=-math.inf, posinf=math.inf)
        take = log_uniform.double() < gain  # (R, C)
        acceptance = gain.clamp(max=0).exp().mean(1).to(u.dtype)
        return (
            torch.where(take.unsqueeze(-1), moved, u),
            torch.where(take, new_value, value),
            torch.where(take.unsqueeze(-1), new_slope, slope),
            acceptance,
        )


def forward(annealer: Annealer, noise: Noise, settings: Settings) -> Run:
    """Annealed chains, with step sizes from a preliminary run on other noise."""
    betas = temperatures(settings.n_temperatures)
    dim = annealer.frame.location.shape[1]

    def run(stream: int, n_chains: int, log_step: Tensor | None) -> Run:
        draw = noise.stages(stream, n_chains)
        return annealer.run(draw(0)[..., :dim], betas, draw, log_step)

    return run(CHAIN_STREAM, settings.n_chains, run(PILOT_STREAM, PILOT_CHAINS, None).log_step)


def backward(annealer: Annealer, z: Tensor, log_step: Tensor, noise: Noise, settings: Settings) -> Run:
    """Chains from the posterior's draws z (R, *event_shape) to the Gaussian: E[w] = 1 / p(x)."""
    u = annealer.whiten(z)
    start = u.unsqueeze(1).expand(-1, settings.n_chains, -1)
    betas = temperatures(settings.n_temperatures)[::-1]
    return annealer.run(start, betas, noise.stages(REVERSE_STREAM, settings.n_chains), log_step.flip(0))


@dataclass(frozen=True, slots=True)
class Noise:
    """The noise of a block of rows: a stream for each temperature, so that no more than one is ever held."""

    n_rows: int
    rows: slice
    random_state: int
    like: Tensor

    def stages(self, first_stream: int, n_chains: int) -> Callable[[int], Tensor]:
        """Stage -> (R, C, D + 2): momentum, the acceptance's uniform, the jitter."""

        def draw(stage: int) -> Tensor:
            noise = RowNoise(self.n_rows, self.random_state, first_stream + stage)
            return noise.draw(self.rows, n_chains, (self.like.shape[1] + 2,), self.like)

        return draw


def annealers(
    vae: VAEModule,
    proposal: Proposal,
    batch: Batch,
    settings: Settings,
    progress: Callable[[int, int], None] | None = None,
    passes: int = 2,
    known: Frame | None = None,
) -> Iterator[tuple[slice, Annealer, Noise]]:
    """Blocks of rows with their refined Gaussians: those of `log_likelihood` with the same seed, or `known` ones.

    Memory: some thousand decoded rows with their activations, whatever N and K. `progress` counts `passes` over the
    temperatures of each block.

    Raises:
        InputError: a proposal without a scale.
    """
    codes = encode_rows(vae, batch, random_state=settings.random_state)
    search = RowNoise(len(batch), settings.random_state, REFINEMENT_STREAM)
    refined = Refinement(vae, proposal, batch, codes, search, settings.refinement_steps)
    chunks = list(blocks(len(batch), max(1, decoder_rows(batch, vae.device) // max(settings.n_chains, 2 * PAIRS))))
    done, total = 0, len(chunks) * passes * settings.n_temperatures

    def tick() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    for chunk in chunks:
        if not bool(proposal.frame(codes[chunk]).log_det.isfinite().all()):
            raise InputError("The proposal has no scale (a deterministic encoder); give X_train= to fit one.")
        frame = refined(chunk) if known is None else known[chunk]
        noise = Noise(len(batch), chunk, settings.random_state, frame.location)
        yield chunk, Annealer(vae, batch[chunk].to(vae.device), frame, settings.n_leapfrog, tick), noise


def _standard_normal(u: Tensor) -> Tensor:
    """log N(u; 0, I), float64: (..., D) -> (...)."""
    return -0.5 * u.double().square().sum(-1) - 0.5 * u.shape[-1] * LOG_2PI


def _solve(lower: Tensor, u: Tensor) -> Tensor:
    """lower^-1 u: (R, D, D) or (D, D) with u (R, D)."""
    return torch.linalg.solve_triangular(lower.expand(len(u), -1, -1), u.unsqueeze(-1), upper=False).squeeze(-1)
