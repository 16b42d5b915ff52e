"""What a comparison will do, decided before anything long starts: the settings, the jobs, their cost."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from latentfit import methods
from latentfit.data.batch import Batch
from latentfit.data.prepared import PreparedData
from latentfit.data.splits import Splits
from latentfit.errors import InputError
from latentfit.evaluation.two_phase import N_ROWS
from latentfit.model import RECIPE
from latentfit.training import Recipe
from latentfit.training.precision import autocast
from latentfit.training.rng import isolated_rng
from latentfit.training.updates import make_optimiser

Goal = Literal["likelihood", "samples", "embedding"]
GOALS = ("likelihood", "samples", "embedding")

#: rows scored at most on the selection and on the test split, and with `--quick`; more sharpen little and cost much
MAX_SCORED, QUICK_SCORED = 2_000, 500
#: raised when a change of the evaluation changes scores, so that old and new ones are never ranked together
SCORING = 4
#: rows on which proposals are fitted
MAX_PROPOSAL = 5_000
#: for expected times: passes of one row through one network, for each row of a step (two networks, forward and two
#: backward) and for a scored row (50 refinement steps of 8 draws, forward and backward, and 300 draws)
STEP_PASSES, SCORED_PASSES = 6, 1_100
#: the same for a row that is annealed because importance weights fail (20 chains, 50 temperatures, 3 leapfrog steps,
#: forward and backward, after 100 refinement steps). Whether they will is not known before: after the short trainings
#: of a comparison they fail on images of 784 pixels and hold on those of 64
ANNEALED_PASSES, MANY_ENTRIES = 7_600, 256
#: seconds of fitting a prior with networks to frozen codes: `FIT_ROWS` rows a second, to within a factor of two, and no
#: longer for more rows than that; other fits are short beside the scoring
FIT_ROWS, LONGEST_FIT = 300, 30.0
#: planning, start of the workers, ranking and report
FIXED_SECONDS = 10.0
#: units of z at most
MOST_LATENTS = 512
#: what `--quick` reads of a data set
QUICK_ROWS = 10_000


@dataclass(frozen=True)
class Options:
    """What the user may choose; None is chosen from the data and written into the plan.

    Attributes:
        methods: "auto", "all", or names.
        n_seeds: independent trainings of every method.
        goal: what the recommendation ranks by.
        latent_dim, network, network_args, max_steps, batch_size, learning_rate: the model and its training.
        likelihood: a name or `{"name", "args"}`.
        n_importance_samples: draws per row for log p(x).
        max_minutes: turned into steps once, here.
        quick: at most `QUICK_ROWS` rows, of which `QUICK_SCORED` are scored in each split, and a third of the steps.
        random_state: seeds splits, stored binarisation, training and scoring.
        device, precision: where and how training runs.
    """

    methods: str | tuple[str, ...] = "auto"
    n_seeds: int = 3
    goal: Goal = "likelihood"
    likelihood: str | Mapping[str, Any] | None = None
    latent_dim: int | None = None
    network: str | None = None
    network_args: Mapping[str, Any] | None = None
    max_steps: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    n_importance_samples: int = 300
    max_minutes: float | None = None
    quick: bool = False
    random_state: int = 0
    device: str = "cpu"
    precision: str = "fp32"

    def __post_init__(self) -> None:
        if self.goal not in GOALS:
            raise InputError(f"goal must be one of {', '.join(GOALS)}, got {self.goal!r}.")
        for name in ("n_seeds", "n_importance_samples", "latent_dim", "max_steps", "batch_size"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise InputError(f"{name} must be a whole number of at least 1, got {value!r}.")
        if self.max_minutes is not None and not self.max_minutes > 0:
            raise InputError(f"max_minutes must be positive, got {self.max_minutes!r}.")
        parsed(self)


@dataclass(frozen=True)
class Job:
    """A pure function's argument: what to compute, on which data, with what settings; its hash names its folder."""

    kind: Literal["joint", "ladder"]
    method: str
    seed: int
    settings: Mapping[str, Any]

    @property
    def key(self) -> str:
        """Twelve hexadecimal digits of the specification's hash."""
        return fingerprint({"kind": self.kind, "method": self.method, "seed": self.seed, **self.settings})

    @property
    def label(self) -> str:
        """For progress lines."""
        return f"{self.method}, seed {self.seed + 1}"


@dataclass(frozen=True)
class Plan:
    """The jobs of a comparison and everything that determines them."""

    settings: dict[str, Any]
    methods: list[str]
    rungs: list[str]
    n_seeds: int
    #: measured seconds per step of each jointly trained method, one thread
    step_seconds: dict[str, float]
    #: rows on which every model is scored, of which are expected to be annealed, and on which it is trained
    n_scored: int = 0
    n_annealed: int = 0
    n_train: int = 0

    @property
    def null(self) -> list[Job]:
        """The N(0, I) models, on which everything else stands."""
        return [Job("joint", "standard", seed, self.settings) for seed in range(self.n_seeds)]

    @property
    def ladders(self) -> list[Job]:
        """The post hoc fits on each N(0, I) model; rungs beyond the usual ones are part of their specification."""
        asked = [name for name in self.rungs if name not in methods.LADDER]
        settings = {**self.settings, "rungs": asked} if asked else self.settings
        return [Job("ladder", "ladder", seed, settings) for seed in range(self.n_seeds)]

    @property
    def first(self) -> list[Job]:
        """What the diagnosis of the N(0, I) model needs."""
        return self.null + self.ladders

    @property
    def second(self) -> list[Job]:
        """The other methods, trained jointly; the longest first, so that workers end together."""
        return [
            Job("joint", name, seed, self.settings)
            for name in sorted(self.methods, key=lambda name: -self.step_seconds.get(name, 0.0))
            if name != "standard"
            for seed in range(self.n_seeds)
        ]

    @property
    def max_steps(self) -> int:
        """Steps of each training."""
        return self.settings["recipe"]["max_steps"]

    def seconds(self, workers: int) -> float:
        """Expected duration with this many workers (rough: within a factor of two; early stopping makes it less)."""
        return self._together(workers, self.max_steps) + FIXED_SECONDS

    def job_seconds(self, job: Job) -> float:
        """Expected seconds of a job."""
        return self._job_seconds(job, self.max_steps)

    def steps_within(self, seconds: float, workers: int) -> int:
        """How many steps of each training fit, after the scoring; at least 100, at most what is planned now."""
        steps = range(100, self.max_steps + 1)
        fitting = bisect_right(steps, seconds - FIXED_SECONDS, key=lambda n: self._together(workers, n))
        return 100 + max(0, fitting - 1)

    def _together(self, workers: int, max_steps: int) -> float:
        """All jobs shared out evenly; or a ladder after its N(0, I) model, or the longest job, where that is more."""
        null, ladder, *second = (
            self._job_seconds(job, max_steps) for job in (self.null[0], self.ladders[0], *self.second)
        )
        total = self.n_seeds * (null + ladder) + sum(second)
        return max(total / workers, null + ladder, *second)

    def _job_seconds(self, job: Job, max_steps: int) -> float:
        passes = self.n_scored * SCORED_PASSES + self.n_annealed * ANNEALED_PASSES
        scoring = passes / (STEP_PASSES * self.settings["recipe"]["batch_size"])
        if job.kind == "joint":
            drawn = methods.get(job.method).n_draws * scoring
            return self.step_seconds.get(job.method, 0.0) * (max_steps + drawn)
        standard = self.step_seconds.get("standard", 0.0)
        networks = sum(methods.get(rung).family in ("flow", "second_model") for rung in self.rungs)
        fits = networks * min(self.n_train / FIT_ROWS, LONGEST_FIT)
        return fits + sum(self.step_seconds.get(rung, standard) for rung in self.rungs) * scoring

    def to_json(self) -> dict[str, Any]:
        """What `plan.json` holds; two runs with the same one are the same comparison."""
        return {
            "settings": self.settings,
            "methods": self.methods,
            "rungs": self.rungs,
            "n_seeds": self.n_seeds,
            "step_seconds": self.step_seconds,
            "n_scored": self.n_scored,
            "n_annealed": self.n_annealed,
            "n_train": self.n_train,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Plan:
        """The inverse of `to_json`; what earlier versions did not write has its default."""
        return cls(**{field.name: data[field.name] for field in dataclasses.fields(cls) if field.name in data})


def versions() -> dict[str, Any]:
    """What changes numbers beside the settings: the libraries, and the way rows are scored."""
    from latentfit import __version__

    return {"latentfit": __version__, "torch": torch.__version__, "scoring": SCORING}


def fingerprint(value: Any) -> str:
    """Twelve hexadecimal digits of the SHA-256 of a JSON value."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def make_plan(options: Options, data: PreparedData, splits: Splits, data_fingerprint: str, workers: int = 1) -> Plan:
    """Choose what was left open, measure what a step costs, and list the jobs."""
    chosen = parsed(options)
    data_shape = tuple(data.x.shape[1:])
    numel = int(np.prod(data_shape))
    network = options.network or methods.default_network(numel)
    latent_dim = options.latent_dim or methods.default_latent_dim(numel)
    if latent_dim > MOST_LATENTS:
        raise InputError(
            f"latent_dim is {latent_dim:,}: a comparison fits mixtures with the codes' covariances, of as many numbers "
            f"squared, to at most {MOST_LATENTS} units. Choose fewer, or train one method with `latentfit train`."
        )
    methods.check_latent_dim(latent_dim, numel)
    batch_size = options.batch_size or RECIPE.batch_size
    recipe = {
        **dataclasses.asdict(RECIPE),
        "batch_size": batch_size,
        "learning_rate": options.learning_rate or RECIPE.learning_rate,
        "device": options.device,
        "precision": options.precision,
        "max_steps": options.max_steps or methods.default_steps(len(splits.train), batch_size, options.quick),
    }
    Recipe(**recipe).torch_device()  # a bad value is refused here, before anything is written, not in a worker
    settings: dict[str, Any] = {
        "data": data_fingerprint,
        "random_state": options.random_state,
        "likelihood": data.likelihood,
        "model": {
            "data_shape": list(data_shape),
            "latent_dim": latent_dim,
            "network": network,
            "network_args": dict(options.network_args or {}),
        },
        "recipe": recipe,
        "n_importance_samples": options.n_importance_samples,
        "max_scored": QUICK_SCORED if options.quick else MAX_SCORED,
        "threads": 1,
        **versions(),
    }
    scored = [min(settings["max_scored"], len(rows)) for rows in (splits.selection, splits.test)]
    annealed = sum(min(N_ROWS, n) for n in scored) if numel > MANY_ENTRIES else 0
    sizes = {"n_scored": sum(scored), "n_annealed": annealed, "n_train": len(splits.train)}
    plan = Plan(settings, trained(chosen), rungs(chosen), options.n_seeds, {}, **sizes)
    plan = dataclasses.replace(plan, step_seconds=measure_steps(plan, data))
    if options.max_minutes is not None and options.max_steps is None:
        # minutes become steps once: the plan, not the clock, decides what a rerun computes
        recipe["max_steps"] = plan.steps_within(60 * options.max_minutes, workers)
    return plan


def extend(plan: Plan, options: Options, data: PreparedData) -> Plan:
    """The same settings, hence the same jobs, for the methods and seeds asked for now; new methods are measured.

    Steps stay as they were planned, also where `max_minutes` chose them: other steps would be other jobs.
    """
    chosen = parsed(options)
    names = trained(chosen)
    new = dataclasses.replace(plan, methods=[name for name in names if name not in plan.step_seconds])
    known = plan.step_seconds | measure_steps(new, data)
    return dataclasses.replace(plan, methods=names, rungs=rungs(chosen), n_seeds=options.n_seeds, step_seconds=known)


def trained(chosen: list[methods.Method]) -> list[str]:
    """The methods to train with the VAE."""
    return [method.name for method in chosen if method.joint]


def rungs(chosen: list[methods.Method]) -> list[str]:
    """What is fitted on the frozen N(0, I) models: the usual ladder, and whatever else was asked for."""
    asked = [method.name for method in chosen if method.post_hoc and method.name not in methods.LADDER]
    return [*methods.LADDER, *asked]


def parsed(options: Options) -> list[methods.Method]:
    """The methods that were asked for."""
    return methods.parse(options.methods if isinstance(options.methods, str) else list(options.methods))


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch on one thread, as every job runs."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@one_thread()
def measure_steps(plan: Plan, data: PreparedData, n_steps: int = 8) -> dict[str, float]:
    """Seconds a training step takes on this machine, for each method: of a few the faster quarter's, one thread."""
    recipe = Recipe(**plan.settings["recipe"])
    device = recipe.torch_device()
    precision = autocast(recipe.precision, device)
    batch_size = min(recipe.batch_size, len(data.x))
    batch = Batch(data.x[:batch_size].to(torch.float32), index=torch.arange(batch_size)).to(device)
    seconds = {}
    for name in plan.methods:
        with isolated_rng(0):
            method = methods.get(name)
            vae = build_vae(plan.settings, name, data).to(device)
            objective = method.objective(plan.max_steps)
            objective.n_train = len(data.x)
            vae.prior.bind(vae, Batch(data.x.to(torch.float32)))
            parameters = list(vae.parameters())
            optimiser = make_optimiser(parameters, None, Recipe(learning_rate=1e-4))
            times = []
            for step in range(n_steps + 1):
                start = time.perf_counter()
                for p in parameters:
                    p.grad = None
                with precision:
                    loss = objective(vae, batch, step)["loss"]
                loss.backward()
                optimiser.step()
                loss.item()  # a GPU has then done its part
                times.append(time.perf_counter() - start)
        seconds[name] = float(np.quantile(times[1:], 0.25))  # what else the machine does comes and goes
    return seconds


def build_vae(settings: Mapping[str, Any], method: str, data: PreparedData) -> Any:
    """The untrained VAE of a job."""
    model = settings["model"]
    return methods.build(
        method,
        data_shape=tuple(model["data_shape"]),
        latent_dim=model["latent_dim"],
        likelihood=settings["likelihood"],
        network=model["network"],
        network_args=model["network_args"],
        preprocess=data.preprocess,
        encoder_input=data.encoder_input,
    )


def folder_name(data: str) -> str:
    """A short, safe name for the run's folder: the data set's name or the file's stem."""
    stem = Path(data).name
    for suffix in (".gz", Path(stem.removesuffix(".gz")).suffix):
        stem = stem.removesuffix(suffix) if suffix else stem
    safe = "".join(c if c.isalnum() or c in "-_" else "-" for c in stem)
    return safe[:40] or "data"


def job_folder(run_dir: Path, job: Job) -> Path:
    """Where a job keeps its checkpoints and its result; short, for Windows' path limit."""
    return run_dir / "jobs" / job.key
