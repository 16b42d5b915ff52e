"""The verb: plan, run the jobs, rank, and write down what was found."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
import os
import shutil
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from latentfit import saving
from latentfit.comparison.gather import gather
from latentfit.comparison.jobs import SPLITS, read_result, run_job, store_data
from latentfit.comparison.null_model import diagnose_folder
from latentfit.comparison.plan import (
    QUICK_ROWS,
    Job,
    Options,
    Plan,
    extend,
    fingerprint,
    folder_name,
    job_folder,
    make_plan,
    versions,
)
from latentfit.comparison.result import Comparison
from latentfit.data.prepared import PreparedData, prepare_rows
from latentfit.data.rows import as_batch
from latentfit.data.sources import Source, load
from latentfit.data.splits import Splits, split_rows
from latentfit.diagnosis.findings import Finding
from latentfit.errors import (
    InputError,
    LatentfitWarning,
    MissingExtraError,
    ReliabilityWarning,
    SavedFileError,
    TrainingError,
)
from latentfit.registry import registry

BACKENDS = ("serial", "loky", "dask", "ray")
#: which of them need a package that is not installed with the library
EXTRA_BACKENDS = ("dask", "ray")
#: what may change in a run's folder: it decides which jobs there are and how they are ranked, never what one computes
FREE = {"goal", "methods", "n_seeds"}
#: of what else was asked, whatever is known by its hash alone
NOT_SHOWN = {"data": "data", "labels": "labels", "splits": "which rows train and test, as by other groups"}


class Listener(Protocol):
    """What follows a comparison as it runs, such as the terminal. Every method may do nothing."""

    def planned(self, plan: Plan, source: Source, data: PreparedData, splits: Splits, workers: int) -> None: ...

    def job_done(self, job: Job, result: dict[str, Any], done: int, total: int, seconds: float) -> None: ...

    def stage(self, number: int, plan: Plan, findings: list[Finding] | None) -> None: ...


class Silent:
    """A listener that says nothing."""

    def planned(self, plan: Plan, source: Source, data: PreparedData, splits: Splits, workers: int) -> None:
        pass

    def job_done(self, job: Job, result: dict[str, Any], done: int, total: int, seconds: float) -> None:
        pass

    def stage(self, number: int, plan: Plan, findings: list[Finding] | None) -> None:
        pass


def compare(
    X: Any = "digits",
    *,
    out: str | Path | None = None,
    labels: Any = None,
    groups: Any = None,
    data_dir: str | Path | None = None,
    backend: str = "loky",
    workers: int | None = None,
    fresh: bool = False,
    lang: str = "en",
    show_data: bool | None = None,
    listener: Listener | None = None,
    command: str | None = None,
    **options: Any,
) -> Comparison:
    """Compare what the prior costs and what each remedy wins back, on your data.

    Every method is trained `n_seeds` times by one recipe; priors are also fitted post hoc on the N(0, I) models. All
    are scored on the same rows with the same noise, ranked by paired differences, and the smallest sufficient one is
    recommended. Finished jobs are never run twice: the same call again resumes, and with another goal, other methods
    or more seeds it runs what is new.

    Args:
        X: a data set's name (`digits`, `mnist`, `fashion-mnist`), a file, or rows (array, tensor, DataFrame, `Dataset`,
            `DataLoader`).
        out: the run's folder; `runs/<data>` by default.
        labels: (N,) classes of the rows, for the embedding's score.
        groups: (N,) rows of one group stay in one split, and errors are cluster-robust.
        backend: "serial", "loky" (processes on this machine), "dask" or "ray".
        workers: processes; the machine's cores by default.
        fresh: start over; without it a folder that holds another comparison is refused.
        show_data: whether the report may show rows; by default only for the built-in sets.
        options: `methods`, `n_seeds`, `goal`, `likelihood`, `latent_dim`, `network`, `max_steps`, ... as in `Options`.

    Returns:
        The `Comparison`: `.leaderboard`, `.best`, `.recommendation`, `.report(path)`, `.to_json()`.

    Raises:
        InputError: data or options that cannot be used; nothing is written then.
        SavedFileError: a folder that cannot be written.
        MissingExtraError: a backend whose package is not installed.

    Source: the protocol is that of the project's design: four splits, random effects over seeds and rows.
    """
    started = time.perf_counter()
    listener = listener or Silent()
    if backend not in BACKENDS:
        raise InputError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}.")
    if backend in EXTRA_BACKENDS and importlib.util.find_spec(backend) is None:
        raise MissingExtraError(f'The backend {backend!r} needs a package: pip install "latentfit[{backend}]".')
    chosen = _options(options)
    source = _source(X, data_dir, labels, groups)
    source = drawn_for_quick(source, chosen.random_state) if chosen.quick else source
    splits = split_rows(
        len(source.x),
        groups=source.groups,
        is_test=source.is_test,
        fractions=source.fractions,
        random_state=chosen.random_state,
    )
    data = prepare_rows(
        source.x,
        splits.train,
        likelihood=chosen.likelihood,
        source_name=source.name,
        columns=source.columns,
        random_state=chosen.random_state,
    )
    registry.build("likelihood", data.likelihood).check(data.x)
    if chosen.goal == "embedding" and source.labels is None:
        raise InputError(
            "goal 'embedding' ranks by the labels of held-out neighbours: give labels= (--labels FILE.npy)."
        )
    folder = Path(out) if out is not None else Path("runs") / folder_name(source.name)
    asked = _asked(chosen, source.x, source, splits)
    plan = _open(folder, asked, fresh)
    n_workers = 1 if backend == "serial" else workers or max(1, min(os.cpu_count() or 1, 8))
    if plan is None:
        plan = make_plan(chosen, data, splits, fingerprint([asked["data"], asked["splits"]]), n_workers)
        _begin(folder, asked, plan, data, splits, source)
    else:
        plan = extend(plan, chosen, data)
        _note(folder, asked, plan)
    listener.planned(plan, source, data, splits, n_workers)

    facts = {
        "source": source.name,
        "origin": source.origin,
        "n_rows": len(source.x),
        "goal": chosen.goal,
        "lang": lang,
        "show_data": source.built_in if show_data is None else show_data,
        "command": command or f"latentfit compare {source.name}",
        "description": data.description,
    }
    listener.stage(1, plan, None)
    nulls, later = _topped_up(plan.null, plan.second, n_workers)
    done = _run(nulls, folder, backend, n_workers, listener, 0, plan)
    ladders, later = _topped_up(plan.ladders, later, n_workers)
    done = _run(ladders, folder, backend, n_workers, listener, done, plan)
    findings = diagnose_folder(folder, plan)
    listener.stage(2, plan, findings)
    _run(later, folder, backend, n_workers, listener, done, plan)
    listener.stage(3, plan, findings)
    found = gather(folder, plan, {**facts, "seconds": time.perf_counter() - started})
    found = dataclasses.replace(found, folder=folder)
    found.write(folder)
    from latentfit.report.outputs import finish

    finish(found, folder, lang)
    return found


def _options(options: dict[str, Any]) -> Options:
    known = {field.name for field in dataclasses.fields(Options)}
    unknown = set(options) - known
    if unknown:
        raise InputError(f"compare takes no option {sorted(unknown)[0]!r}. It takes: {', '.join(sorted(known))}.")
    if isinstance(options.get("methods"), list):
        options = {**options, "methods": tuple(options["methods"])}
    return Options(**{key: value for key, value in options.items() if value is not None})


def _source(X: Any, data_dir: str | Path | None, labels: Any, groups: Any) -> Source:
    if isinstance(X, str | Path):
        source = load(X, None if data_dir is None else Path(data_dir))
    elif isinstance(X, Source):
        source = X
    else:
        columns = tuple(str(name) for name in X.columns) if hasattr(X, "columns") else None
        x = X if isinstance(X, np.ndarray) else as_batch(X).x.numpy()
        as_batch(x)  # refuses what cannot be used
        source = Source(name="data", x=x, columns=columns, origin="an array")
    given: dict[str, Any] = {"labels": labels, "groups": groups}
    for name, value in given.items():
        if value is not None and np.shape(value) != (len(source.x),):
            raise InputError(f"{name} must be ({len(source.x)},), one per row; got {np.shape(value)}.")
    changed: dict[str, Any] = {name: np.asarray(value) for name, value in given.items() if value is not None}
    return dataclasses.replace(source, **changed)


def drawn_for_quick(source: Source, random_state: int) -> Source:
    """At most `QUICK_ROWS` rows, drawn once with the seed; the set's own test rows keep their share."""
    n = len(source.x)
    if n <= QUICK_ROWS:
        return source
    rows = np.sort(np.random.default_rng(random_state).choice(n, QUICK_ROWS, replace=False))

    def pick(values: Any) -> Any:
        return None if values is None else np.asarray(values)[rows]

    return dataclasses.replace(
        source,
        origin=f"{source.origin}; {QUICK_ROWS:,} of them drawn",
        x=source.x[rows],
        labels=pick(source.labels),
        groups=pick(source.groups),
        is_test=pick(source.is_test),
    )


def _asked(options: Options, x: np.ndarray, source: Source, splits: Splits) -> dict[str, Any]:
    """What was asked for: a rerun that asks the same, but for `FREE`, goes on; any other is refused."""
    asked = json.loads(json.dumps(dataclasses.asdict(options)))
    asked["data"] = _content(x)
    # other labels or groups give other scores, other groups other splits, another version other numbers
    asked["labels"] = None if source.labels is None else _content(np.unique(source.labels, return_inverse=True)[1])
    asked["splits"] = fingerprint([_content(getattr(splits, name)) for name in SPLITS])
    return asked | versions()


def _content(x: np.ndarray) -> str:
    return fingerprint([list(x.shape), str(x.dtype), hashlib.sha256(np.ascontiguousarray(x).data).hexdigest()])


def _open(folder: Path, asked: dict[str, Any], fresh: bool) -> Plan | None:
    """The plan that a folder holds, if it is this comparison's, or one whose finished jobs this one can use.

    Raises:
        InputError: it holds one whose jobs are of no use here.
    """
    path = folder / "plan.json"
    if not path.exists():
        return None
    if fresh:
        shutil.rmtree(folder / "jobs", ignore_errors=True)
        return None
    held = saving.read_json(path)
    changed = [key for key in asked if held["asked"].get(key) != asked[key]]
    if set(changed) <= FREE and (folder / "data.safetensors").exists():
        return Plan.from_json(held["plan"])
    decisive = [key for key in changed if key not in FREE]
    differences = ", ".join(
        NOT_SHOWN.get(key, f"{key} {held['asked'].get(key)} -> {asked[key]}") for key in decisive or changed
    )
    raise InputError(
        f"{folder.as_posix()} holds another comparison (differs in: {differences}). Use --out "
        f"{folder.as_posix()}-2, or --fresh to start over; nothing was changed."
    )


def _begin(folder: Path, asked: dict[str, Any], plan: Plan, data: PreparedData, splits: Splits, source: Source) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SavedFileError(f"Cannot make the folder {folder.as_posix()}: {error.strerror}. Try --out.") from None
    rows = {name: getattr(splits, name) for name in SPLITS}
    marks = {"labels": source.labels, "groups": source.groups}
    store_data(folder, data, rows, marks, plan.settings)
    _note(folder, asked, plan)


def _note(folder: Path, asked: dict[str, Any], plan: Plan) -> None:
    saving.write_atomic(folder / "plan.json", json.dumps({"asked": asked, "plan": plan.to_json()}, indent=1))


def _topped_up(jobs: Sequence[Job], later: Sequence[Job], workers: int) -> tuple[list[Job], list[Job]]:
    """The jobs with as many of the later ones as keep every worker busy till the last round, and those left."""
    spare = -len(jobs) % workers
    return [*jobs, *later[:spare]], list(later[spare:])


def _run(
    jobs: Sequence[Job],
    folder: Path,
    backend: str,
    workers: int,
    listener: Listener,
    done: int,
    plan: Plan,
) -> int:
    total = len(plan.first) + len(plan.second)
    waiting = []
    for job in jobs:
        result = read_result(job_folder(folder, job))
        if result is None:
            waiting.append(job)
        else:
            done += 1
            listener.job_done(job, result, done, total, 0.0)
    for job, result, seconds, notes in _results(waiting, folder, backend, workers):
        done += 1
        for note in notes:
            warnings.warn(note, ReliabilityWarning, stacklevel=2)
        listener.job_done(job, result, done, total, seconds)
    return done


def _results(
    jobs: Sequence[Job], folder: Path, backend: str, workers: int
) -> Iterator[tuple[Job, dict[str, Any], float, list[str]]]:
    if backend == "serial" or (backend == "loky" and min(workers, len(jobs)) <= 1):
        for job in jobs:
            yield _timed(str(folder), job)
        return
    import joblib

    if backend == "ray":
        from ray.util.joblib import register_ray

        register_ray()
    with joblib.parallel_config(backend=backend, n_jobs=workers):
        tasks: Iterable[Any] = (joblib.delayed(_timed)(str(folder), job) for job in jobs)
        try:
            yield from joblib.Parallel(return_as="generator_unordered")(tasks)
        except KeyboardInterrupt:
            _stop_workers(backend)
            raise


def _timed(folder: str, job: Job) -> tuple[Job, dict[str, Any], float, list[str]]:
    """A job's result, seconds, and what it warned of: a worker process has nobody to warn."""
    start = time.perf_counter()
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always", LatentfitWarning)
        try:
            result = run_job(folder, job)
        except TrainingError as error:  # the other jobs go on
            result = {"failed": str(error)}
    # importance weights that fail are counted in the leaderboard, row by row
    notes = [str(w.message) for w in heard if "Importance sampling" not in str(w.message)]
    return job, result, time.perf_counter() - start, list(dict.fromkeys(notes))


def _stop_workers(backend: str) -> None:
    if backend == "loky":
        from joblib.externals.loky import get_reusable_executor

        get_reusable_executor().shutdown(wait=False, kill_workers=True)
