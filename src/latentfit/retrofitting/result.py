"""What a retrofit found and made: plain numbers, the fitted prior, the model with it in place."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentfit.adapters.understood import Understood
from latentfit.diagnosis.findings import plain
from latentfit.diagnosis.pictures import Pictures
from latentfit.errors import InputError
from latentfit.evaluation.estimate import Estimate
from latentfit.evaluation.ladder import Ladder
from latentfit.model import Prior
from latentfit.retrofitting.finetune import FineTuning

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class RungRow:
    """One prior of the ladder, as it was judged on the selection rows.

    Attributes:
        name: "nothing" for the prior the model has.
        gap: T, nats per row, on the selection rows.
        samples: Frechet distance of its samples (lower is better); None in latent-only mode.
        holes: share of its draws in holes.
        fit_seconds, n_parameters, sample_ms: price; milliseconds for 1,000 codes.
        failed: names of the guards it did not pass; such a prior is never kept.
        kept: whether it is the one.
    """

    name: str
    gap: Estimate
    samples: Estimate | None
    holes: float | None
    fit_seconds: float
    n_parameters: int
    sample_ms: float
    failed: tuple[str, ...] = ()
    kept: bool = False


@dataclass(frozen=True)
class RetrofitSetting:
    """What was fitted and judged, on which rows, and how.

    Attributes:
        understood: what the adapter understood of a foreign model.
        chose: see `latentfit.retrofitting.rows.Parts`.
        n_groups: groups of related rows among those that measured; 0 where rows are by themselves.
        n_draws: draws of the weights that make up the model; above 1 log p(x) is that of the VAE at their centre.
        notes: what was warned of on the way, as it was shown.
        columns: names of a table's columns, or their numbers from 0, where they are known.
    """

    model: str
    understood: list[Understood]
    likelihood: str
    data_shape: tuple[int, ...]
    latent_shape: tuple[int, ...]
    n_fit: int
    n_selection: int
    n_test: int
    separate: bool
    goal: str
    seconds: float
    device: str
    random_state: int
    n_scored: int = 0
    k: int = 0
    lang: str = "en"
    chose: str = "halves"
    n_draws: int = 1
    n_groups: int = 0
    notes: list[str] = field(default_factory=list)
    columns: Sequence[str | int] = ()


@dataclass(frozen=True)
class Retrofit:
    """A prior fitted to a trained VAE's codes, and what it wins.

    Attributes:
        prior: the kept prior; the model's own where nothing is won.
        model: the VAE with that prior in place: it samples and scores through it alone. Of an `lf.VAE` another
            `lf.VAE`, else a `VAEModule`. Networks are shared with the original, whose prior is untouched.
        gain: T of the kept prior on the test rows, nats per row: the ELBO won, on rows used for nothing else.
        log_px_gain: log p(x) won on the same rows, paired; None in latent-only mode or where nothing is kept.
        rows: the ladder on the selection rows, best first.
        holes: share of draws in holes, before and after.
        samples: Frechet distance before, after, and its floor (draws from the codes themselves); or None.
        kl: mean KL of the codes from the original prior, nats per row.
        guards: name -> (passed, numbers) of the kept prior.
        sha256: of the model's weights, before and after.
        pictures: the arrays that the report draws.
        finetuned: what training a copy on under the kept prior added; None unless it was asked for. `model` is then
            that copy, where it won.
    """

    setting: RetrofitSetting
    prior: Prior
    model: Any
    gain: Estimate
    log_px_gain: Estimate | None
    rows: list[RungRow]
    ladder: Ladder
    holes: tuple[float, float]
    samples: tuple[Estimate, Estimate, Estimate] | None
    kl: Estimate
    guards: dict[str, tuple[bool, dict[str, float]]]
    sha256: tuple[str, str]
    pictures: Pictures = field(default_factory=Pictures, repr=False)
    finetuned: FineTuning | None = None

    @property
    def kept(self) -> RungRow:
        """The row of the kept prior."""
        return next(row for row in self.rows if row.kept)

    @property
    def changed(self) -> bool:
        """Whether a prior was put in place of the model's own."""
        return self.kept.name != "nothing"

    @property
    def weights_unchanged(self) -> bool:
        """Whether the model's weights are, byte for byte, what they were."""
        return self.sha256[0] == self.sha256[1]

    @property
    def leaderboard(self) -> pd.DataFrame:
        """The ladder on the selection rows, best first; then, on the test rows, the arms of a fine-tuning."""
        import pandas as pd

        table = []
        for row in self.rows:
            table.append(
                {
                    "prior": row.name,
                    "gap": row.gap.value,
                    "gap_se": row.gap.std_error,
                    "samples": None if row.samples is None else row.samples.value,
                    "holes": row.holes,
                    "fit_seconds": row.fit_seconds,
                    "n_parameters": row.n_parameters,
                    "sample_ms": row.sample_ms,
                    "failed": ", ".join(row.failed),
                    "kept": row.kept,
                }
            )
        if self.finetuned is not None:
            for arm in self.finetuned.arms[1:]:
                gap = {"gap": arm.gain.value, "gap_se": arm.gain.std_error, "fit_seconds": arm.seconds}
                table.append({"prior": arm.name, **gap, "active_units": arm.active, "kept": self.finetuned.won is arm})
        return pd.DataFrame(table)

    def summary(self, lang: str | None = None, width: int = 80) -> str:
        """The retrofit as a table of lines of at most `width` characters."""
        from latentfit.report.retrofit_text import retrofit_text

        return retrofit_text(self, lang or self.setting.lang, width)

    def __str__(self) -> str:
        return self.summary()

    def __repr__(self) -> str:
        return self.summary()

    def _repr_html_(self) -> str:
        from latentfit.report.retrofit_text import retrofit_html

        return retrofit_html(self, self.setting.lang)

    def report(self, path: str | Path, *, lang: str | None = None, title: str | None = None, **options: Any) -> Path:
        """Write the report: one offline HTML file, and a card for chat beside it, of the same name in PNG.

        Args:
            path: of the page, replaced atomically.
            lang: "en" or "vi".
            title: of the page.
            options: `show_data`: whether pictures of the data may be in it (False by default).
        """
        from latentfit.report.retrofit_page import write_retrofit

        return write_retrofit(self, path, lang=lang or self.setting.lang, title=title, **options)

    def to_anndata(self, adata: Any) -> None:
        """Write into the AnnData of an adapted SCVI, in place: codes, how usual they are, and what was fitted.

        obsm["X_latentfit"] are means of q(z given x), as before the retrofit: no cell has moved.
        obs["latentfit_log_prob"] is log r of each under the kept prior, in nats: low where a cell is unlike the rest.
        uns["latentfit"] holds the numbers of this retrofit as JSON.

        Raises:
            InputError: a model that reads no AnnData.
        """
        from latentfit.adapters.cells import to_anndata
        from latentfit.evaluation.codes import encode_rows
        from latentfit.evaluation.gap import density_of

        read = getattr(self.model, "read", None)
        if read is None:
            raise InputError(f"to_anndata: {self.setting.model} reads no AnnData; only an adapted SCVI does.")
        codes = encode_rows(self.model, read(adata))
        log_r = density_of(self.prior, codes.mean.unsqueeze(0), codes.context)[0]
        to_anndata(adata, codes.mean.cpu().numpy(), log_r.cpu().numpy(), {"retrofit": self.to_json()})

    def to_dict(self) -> dict[str, Any]:
        """JSON; what is not finite is null. `notes` are all that was said beside the numbers, warnings last."""
        from latentfit.report.retrofit_text import caveats

        lang = self.setting.lang
        setting = {key: plain(getattr(self.setting, key)) for key in self.setting.__dataclass_fields__}
        setting["understood"] = [part.sentence(lang) for part in self.setting.understood]
        return {
            "notes": [*caveats(self, lang), *setting.pop("notes")],
            "setting": setting,
            "kept": self.kept.name,
            "gain": plain(self.gain),
            "log_px_gain": plain(self.log_px_gain),
            "kl": plain(self.kl),
            "holes": list(self.holes),
            "samples": plain(self.samples),
            "guards": {name: {"passed": ok, **plain(numbers)} for name, (ok, numbers) in self.guards.items()},
            "weights_unchanged": self.weights_unchanged,
            "sha256": self.sha256[1],
            "finetuned": None if self.finetuned is None else self.finetuned.to_dict(),
            "rows": [{key: plain(getattr(row, key)) for key in row.__dataclass_fields__} for row in self.rows],
        }

    def to_json(self, path: str | Path | None = None) -> str:
        """JSON as text, written to a file too where a path is given."""
        from latentfit.saving import write_atomic

        text = json.dumps(self.to_dict(), indent=1, ensure_ascii=False, allow_nan=False)
        if path is not None:
            write_atomic(path, text + "\n")
        return text
