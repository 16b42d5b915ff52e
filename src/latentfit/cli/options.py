"""The options that several commands share, and the TOML file that can hold them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from latentfit.errors import InputError

Data = Annotated[
    str,
    typer.Argument(
        help="digits, mnist, fashion-mnist, .npy .npz .csv .parquet .h5ad idx.gz, a folder of images",
        show_default=False,
    ),
]
Run = Annotated[Path, typer.Argument(help="the folder of a comparison or of a saved model", show_default=False)]
Lang = Annotated[str, typer.Option("--lang", envvar="LATENTFIT_LANG", help="en or vi")]
DataDir = Annotated[
    Path | None,
    typer.Option(help="where mnist and fashion-mnist are, or are downloaded to", envvar="LATENTFIT_DATA"),
]
Seed = Annotated[int, typer.Option("--seed", min=0, help="of splits, training and scoring")]
AsJson = Annotated[bool, typer.Option("--json", help="the result as JSON on stdout, all else on stderr")]
Output = Annotated[Path, typer.Option("--output", "-o", help="FILE.npy, .npz or .csv", show_default=False)]
Likelihood = Annotated[str | None, typer.Option(help="chosen from the data by default")]
LatentDim = Annotated[int | None, typer.Option(min=1)]
Network = Annotated[str | None, typer.Option(help="mlp, gated_mlp or residual_conv")]
MaxSteps = Annotated[int | None, typer.Option(min=1, help="training steps of each model")]
BatchSize = Annotated[int | None, typer.Option(min=1)]
LearningRate = Annotated[float | None, typer.Option()]
Device = Annotated[str, typer.Option(help="cpu, cuda or auto")]
Open = Annotated[bool, typer.Option("--open", help="show the report in the browser")]


def read_config(context: typer.Context, path: Path | None) -> Path | None:
    """Defaults from a TOML file whose keys are the options' names; what is typed wins."""
    import tomllib

    if path is None:
        return None
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"--config {path} cannot be read: {error.strerror}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"--config {path} is not TOML: {error}.") from None
    known = {name for parameter in context.command.params if (name := parameter.name) and name != "config"}
    defaults = {}
    for key, value in values.items():
        name = {"json": "as_json", "open": "show"}.get(key, key.replace("-", "_"))
        if name not in known:
            listed = ", ".join(sorted(known - {"as_json", "show"}))
            raise InputError(f"--config {path} has an unknown key {key!r}. Known: {listed}.")
        if isinstance(value, Mapping):
            raise InputError(f"--config {path}: {key!r} must be a plain value, got a table.")
        defaults[name] = ",".join(map(str, value)) if isinstance(value, list) else value
    context.default_map = {**(context.default_map or {}), **defaults}
    return path


Config = Annotated[
    Path | None,
    typer.Option("--config", callback=read_config, is_eager=True, help="FILE.toml whose keys are these options"),
]


def check_lang(lang: str) -> None:
    if lang not in ("en", "vi"):
        raise InputError(f"Unknown language {lang!r}; Latentfit speaks: en, vi.")


def check_run(run: Path) -> None:
    if not run.is_dir():
        raise InputError(f"{run.as_posix()} is not a folder; expected that of a comparison or of a saved model.")


def browse(path: Path) -> None:
    import webbrowser

    webbrowser.open(path.resolve().as_uri())
