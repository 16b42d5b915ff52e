"""The options that several commands share, what can be said of them at once, and the TOML file that can hold them."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from latentfit.errors import InputError

#: data known by name; the list itself is `latentfit datasets`, which costs the import of torch
NAMED_DATA = ("digits", "mnist", "fashion-mnist")


def option(parameter: typer.CallbackParam) -> str:
    """An option's longest name, as it is typed."""
    return max(parameter.opts, key=len)


def one_of(*words: str) -> Callable[[typer.CallbackParam, str | None], str | None]:
    """A callback that refuses any other word, before anything heavy is imported."""

    def check(parameter: typer.CallbackParam, value: str | None) -> str | None:
        if value is not None and value not in words:
            raise InputError(f"{option(parameter)} must be one of {', '.join(words)}, got {value!r}.")
        return value

    return check


def existing_file(parameter: typer.CallbackParam, value: Path | None) -> Path | None:
    """A callback that refuses a file that is not there."""
    if value is not None and not value.is_file():
        what = "is a folder; expected a file" if value.is_dir() else "does not exist"
        raise InputError(f"{option(parameter)} {value.as_posix()} {what}.")
    return value


def _lang(value: str) -> str:
    if value not in ("en", "vi"):
        raise InputError(f"Unknown language {value!r}; Latentfit speaks: en, vi.")
    return value


def _device(value: str | None) -> str | None:
    if value is not None and not re.fullmatch(r"cpu|auto|(cuda|mps)(:\d+)?", value):
        raise InputError(f"--device must be 'cpu', 'cuda' or 'auto', got {value!r}.")
    return value


def _data(value: str | None) -> str | None:
    """Refuse what is neither a file nor a name; a colon may name an object of the user's (--model)."""
    if value is None or value in NAMED_DATA or ":" in value or Path(value).exists():
        return value
    close = difflib.get_close_matches(value.lower().replace("_", "-"), NAMED_DATA, n=1, cutoff=0.7)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise InputError(
        f"No data {value!r}: neither a file nor a known name.{hint} Names: {', '.join(NAMED_DATA)}; files: .npy, .npz, "
        ".csv, .parquet, .h5ad, idx(.gz), or a folder of images."
    )


def marks_option(parameter: typer.CallbackParam, value: str | None) -> str | None:
    """Refuse a file of labels that is not there; anything else names a column."""
    if value is not None and value.endswith((".npy", ".csv")) and not Path(value).is_file():
        raise InputError(f"{option(parameter)} {value} does not exist.")
    return value


def _run(value: Path | None) -> Path | None:
    if value is not None and not value.is_dir():
        raise InputError(f"{value.as_posix()} is not a folder; expected that of a comparison or of a saved model.")
    return value


DATA_HELP = "digits, mnist, fashion-mnist, .npy .npz .csv .parquet .h5ad idx.gz, a folder of images"
MARKS_HELP = "FILE.npy, FILE.csv, a column, or obs:COLUMN"

Data = Annotated[str, typer.Argument(help=DATA_HELP, show_default=False, callback=_data)]
DataOrDigits = Annotated[
    str, typer.Argument(help=f"{DATA_HELP}; digits if left out", show_default=False, callback=_data)
]
DataOption = Annotated[str | None, typer.Option("--data", help=f"rows: {DATA_HELP}", callback=_data)]
TrainData = Annotated[str | None, typer.Option("--train-data", help="the rows it was trained on", callback=_data)]
Run = Annotated[
    Path, typer.Argument(help="the folder of a comparison or of a saved model", show_default=False, callback=_run)
]
Lang = Annotated[str, typer.Option("--lang", envvar="LATENTFIT_LANG", help="en or vi", callback=_lang)]
DataDir = Annotated[
    Path | None,
    typer.Option(help="where mnist and fashion-mnist are, or are downloaded to", envvar="LATENTFIT_DATA"),
]
Seed = Annotated[int, typer.Option("--seed", min=0, help="of everything that is random")]
AsJson = Annotated[bool, typer.Option("--json", help="the result as JSON on stdout, all else on stderr")]
Output = Annotated[Path, typer.Option("--output", "-o", help="FILE.npy, .npz or .csv", show_default=False)]
Likelihood = Annotated[str | None, typer.Option(help="chosen from the data by default")]
LatentDim = Annotated[int | None, typer.Option(min=1, help="units of the code z; chosen from the data by default")]
Network = Annotated[str | None, typer.Option(help="mlp, gated_mlp or residual_conv; by the data by default")]
MaxSteps = Annotated[int | None, typer.Option(min=1, help="steps of each training; by the data by default")]
BatchSize = Annotated[int | None, typer.Option(min=1, help="rows of a training step; 128 by default")]
LearningRate = Annotated[float | None, typer.Option(help="the highest of a run; 0.002 by default")]
Device = Annotated[str, typer.Option(help="cpu, cuda or auto", callback=_device)]
OwnDevice = Annotated[str | None, typer.Option("--device", help="cpu, cuda or auto; else its own", callback=_device)]
Labels = Annotated[
    str | None, typer.Option("--labels", help=f"{MARKS_HELP}: scores the embedding", callback=marks_option)
]
Groups = Annotated[
    str | None, typer.Option("--groups", help=f"{MARKS_HELP}: rows that belong together", callback=marks_option)
]
NoData = Annotated[str | None, typer.Option("--labels", help="a column that holds labels: it is no data")]
Drop = Annotated[str | None, typer.Option("--drop", help="columns of a table that are no data: id,date")]
Open = Annotated[bool, typer.Option("--open", help="show the report in the browser")]


def names_in(value: str | None) -> list[str]:
    """The names that an option lists, such as the columns of --drop: commas between."""
    return [] if value is None else [name.strip() for name in value.split(",") if name.strip()]


@dataclasses.dataclass(frozen=True)
class Training:
    """How a VAE is built and trained: None is chosen from the data."""

    likelihood: Likelihood = None
    latent_dim: LatentDim = None
    network: Network = None
    max_steps: MaxSteps = None
    batch_size: BatchSize = None
    learning_rate: LearningRate = None
    device: Device = "cpu"


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose parameters that are dataclasses become options, one for each field."""
    hints = get_type_hints(command, include_extras=True)
    parameters: list[inspect.Parameter] = []
    groups: dict[str, Any] = {}
    for parameter in inspect.signature(command).parameters.values():
        hint = hints[parameter.name]
        if not (isinstance(hint, type) and dataclasses.is_dataclass(hint)):
            parameters.append(parameter.replace(kind=parameter.KEYWORD_ONLY, annotation=hint))
            continue
        of_fields = get_type_hints(hint, include_extras=True)
        groups[parameter.name] = hint
        for field in dataclasses.fields(hint):
            default = parameter.empty if field.default is dataclasses.MISSING else field.default
            parameters.append(
                inspect.Parameter(field.name, parameter.KEYWORD_ONLY, default=default, annotation=of_fields[field.name])
            )

    @functools.wraps(command)
    def run(**values: Any) -> None:
        for name, group in groups.items():
            values[name] = group(**{field.name: values.pop(field.name) for field in dataclasses.fields(group)})
        command(**values)

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # what typer reads
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


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


def browse(path: Path) -> None:
    import webbrowser

    webbrowser.open(path.resolve().as_uri())
