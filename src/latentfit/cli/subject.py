"""What `diagnose` and `retrofit` look at: a run or a saved model, codes in a file, or a model in the user's code."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from latentfit.cli.marks import read_marks, split_marks
from latentfit.cli.models import column_names, comparison_rows, load_model, own_columns, own_rows
from latentfit.cli.options import DataDir, DataOption, Drop, OwnDevice, TrainData, existing_file, names_in, one_of
from latentfit.cli.own_code import imported, module_of
from latentfit.cli.program import note, note_of_rows, typed_words
from latentfit.errors import InputError

SPREADS = ("std", "var", "logvar")
RECONSTRUCTIONS = ("nll", "sum", "mse_sum", "mse_mean", "bce_sum", "bce_mean")
#: the largest 8-bit integer that is still a count, as digits' are, rather than a grey value
LARGEST_COUNT = 16


@dataclass(frozen=True)
class Asked:
    """The options that say which model, and on which rows."""

    run: Annotated[
        Path | None, typer.Argument(help="the folder of a comparison or of a saved model", show_default=False)
    ] = None
    latents: Annotated[
        Path | None,
        typer.Option(
            help="FILE.npz: mean and one of std, var, logvar; train_mean and its spread, groups. FILE.h5ad: scvi's",
            callback=existing_file,
        ),
    ] = None
    mean_key: Annotated[str | None, typer.Option(help="of obsm, for --latents FILE.h5ad")] = None
    var_key: Annotated[str | None, typer.Option(help="of obsm, for --latents FILE.h5ad")] = None
    model: Annotated[str | None, typer.Option(help="FILE.py:NAME, a trained VAE of your own; FILE.py is run")] = None
    data: DataOption = None
    drop: Drop = None
    train_data: TrainData = None
    likelihood: Annotated[str | None, typer.Option(help="of --model; without it log p(x) is not measured")] = None
    kl_weight: Annotated[float | None, typer.Option(help="that --model was trained with")] = None
    reconstruction: Annotated[
        str | None,
        typer.Option(help=f"loss of --model: {', '.join(RECONSTRUCTIONS)}", callback=one_of(*RECONSTRUCTIONS)),
    ] = None
    spread: Annotated[
        str | None,
        typer.Option(help="what --model's encoder gives: std, var, logvar", callback=one_of("auto", *SPREADS)),
    ] = None
    output_kind: Annotated[
        str | None,
        typer.Option(
            help="what --model's decoder gives: mean, probs, logits", callback=one_of("auto", "mean", "probs", "logits")
        ),
    ] = None
    scale: Annotated[str | None, typer.Option(help="sigma of --model's normal likelihood: a number or auto")] = None
    device: OwnDevice = None
    data_dir: DataDir = None

    def adaptation(self) -> dict[str, Any]:
        """What was said about a model of the user's own: options of `adapt`, by their names there."""
        said = {
            "likelihood": self.likelihood,
            "kl_weight": self.kl_weight,
            "reconstruction": self.reconstruction,
            "spread": self.spread,
            "output": self.output_kind,
            "scale": _scale(self.scale),
        }
        return {key: value for key, value in said.items() if value is not None}

    def retrofit_command(self, groups: str | None) -> str:
        """The command that fits a prior to the same model by the same rows."""
        words = [] if self.run is None else [self.run.as_posix()]
        said: dict[str, Any] = {"model": self.model, "data": self.data, "drop": self.drop, "groups": groups}
        said |= {"train_data": self.train_data, "data_dir": self.data_dir, "device": self.device}
        for key, value in (said | self.adaptation()).items():
            words += [] if value is None else [_typed(key), str(value)]
        return shlex.join(["latentfit", "retrofit", *words])

    def codes(self) -> Path | None:
        """The file of codes, also where it was given in RUN's place."""
        as_run = self.run is not None and self.run.is_file() and self.run.suffix in (".npz", ".h5ad")
        return self.run if as_run else self.latents

    def check(self, command: str) -> None:
        """Whatever can be refused before anything is imported."""
        given = [name for name in ("run", "latents", "model") if getattr(self, name) is not None]
        if len(given) != 1:
            got = " and ".join("RUN" if word == "run" else f"--{word}" for word in given) or "none"
            raise InputError(f"{command} needs one of RUN, --latents FILE.npz, --model FILE.py:NAME; got {got}.")
        codes = self.codes()
        if codes is None:
            if self.run is not None and not self.run.is_dir():
                hint = f" A model of your own: --model {self.run.as_posix()}:NAME." if self.run.suffix == ".py" else ""
                raise InputError(
                    f"{self.run.as_posix()} is not a folder; expected that of a comparison or of a saved model.{hint}"
                )
        elif codes.suffix not in (".npz", ".h5ad"):
            raise InputError(f"--latents {codes.as_posix()} must be .npz or .h5ad; write it with numpy.savez.")
        if (self.mean_key or self.var_key) and (codes is None or codes.suffix != ".h5ad"):
            raise InputError("--mean-key and --var-key are keys of obsm: they go with --latents FILE.h5ad.")
        if (self.mean_key is None) != (self.var_key is None):
            raise InputError("--mean-key and --var-key go together: give both, or neither.")
        said = self.adaptation()
        if said and self.model is None:
            names = ", ".join(map(_typed, said))
            raise InputError(f"{names}: for --model only; other models say themselves how they were built.")
        if self.kl_weight is not None and not (math.isfinite(self.kl_weight) and self.kl_weight >= 0):
            raise InputError(f"--kl-weight must be at least 0 and finite, got {self.kl_weight:g}.")
        if codes is not None and (self.data or self.train_data or self.device):
            raise InputError("--latents holds all that is needed: leave out --data, --train-data and --device.")
        if self.model is not None:
            module_of(self.model)
            if self.data is None:
                raise InputError(
                    "--model needs --data DATA: rows that it was not trained on, as its training saw them."
                )
        if self.train_data is not None and self.data is None:
            raise InputError("--train-data goes with --data: the rows that the model was not trained on.")


@dataclass(frozen=True)
class Subject:
    """A model, rows to judge it by, rows it was trained on, and what is known of the former.

    Attributes:
        built_in: whether the rows are public, so that a report may show them.
        columns: what a table's columns are called, where the model itself does not know.
        data_shape: of what the rows stand for, where they are codes with their spread.
    """

    model: Any
    test: Any
    train: Any = None
    labels: Any = None
    groups: Any = None
    built_in: bool = False
    columns: Sequence[str | int] = ()
    data_shape: tuple[int, ...] | None = None

    def named(self, result: Any) -> Any:
        """A diagnosis or a retrofit of this model with the names of its columns, or the shape of its codes."""
        known: dict[str, Any] = {"columns": self.columns} if self.columns else {}
        if self.data_shape is not None:
            known["data_shape"] = self.data_shape
        return replace(result, setting=replace(result.setting, **known)) if known else result


def _typed(name: str) -> str:
    """The option for an argument of `adapt`, or for a field of `Asked`."""
    return "--output-kind" if name == "output" else f"--{name.replace('_', '-')}"


def subject(asked: Asked, labels: str | None = None, groups: str | None = None, lang: str = "en") -> Subject:
    """Load the model and its rows; what was understood of a foreign one is said in `lang`."""
    (label_file, label_column), (group_file, group_column) = split_marks(labels), split_marks(groups)

    def marks(n_rows: int | None, of_source: Any, of_groups: Any) -> tuple[Any, Any]:
        return (
            of_source if label_file is None else read_marks("--labels", label_file, n_rows),
            of_groups if group_file is None else read_marks("--groups", group_file, n_rows),
        )

    model, folder = (None, None) if asked.run is None else load_model(asked.run, asked.device)
    if asked.data is None:
        assert folder is not None  # `Asked.check`: a model of the user's own has --data
        rows = own_rows(model, folder)
        for name, column in (("--labels", label_column), ("--groups", group_column)):
            if column is not None:
                raise InputError(f"{name} {column}: a run keeps its own; give a file with one for each of its rows.")
        label, group = marks(rows.n_rows, rows.labels, rows.groups)
        label, group = _picked(label, rows.picked), _picked(group, rows.picked)
        return Subject(model, rows.test, rows.train, label, group, columns=rows.columns)
    if asked.model is not None and ":" in asked.data and not Path(asked.data).exists():
        test = imported(asked.data, "--data")
        train = None if asked.train_data is None else imported(asked.train_data, "--train-data")
        label, group = marks(len(test) if hasattr(test, "shape") else None, None, None)
        return Subject(_foreign(asked, test, lang), test, train, label, group)

    from latentfit.data.sources import load

    known: dict[str, Any] = {"labels_key": label_column, "groups_key": group_column, "drop": names_in(asked.drop)}
    if folder is not None:
        known["columns"] = column_names(model, folder)
    source = load(asked.data, asked.data_dir, **known)
    label, group = marks(len(source), source.labels, source.groups)
    more = None
    if asked.train_data is not None:
        more = load(asked.train_data, asked.data_dir, **known)
    if asked.model is None:
        assert folder is not None
        if hasattr(model, "module_"):
            return Subject(model, source.x, None if more is None else more.x, label, group, source.built_in)
        _, test, train, own = comparison_rows(model, folder, source, held_out=True)
        if own:
            picked = own_rows(model, folder).picked
            label, group = _picked(label, picked), _picked(group, picked)
        if more is not None:
            train = comparison_rows(model, folder, more)[1]
        return Subject(model, test, train, label, group, source.built_in, own_columns(folder))
    x, train = as_tensors(source.x), None if more is None else as_tensors(more.x)
    if more is None and source.is_test is not None:
        note_of_rows(f"{source.name}: judged on its {source.n_test:,} test rows; priors are fitted on the others.")
        label, group = _picked(label, source.is_test), _picked(group, source.is_test)
        x, train = x[source.is_test], x[~source.is_test]
    return Subject(_foreign(asked, x, lang), x, train, label, group, source.built_in, source.columns or ())


def as_tensors(x: Any) -> Any:
    """Rows as torch's own pictures are: 8-bit images as float32 (N, C, H, W) in [0, 1]; all else as it is."""
    import numpy as np

    if x.dtype != np.uint8 or x.ndim < 3 or x.max() <= LARGEST_COUNT:
        return x.astype(np.float32)
    if x.ndim == 3:
        x = x[:, None]
    elif x.shape[-1] in (1, 3, 4) and x.shape[1] not in (1, 3, 4):
        x = np.moveaxis(x, -1, 1)
    note_of_rows(f"Images as float32 {tuple(x.shape[1:])} in [0, 1], as torchvision's ToTensor gives them.")
    return np.ascontiguousarray(x, dtype=np.float32) / 255


def codes_subject(arrays: dict[str, Any]) -> Subject:
    """Codes as a model of their own: a row is (mean, spread), and encoding takes it apart."""
    import numpy as np

    from latentfit.adapters import adapt
    from latentfit.evaluation.codes import Codes

    spreads = {name: arrays[name] for name in SPREADS if name in arrays}
    (kind,) = spreads
    Codes.of(arrays["mean"], **spreads, what="--latents")

    def rows(mean: Any, spread: Any) -> np.ndarray:
        return np.concatenate([mean, spread], axis=1, dtype=np.float32)  # (N, 2 D), or (N, 2 C, H, W)

    x = rows(arrays["mean"], arrays[kind])
    train = rows(*arrays["train"]) if "train" in arrays else None
    model = adapt(encode=lambda row: row.chunk(2, dim=1), example=x, spread=kind)
    model.model_name = "codes"
    return Subject(model, x, train, groups=arrays.get("groups"), data_shape=tuple(arrays["mean"].shape[1:]))


def _foreign(asked: Asked, example: Any, lang: str) -> Any:
    """The user's model, adapted where it is not one of Latentfit's own; what was understood is said."""
    assert asked.model is not None
    found = imported(asked.model, "--model")
    if isinstance(found, type) or (callable(found) and type(found).__name__ == "function"):
        what = "a class" if isinstance(found, type) else "a function"
        _, name = module_of(asked.model)
        raise InputError(
            f"--model {asked.model} is {what}; expected a trained model: an instance with its weights loaded, such as "
            f"my_{name} = {name}(...)."
        )
    from latentfit.adapters import AdaptedVAE, adapt
    from latentfit.model import VAEModule

    if hasattr(found, "module_") or isinstance(found, VAEModule):
        if asked.adaptation():
            raise InputError(f"--model {asked.model} is Latentfit's own and says itself how it was built.")
        return found
    model = adapt(found, example=example, device=_torch_device(asked.device), **asked.adaptation())
    if isinstance(model, AdaptedVAE):
        for line in model.summary(lang).splitlines():
            note(typed_words(line))
    return model


def _torch_device(name: str | None) -> Any:
    from latentfit.training import Recipe

    return None if name is None else Recipe(device=name).torch_device()


def _picked(values: Any, rows: Any) -> Any:
    return None if values is None else values[rows]


def _scale(value: str | None) -> float | str | None:
    if value is None or value == "auto":
        return value
    try:
        number = float(value)
    except ValueError:
        raise InputError(f"--scale must be a number or auto, got {value!r}.") from None
    if not (math.isfinite(number) and number > 0):
        raise InputError(f"--scale must be above 0 and finite, got {value}.")
    return number
