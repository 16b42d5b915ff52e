"""What shrinking correlations by the evidence is worth: KL(truth || fitted Gaussian), nats.

    python benchmarks/shrinkage.py

n draws of N(0, C); the sample correlations shrunk by n / (n + s), with s = D + 1 (as before) and s of the largest
evidence. 20 repetitions. To benchmarks/results/shrinkage.json.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

from latentfit.priors.normal_wishart import rows_without_correlation
from latentfit.saving import write_atomic

RESULTS = Path(__file__).parent / "results" / "shrinkage.json"
REPETITIONS = 20


def truths(dim: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    eye = torch.eye(dim, dtype=torch.float64)
    factors = torch.randn(dim, 3, generator=generator, dtype=torch.float64)
    turned = torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64))[0]
    spectrum = torch.logspace(0, -4, dim, dtype=torch.float64)
    return {
        "independent": eye,
        "three factors": factors @ factors.T + 0.1 * eye,
        "decaying spectrum": turned @ spectrum.diag() @ turned.T,
        "all 0.3": 0.3 + 0.7 * eye,
    }


def divergence(truth: torch.Tensor, fitted: torch.Tensor) -> float:
    log_det = torch.linalg.slogdet(fitted)[1] - torch.linalg.slogdet(truth)[1]
    return (0.5 * (log_det + torch.linalg.solve(fitted, truth).trace() - len(truth))).item()


def lost(truth: torch.Tensor, n: int, generator: torch.Generator) -> list[float]:
    """By D + 1 rows, and by the evidence."""
    dim = len(truth)
    z = torch.randn(n, dim, generator=generator, dtype=torch.float64) @ torch.linalg.cholesky(truth).T
    covariance = (z - z.mean(0)).T @ (z - z.mean(0)) / n
    scale = covariance.diagonal().sqrt()
    evidence = rows_without_correlation(covariance / scale / scale[:, None], n)
    found = []
    for s in (dim + 1, evidence):
        shrunk = covariance * n / (n + s)
        shrunk.diagonal().copy_(covariance.diagonal())
        found.append(divergence(truth, shrunk))
    return found


def main() -> None:
    generator, table = torch.Generator().manual_seed(0), []
    for dim in (10, 40):
        for name, truth in truths(dim, generator).items():
            for n in (dim // 2, 2 * dim, 10 * dim, 100 * dim):
                pairs = torch.tensor([lost(truth, n, generator) for _ in range(REPETITIONS)])
                before, after = pairs.mean(0).tolist()
                table.append({"truth": name, "dim": dim, "n": n, "by_dim": before, "by_evidence": after})
                print(table[-1], flush=True)
    write_atomic(RESULTS, json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
