"""The command line: what each command prints and writes, on a terminal and off it."""

from __future__ import annotations

import csv
import functools
import io
import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

import latentfit
from latentfit import methods
from latentfit.cli import app
from latentfit.cli.models import in_own_units
from latentfit.cli.program import _prepare_streams
from latentfit.comparison import jobs
from latentfit.comparison.result import Comparison
from latentfit.report.terminal import duration, shorter
from latentfit.report.text import aligned, as_text, findings_text


def invoke(*words: object, code: int = 0) -> Any:
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == code, result.output + repr(result.exception)
    return result


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three clusters of 150 rows, and the finished comparison of them in runs/rows."""
    folder = tmp_path_factory.mktemp("cli")
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 150)
    x = rng.normal(size=(150, 4)) * 0.3 + labels[:, None] * np.array([1.0, -1.0, 2.0, 0.5])
    np.save(folder / "rows.npy", x)
    np.save(folder / "labels.npy", labels)
    np.save(folder / "groups.npy", np.arange(150) // 5)
    (folder / "options.toml").write_text('n-seeds = 1\nmax_steps = 40\nmethods = ["mixture"]\nbackend = "loky"\n')
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(methods, "LADDER", ("learned_gaussian",))
        patch.setattr(jobs, "fit_proposal", functools.partial(jobs.fit_proposal, max_steps=20))
        options = (
            "--config",
            "options.toml",
            "--backend",
            "serial",
            "--labels",
            "labels.npy",
            "--groups",
            "groups.npy",
            "--latent-dim",
            2,
        )
        first = invoke("compare", "rows.npy", *options)
        (folder / "first.txt").write_text(first.stdout, encoding="utf-8")
        again = invoke("compare", "rows.npy", *options, "--json")
        (folder / "again.json").write_text(again.stdout, encoding="utf-8")
        (folder / "again.txt").write_text(again.stderr, encoding="utf-8")
    return folder


def test_compare_prints_the_plan_the_jobs_the_table_and_the_verdict(place: Path) -> None:
    lines = (place / "first.txt").read_text(encoding="utf-8").splitlines()
    text = "\n".join(lines)
    assert max(map(len, lines)) <= 80
    for part in (
        f"latentfit {latentfit.__version__}   cpu",
        "Data        rows.npy, 150 rows of 4 columns",
        "Split       90 train, 15 validation, 15 selection, 30 test (seed 0)",
        "            30 groups; errors are theirs, not those of rows",
        "Likelihood  normal",
        "Plan        2 methods, 1 seed = 2 trainings of 40 steps, about ",
        "1 of 3  The VAE with N(0, I)",
        "1/3  standard, seed 1: ",
        "3 of 3  Scoring all on the same 15 selection rows, same noise",
        " < recommended",
        "Report      runs/rows/report.html",
        'latentfit.load("runs/rows/best").sample(100)',
    ):
        assert part in text
    assert text.index("Plan") < text.index("1/3") < text.index("< recommended") < text.index("Report")
    assert "\x1b" not in text  # no terminal: no colours, no bar


def test_the_folder_holds_the_table_the_report_and_the_model(place: Path) -> None:
    run = place / "runs" / "rows"
    with open(run / "leaderboard.csv", encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file))
    assert {row["method"] for row in table} == {"standard", "mixture", "learned_gaussian"}
    assert sum(row["recommended"] == "True" for row in table) == 1
    assert "<html" in (run / "report.html").read_text(encoding="utf-8")[:500]
    assert (run / "report.png").read_bytes()[:4] == b"\x89PNG"
    assert latentfit.load(run / "best").sample(5).shape == (5, 4)


def test_a_second_run_does_nothing_twice_and_json_is_alone_on_stdout(place: Path) -> None:
    told = (place / "again.txt").read_text(encoding="utf-8")
    assert told.count("already there") == 3
    result = json.loads((place / "again.json").read_text(encoding="utf-8"))
    assert {row["key"] for row in result["rows"]} == {
        "standard",
        "mixture",
        "learned_gaussian@standard",
        "mixture@standard",
    }
    assert result["setting"]["max_steps"] == 40


def test_a_quick_run_is_evaluated_on_its_own_test_rows_of_the_whole_set(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows it read were drawn from the file; the others of the file may be those it was trained on."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(methods, "LADDER", ("learned_gaussian",))
    monkeypatch.setattr("latentfit.comparison.run.QUICK_ROWS", 100)
    options = ("--n-seeds", 1, "--max-steps", 30, "--methods", "standard", "--backend", "serial", "--latent-dim", 2)
    invoke("compare", place / "rows.npy", "--quick", *options, "--out", "run")
    told = json.loads(invoke("evaluate", "run", place / "rows.npy", "--n-importance-samples", 20, "--json").stdout)
    assert told["n_rows"] == 20
    invoke("encode", "run", place / "rows.npy", "-o", "codes.npy")
    assert len(np.load("codes.npy")) == 150  # to encode is to score nothing


def test_sample_encode_evaluate_and_diagnose(place: Path, tmp_path: Path) -> None:
    run, rows = place / "runs" / "rows", place / "rows.npy"
    for name in ("s.npy", "s.npz", "s.csv"):
        invoke("sample", run, "-n", 7, "-o", tmp_path / name)
    drawn = np.load(tmp_path / "s.npy")
    assert drawn.shape == (7, 4)
    np.testing.assert_array_equal(drawn, np.load(tmp_path / "s.npz")["x"])
    np.testing.assert_allclose(drawn, np.loadtxt(tmp_path / "s.csv", delimiter=",", skiprows=1), rtol=1e-6)
    invoke("sample", run, "-n", 7, "--seed", 1, "-o", tmp_path / "t.npy")
    assert not np.array_equal(drawn, np.load(tmp_path / "t.npy"))

    invoke("encode", run, rows, "-o", tmp_path / "codes.npz")
    with np.load(tmp_path / "codes.npz") as codes:
        assert codes["mean"].shape == codes["std"].shape == (150, 2)
        assert (codes["std"] > 0).all()

    own = json.loads(invoke("evaluate", run, rows, "--n-importance-samples", 50, "--json").stdout)
    assert own["n_rows"] == 30  # the run's own data: only its test rows
    assert own["log_px"]["value"] >= own["elbo"]["value"] - 0.1
    np.save(tmp_path / "other.npy", np.load(rows)[:60] + 0.01)
    other = invoke("evaluate", run, tmp_path / "other.npy", "--n-importance-samples", 50).stdout
    assert other.startswith("60 rows; nats per row; k = 50")

    dx = json.loads(invoke("diagnose", "--latents", tmp_path / "codes.npz", "--depth", "quick", "--json").stdout)
    assert {"prior_gap", "kl", "findings"} <= set(dx)


def test_new_rows_go_the_way_of_the_runs_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(methods, "LADDER", ("learned_gaussian",))
    monkeypatch.setattr(jobs, "fit_proposal", functools.partial(jobs.fit_proposal, max_steps=20))
    rng = np.random.default_rng(0)
    options = ("--methods", "standard", "--n-seeds", 1, "--max-steps", 10, "--latent-dim", 2, "--backend", "serial")

    x = np.insert(rng.normal(size=(120, 3)), 1, 7.0, axis=1)
    header = {"header": "a,b,c,d", "delimiter": ",", "comments": ""}
    np.savetxt("rows.csv", x, **header)
    told = invoke("compare", "rows.csv", *options, "--out", "table").stdout
    assert "1 constant column is left out of the model: b" in told
    assert Comparison.read("table").setting.data_shape == (3,)
    invoke("encode", "table", "rows.csv", "-o", "own.npy")
    np.savetxt("few.csv", x[:3], **header)
    np.save("few.npy", x[:3].astype(np.float32))
    for few in ("few.csv", "few.npy"):  # columns of three rows are left out as the run left them out
        invoke("encode", "table", few, "-o", "few_codes.npy")
        np.testing.assert_allclose(np.load("few_codes.npy"), np.load("own.npy")[:3], rtol=1e-3, atol=1e-5)
    x[:, 1] = 8.0
    np.savetxt("other.csv", x, **header)
    refused = invoke("evaluate", "table", "other.csv", code=2)
    assert "other.csv: Column b was 7 in all training rows" in " ".join(refused.output.split())
    invoke("sample", "table", "-n", 5, "-o", "s.npy")
    assert np.load("s.npy").shape == (5, 4)
    assert (np.load("s.npy")[:, 1] == 7).all()
    invoke("sample", "table", "-n", 2, "-o", "s.csv")
    assert Path("s.csv").read_text().splitlines()[0] == "a,b,c,d"
    assert Comparison.read("table").setting.columns == ["a", "c", "d"]
    page = Path("table/report.html").read_text(encoding="utf-8")
    assert all(f">{name}</text>" in page for name in "acd")
    assert ">column 2</text>" not in page

    def told_of(run: str) -> tuple[Any, ...]:
        invoke("encode", run, "few.csv", "-o", "c.npy")
        invoke("sample", run, "-n", 4, "-o", "s.npy")
        scored = invoke("evaluate", run, "rows.csv", "--n-importance-samples", 10, "--json").stdout
        return np.load("c.npy").tolist(), np.load("s.npy").tolist(), scored

    facts = json.loads(invoke("diagnose", "table", "--quick", "--json").stdout)
    assert facts["setting"]["columns"] == ["a", "c", "d"]
    now = told_of("table")
    wider = pd.read_csv("rows.csv").assign(who="x")[["who", "d", "a", "b", "c"]]
    wider.to_csv("wider.csv", index=False)  # its columns are known by name
    invoke("encode", "table", "wider.csv", "-o", "wider.npy")
    np.testing.assert_array_equal(np.load("wider.npy"), np.load("own.npy"))
    invoke("train", "wider.csv", "--drop", "who, b", "--max-steps", 5, "--out", "dropped")
    assert latentfit.load("dropped").feature_names_in_.tolist() == ["d", "a", "c"]
    assert told_of("table/best") == now
    best = latentfit.load("table/best")
    few = pd.read_csv("few.csv")
    np.testing.assert_allclose(best.sample(6)[:, 1], 7)
    latentfit.save(best, "alone")  # away from the run's rows it takes what it is given
    np.testing.assert_array_equal(told_of("alone")[0], now[0])
    assert json.loads(told_of("alone")[2])["n_rows"] == 120
    trained_on = in_own_units(Path("table"), best.module_, latentfit.Batch(best._rows(few)))
    np.testing.assert_array_equal(trained_on.transform(few), best.transform(few))
    older = json.loads(Path("table/best/config.json").read_text(encoding="utf-8"))
    del older["estimator"]  # as folders were before
    Path("table/best/config.json").write_text(json.dumps(older), encoding="utf-8")
    assert isinstance(latentfit.load("table/best"), latentfit.VAEModule)
    assert in_own_units(Path("table"), best.module_, latentfit.Batch(best._rows(few))) is best.module_
    assert told_of("table") == now

    images = rng.integers(0, 256, (120, 5, 4, 3), dtype=np.uint8)
    np.save("images.npy", images)
    told = invoke("compare", "images.npy", *options, "--likelihood", "bernoulli", "--out", "colours").stdout
    assert "binarised" in told
    assert Comparison.read("colours").setting.data_shape == (3, 5, 4)
    invoke("sample", "colours", "-n", 30, "-o", "s.npy")
    drawn = np.load("s.npy")
    assert drawn.shape == (30, 5, 4, 3)
    assert set(np.unique(drawn)) == {0.0, 255.0}
    facts = json.loads(invoke("evaluate", "colours", "s.npy", "--n-importance-samples", 10, "--json").stdout)
    assert facts["n_rows"] == 30
    best = latentfit.load("colours/best")
    assert best.reconstruct(images[:2]).shape == (2, 5, 4, 3)
    assert set(np.unique(best.sample(5))) == {0.0, 255.0}


def test_report_is_rebuilt_from_the_stored_numbers(place: Path, tmp_path: Path) -> None:
    run = place / "runs" / "rows"
    before = (run / "report.html").read_bytes()
    invoke("report", run, "--lang", "vi", "-o", tmp_path / "vi.html")
    assert "phân phối" in (tmp_path / "vi.html").read_text(encoding="utf-8")
    (run / "report.html").unlink()
    invoke("report", run)
    assert (run / "report.html").read_bytes()[:2000] == before[:2000]


def test_train_saves_a_model_that_samples(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "model"
    result = invoke("train", place / "rows.npy", "--method", "mixture", "--max-steps", 20, "--out", out)
    assert "latentfit sample" in result.stdout
    invoke("sample", out, "-n", 3, "-o", tmp_path / "s.npy")
    assert np.load(tmp_path / "s.npy").shape == (3, 4)
    invoke("encode", out, place / "rows.npy", "-o", tmp_path / "z.npy")
    assert len(np.load(tmp_path / "z.npy")) == 150


def test_a_trained_model_keeps_the_columns_of_its_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    x = np.random.default_rng(0).normal(size=(60, 3))
    x[:, 1] = 7.0
    header = 'tuổi,site,"a, b"'
    write = functools.partial(np.savetxt, delimiter=",", comments="", encoding="utf-8")
    write("rows.csv", x, header=header)
    write("reversed.csv", x[:, ::-1], header='"a, b",site,tuổi')
    told = invoke("train", "rows.csv", "--max-steps", 10, "--latent-dim", 2, "--out", "model")
    assert "1 constant column is left out of the model: site" in told.output
    invoke("sample", "model", "-n", 2, "-o", "s.csv")
    assert Path("s.csv").read_text(encoding="utf-8").splitlines()[0] == header
    invoke("encode", "model", "rows.csv", "-o", "z.csv")
    assert Path("z.csv").read_text(encoding="utf-8").splitlines()[0] == "mean0,mean1"
    invoke("encode", "model", "reversed.csv", "-o", "again.csv")
    assert Path("again.csv").read_text(encoding="utf-8") == Path("z.csv").read_text(encoding="utf-8")
    write("other.csv", x, header='age,site,"a, b"')
    refused = invoke("encode", "model", "other.csv", "-o", "z.csv", code=2)
    assert "other.csv has no column tuổi, which the model was trained with" in " ".join(refused.output.split())


def test_lists() -> None:
    listed = json.loads(invoke("methods", "--json").stdout)
    assert [method["name"] for method in listed] == list(methods.METHODS)
    assert all({"family", "prior", "joint", "post_hoc", "description"} <= set(method) for method in listed)
    plain = invoke("methods", "--lang", "vi").stdout
    assert [line.split()[0] for line in plain.splitlines() if line[0] != " "] == list(methods.METHODS)
    assert max(map(len, plain.splitlines())) <= 80
    sets = json.loads(invoke("datasets", "--json").stdout)
    assert [entry["name"] for entry in sets] == ["digits", "mnist", "fashion-mnist"]
    assert "sha256" in invoke("datasets").stdout


def test_help_and_version() -> None:
    assert "compare" in invoke().stdout
    assert invoke("--version").stdout.strip() == f"latentfit {latentfit.__version__}"
    for command in (
        "compare",
        "train",
        "sample",
        "encode",
        "evaluate",
        "report",
        "diagnose",
        "methods",
        "datasets",
    ):
        assert "--help" in invoke(command, "--help").stdout


def test_the_program_starts_without_torch() -> None:
    code = "import sys, latentfit.cli; print(*[name in sys.modules for name in ('torch', 'rich', 'pandas')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.split() == ["False"] * 3


@pytest.mark.parametrize(("encoding", "ascii"), [("cp1252", True), ("ascii", True), ("utf-8", False), ("UTF8", False)])
def test_a_console_without_utf8_gets_ascii(encoding: str, ascii: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(buffer, encoding=encoding))
    assert _prepare_streams() is ascii
    print("phân phối", flush=True)  # letters that have no ASCII form are written all the same
    assert buffer.getvalue().decode("utf-8").strip() == "phân phối"


def test_a_bug_is_one_line_and_a_request(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise KeyError("surprise")

    monkeypatch.setattr("latentfit.data.sources.datasets", broken)
    result = invoke("datasets", code=1)
    assert "KeyError: 'surprise' (a bug: LATENTFIT_DEBUG=1" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    monkeypatch.setenv("LATENTFIT_DEBUG", "1")
    assert "Traceback" in invoke("datasets", code=1).stderr


# the text itself


@pytest.fixture(scope="module")
def result(place: Path) -> Comparison:
    return Comparison.read(place / "runs" / "rows")


@pytest.mark.parametrize("width", [60, 80, 100])
@pytest.mark.parametrize("lang", ["en", "vi"])
@pytest.mark.parametrize("ascii", [True, False])
def test_the_text_fits_its_width(result: Comparison, width: int, lang: str, ascii: bool) -> None:
    text = as_text(result, lang=lang, width=width, ascii=ascii)
    assert max(map(len, text.splitlines())) <= width
    assert max(map(len, findings_text(result.findings, lang=lang, width=width).splitlines())) <= width
    assert ("±" in text) is not ascii
    if lang == "en" and ascii:
        assert text.isascii()


def test_a_narrow_table_loses_columns_from_the_right(result: Comparison) -> None:
    heads = [as_text(result, width=width).splitlines()[1 if width >= 80 else 2].split() for width in (100, 80, 60)]
    for wide, narrow in itertools.pairwise(heads):
        assert wide[: len(narrow)] == narrow
    assert len(heads[2]) < len(heads[0])


def test_numbers_stand_under_each_other() -> None:
    cells = aligned([(12.3, 0.4), None, (-0.62, 1.3), (0.001, 0.2)])
    assert len({cell.index("±") for cell in cells if "±" in cell}) == 1
    assert len({len(cell) for cell in cells}) == 1
    assert not any("-0.0" in cell for cell in aligned([(-0.001, 0.2)]))


def test_words_for_durations_and_shorter_commands() -> None:
    assert [duration(s) for s in (0.2, 59, 61, 3600, 90_000)] == [
        "1 s",
        "59 s",
        "1 min 1 s",
        "60 min",
        "25 h",
    ]
    assert shorter("latentfit compare mnist --quick") == "latentfit compare mnist --quick --max-minutes 20 --fresh"
    assert shorter("latentfit compare mnist --n-seeds 9") == "latentfit compare mnist --n-seeds 9 --quick --fresh"
