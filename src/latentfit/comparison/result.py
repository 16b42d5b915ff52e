"""What a comparison found: plain numbers and arrays, which the terminal, the report and JSON all read."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from latentfit import saving
from latentfit.diagnosis.findings import Finding
from latentfit.diagnosis.sections import Sections, empty
from latentfit.evaluation.estimate import Estimate

if TYPE_CHECKING:
    import pandas as pd

Fitted = Literal["jointly", "post hoc"]
Verdict = Literal["use", "change_nothing", "no_clear_winner"]


@dataclass(frozen=True)
class Row:
    """One line of the leaderboard: a method, trained jointly or fitted post hoc on the N(0, I) model.

    Attributes:
        key: "realnvp" or "realnvp@standard" (post hoc), unique, safe as a file name.
        gain: nats per row won against N(0, I), paired, whatever the goal; None for N(0, I) itself.
        log_px: mean log p(x), nats per row in the comparison's base measure.
        kl: mean KL(q(z given x) || p), nats per row.
        active_units: latent dimensions in use, averaged over seeds.
        samples: sample quality (own-encoder Frechet, lower is better).
        knn: 15-nearest-neighbour accuracy of the held-out codes on labels.
        fit_seconds: to train it, or, post hoc, to fit the prior alone.
        sample_ms: milliseconds per 1,000 samples of x.
        n_parameters: of the whole model; added_parameters: what it has beyond the N(0, I) model.
        is_bound: log p(x) is a lower bound.
        reliability: share of rows whose importance weights failed (Pareto-k above 0.7) or, where some were annealed
            for that, whose chains failed.
        n_annealed: rows annealed because importance weights failed; correction: nats by which that moved log p(x).
        prior: the name of p(z); a method may leave N(0, I), "standard", where it is.
        n_draws: ordinary VAEs that stand for a distribution over the weights; 1 where there is none.
        command: the command that reproduces the row.
    """

    key: str
    method: str
    fitted: Fitted
    gain: Estimate | None
    log_px: Estimate
    kl: float
    active_units: float
    samples: float
    fit_seconds: float
    sample_ms: float
    n_parameters: int
    added_parameters: int
    network_calls: int = 0
    knn: float | None = None
    is_bound: bool = False
    reliability: float = 0.0
    n_annealed: int = 0
    correction: float = 0.0
    note: str = ""
    command: str = ""
    prior: str = ""
    n_draws: int = 1

    @property
    def keeps_prior(self) -> bool:
        """Whether p(z) stays N(0, I): what the method wins, it wins by training or by its posterior."""
        return self.prior == "standard"


@dataclass(frozen=True)
class Recommendation:
    """The verdict, by which goal, and the nats won on the selection rows and on the test rows, opened once."""

    verdict: Verdict
    goal: str
    key: str
    best_key: str
    gain: Estimate | None
    test_gain: Estimate | None
    #: the smallest sufficient remedy that needs no retraining, if there is one
    without_training: str | None = None
    #: every other goal -> the key that it would choose, this one's where it suffices; None: nothing is decided
    other_goals: dict[str, str | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Setting:
    """What was compared, on what, and how: enough to repeat it."""

    data: str
    origin: str
    n_rows: int
    data_shape: tuple[int, ...]
    splits: dict[str, int]
    likelihood: str
    likelihood_reason: str
    base_measure: str
    latent_dim: int
    methods: list[str]
    n_seeds: int
    max_steps: int
    recipe: str
    command: str
    seconds: float
    n_importance_samples: int
    versions: dict[str, str]
    fingerprint: str
    device: str = "cpu"
    lang: str = "en"
    show_data: bool = False
    #: of a table, in the models' order: the user's names, or the user's numbers from 0
    columns: list[str] | list[int] = field(default_factory=list)
    #: of related rows among those that chose and those that tested; empty where rows are by themselves
    n_groups: dict[str, int] = field(default_factory=dict)
    #: of the labels, which the figures have as numbers from 0; empty where they are the labels themselves
    label_names: list[str] = field(default_factory=list)


#: what in `Pictures` is a name
NAMED = ("cluster_prior", "weight_method")


@dataclass(frozen=True)
class Pictures(Sections):
    """Arrays the figures are drawn from, with those of `Sections`; every one may be empty.

    Attributes:
        null_samples, best_samples, reconstructions, originals: (n, *data_shape), decoder means, the first n, seed 0.
        unit_kl: key -> (D,) nats per unit; unit_std: key -> (D,) standard deviation of the aggregate posterior.
        curves: key -> list of {"step", "validation"} (validation is minus the ELBO at KL weight 1), first seed.
        map_codes: (n, 2) held-out codes in the plane of the map, first seed; map_null, map_best: (n, 2) prior samples.
        map_labels: (n,) or empty; map_images: (n, *data_shape) the data behind the codes, or empty.
        hole_codes, hole_null, hole_best: log r(z) of held-out codes, of N(0, I) samples and of the new prior's.
    """

    null_samples: np.ndarray
    best_samples: np.ndarray
    reconstructions: np.ndarray
    originals: np.ndarray
    unit_kl: dict[str, np.ndarray]
    unit_std: dict[str, np.ndarray]
    curves: dict[str, list[dict[str, float]]]
    map_codes: np.ndarray
    map_null: np.ndarray
    map_best: np.ndarray
    map_labels: np.ndarray
    map_images: np.ndarray
    map_axes: tuple[str, str] = ("", "")
    hole_codes: np.ndarray = field(default_factory=empty)
    hole_null: np.ndarray = field(default_factory=empty)
    hole_best: np.ndarray = field(default_factory=empty)


@dataclass(frozen=True)
class Comparison:
    """The whole result. `rows` are sorted by gain on the selection rows, best first; N(0, I) is among them."""

    setting: Setting
    rows: list[Row]
    test_rows: list[Row]
    recommendation: Recommendation
    findings: list[Finding]
    #: the ordered parts of the error of the N(0, I) model: "decoder", "inference", "prior" -> nats
    budget: dict[str, Estimate]
    prior_gap: Estimate
    prior_gap_share_of_kl: float
    #: share of prior samples in holes: N(0, I), and the recommended row's prior
    holes: tuple[float, float]
    reconstruction_floor: float
    pictures: Pictures
    #: the run's folder; best/ there is the recommended model
    folder: Path | None = None

    @property
    def null(self) -> Row:
        """The row of N(0, I)."""
        return next(row for row in self.rows if row.key == "standard")

    @property
    def recommended(self) -> Row:
        """The row that is recommended; N(0, I) itself where nothing should change."""
        return next(row for row in self.rows if row.key == self.recommendation.key)

    @property
    def leaderboard(self) -> pd.DataFrame:
        """The rows as a table, best first, with standard errors in columns of their own."""
        import pandas as pd

        table = []
        for row in self.rows:
            gain = row.gain
            table.append(
                {
                    "method": row.method,
                    "fitted": row.fitted,
                    "gain": 0.0 if gain is None else gain.value,
                    "gain_se": 0.0 if gain is None else gain.std_error,
                    "gain_low": 0.0 if gain is None else gain.interval[0],
                    "gain_high": 0.0 if gain is None else gain.interval[1],
                    "log_px": row.log_px.value,
                    "log_px_se": row.log_px.std_error,
                    "kl": row.kl,
                    "active_units": row.active_units,
                    "samples": row.samples,
                    "knn": row.knn,
                    "fit_seconds": row.fit_seconds,
                    "sample_ms": row.sample_ms,
                    "n_parameters": row.n_parameters,
                    "is_bound": row.is_bound,
                    "unreliable": row.reliability,
                    "annealed": row.n_annealed,
                    "recommended": row.key == self.recommendation.key,
                    "note": row.note,
                }
            )
        return pd.DataFrame(table)

    @property
    def best(self) -> Any:
        """The recommended model, as `lf.load` gives it from the run's folder: a fitted `lf.VAE`."""
        from latentfit import load

        return load(self._folder() / "best")

    def report(self, path: str | Path, *, lang: str | None = None, title: str | None = None) -> Path:
        """Write the report, one offline HTML file, and `report.png` beside it; returns its path."""
        from latentfit.report import report_png, write

        lang = lang or self.setting.lang
        page = write(self, Path(path), lang=lang, title=title)
        report_png(self, page.with_suffix(".png"), lang=lang)
        return page

    def to_json(self) -> str:
        """All numbers, without the pictures' arrays."""
        return json.dumps(_plain(self), indent=1)

    def write(self, folder: str | Path) -> None:
        """Store numbers and pictures, so that `read` gives this comparison back."""
        folder = Path(folder)
        saving.write_atomic(folder / "comparison.json", self.to_json())
        arrays = {}
        for name in (f.name for f in dataclasses.fields(Pictures)):
            value = getattr(self.pictures, name)
            if isinstance(value, np.ndarray):
                arrays[name] = torch.from_numpy(np.ascontiguousarray(value))
            elif name in ("unit_kl", "unit_std"):
                arrays |= {f"{name}:{key}": torch.from_numpy(np.ascontiguousarray(a)) for key, a in value.items()}
        shown = self.pictures
        meta = {"curves": shown.curves, "map_axes": list(shown.map_axes)}
        meta |= {name: getattr(shown, name) for name in NAMED}
        saving.save_tensors(folder / "pictures.safetensors", arrays, meta)

    @classmethod
    def read(cls, folder: str | Path) -> Comparison:
        """The comparison of a run's folder.

        Raises:
            SavedFileError: there is none, or it is damaged.
        """
        folder = Path(folder)
        data = saving.read_json(folder / "comparison.json")
        tensors, meta = saving.load_tensors(folder / "pictures.safetensors")
        units: dict[str, Any] = {"unit_kl": {}, "unit_std": {}}
        arrays: dict[str, Any] = {}
        for name, value in tensors.items():
            kind, _, key = name.partition(":")
            if key:
                units[kind][key] = value.numpy()
            else:
                arrays[name] = value.numpy()
        first, second = meta["map_axes"]
        named = {name: meta.get(name, "") for name in NAMED}  # older folders have none
        pictures = Pictures(**arrays, **units, **named, curves=meta["curves"], map_axes=(first, second))
        recommendation = data["recommendation"]
        for name in ("gain", "test_gain"):
            recommendation[name] = _estimate(recommendation[name])
        setting = data["setting"]
        return cls(
            setting=Setting(**{**setting, "data_shape": tuple(setting["data_shape"])}),
            rows=[_read_row(row) for row in data["rows"]],
            test_rows=[_read_row(row) for row in data["test_rows"]],
            recommendation=Recommendation(**recommendation),
            findings=[_read_finding(finding) for finding in data["findings"]],
            budget={key: Estimate.from_dict(value) for key, value in data["budget"].items()},
            prior_gap=Estimate.from_dict(data["prior_gap"]),
            prior_gap_share_of_kl=data["prior_gap_share_of_kl"],
            holes=(data["holes"][0], data["holes"][1]),
            reconstruction_floor=data["reconstruction_floor"],
            pictures=pictures,
            folder=folder,
        )

    def __str__(self) -> str:
        from latentfit.report import as_text

        return as_text(self)

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return self.leaderboard.to_html(index=False, float_format="{:.3g}".format)

    def _folder(self) -> Path:
        if self.folder is None:
            raise saving.SavedFileError("This comparison was not run in a folder, so it holds no model.")
        return self.folder


def _plain(value: Any) -> Any:
    if isinstance(value, Estimate):
        return value.to_dict()
    if isinstance(value, Pictures | Path):
        return None
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {key: item for key, item in fields.items() if key not in ("pictures", "folder")}
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _estimate(data: dict[str, Any] | None) -> Estimate | None:
    return None if data is None else Estimate.from_dict(data)


def _read_row(data: dict[str, Any]) -> Row:
    return Row(**{**data, "gain": _estimate(data["gain"]), "log_px": Estimate.from_dict(data["log_px"])})


def _read_finding(data: dict[str, Any]) -> Finding:
    parameters = {
        key: Estimate.from_dict(value) if isinstance(value, dict) and "std_error" in value else value
        for key, value in data["parameters"].items()
    }
    return Finding(data["code"], data["status"], parameters)
