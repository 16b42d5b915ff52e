"""Killed, interrupted, full disk, damaged files: what was finished is kept, a rerun ends the same."""

from __future__ import annotations

import csv
import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from latentfit import methods, saving
from latentfit.cli import app
from latentfit.comparison import jobs

POSIX = pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
TIMES = ("fit_seconds", "sample_ms")
ROWS = {"standard", "mixture", "learned_gaussian"}
#: one rung and rough scores, so that a run takes seconds; also in the processes that the tests start and kill
PATCH = """
from latentfit import methods
from latentfit.comparison import jobs

def few(*args, real=jobs.log_likelihood, **options):
    return real(*args, **{**options, "n_importance_samples": 20})

methods.LADDER = ("learned_gaussian",)
jobs.PROPOSAL_STEPS = jobs.REFINEMENT_STEPS = 20
jobs.log_likelihood = few
"""


def words(out: Path, backend: str = "serial") -> list[str]:
    small = "--max-steps 60 --n-seeds 1 --methods mixture --latent-dim 2 --workers 2"
    return ["compare", "rows.npy", *small.split(), "--backend", backend, "--out", out.as_posix()]


def run(out: Path, code: int = 0, backend: str = "serial") -> Any:
    """The command in this process."""
    result = CliRunner().invoke(app, words(out, backend))
    assert result.exit_code == code, result.output + repr(result.exception)
    assert "Traceback" not in result.output
    return result


def table(out: Path) -> list[dict[str, str]]:
    """The leaderboard without what a clock measured."""
    with open(out / "leaderboard.csv", encoding="utf-8", newline="") as file:
        return [{key: value for key, value in row.items() if key not in TIMES} for row in csv.DictReader(file)]


def error_of(result: Any) -> str:
    """The one line that is no note."""
    (line,) = [line for line in result.stderr.splitlines() if not line.startswith("Note: ")]
    assert line.startswith("Error: ")
    return line


def results(out: Path) -> dict[str, int]:
    return {path.parent.name: path.stat().st_mtime_ns for path in out.glob("jobs/*/result.json")}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("faults")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(120, 4)) * 0.3 + rng.integers(0, 3, (120, 1)) * np.array([1.0, -1.0, 2.0, 0.5])
    np.save(folder / "rows.npy", x)
    (folder / "sitecustomize.py").write_text(PATCH, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(methods, "LADDER", methods.LADDER)  # restored afterwards
        for name in ("PROPOSAL_STEPS", "REFINEMENT_STEPS", "log_likelihood"):
            patch.setattr(jobs, name, getattr(jobs, name))
        exec(PATCH, {})
        yield folder


@pytest.fixture(scope="module")
def whole(place: Path) -> Path:
    """A run that nothing disturbed."""
    out = place / "whole"
    run(out)
    assert {row["method"] for row in table(out)} == ROWS
    return out


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    """The same, to be damaged."""
    return Path(shutil.copytree(whole, tmp_path / "run"))


def job(out: Path, row: str) -> Path:
    """The folder of the job behind a row."""
    (path,) = out.glob(f"jobs/*/{row}.safetensors")
    return path.parent


# killed


def start(place: Path, out: Path, backend: str) -> subprocess.Popen[str]:
    found = os.pathsep.join([str(place), str(Path(saving.__file__).parents[1])])  # the patch, then this very latentfit
    environment = {**os.environ, "PYTHONPATH": found, "OMP_NUM_THREADS": "1"}
    environment.pop("LATENTFIT_DEBUG", None)
    return subprocess.Popen(
        [sys.executable, "-m", "latentfit", *words(out, backend)],
        cwd=place,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        start_new_session=True,
    )


def wait_for(condition: Any, process: subprocess.Popen[str], seconds: float = 240.0) -> None:
    end = time.monotonic() + seconds
    while not condition() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.01)


@POSIX
@pytest.mark.parametrize(
    ("backend", "times"),
    [
        pytest.param("serial", 2),
        pytest.param("serial", 10, marks=pytest.mark.slow),
        pytest.param("loky", 10, marks=pytest.mark.slow),
    ],
)
def test_killed_again_and_again(backend: str, times: int, place: Path, whole: Path, tmp_path: Path) -> None:
    out, chance, killed = tmp_path / "run", random.Random(times), 0
    for _ in range(times):
        process = start(place, out, backend)
        wait_for((out / "plan.json").exists, process)
        time.sleep(chance.uniform(0.0, 3.0) if killed else 0.0)  # once for certain before it is done
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            killed += 1
        process.communicate(timeout=60)
    assert killed  # else nothing was tested
    run(out, backend="serial")
    assert table(out) == table(whole)
    assert not list(out.rglob("*.tmp"))


@POSIX
def test_interrupted_it_says_how_to_go_on(place: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = start(place, out, "serial")
    wait_for(lambda: results(out), process)
    process.send_signal(signal.SIGINT)
    text, _ = process.communicate(timeout=120)
    assert process.returncode == 130, text
    assert "Traceback" not in text
    assert "So far, not ranked" in text
    assert f"To go on: latentfit {' '.join(words(out)[:2])}" in " ".join(text.split())
    kept = results(out)
    run(out)
    assert kept.items() <= results(out).items()
    assert table(out) == table(whole)


# damaged


def test_half_a_result_is_computed_again(copy: Path, whole: Path) -> None:
    path = job(copy, "mixture") / "result.json"
    path.write_text(path.read_text(encoding="utf-8")[:200], encoding="utf-8")
    others = {name: when for name, when in results(copy).items() if name != path.parent.name}
    run(copy)
    assert others.items() <= results(copy).items()
    assert table(copy) == table(whole)


@pytest.mark.parametrize("damage", ["truncated", "edited"])
def test_a_damaged_checkpoint_is_named_and_left_out(damage: str, copy: Path, whole: Path) -> None:
    folder = job(copy, "mixture")
    (folder / "result.json").unlink()
    shutil.rmtree(folder / "model")
    checkpoints = list(folder.glob("checkpoint-*"))
    assert checkpoints
    for path in checkpoints:
        raw = path.read_bytes()
        path.write_bytes(raw[: len(raw) // 2] if damage == "truncated" else raw[:-1] + bytes([raw[-1] ^ 1]))
    result = run(copy)
    assert "is damaged" in result.stderr
    assert table(copy) == table(whole)


@pytest.mark.parametrize("part", ["mixture.safetensors", "model/model.safetensors", "model/config.json"])
def test_a_damaged_part_of_a_finished_job_is_one_line(part: str, copy: Path) -> None:
    path = job(copy, "mixture") / part
    path.write_bytes(path.read_bytes()[:-20])
    line = error_of(run(copy, code=2))
    assert part.split("/")[-1] in line
    assert "damaged" in line


def test_an_edited_model_is_not_sampled(copy: Path, tmp_path: Path) -> None:
    path = copy / "best" / "model.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    result = CliRunner().invoke(app, ["sample", copy.as_posix(), "-o", (tmp_path / "x.npy").as_posix()])
    assert result.exit_code == 2
    assert "damaged (checksum)" in error_of(result)
    assert not (tmp_path / "x.npy").exists()


# a disk that cannot be written


def test_a_folder_that_cannot_be_made(place: Path) -> None:
    line = error_of(run(place / "rows.npy" / "run", code=2))
    assert "Cannot make the folder" in line


@pytest.mark.parametrize(
    "writes", [0, 9, pytest.param(2, marks=pytest.mark.slow), pytest.param(5, marks=pytest.mark.slow)]
)
def test_a_full_disk(writes: int, place: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, done = tmp_path / "run", []
    real = os.fsync

    def full(descriptor: int) -> None:
        if len(done) >= writes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        done.append(descriptor)
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(saving.os, "fsync", full)
        line = error_of(run(out, code=2))
    assert "No space left" in line
    kept = results(out)
    assert not [path for path in out.rglob("*") if path.is_file() and path.stat().st_size == 0]
    run(out)
    assert kept.items() <= results(out).items()
    assert table(out) == table(whole)
