"""The density of `exemplar` and its gradient by z: tiles in the cache against passes over whole rows.

    python benchmarks/exemplar_density.py

25,000 exemplars in 40 dimensions, 1,000 codes; far apart, as trained ones are, so that most terms are below e^-87 of
the largest, and close together. Interleaved, one thread, CPU time. To benchmarks/results/exemplar_density.json.
"""

from __future__ import annotations

import math

import torch
from _timing import interleave, one_thread, store, summary

from latentfit.priors import ExemplarPrior
from latentfit.priors.gaussians import rows_at_once

EXEMPLARS, DIM, CODES = 25_000, 40, 1_000


def whole_rows(prior: ExemplarPrior, z: torch.Tensor) -> torch.Tensor:
    means = prior.means
    parts = [prior._around(rows, means).logsumexp(-1) for rows in z.split(rows_at_once(z, len(means)))]
    return torch.cat(parts) - math.log(len(means))


def main() -> None:
    one_thread()
    generator = torch.Generator().manual_seed(0)
    ratios = {}
    for name, log_std in (("far", -0.86), ("close", 0.0)):
        prior = ExemplarPrior(DIM).eval().requires_grad_(False)
        prior.means = torch.randn(EXEMPLARS, DIM, generator=generator)
        prior.log_std.fill_(log_std)
        z = prior.means[:CODES] + 0.1 * torch.randn(CODES, DIM, generator=generator)

        def density(how, z=z, prior=prior):
            def run() -> int:
                with torch.inference_mode():
                    how(prior, z)
                return 1

            return run

        def gradient(how, z=z, prior=prior):
            def run() -> int:
                moved = z.clone().requires_grad_()
                torch.autograd.grad(how(prior, moved).sum(), moved)
                return 1

            return run

        tiles = ExemplarPrior.log_prob
        torch.testing.assert_close(tiles(prior, z), whole_rows(prior, z), rtol=1e-4, atol=1e-3)
        seconds = interleave(
            {
                "density, tiles": density(tiles),
                "density, whole rows": density(whole_rows),
                "gradient, tiles": gradient(tiles),
                "gradient, whole rows": gradient(whole_rows),
            },
            rounds=7,
        )
        ratios[name] = {
            what: summary({how: seconds[f"{what}, {how}"] for how in ("tiles", "whole rows")}, "whole rows")
            for what in ("density", "gradient")
        }
        print(name, ratios[name], flush=True)
    store("exemplar_density", ratios)


if __name__ == "__main__":
    main()
