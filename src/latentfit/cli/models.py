"""Commands on one model: train, sample, encode, evaluate."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from latentfit.cli.options import (
    AsJson,
    Config,
    Data,
    DataDir,
    Drop,
    NoData,
    Output,
    Run,
    Seed,
    TrainData,
    Training,
    grouped,
    names_in,
)
from latentfit.cli.parts import Parts
from latentfit.cli.program import app, note
from latentfit.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    from latentfit.data.batch import Batch
    from latentfit.data.sources import Source
    from latentfit.data.units import Units


@app.command()
@grouped
def train(
    data: Data,
    training: Training,
    out: Annotated[Path, typer.Option(help="the model's folder", show_default=False)],
    method: Annotated[str, typer.Option(help="a name of `latentfit methods`")] = "standard",
    labels: NoData = None,
    drop: Drop = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="replace the model in the folder")] = False,
    data_dir: DataDir = None,
    seed: Seed = 0,
    config: Config = None,
) -> None:
    """Train one VAE by a named method and save it."""
    check_folder(out, fresh)
    from latentfit import methods
    from latentfit.data.sources import load
    from latentfit.estimator import VAE, save
    from latentfit.saving import check_writable

    methods.get(method)
    check_writable(out, overwrite=fresh)
    source = load(data, data_dir, labels_key=labels, drop=names_in(drop))
    print(f"Data        {source.origin}")
    vae = VAE(
        method=method,
        random_state=seed,
        verbose=True,
        **{key: value for key, value in dataclasses.asdict(training).items() if value is not None},
    ).fit(_named(source))
    save(vae, out, overwrite=fresh)
    print(f"Model       {out.as_posix()}/")
    print(f"Next        latentfit sample {shlex.quote(out.as_posix())} -n 1000 -o samples.npy")


@app.command()
def sample(
    run: Run,
    output: Output,
    n: Annotated[int, typer.Option("-n", "--n", min=1, help="rows")] = 1000,
    means: Annotated[bool, typer.Option("--means", help="decoder means instead of draws of p(x given z)")] = False,
    seed: Seed = 0,
) -> None:
    """Draw rows from the model's own prior."""
    check_output(output)
    import torch

    model, folder = load_model(run)
    if not hasattr(model, "sample"):
        raise InputError(f"{run.as_posix()} holds a {type(model).__name__}, which draws no rows.")
    if hasattr(model, "module_"):
        x = model.sample(n, observation_noise=not means, random_state=seed)
    elif hasattr(model, "decoder"):
        generator = torch.Generator().manual_seed(seed)
        sizes = [min(1000, n - start) for start in range(0, n, 1000)]
        with torch.no_grad():
            parts = [model.sample(size, observation_noise=not means, generator=generator) for size in sizes]
        units = _units(folder)
        x = torch.cat(parts).numpy() if units is None else units.to_data(torch.cat(parts), drawn=not means)
    else:
        note("These are codes, which a prior alone draws; your decoder makes rows of them.")
        x = model.sample(n, generator=torch.Generator().manual_seed(seed)).detach().numpy()
    write(output, {"x": x}, column_names(model, folder))


@app.command()
def encode(
    run: Run, data: Data, output: Output, labels: NoData = None, drop: Drop = None, data_dir: DataDir = None
) -> None:
    """Write the codes of rows, q(z given x).

    Mean and std to .npz, the means alone to .npy and .csv.
    """
    check_output(output)
    from latentfit.data.sources import load
    from latentfit.evaluation.codes import encode_rows

    model, folder = load_model(run)
    names = column_names(model, folder)
    source = load(data, data_dir, labels_key=labels, drop=names_in(drop), columns=names)
    module, rows, *_ = comparison_rows(model, folder, source)
    codes = encode_rows(module, rows)
    write(output, {"mean": codes.mean.numpy(), "std": codes.std.numpy()})


@app.command()
def evaluate(
    run: Run,
    data: Data,
    n_importance_samples: Annotated[int, typer.Option(min=1, help="draws per row for log p(x)")] = 1000,
    train_data: TrainData = None,
    labels: NoData = None,
    drop: Drop = None,
    data_dir: DataDir = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Score rows: log p(x), ELBO and KL in nats, active units."""
    from latentfit.data.sources import load
    from latentfit.evaluation.codes import encode_rows
    from latentfit.evaluation.collapse import active_units
    from latentfit.evaluation.estimate import Estimate
    from latentfit.evaluation.likelihood import FEWEST_JUDGED, log_likelihood
    from latentfit.evaluation.terms import elbo_terms

    model, folder = load_model(run)
    known: dict[str, Any] = {"labels_key": labels, "drop": names_in(drop), "columns": column_names(model, folder)}
    module, rows, train, own = comparison_rows(model, folder, load(data, data_dir, **known), held_out=True)
    if train_data is not None:
        train = comparison_rows(model, folder, load(train_data, data_dir, **known))[1]
    with Parts() as parts:
        parts("proposal", 0, 0)  # fitted before the first row is scored
        scored = log_likelihood(
            module, rows, n_importance_samples=n_importance_samples, X_train=train, random_state=seed, progress=parts
        )
    terms = elbo_terms(module, rows, random_state=seed)
    units = active_units(encode_rows(module, rows))
    facts: dict[str, Any] = {
        "log_px": Estimate.of(scored.values),
        "elbo": Estimate.of(terms.elbo_per_row),
        "kl": terms.kl,
    }
    if as_json:
        numbers = {key: value.to_dict() for key, value in facts.items()}
        more = {"n_rows": len(rows), "active_units": int(units), "unreliable": scored.unreliable}
        print(json.dumps({**numbers, **more, "n_importance_samples": n_importance_samples}, indent=1))
        return
    which = ", the run's own test rows" if own else ""
    print(f"{len(rows):,} rows{which}; nats per row; k = {n_importance_samples:,}")
    for name, key in (("log p(x)", "log_px"), ("ELBO", "elbo"), ("KL", "kl")):
        print(f"  {name:<14}{facts[key]}")
    print(f"  {'active units':<14}{int(units)} of {units.total}")
    if n_importance_samples >= FEWEST_JUDGED:
        print(f"  {'unreliable':<14}{scored.unreliable:.1%} of the rows (Pareto-k above 0.7)")


def load_model(run: Path, device: str | None = None) -> tuple[Any, Path]:
    """The model of a folder, and where it lies: the folder itself, or its best/.

    Of a comparison it is the module alone, for the comparison keeps its rows as that takes them.
    """
    from latentfit.estimator import load
    from latentfit.training import Recipe

    folder = _model_folder(run)
    where = Recipe(device=device or "cpu").torch_device()
    model = load(folder, map_location=where)
    # any other estimator in a run's folder brings units of its own, and may have been trained on other rows
    if folder.name == "best" and hasattr(model, "module_") and _units(folder) is not None:
        model = model.module_
    return model, folder


def _model_folder(run: Path) -> Path:
    folder = run / "best" if (run / "best" / "config.json").is_file() else run
    if folder == run:
        refuse_unfinished(run)
    return folder


def refuse_unfinished(run: Path) -> None:
    """A comparison has a result once it is finished.

    Raises:
        InputError: it has a plan and no result.
    """
    if (run / "plan.json").is_file() and not (run / "comparison.json").is_file():
        raise InputError(f"{run.as_posix()} holds a comparison that is not finished. Run its command again to go on.")


def in_own_units(run: Path, changed: Any, rows: Any) -> Any:
    """What became of a run's model, in the user's units where `lf.load(run)` gives the old one so.

    Args:
        run: the folder that `load_model` read.
        changed: that model trained on.
        rows: training rows, as the model takes them.
    """
    from latentfit.estimator import load

    saved = load(_model_folder(run))
    alone = hasattr(saved, "module_") and not hasattr(changed, "module_")
    return saved._with_module(changed, rows.x) if alone else changed


def comparison_rows(
    model: Any, folder: Path, source: Source, *, held_out: bool = False
) -> tuple[Any, Batch, Batch | None, bool]:
    """A saved model's module, rows as it takes them, training rows if stored, whether the data are its own.

    The data a comparison was run on are recognised: they are used as they were prepared there, and with
    `held_out` only their test rows.
    """
    import numpy as np
    import torch

    from latentfit.comparison.jobs import load_data
    from latentfit.comparison.plan import fingerprint
    from latentfit.comparison.run import drawn_for_quick
    from latentfit.data.batch import Batch

    check_vae(model, folder)
    x = source.x
    if hasattr(model, "module_"):
        _check_rows(model._units, source)
        return model.module_, Batch(model._rows(_named(source))), None, False
    run = folder.parent
    units = _units(folder)
    if units is None:
        return model, Batch(torch.as_tensor(np.ascontiguousarray(x, dtype=np.float32))), None, False
    prepared, rows, _ = load_data(str(run))
    train = prepared.scoring_batch(rows["train"])
    asked = json.loads((run / "plan.json").read_text(encoding="utf-8"))["asked"]
    # a quick comparison read a part of the rows: its test rows are the held-out ones of the whole as well
    read = drawn_for_quick(source, asked["random_state"]).x if asked.get("quick") and held_out else x
    content = hashlib.sha256(np.ascontiguousarray(read).data).hexdigest()
    if fingerprint([list(read.shape), str(read.dtype), content]) == asked["data"]:
        chosen = rows["test"] if held_out else torch.arange(len(prepared.x))
        return model, prepared.scoring_batch(chosen), train, True
    _check_rows(units, source)
    scored = units.to_model(x)
    model.check_rows(scored)
    return model, Batch(scored), train, False


@dataclasses.dataclass(frozen=True)
class OwnRows:
    """The rows that a comparison keeps, as its models take them.

    Attributes:
        train, test: rows that its models were trained on, and those it opened once.
        picked: the test rows' numbers among the data's `n_rows`.
        labels, groups: of all rows, or None.
        columns: what the columns of its models' rows are called.
    """

    train: Batch
    test: Batch
    picked: np.ndarray
    n_rows: int
    labels: np.ndarray | None
    groups: np.ndarray | None
    columns: Sequence[str | int]


def own_rows(model: Any, folder: Path) -> OwnRows:
    """The rows of the comparison that a model belongs to.

    Raises:
        InputError: a model saved alone keeps no rows; or it is no VAE.
    """
    import numpy as np

    from latentfit.comparison.jobs import load_data, mark_names

    check_vae(model, folder)
    if _units(folder) is None:
        raise InputError(f"{folder.as_posix()} holds a model saved alone, which keeps no rows: give --data DATA.")
    prepared, rows, marks = load_data(str(folder.parent))

    def called(mark: str) -> np.ndarray | None:
        if mark not in marks:
            return None
        names, numbers = mark_names(str(folder.parent), mark), marks[mark].numpy()
        return np.asarray(names)[numbers] if names else numbers

    return OwnRows(
        prepared.scoring_batch(rows["train"]),
        prepared.scoring_batch(rows["test"]),
        rows["test"].numpy(),
        len(prepared.x),
        called("labels"),
        called("groups"),
        prepared.units.model_columns,
    )


def own_columns(folder: Path) -> Sequence[str | int]:
    """What the columns of a comparison's models are called; of a model saved alone it is not known."""
    units = _units(folder)
    return () if units is None else units.model_columns


def check_vae(model: Any, folder: Path) -> None:
    if not hasattr(model, "encode") and not hasattr(model, "module_"):
        raise InputError(f"{folder.as_posix()} holds a {type(model).__name__}, not a VAE, so it encodes no rows.")


def _units(folder: Path) -> Units | None:
    """How a comparison made its rows of the user's, for a model that lies in its folder."""
    from latentfit.comparison.jobs import load_data

    run = folder.parent
    if not (run / "data.safetensors").is_file() or not (run / "plan.json").is_file():
        return None
    return load_data(str(run))[0].units


def _check_rows(units: Units, source: Source) -> None:
    try:
        units.check(source.x, source.columns)
    except InputError as error:
        raise InputError(f"{source.origin.split(',')[0]}: {error}") from None


def _named(source: Source) -> Any:
    """The rows with the names of their columns, where they have names."""
    if source.columns is None:
        return source.x
    import pandas as pd

    return pd.DataFrame(source.x, columns=[str(name) for name in source.columns])


def column_names(model: Any, folder: Path) -> Sequence[str] | None:
    """The names of the columns of a model's rows, where the table it was trained on had names."""
    units = model._units if hasattr(model, "module_") else _units(folder) if hasattr(model, "decoder") else None
    return None if units is None else units.columns


def write(path: Path, arrays: dict[str, np.ndarray], columns: Sequence[str] | None = None) -> None:
    """One array as .npy or .csv, the first of them; all as .npz. A .csv has the columns' names, or x0, x1, ..."""
    import numpy as np

    from latentfit.saving import write_atomic

    first = next(iter(arrays.values()))
    buffer = io.BytesIO()
    if path.suffix == ".npz":
        np.savez(buffer, **arrays)  # type: ignore[arg-type]  # names are not numpy's options
    elif path.suffix == ".npy":
        np.save(buffer, first)
    else:
        table = first.reshape(len(first), -1)
        heading = io.StringIO()
        name = next(iter(arrays))
        csv.writer(heading, lineterminator="\n").writerow(columns or [f"{name}{j}" for j in range(table.shape[1])])
        buffer.write(heading.getvalue().encode())
        np.savetxt(buffer, table, delimiter=",", fmt="%.9g")
    write_atomic(path, buffer.getvalue())
    print(f"{path.as_posix()}  {' x '.join(map(str, first.shape))}")


def check_folder(out: Path, fresh: bool) -> None:
    """Refuse at once what could not be written when all is done."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{out.as_posix()} is a file; --out needs a folder's name.")
    if out.is_dir() and any(out.iterdir()) and not fresh:
        raise InputError(f"{out.as_posix()} exists and is not empty. Use --fresh to replace a model, or another --out.")


def check_output(path: Path) -> None:
    if path.suffix not in (".npy", ".npz", ".csv"):
        raise InputError(f"-o {path} must end in .npy, .npz or .csv.")
