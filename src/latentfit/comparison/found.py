"""The finished jobs of a comparison, read once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from latentfit.comparison.jobs import load_data, load_model, load_prior, mark_names, read_arrays, read_result, some
from latentfit.comparison.plan import Job, Plan, job_folder
from latentfit.errors import TrainingError
from latentfit.evaluation.codes import Codes, encode_rows
from latentfit.model import VAEModule


class Found:
    """The finished jobs of a plan, read once."""

    def __init__(self, folder: Path, plan: Plan) -> None:
        self.folder, self.plan = folder, plan
        self.jobs: dict[str, list[Job]] = {}
        self.facts: dict[str, list[dict[str, Any]]] = {}
        self.arrays: dict[str, list[dict[str, np.ndarray]]] = {}
        for job in plan.first + plan.second:
            result = read_result(job_folder(folder, job))
            for key, facts in (result or {}).items():
                self.jobs.setdefault(key, []).append(job)
                self.facts.setdefault(key, []).append(facts)
                self.arrays.setdefault(key, []).append(read_arrays(job_folder(folder, job), key))
        # a row whose training failed for some seed has no fair mean
        self.keys = [key for key, facts in self.facts.items() if len(facts) == plan.n_seeds]
        self.rungs = [key for key in self.keys if key.endswith("@standard")]
        if "standard" not in self.keys or not self.rungs:
            raise TrainingError("The N(0, I) model could not be trained, so there is nothing to compare with.")
        self.data, self.rows, marks = load_data(str(folder))
        self.labels, self.groups = marks.get("labels"), marks.get("groups")
        self.label_names = mark_names(str(folder), "labels")

    def mean(self, key: str, fact: str) -> float:
        """Mean over seeds of a number."""
        return float(np.mean([facts[fact] for facts in self.facts[key]]))

    def log_px(self, key: str, split: str) -> np.ndarray:
        """(S, R) log p(x) of a row on a split."""
        return np.stack([arrays[f"{split}_log_px"] for arrays in self.arrays[key]])

    def model(self, key: str, seed: int = 0) -> VAEModule:
        """The VAE of a row; a post hoc row's is the N(0, I) model with the fitted prior in place."""
        job = self.jobs[key][seed]
        if job.kind == "joint":
            return load_model(self.folder, job)
        vae = load_model(self.folder, self.jobs["standard"][seed])
        vae.prior = load_prior(self.folder, job, key.split("@")[0])
        return vae

    @property
    def best_rung(self) -> str:
        """The post hoc row with the largest prior gap."""
        return max(self.rungs, key=lambda key: self.mean(key, "prior_gap"))

    def codes(self, vae: VAEModule, split: str, n: int | None = None) -> Codes:
        """q(z given x) of a split's rows, at most n of them."""
        rows = self.rows[split] if n is None else some(self.rows[split], n, self.seed)
        groups = None if self.groups is None else self.groups[rows].numpy()
        return encode_rows(vae, self.data.scoring_batch(rows), groups=groups)

    def groups_of(self, split: str) -> np.ndarray | None:
        """The groups of a split's rows, or None."""
        return None if self.groups is None else self.groups[self.rows[split]].numpy()

    @property
    def seed(self) -> int:
        """The plan's random state."""
        return self.plan.settings["random_state"]
