"""A comparison as `compare` would return it, without training anything: 8 x 8 digits, eight rows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from latentfit.comparison.result import Comparison, Pictures, Recommendation, Row, Setting
from latentfit.diagnosis.findings import Finding
from latentfit.evaluation.estimate import Estimate


def estimate(value: float, error: float) -> Estimate:
    return Estimate.from_error(value, error)


def row(method: str, fitted: str, gain: float | None, error: float, log_px: float, kl: float, **more: object) -> Row:
    key = method if fitted == "jointly" else f"{method}@standard"
    values: dict = {
        "active_units": 11.0,
        "samples": 0.41,
        "fit_seconds": 21.0,
        "sample_ms": 3.1,
        "n_parameters": 148_000,
        "added_parameters": 0,
        "command": f"latentfit train digits --method {method} --seed 0 --out runs/{method}",
        **more,
    }
    won = None if gain is None else estimate(gain, error)
    return Row(key=key, method=method, fitted=fitted, gain=won, log_px=estimate(log_px, 0.9), kl=kl, **values)


def rows() -> list[Row]:
    flow, mix = (
        {"n_parameters": 201_400, "added_parameters": 53_400},
        {"added_parameters": 1_320, "n_parameters": 149_320},
    )
    return [
        row(
            "realnvp",
            "jointly",
            1.8,
            0.2,
            -112.3,
            15.1,
            active_units=14.0,
            samples=0.21,
            fit_seconds=31.0,
            **flow,
        ),
        row(
            "mixture",
            "jointly",
            1.6,
            0.2,
            -112.5,
            14.9,
            active_units=14.0,
            samples=0.22,
            fit_seconds=24.0,
            **mix,
        ),
        row("realnvp", "post hoc", 0.9, 0.1, -113.2, 14.2, samples=0.26, fit_seconds=6.2, **flow),
        row("mixture", "post hoc", 0.8, 0.1, -113.3, 14.2, samples=0.27, fit_seconds=1.3, **mix),
        row(
            "two_stage",
            "post hoc",
            0.5,
            0.2,
            -113.6,
            14.2,
            samples=0.30,
            fit_seconds=14.0,
            is_bound=True,
            note="ELBO",
        ),
        row("annealed", "jointly", 0.1, 0.2, -114.0, 14.0, active_units=12.3, samples=0.39, fit_seconds=22.0),
        row("standard", "jointly", None, 0.0, -114.1, 14.2, note="linear warm-up, 400 steps"),
        row(
            "mmd",
            "jointly",
            -0.6,
            0.3,
            -114.7,
            16.8,
            active_units=16.0,
            samples=0.33,
            fit_seconds=26.0,
            reliability=0.14,
        ),
    ]


def digit_pictures() -> Pictures:
    from sklearn.datasets import load_digits

    digits = load_digits()
    rng = np.random.default_rng(0)
    images, labels = digits.images[:600], digits.target[:600]
    centred = images.reshape(600, -1) - images.reshape(600, -1).mean(0)
    u, s, vt = np.linalg.svd(centred, full_matrices=False)
    codes = u[:, :2] * np.sqrt(600)
    rebuilt = (u[:, :16] * s[:16] @ vt[:16]).reshape(-1, 8, 8) + images.mean(0)
    noise = rng.normal(size=(36, 16)) * s[:16] / np.sqrt(600)
    blurred = (noise @ vt[:16]).reshape(-1, 8, 8) + images.mean(0)
    order = rng.permutation(600)[:36]
    steps = np.arange(100, 2001, 100)
    curves = {
        key: [{"step": float(t), "validation": end + 60 * np.exp(-t / 250) + 0.15 * rng.normal()} for t in steps]
        for key, end in {
            "standard": 116.0,
            "mixture": 114.4,
            "realnvp": 114.1,
            "annealed": 115.8,
            "mmd": 116.6,
        }.items()
    }
    kl = np.where(np.arange(16) < 11, np.linspace(2.2, 0.5, 16), 0.002)
    return Pictures(
        null_samples=np.clip(blurred, 0, 16),
        best_samples=np.clip(0.75 * rebuilt[order] + 0.25 * blurred, 0, 16),
        reconstructions=np.clip(rebuilt[:36], 0, 16),
        originals=images[:36],
        unit_kl={"standard": kl, "mixture": np.where(np.arange(16) < 14, np.linspace(2.1, 0.4, 16), 0.003)},
        unit_std={"standard": np.where(kl > 0.01, 0.97, 0.05), "mixture": np.linspace(1.4, 0.3, 16)},
        curves=curves,
        map_codes=codes,
        map_null=rng.normal(size=(400, 2)) * 1.25,
        map_best=codes[rng.integers(0, 600, 400)] + 0.12 * rng.normal(size=(400, 2)),
        map_labels=labels,
        map_images=images[:600],
        map_axes=("1", "2"),
        hole_codes=rng.normal(-18, 2.2, 600),
        hole_null=rng.normal(-24, 3.5, 600),
        hole_best=rng.normal(-18.3, 2.4, 600),
    )


def findings() -> list[Finding]:
    return [
        Finding("LF-TRAIN-01", "ok", {"step": 400}),
        Finding("LF-DECODER-01", "ok", {"likelihood": "binomial"}),
        Finding("LF-COLLAPSE-01", "ok", {"active": 11.0, "total": 16}),
        Finding("LF-INFERENCE-01", "ok", {"gap": estimate(1.3, 0.1), "k": 1024}),
        Finding("LF-PRIOR-01", "improve", {"gap": estimate(0.9, 0.1), "share": 0.063}),
        Finding("LF-HOLES-01", "improve", {"share": 0.31}),
    ]


def setting(**more: object) -> Setting:
    values: dict = {
        "data": "digits",
        "origin": "integers 0..16, from scikit-learn",
        "n_rows": 1797,
        "data_shape": (8, 8),
        "splits": {"train": 1078, "validation": 180, "selection": 180, "test": 359},
        "likelihood": "binomial(16)",
        "likelihood_reason": "counts of 0..16, chosen from the data",
        "base_measure": "probability mass of counts 0..16",
        "latent_dim": 16,
        "methods": ["standard", "annealed", "mixture", "realnvp", "two_stage", "mmd"],
        "n_seeds": 3,
        "max_steps": 2000,
        "recipe": "default",
        "command": "latentfit compare digits --out runs/digits --seed 0",
        "seconds": 143.0,
        "n_importance_samples": 1024,
        "versions": {"latentfit": "0.1.0", "torch": "2.13.0", "python": "3.11.9"},
        "fingerprint": "9f2c1e77ab04",
        "show_data": True,
        **more,
    }
    return Setting(**values)


@pytest.fixture(scope="session")
def digit_result() -> Comparison:
    board = rows()
    tested = [replace(r, gain=None if r.gain is None else estimate(r.gain.value - 0.1, 0.2)) for r in board[1::5]]
    return Comparison(
        setting=setting(),
        rows=board,
        test_rows=tested,
        recommendation=Recommendation(
            verdict="use",
            goal="likelihood",
            key="mixture",
            best_key="realnvp",
            gain=estimate(1.6, 0.2),
            test_gain=estimate(1.5, 0.2),
            without_training="mixture@standard",
        ),
        findings=findings(),
        budget={"decoder": estimate(0.0, 0.0), "inference": estimate(1.3, 0.1), "prior": estimate(0.9, 0.1)},
        prior_gap=estimate(0.9, 0.1),
        prior_gap_share_of_kl=0.063,
        holes=(0.31, 0.02),
        reconstruction_floor=0.17,
        pictures=digit_pictures(),
    )


@pytest.fixture(scope="session")
def table_result(digit_result: Comparison) -> Comparison:
    """The same for a table of five columns: no labels, no thumbnails, one seed."""
    rng = np.random.default_rng(1)
    real = rng.normal(size=(36, 5)) ** 3
    pictures = replace(
        digit_result.pictures,
        null_samples=rng.normal(size=(36, 5)),
        best_samples=real + 0.1 * rng.normal(size=(36, 5)),
        reconstructions=real,
        originals=real,
        map_labels=np.empty(0),
        map_images=np.empty(0),
    )
    table = setting(data="table.csv", data_shape=(5,), show_data=False, n_seeds=1)
    return replace(digit_result, setting=table, pictures=pictures)
