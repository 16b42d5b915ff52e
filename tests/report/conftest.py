"""Results as `compare`, `diagnose` and `retrofit` would return them, without training anything: 8 x 8 digits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from latentfit.adapters import Understood
from latentfit.comparison.result import Comparison, Pictures, Recommendation, Row, Setting
from latentfit.diagnosis.budget import Budget
from latentfit.diagnosis.findings import Finding
from latentfit.diagnosis.pictures import Pictures as ModelPictures
from latentfit.diagnosis.probe import Probe
from latentfit.diagnosis.result import Diagnosis, DiagnosisSetting
from latentfit.diagnosis.verdicts import (
    collapse_finding,
    decoder_finding,
    embedding_finding,
    functional_hole_finding,
    groups_finding,
    holes_finding,
    inference_finding,
    prior_finding,
    probe_finding,
    training_finding,
)
from latentfit.evaluation.collapse import ActiveUnits
from latentfit.evaluation.estimate import Estimate
from latentfit.evaluation.holes import Holes
from latentfit.evaluation.ladder import Ladder, Rung
from latentfit.priors import create
from latentfit.retrofitting.result import Retrofit, RetrofitSetting, RungRow


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
        row("mixture", "post hoc", 0.8034, 0.1021, -113.3, 14.2, samples=0.27, fit_seconds=1.3, **mix),
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
            other_goals={"samples": "mixture"},
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


def model_pictures() -> ModelPictures:
    """What `diagnose` and `retrofit` would hand to their pages of the same digits."""
    shown = digit_pictures()
    return ModelPictures(
        null_samples=shown.null_samples,
        new_samples=shown.best_samples,
        reconstructions=shown.reconstructions,
        originals=shown.originals,
        hole_samples=shown.null_samples[:3],
        map_codes=shown.map_codes,
        map_null=shown.map_null,
        map_new=shown.map_best,
        map_labels=shown.map_labels,
        map_images=shown.map_images[:40],
        hole_codes=shown.hole_codes,
        hole_null=shown.hole_null,
        hole_new=shown.hole_best,
        hole_line=float(np.quantile(shown.hole_codes, 0.01)),
        unit_kl=shown.unit_kl["standard"],
        unit_std=shown.unit_std["standard"],
    )


def ladder() -> Ladder:
    """Four priors of growing size over N(0, I), judged on 800 rows; `realnvp` is the smallest that suffices."""
    rng = np.random.default_rng(2)
    p = create("standard", latent_dim=16)
    noise, rungs = 6 * rng.normal(size=800), []
    for name, gap, seconds, size in (
        ("learned_gaussian", 2.1, 0.8, 152),
        ("mixture", 29.8, 31.0, 5_320),
        ("realnvp", 38.2, 72.0, 1_100_000),
        ("nsf", 38.5, 118.0, 2_300_000),
    ):
        own = noise + 8 * rng.normal(size=800)
        rows = own - own.mean() + gap
        rungs.append(Rung(name, p, Estimate.of(rows), rows, seconds, 0.95, size))
    nothing = Rung("nothing", p, Estimate(0.0, 0.0, (0.0, 0.0)), np.zeros(800), 0.0, 0.0, 0)
    return Ladder(rungs, nothing)


@pytest.fixture(scope="session")
def diagnosis() -> Diagnosis:
    """What `diagnose` would find of an image VAE with a prior far off, probed, with labels and groups."""
    rng = np.random.default_rng(3)
    found, pictures = ladder(), digit_pictures()
    gap, kl = found.prior_gap, estimate(238.0, 0.9)
    share = gap.value / kl.value
    pressed = Probe([0, 250, 500], [gap, estimate(44.0, 0.5), estimate(52.1, 0.5)], estimate(13.9, 0.4), True, 240.0)
    units = ActiveUnits(
        active=np.arange(16) < 11,
        mean_variance=np.linspace(1, 0, 16),
        kl=pictures.unit_kl["standard"],
        std=pictures.unit_std["standard"],
        threshold=0.01,
    )
    by_group = {"plate 1": (400, estimate(31.0, 1.0)), "plate 2": (400, estimate(45.4, 1.1))}
    return Diagnosis(
        setting=DiagnosisSetting(
            model="ConvVAE",
            understood=[Understood("trip.rows", {"percent": 94.0})],
            likelihood="normal",
            data_shape=(8, 8),
            n_test=800,
            n_train=7_200,
            separate=True,
            depth="full",
            goal="likelihood",
            seconds=298.0,
            device="cpu",
            random_state=0,
            n_scored=500,
            k=1024,
            estimator="importance sampling",
        ),
        findings=[
            training_finding(1.0, None, True),
            decoder_finding("normal", (0.11, 0.11), estimate(0.0, 0.1), 1.3),
            collapse_finding(11, 16),
            inference_finding(estimate(6.0, 0.4), 238.0, 1024),
            prior_finding(gap, share),
            holes_finding(Estimate.from_error(0.97, 0.01), 5_000),
            functional_hole_finding(estimate(26.3, 1.2), 31.0),
            probe_finding(pressed),
            embedding_finding(estimate(0.61, 0.02), estimate(0.70, 0.02), 16),
            groups_finding(by_group, gap),
        ],
        prior_gap=gap,
        kl=kl,
        ladder=found,
        active_units=units,
        inference_gap=estimate(6.0, 0.4),
        elbo=estimate(-1612.0, 4.0),
        log_px=estimate(-1606.0, 4.0),
        budget=Budget(estimate(0.0, 0.1), estimate(6.0, 0.4), gap, estimate(-0.6, 0.3)),
        effective_beta=1.3,
        beta_formula="2.5e-06 x 12,288 / (2 x 0.11^2) = 1.3",
        sigma=(0.11, 0.11),
        holes=Holes(estimate(0.97, 0.01), -23.0, rng.normal(-18, 2.2, 800), rng.normal(-31, 4.5, 800)),
        functional_hole=estimate(26.3, 1.2),
        dimension=estimate(7.9, 0.2),
        gap_by_group=by_group,
        knn=estimate(0.61, 0.02),
        knn_baseline=estimate(0.70, 0.02),
        simulated_error=estimate(0.1, 0.05),
        probe=pressed,
        pictures=model_pictures(),
    )


@pytest.fixture(scope="session")
def quiet(diagnosis: Diagnosis) -> Diagnosis:
    """The same where the prior fits: codes only, cross-fitted, nothing to mend."""
    found = ladder()
    rungs = [replace(rung, gap=estimate(0.01, 0.02), per_row=0 * rung.per_row) for rung in found.rungs]
    found = replace(found, rungs=rungs, cross_fitted=True)
    gap = found.prior_gap
    setting = replace(
        diagnosis.setting,
        likelihood="",
        separate=False,
        depth="quick",
        understood=[],
        missing={"log p(x)": "no likelihood was given"},
        n_scored=0,
    )
    return Diagnosis(
        setting=setting,
        findings=[training_finding(None, None, None), collapse_finding(16, 16), prior_finding(gap, 0.0)],
        prior_gap=gap,
        kl=estimate(14.0, 0.1),
        ladder=found,
        active_units=diagnosis.active_units,
    )


@pytest.fixture(scope="session")
def fix() -> Retrofit:
    """What `retrofit` would give for that VAE: a flow is kept, a larger one wins too little, one copies."""
    found, rows = ladder(), []
    for rung, samples, holes, failed in zip(
        found.candidates,
        (61.2, 60.4, 38.8, 34.9, 34.6),
        (0.97, 0.96, 0.09, 0.03, 0.03),
        ((), (), ("bridges",), (), ()),
        strict=True,
    ):
        price = (rung.seconds, rung.n_parameters, 0.4 + 1e-6 * rung.n_parameters)
        rows.append(RungRow(rung.name, rung.gap, estimate(samples, 0.6), holes, *price, failed, rung.name == "realnvp"))
    return Retrofit(
        setting=RetrofitSetting(
            model="ConvVAE",
            understood=[Understood("trip.rows", {"percent": 94.0})],
            likelihood="normal",
            data_shape=(8, 8),
            latent_shape=(16,),
            n_fit=180_000,
            n_selection=800,
            n_test=20_000,
            separate=True,
            goal="likelihood",
            seconds=241.0,
            device="cpu",
            random_state=0,
            n_scored=500,
            k=1024,
        ),
        prior=found["realnvp"].prior,
        model=None,
        gain=estimate(38.0, 0.3),
        log_px_gain=estimate(37.6, 0.9),
        rows=sorted(rows, key=lambda row: -row.gap.value),
        ladder=found,
        holes=(0.97, 0.03),
        samples=(estimate(61.2, 0.6), estimate(34.9, 0.6), estimate(31.0, 0.5)),
        kl=estimate(238.0, 0.9),
        guards={
            "memorisation": (True, {"ratio": 0.98, "copied": 0.012}),
            "bridges": (True, {"share": 0.021, "threshold": 2.1}),
            "inverse_error": (False, {"codes": 3e-5, "codes_max": 1e-4, "samples": 4e-5, "samples_max": 0.02}),
        },
        sha256=("9f2c1e77ab0412345678", "9f2c1e77ab0412345678"),
        pictures=model_pictures(),
    )


@pytest.fixture(scope="session")
def unchanged(fix: Retrofit) -> Retrofit:
    """A retrofit in which the model's own prior is kept, without test data or decoder."""
    rows = [replace(row, gap=estimate(0.0, 0.02), kept=row.name == "nothing", samples=None) for row in fix.rows]
    flat = replace(fix.ladder, rungs=[replace(rung, per_row=0 * rung.per_row) for rung in fix.ladder.rungs])
    rows = [replace(row, failed=()) for row in rows]
    setting = replace(fix.setting, separate=False, likelihood="", n_test=400)
    return replace(
        fix,
        setting=setting,
        rows=rows,
        ladder=flat,
        gain=Estimate(0.0, 0.0, (0.0, 0.0)),
        log_px_gain=None,
        samples=None,
        holes=(0.01, 0.01),
        guards={},
        pictures=ModelPictures(),
    )
