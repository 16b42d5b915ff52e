"""What people get wrong: one line with what was got and what to try, exit code 2, nothing half-written."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import latentfit as lf
from latentfit.cli import app
from latentfit.errors import LatentfitError

NO_GPU = not torch.cuda.is_available()

#: command line ({f} is the folder of bad files), what the one line must say
COMMANDS: dict[str, tuple[str, str]] = {
    # the program
    "unknown command": ("frobnicate", r"No such command 'frobnicate'.*latentfit --help"),
    "unknown option": ("compare --foo", r"No such option: --foo.*compare --help"),
    "extra argument": ("methods all", r"unexpected extra argument"),
    "missing argument": ("encode", r"(?i)Missing argument '?run"),
    "missing option": ("train digits", r"Missing option '--out'"),
    # data
    "unknown data": ("compare nonsense", r"No data 'nonsense': neither a file nor a known name"),
    "almost a name": ("compare digit", r"Did you mean 'digits'"),
    "nan": ("compare {f}/nan.npy", r"nan\.npy: .* of the entries are NaN, first in column 2"),
    "infinite": ("compare {f}/inf.npy", r"inf\.npy: .* infinite"),
    "pickled": ("compare {f}/pickled.npy", r"pickled Python objects, which are never loaded"),
    "not npy": ("compare {f}/fake.npy", r"is not a \.npy file"),
    "truncated npy": ("compare {f}/short.npy", r"truncated or damaged"),
    "truncated npz": ("compare {f}/short.npz", r"not a complete \.npz file"),
    "text column": ("compare {f}/words.csv", r"column 'b' is not numeric \(first value 'x'\)"),
    "ragged": ("compare {f}/ragged.csv", r"rows of different lengths"),
    "empty": ("compare {f}/empty.csv", r"is empty"),
    "missing values": ("compare {f}/holes.csv", r"column 'b' has .* missing"),
    "few rows": ("compare {f}/few.npy", r"10 rows.*50"),
    "torch file": ("compare {f}/model.pt", r"torch files are pickles"),
    "spreadsheet": ("compare {f}/table.xlsx", r"save the sheet as \.csv"),
    "folder of nothing": ("compare {f}/empty", r"empty"),
    "constant": ("compare {f}/constant.npy", r"constant"),
    # options of compare
    "alias": ("compare {f}/x.npy --methods gmm", r"Unknown method 'gmm': Latentfit calls it 'mixture'"),
    "almost a method": ("compare {f}/x.npy --methods mixtur", r"Did you mean 'mixture'"),
    "no method": ("compare {f}/x.npy --methods ,", r"No method given"),
    "goal": ("compare {f}/x.npy --goal best", r"goal must be one of likelihood, samples, embedding"),
    "backend": ("compare {f}/x.npy --backend slurm", r"backend must be one of serial, loky, dask, ray"),
    "no seeds": ("compare {f}/x.npy --n-seeds 0", r"'--n-seeds'"),
    "seeds in words": ("compare {f}/x.npy --n-seeds two", r"'--n-seeds'.*valid int"),
    "no steps": ("compare {f}/x.npy --max-steps 0", r"'--max-steps'"),
    "no minutes": ("compare {f}/x.npy --max-minutes 0", r"max_minutes must be positive, got 0\.0"),
    "nan minutes": ("compare {f}/x.npy --max-minutes nan", r"max_minutes must be positive, got nan"),
    "no workers": ("compare {f}/x.npy --workers 0", r"'--workers'"),
    "no units": ("compare {f}/x.npy --latent-dim 0", r"'--latent-dim'"),
    "negative seed": ("compare {f}/x.npy --seed -1", r"'--seed'"),
    "negative rate": ("compare {f}/x.npy --learning-rate -1", r"learning_rate must be above 0 and finite"),
    "nan rate": (
        "compare {f}/x.npy --learning-rate nan",
        r"learning_rate must be above 0 and finite, got nan",
    ),
    "network": (
        "compare {f}/x.npy --network resnet",
        r"Unknown network 'resnet': Latentfit calls it 'residual_conv'",
    ),
    "network for images": ("compare {f}/x.npy --network residual_conv", r"residual_conv needs images"),
    "likelihood": ("compare {f}/x.npy --likelihood cauchy", r"Unknown likelihood 'cauchy'"),
    "bernoulli on reals": ("compare {f}/x.npy --likelihood bernoulli", r"needs 0 or 1.*normal"),
    "poisson on reals": ("compare {f}/x.npy --likelihood poisson", r"poisson.*(integer|count|whole)"),
    "device": ("compare {f}/x.npy --device tpu", r"device must be 'cpu', 'cuda' or 'auto', got 'tpu'"),
    "language": ("compare {f}/x.npy --lang fr", r"Unknown language 'fr'; Latentfit speaks: en, vi"),
    "no labels": ("compare {f}/x.npy --labels none.npy", r"--labels none\.npy does not exist"),
    "few labels": (
        "compare {f}/x.npy --labels {f}/few_labels.npy",
        r"labels must be \(120,\), one per row; got \(7,\)",
    ),
    "labels by name": ("compare {f}/x.npy --labels species", r"no named columns, so 'species' is not in it"),
    "config missing": ("compare {f}/x.npy --config none.toml", r"none\.toml cannot be read: No such file"),
    "config broken": ("compare {f}/x.npy --config {f}/broken.toml", r"broken\.toml is not TOML"),
    "config key": ("compare {f}/x.npy --config {f}/key.toml", r"unknown key 'sedes'\. Known: .*n_seeds"),
    "config value": ("compare {f}/x.npy --config {f}/value.toml", r"'--n-seeds'.*valid int"),
    "out is a file": ("compare {f}/x.npy --out {f}/x.npy", r"Cannot make the folder .*x\.npy"),
    "another comparison": (
        "compare {f}/x.npy --out {f}/other",
        r"other holds another comparison \(differs in: (?!.*n_seeds).*device None -> cpu.*\)\. Use --out .*other-2, or "
        r"--fresh to start over; nothing was changed",
    ),
    # one model
    "no run": ("sample nowhere -o x.npy", r"nowhere is not a folder"),
    "foreign folder": ("sample {f}/foreign -o x.npy", r"was not saved by Latentfit"),
    "empty run": (
        "encode {f}/empty {f}/x.npy -o x.npz",
        r"was not saved by Latentfit: it has no config\.json",
    ),
    "unfinished run": ("evaluate {f}/other {f}/x.npy", r"holds a comparison that is not finished"),
    "no samples": ("sample {f}/foreign -n 0 -o x.npy", r"Invalid value for '-n'"),
    "output format": ("sample {f}/foreign -o x.txt", r"-o x\.txt must end in \.npy, \.npz or \.csv"),
    "no comparison": ("report {f}/foreign", r"comparison\.json is missing"),
    "train what": ("train digits --method gmm --out m", r"Latentfit calls it 'mixture'"),
    "train over it": ("train digits --out {f}/foreign", r"exists and is not empty"),
    "train into a file": ("train digits --out {f}/x.npy", r"x\.npy is a file; --out needs a folder"),
    # codes
    "no latents": ("diagnose --latents none.npz", r"none\.npz does not exist"),
    "no npz": ("diagnose --latents {f}/short.npz", r"not a complete \.npz file"),
    "two spreads": (
        "diagnose --latents {f}/two.npz",
        r"exactly one of std, var, logvar; it holds mean, std, var",
    ),
    "no spread": ("diagnose --latents {f}/none.npz", r"exactly one of std, var, logvar; it holds mean"),
    "logvar as std": (
        "diagnose --latents {f}/logvar.npz",
        r"std has \d+ ?% negative entries.*log-variance.*logvar=",
    ),
    "half a train": ("diagnose --latents {f}/train.npz", r"needs train_std too"),
    "depth": ("diagnose --latents {f}/good.npz --depth deep", r"--depth must be one of full, quick, got 'deep'"),
    "no codes in a file": ("retrofit --latents {f}/fake.npy", r"fake\.npy must be \.npz or \.h5ad"),
    "a folder of codes": ("diagnose --latents {f}/empty", r"--latents .*empty is a folder; expected a file"),
    "shapes of codes": ("retrofit --latents {f}/shapes.npz", r"mean has shape \(120, 4\), std \(120, 3\)"),
    "no h5ad": ("diagnose --latents {f}/fake.h5ad", r"fake\.h5ad is not a readable \.h5ad file"),
    "retrofit logvar as std": ("retrofit --latents {f}/logvar.npz", r"std has \d+ ?% negative entries.*logvar="),
    "groups of codes": (
        "diagnose --latents {f}/good.npz --groups {f}/few_labels.npy",
        r"--groups .*few_labels\.npy: groups must be \(120,\), one per row; got \(7,\)",
    ),
    "groups by name": ("diagnose --latents {f}/good.npz --groups batch", r"--groups batch: .*has no columns"),
    "groups missing": ("diagnose --latents {f}/good.npz --groups no.csv", r"--groups no\.csv does not exist"),
    "keys without a file": ("diagnose --latents {f}/good.npz --mean-key m", r"go with --latents FILE\.h5ad"),
    "half the keys": ("diagnose {f}/fake.h5ad --mean-key m", r"--mean-key and --var-key go together"),
    "data with codes": ("diagnose --latents {f}/good.npz --data digits", r"leave out --data, --train-data"),
    "probe of codes": ("diagnose --latents {f}/good.npz --probe", r"--probe needs a model, not codes alone"),
    "labels of codes": ("diagnose {f}/good.npz --labels y", r"--labels needs a model, not codes alone"),
    "page of codes": ("diagnose {f}/good.npz --report r.html", r"has no page; --json"),
    "samples of codes": ("retrofit {f}/good.npz --goal samples", r"--goal samples needs a decoder"),
    # diagnose and retrofit: what
    "nothing to diagnose": ("diagnose", r"needs one of RUN, --latents FILE\.npz, --model FILE\.py:NAME; got none"),
    "two to retrofit": ("retrofit {f}/other --latents {f}/good.npz", r"needs one of .*; got RUN and --latents"),
    "nowhere to diagnose": ("diagnose nowhere", r"nowhere is not a folder; expected that of a comparison"),
    "a script as a run": ("diagnose {f}/mine.py", r"not a folder.*A model of your own: --model .*mine\.py:NAME"),
    "an unfinished run": ("diagnose {f}/other", r"holds a comparison that is not finished"),
    "a foreign run": ("retrofit {f}/foreign", r"was not saved by Latentfit"),
    "a saved prior": ("diagnose {f}/prior", r"holds a LearnedGaussian\w*, not a VAE"),
    "a model saved alone": ("diagnose {f}/saved", r"saved holds a model saved alone.*give --data DATA"),
    "goal of a retrofit": ("retrofit {f}/saved --goal embedding", r"--goal must be one of likelihood, samples"),
    "no training rows": ("diagnose {f}/saved --train-data {f}/x.npy", r"--train-data goes with --data"),
    "unknown rows": ("diagnose {f}/saved --data digit", r"No data 'digit'.*Did you mean 'digits'"),
    "other rows": ("diagnose {f}/saved --data digits", r"fitted on rows of shape \(4,\), got \(8, 8\)"),
    "labels of others": (
        "diagnose {f}/saved --data {f}/x.npy --labels {f}/few_labels.npy",
        r"labels must be \(120,\), one per row; got \(7,\)",
    ),
    "a blank line among groups": (
        "compare {f}/x.npy --groups {f}/blank_line.csv",
        r"--groups .*blank_line\.csv: 1 of 120 rows lack a group, first row 30 \(from 0\)",
    ),
    "an empty cell among groups": (
        "compare {f}/x.npy --groups {f}/empty_cell.csv",
        r"--groups .*empty_cell\.csv: 1 of 120 rows lack a group, first row 30 \(from 0\)",
    ),
    "many columns of labels": (
        "diagnose {f}/saved --data {f}/x.npy --labels {f}/holes.csv",
        r"--labels .*holes\.csv has several columns; expected one",
    ),
    "adapting our own": (
        "diagnose {f}/saved --likelihood normal --scale 1",
        r"--likelihood, --scale: for --model only",
    ),
    # a model of the user's own
    "model without a name": ("diagnose --model {f}/mine.py --data digits", r"must be FILE\.py:NAME, as in my_vae"),
    "model without a file": ("diagnose --model none.py:vae --data digits", r"the file none\.py does not exist"),
    "model without rows": ("retrofit --model {f}/mine.py:vae", r"--model needs --data DATA"),
    "odd spread": (
        "diagnose --model {f}/mine.py:vae --data digits --spread scale",
        r"--spread must be one of auto, std, var, logvar, got 'scale'",
    ),
    "odd reconstruction": (
        "diagnose --model {f}/mine.py:vae --data digits --reconstruction l2",
        r"--reconstruction must be one of nll, .*, got 'l2'",
    ),
    "odd output": (
        "diagnose --model {f}/mine.py:vae --data digits --output-kind sigmoid",
        r"--output-kind must be one of auto, mean, probs, logits, got 'sigmoid'",
    ),
    "odd scale": ("diagnose --model {f}/mine.py:vae --data digits --scale big", r"--scale must be a number or auto"),
    "no scale": ("diagnose --model {f}/mine.py:vae --data digits --scale 0", r"--scale must be above 0 and finite"),
    "odd weight": ("diagnose --model {f}/mine.py:vae --data digits --kl-weight -1", r"--kl-weight must be at least 0"),
    # diagnose and retrofit: how
    "page of another kind": ("diagnose {f}/saved --report r.pdf", r"r\.pdf must be a file that ends in \.html"),
    "page nowhere": ("diagnose {f}/saved --report no/r.html", r"there is no folder no"),
    "opening nothing": ("retrofit {f}/saved --open", r"--open is about the report: give --report FILE\.html too"),
    "showing nothing": ("diagnose {f}/saved --show-data", r"--show-data is about the report"),
    "a gate of nan": ("diagnose {f}/good.npz --fail-above nan", r"--fail-above must be a number of nats, got nan"),
    "a gate in words": ("diagnose {f}/good.npz --fail-above much", r"'--fail-above'.*valid (float|number)"),
    "a gate for a retrofit": ("retrofit {f}/good.npz --fail-above 1", r"No such option: --fail-above"),
    "no minutes for a retrofit": ("retrofit {f}/good.npz --max-minutes 0", r"--max-minutes must be above 0, got 0"),
    "prior over it": ("retrofit {f}/good.npz --out {f}/foreign", r"exists and is not empty"),
    "prior into a file": ("retrofit {f}/good.npz --out {f}/x.npy", r"x\.npy is a file; --out needs a folder"),
    "device of a diagnosis": ("diagnose {f}/saved --device tpu", r"--device must be 'cpu', 'cuda' or 'auto'"),
    "language of a diagnosis": ("diagnose {f}/saved --lang fr", r"Latentfit speaks: en, vi"),
    # Python's words are not the command line's
    "a column of labels": ("compare {f}/words.csv", r"Leave it out: --drop b, use it as labels: --labels b, or"),
}
if NO_GPU:
    COMMANDS["no gpu"] = (
        "compare {f}/x.npy --device cuda",
        r"device 'cuda' asked for, but torch sees no GPU",
    )


@pytest.fixture(scope="session")
def bad(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of files that cannot be used, and one that can."""
    folder = tmp_path_factory.mktemp("bad")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(120, 4))
    np.save(folder / "x.npy", x)
    for name, value in (("nan", np.nan), ("inf", np.inf)):
        broken = x.copy()
        broken[3, 2] = value
        np.save(folder / f"{name}.npy", broken)
    np.save(folder / "pickled.npy", np.array([{"a": 1}, None], dtype=object), allow_pickle=True)
    (folder / "fake.npy").write_text("1,2,3\n")
    (folder / "short.npy").write_bytes((folder / "x.npy").read_bytes()[:300])
    np.savez(folder / "good.npz", mean=x, std=np.full_like(x, 0.5))
    (folder / "short.npz").write_bytes((folder / "good.npz").read_bytes()[:500])
    np.savez(folder / "two.npz", mean=x, std=abs(x), var=x**2)
    np.savez(folder / "none.npz", mean=x)
    np.savez(folder / "logvar.npz", mean=x, std=rng.normal(-4.0, 2.0, x.shape))
    np.savez(folder / "train.npz", mean=x, std=abs(x) + 0.1, train_mean=x)
    np.save(folder / "few.npy", x[:10])
    np.save(folder / "few_labels.npy", np.arange(7))
    groups = [f"d{i % 12}" for i in range(120)]
    for name, gap in (("blank_line", ""), ("empty_cell", '""')):
        lines = ["donor", *groups[:30], gap, *groups[31:]]
        (folder / f"{name}.csv").write_text("\n".join(lines) + "\n")
    np.save(folder / "constant.npy", np.ones((120, 3)))
    np.savez(folder / "shapes.npz", mean=x, std=abs(x[:, :3]))
    (folder / "fake.h5ad").write_text("no HDF5")
    (folder / "mine.py").write_text("vae = None")
    lf.save(lf.priors.create("learned_gaussian", latent_dim=2), folder / "prior")
    lf.save(lf.VAE(latent_dim=2, max_steps=2).fit(x), folder / "saved")
    (folder / "words.csv").write_text("a,b\n1,x\n2,y\n")
    (folder / "ragged.csv").write_text("a,b\n1,2\n3,4,5\n")
    (folder / "empty.csv").write_text("")
    (folder / "holes.csv").write_text("a,b\n" + "1,2\n" * 60 + "1,\n")
    (folder / "model.pt").write_bytes(b"PK")
    (folder / "table.xlsx").write_bytes(b"PK")
    (folder / "empty").mkdir()
    (folder / "foreign").mkdir()
    (folder / "foreign" / "config.json").write_text('{"model_type": "bert"}')
    (folder / "other").mkdir()
    (folder / "other" / "plan.json").write_text(json.dumps({"asked": {"n_seeds": 5}, "plan": {}}))
    (folder / "broken.toml").write_text("n_seeds = = 3")
    (folder / "key.toml").write_text("sedes = 3")
    (folder / "value.toml").write_text('n_seeds = "three"')
    return folder


def tree(folder: Path) -> dict[str, int]:
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*")}


@pytest.mark.parametrize(("line", "says"), COMMANDS.values(), ids=list(COMMANDS))
def test_one_line_and_nothing_written(
    line: str, says: str, bad: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LATENTFIT_DEBUG", raising=False)
    before = tree(bad)
    result = CliRunner().invoke(app, [word.format(f=bad.as_posix()) for word in line.split()])
    assert result.exit_code == 2, result.output
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("Error: ")
    assert re.search(says, lines[0]), lines[0]
    assert "Traceback" not in result.output
    assert list(tmp_path.iterdir()) == []
    assert tree(bad) == before


def test_there_are_enough_of_them() -> None:
    assert len(COMMANDS) >= 100


def test_mnist_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import urllib.request

    def refuse(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["compare", "mnist", "--data-dir", "data"])
    assert result.exit_code == 2
    assert re.fullmatch(
        r"Error: MNIST is not in data.* could not be downloaded \(.* tried.*\)\. Put .*compare digits.*",
        result.stderr.strip(),
    )


# the same from Python: own classes that are also ValueErrors

X = np.random.default_rng(0).normal(size=(120, 4))


def warm_up_too_long() -> Any:
    vae = lf.methods.build("standard", data_shape=(4,), latent_dim=2, likelihood="normal")
    objective = lf.ELBO(kl_weight=lf.schedules.linear(steps=5000))
    return lf.fit(vae, torch.as_tensor(X, dtype=torch.float32), objective=objective, max_steps=300)


CALLS: dict[str, tuple[Callable[[], Any], str]] = {
    "no spread": (lambda: lf.diagnose_latents(X), r"exactly one of std, var, logvar"),
    "two spreads": (
        lambda: lf.diagnose_latents(X, std=abs(X), var=X**2),
        r"diagnose_latents: give exactly one of std, var, logvar \(got std and var\)",
    ),
    "logvar as std": (lambda: lf.diagnose_latents(X, std=X - 3), r"negative entries.*logvar="),
    "a long warm-up": (
        warm_up_too_long,
        r"warm-up \(5,000 steps\) is longer than the run.*max_steps at least 5,000",
    ),
    "an unknown option": (
        lambda: lf.compare(X, seeds=3),
        r"compare takes no option 'seeds'. It takes: .*n_seeds",
    ),
    "an unknown prior": (lambda: lf.priors.create("gmm", latent_dim=2), r"Latentfit calls it 'mixture'"),
    "a misspelt argument": (
        lambda: lf.priors.create("mixture", latent_dim=2, n_component=3),
        r"takes no argument 'n_component'",
    ),
    "rows of another width": (
        lambda: lf.VAE(max_steps=2).fit(X).transform(X[:, :3]),
        r"3 features.*4 features",
    ),
}


@pytest.mark.parametrize(("call", "says"), CALLS.values(), ids=list(CALLS))
def test_python_says_the_same(call: Callable[[], Any], says: str) -> None:
    with pytest.raises(ValueError, match=says) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_own_errors_are_of_one_family() -> None:
    with pytest.raises(LatentfitError):
        lf.compare(X, goal="best")
