"""The density of Gaussian components with diagonal covariances, as `mixture` and `vamp` have them: one product in tiles
against two products and a log-sum-exp over whole rows.

    python benchmarks/mixture_density.py

10,000 codes near components that lie far apart, as trained ones do, so that most terms are denormal numbers beside the
largest. Interleaved, one thread, CPU time. To benchmarks/results/mixture_density.json.
"""

from __future__ import annotations

import torch
from _timing import interleave, one_thread, store, summary

from latentfit.model.contracts import LOG_2PI
from latentfit.priors.gaussians import log_mixture, rows_at_once

CODES, DIM = 10_000, 40


def whole_rows(z: torch.Tensor, log_weight: torch.Tensor, mean: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    centre, precision = mean.mean(0), factor.square()
    offset = mean - centre
    constant = factor.log().sum(-1) - 0.5 * ((precision * offset.square()).sum(-1) + DIM * LOG_2PI)
    parts = []
    for rows in (z - centre).split(rows_at_once(z, len(mean))):
        energy = rows.square() @ precision.T - 2 * (rows @ (precision * offset).T)
        parts.append((constant - 0.5 * energy + log_weight).logsumexp(-1))
    return torch.cat(parts)


def main() -> None:
    one_thread()
    generator = torch.Generator().manual_seed(0)
    ratios = {}
    for n_components in (100, 500):
        mean = 1.5 * torch.randn(n_components, DIM, generator=generator)
        factor = 2 + 3 * torch.rand(n_components, DIM, generator=generator)
        log_weight = torch.randn(n_components, generator=generator).log_softmax(0)
        of = torch.randint(n_components, (CODES,), generator=generator)
        z = mean[of] + 0.3 * torch.randn(CODES, DIM, generator=generator)
        torch.testing.assert_close(
            log_mixture(z, log_weight, mean, factor), whole_rows(z, log_weight, mean, factor), rtol=1e-4, atol=2e-3
        )

        def density(how, args=(z, log_weight, mean, factor)):
            def run() -> int:
                with torch.inference_mode():
                    how(*args)
                return 1

            return run

        def gradient(how, args=(z, log_weight, mean, factor)):
            def run() -> int:
                moved = args[0].clone().requires_grad_()
                torch.autograd.grad(how(moved, *args[1:]).sum(), moved)
                return 1

            return run

        arms = {"tiles": log_mixture, "whole rows": whole_rows}
        ratios[f"{n_components} components"] = {
            what: summary(interleave({name: make(how) for name, how in arms.items()}, rounds=15), "whole rows")
            for what, make in (("density", density), ("gradient", gradient))
        }
    print(ratios)
    store("mixture_density", ratios)


if __name__ == "__main__":
    main()
