"""`latentfit diagnose` and `latentfit retrofit`: a run, a saved model, codes in a file, a model of the user's own."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import latentfit as lf
from latentfit.cli import app
from latentfit.cli.options import NAMED_DATA
from latentfit.cli.parts import Parts
from latentfit.cli.program import INTERRUPTED, typed_words
from latentfit.cli.subject import as_tensors
from latentfit.evaluation.estimate import Estimate

#: a linear VAE whose codes are two clusters: N(0, I) is wrong by about a nat
MINE = """
import numpy as np, torch
from torch import nn
print("a word on stdout")
class Mine(nn.Module):
    def __init__(self):
        super().__init__()
        self.map = nn.Linear(4, 2)
        with torch.no_grad():
            self.map.weight.copy_(torch.eye(2, 4))
            self.map.bias.zero_()
    def encode(self, x):
        mean = self.map(x)
        return mean, torch.full_like(mean, -4.0)
    def decode(self, z):
        return torch.cat([z, 0 * z], dim=1)
vae = Mine()
rng = np.random.default_rng(0)
rows = rng.normal(size=(600, 4)).astype("float32") * 0.2
rows[:, 0] += np.sign(rng.normal(size=600)) * 1.5
rows[:, 2:] = 0.01 * rng.normal(size=(600, 2))
batches = torch.utils.data.DataLoader(torch.as_tensor(rows), batch_size=100)
def make():
    return vae
"""


def invoke(*words: object, code: int = 0) -> Any:
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == code, result.output + repr(result.exception)
    return result


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working folder, with `mine.py`, its rows as a file, and its codes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    (tmp_path / "mine.py").write_text(MINE, encoding="utf-8")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(600, 4)).astype("float32") * 0.2
    x[:, 0] += np.sign(rng.normal(size=600)) * 1.5
    np.save("rows.npy", x)
    np.savez("codes.npz", mean=x[:, :2], logvar=np.full((600, 2), -4.0))
    yield tmp_path
    sys.modules.pop("mine", None)


class Recorder:
    """Stands in for `diagnose` or `retrofit`: keeps what it was called with."""

    def __init__(self, result: Any) -> None:
        self.result = result

    def __call__(self, model: Any, *rows: Any, **options: Any) -> Any:
        self.model, self.rows, self.options = model, rows, options
        if "progress" in options:
            options["progress"]("prior gap", 0, 0)
            options["progress"]("mixture", 1, 2)
        return self.result


@dataclass
class Setting:
    columns: tuple[str, ...] = ()
    data_shape: tuple[int, ...] = ()
    retrofit_command: str = ""


@dataclass
class Found:
    prior_gap = Estimate(1.0, 0.1, (0.8, 1.2))
    setting: Setting = field(default_factory=Setting)
    changed: bool = False

    def __str__(self) -> str:
        return "gap 1.0 ± 0.1"

    def to_dict(self) -> dict[str, Any]:
        return {"gap": 1.0, "notes": ["half of them"]}

    def report(self, path: Path, *, lang: str, show_data: bool) -> Path:
        path.write_text(f"{lang} {show_data}", encoding="utf-8")
        return path


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    found = Recorder(Found())
    monkeypatch.setattr("latentfit.diagnose", found)
    return found


# codes


def test_codes_of_any_framework_are_diagnosed_and_gated(place: Path) -> None:
    options = ("--quick", "--seed", 3)
    first = json.loads(invoke("diagnose", "--latents", "codes.npz", *options, "--json").stdout)
    again = json.loads(invoke("diagnose", "codes.npz", *options, "--json").stdout)  # in RUN's place
    assert first["prior_gap"] == again["prior_gap"]
    low = first["prior_gap"]["interval"][0]
    assert low > 0.5
    held = invoke("diagnose", "codes.npz", *options, "--fail-above", low + 0.01)
    assert "not above" in held.stderr
    broken = invoke("diagnose", "codes.npz", *options, "--fail-above", low - 0.01, code=1)
    assert "--fail-above" in broken.stderr
    assert broken.stdout.splitlines()[0] == held.stdout.splitlines()[0]


def test_a_retrofit_of_codes_saves_a_prior_that_fits_them(place: Path) -> None:
    told = invoke("retrofit", "--latents", "codes.npz", "--quick", "--out", "prior")
    assert 'latentfit.priors.load("prior")' in told.stderr
    prior = lf.priors.load("prior")
    drawn = prior.sample(2000).detach().numpy()
    assert (abs(drawn[:, 0]) > 0.7).mean() > 0.95  # two clusters at -1.5 and 1.5: N(0, I) has half there
    refused = invoke("retrofit", "codes.npz", "--quick", "--out", "prior", code=2)
    assert "Use --fresh" in refused.stderr


def test_a_fine_tuned_copy_is_saved_as_a_model(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vae = lf.VAE(latent_dim=2, max_steps=60, network_args={"hidden": [8]}).fit(np.load("rows.npy"))
    lf.save(vae, "run")
    found = Recorder(Found())
    found.result.finetuned = SimpleNamespace(won=SimpleNamespace(name="fine-tuned"))
    found.result.model = vae
    monkeypatch.setattr("latentfit.retrofit", found)
    told = invoke("retrofit", "run", "--data", "rows.npy", "--finetune", "--out", "better")
    assert found.options["finetune"] is True
    assert 'latentfit.load("better")' in told.stderr
    np.testing.assert_array_equal(lf.load("better").transform(np.load("rows.npy")), vae.transform(np.load("rows.npy")))


def test_what_has_no_encoder_or_is_not_ours_is_not_fine_tuned(place: Path) -> None:
    assert "not codes alone" in invoke("retrofit", "codes.npz", "--finetune", code=2).stderr
    own = ("--model", "mine.py:vae", "--data", "rows.npy", "--finetune", "--out", "better")
    assert "fix.model in Python" in invoke("retrofit", *own, code=2).stderr


def test_a_slip_in_the_files_name_runs_nothing(place: Path) -> None:
    told = invoke("diagnose", "--model", "mine.pyy:vae", "--data", "rows.npy", code=2).stderr
    assert "Did you mean mine.py:vae?" in told
    assert "Running" not in told
    assert "a word" not in told


def test_training_codes_are_those_priors_are_fitted_on(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with np.load("codes.npz") as stored:
        mean, logvar = stored["mean"], stored["logvar"]
    np.savez("both.npz", mean=mean[:200], logvar=logvar[:200], train_mean=mean[200:], train_logvar=logvar[200:])
    found = Recorder(Found())
    monkeypatch.setattr("latentfit.retrofit", found)
    invoke("retrofit", "both.npz", "--out", "prior")
    assert not (place / "prior").exists()  # nothing was kept
    train, test = found.rows[0], found.options["X_test"]
    assert (len(train), len(test)) == (400, 200)
    np.testing.assert_array_equal(test, np.concatenate([mean, logvar], axis=1, dtype=np.float32)[:200])
    assert found.options["groups"] is None
    np.save("groups.npy", np.arange(200) // 5)
    invoke("retrofit", "both.npz", "--groups", "groups.npy")
    np.testing.assert_array_equal(found.options["groups"], np.arange(200) // 5)


def test_scvis_slots_are_found_in_an_h5ad(place: Path) -> None:
    anndata = pytest.importorskip("anndata")
    with np.load("codes.npz") as stored:
        mean, logvar = stored["mean"], stored["logvar"]
    adata = anndata.AnnData(np.zeros((600, 1), dtype=np.float32))
    adata.obsm["scvi_latent_qzm"], adata.obsm["scvi_latent_qzv"] = mean, np.exp(logvar)
    adata.obsm["m"], adata.obsm["v"] = mean, np.exp(logvar)
    adata.obs["batch"] = np.repeat(["a", "b", "c"], 200)
    adata.write_h5ad("cells.h5ad")
    own = json.loads(invoke("diagnose", "codes.npz", "--quick", "--json").stdout)
    for words in (("cells.h5ad",), ("--latents", "cells.h5ad", "--mean-key", "m", "--var-key", "v")):
        told = invoke("diagnose", *words, "--quick", "--json")
        assert "600 cells, 2 units" in told.stderr
        assert json.loads(told.stdout)["prior_gap"]["value"] == pytest.approx(own["prior_gap"]["value"], abs=1e-3)
    grouped = json.loads(invoke("diagnose", "cells.h5ad", "--quick", "--groups", "obs:batch", "--json").stdout)
    assert grouped["prior_gap"]["interval"] != own["prior_gap"]["interval"]  # three clusters, not 600 rows
    assert "no obs column 'donor'; it has batch" in invoke("diagnose", "cells.h5ad", "--groups", "donor", code=2).stderr
    assert "found m, scvi" in invoke("diagnose", "cells.h5ad", "--mean-key", "x", "--var-key", "y", code=2).stderr


# a model of the user's own


def test_a_model_of_ones_own(place: Path) -> None:
    told = invoke("diagnose", "--model", "mine.py:vae", "--data", "rows.npy", "--quick", "--json")
    assert json.loads(told.stdout)["prior_gap"]["interval"][0] > 0.5
    assert "a word on stdout" in told.stderr
    assert told.stderr.count("Running mine.py, your own code.") == 1
    assert "Adapted Mine on cpu" in told.stderr
    assert "--spread ..." in told.stderr
    facts = json.loads(told.stdout)
    assert [line for line in facts["setting"]["understood"] if line.startswith("Adapted Mine on cpu")]
    spoken = invoke("diagnose", "--model", "mine.py:vae", "--data", "rows.npy", "--quick", "--json", "--lang", "vi")
    assert "Đã tiếp nhận Mine trên cpu" in spoken.stderr
    assert "Adapted" not in spoken.stderr
    assert json.loads(spoken.stdout)["setting"]["understood"][0].startswith("Đã tiếp nhận Mine trên cpu")
    assert re.search(r"mixture +\d+\.\d s", told.stderr)


def test_rows_may_be_in_the_same_file(place: Path, recorder: Recorder) -> None:
    words = ("diagnose", "--model", "mine.py:vae", "--data", "mine.py:rows", "--train-data", "mine.py:batches")
    told = invoke(*words, "--likelihood", "normal", "--scale", "0.5", "--kl-weight", "2", "--reconstruction", "nll")
    assert told.stderr.count("Running") == 1
    module = sys.modules["mine"]
    assert recorder.rows[0] is module.rows
    assert recorder.options["X_train"] is module.batches
    assert recorder.model.can_score
    assert recorder.model.loss.kl_weight == 2


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--model mine.py:vea --data rows.npy", r"mine\.py has no 'vea'; it has np, torch, .*vae"),
        ("--model mine.py:Mine --data rows.npy", r"is a class; expected a trained model"),
        ("--model mine.py:make --data rows.npy", r"is a function; expected a trained model"),
        ("--model mine.py:rng --data rows.npy", r"Generator has neither encode nor encoder"),
        ("--model broken.py:vae --data rows.npy", r"broken\.py failed with ZeroDivisionError: .* \(line 2\)"),
        ("--model wrong.py:vae --data rows.npy", r"wrong\.py failed with SyntaxError: .* \(line 1\)"),
        ("--model quits.py:vae --data rows.npy", r"quits\.py failed with SystemExit: bye"),
        ("--model no_such_package.mine:vae --data rows.npy", r"ModuleNotFoundError: No module named 'no_such_pack"),
        ("--model mine.py:vae --data mine.py:nothing", r"--data mine\.py:nothing: mine\.py has no 'nothing'"),
        ("--model mine.py:vae --data rows.npy --spread std", r"negative"),
        ("--model mine.py:vae --data rows.npy --likelihood cauchy", r"Unknown likelihood 'cauchy'"),
    ],
)
def test_what_goes_wrong_in_ones_own_code_is_one_line(words: str, says: str, place: Path) -> None:
    (place / "broken.py").write_text("import math\nvae = 1 / 0\n", encoding="utf-8")
    (place / "wrong.py").write_text("vae = = 1\n", encoding="utf-8")
    (place / "quits.py").write_text("raise SystemExit('bye')\n", encoding="utf-8")
    before = {path.name for path in place.iterdir()}
    result = invoke("diagnose", *words.split(), code=2)
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("Error: ")
    assert re.search(says, last), last
    assert result.stdout == ""
    assert "broken" not in sys.modules
    assert {path.name for path in place.iterdir()} - {"__pycache__"} == before
    assert str(place) not in sys.path


def test_images_come_as_torchvision_gives_them(capsys: pytest.CaptureFixture[str]) -> None:
    x = np.arange(2 * 5 * 4 * 3, dtype=np.uint8).reshape(2, 5, 4, 3)
    tensors = as_tensors(x)
    assert tensors.shape == (2, 3, 5, 4)
    np.testing.assert_allclose(tensors[1, 2, 3, 1], x[1, 3, 1, 2] / 255)
    assert as_tensors(x[..., 0]).shape == (2, 1, 5, 4)
    assert "ToTensor" in capsys.readouterr().err
    counts = np.full((2, 8, 8), 16, dtype=np.uint8)  # digits: counts, not grey values
    np.testing.assert_array_equal(as_tensors(counts), counts.astype(np.float32))
    assert capsys.readouterr().err == ""


# saved models


def test_a_saved_estimator_with_data(place: Path, recorder: Recorder) -> None:
    x = np.load("rows.npy")
    lf.save(lf.VAE(latent_dim=2, max_steps=2).fit(x), "saved")
    np.savetxt("y.csv", np.arange(600) % 3, header="kind", comments="", fmt="%d")
    words = ("diagnose", "saved", "--data", "rows.npy", "--train-data", "rows.npy", "--labels", "y.csv")
    invoke(*words, "--goal", "embedding", "--probe", "--depth", "quick", "--seed", 4, "--lang", "vi")
    np.testing.assert_array_equal(recorder.rows[0], x)
    np.testing.assert_array_equal(recorder.options["X_train"], x)
    assert list(recorder.options["labels"][:4]) == ["0", "1", "2", "0"]
    said = {key: recorder.options[key] for key in ("goal", "probe", "depth", "random_state", "lang")}
    assert said == {"goal": "embedding", "probe": True, "depth": "quick", "random_state": 4, "lang": "vi"}


def test_what_is_said_of_the_rows_stands_in_the_json(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = Recorder(Found())
    monkeypatch.setattr("latentfit.diagnose", found)
    pixels = np.zeros((60, 2, 3), np.uint8)
    pixels[::2] = 255
    np.save("pixels.npy", pixels)
    flat = "import torch\nvae = torch.nn.Module()\nvae.to_z = torch.nn.Linear(6, 4)\nvae.encode = lambda x: "
    Path("flat.py").write_text(flat + "vae.to_z(x.flatten(1)).chunk(2, 1)\n", encoding="utf-8")
    for _ in range(2):  # of this command alone
        told = invoke("diagnose", "--model", "flat.py:vae", "--data", "pixels.npy", "--json")
        notes = json.loads(told.stdout)["notes"]
        assert notes == ["Images as float32 (1, 2, 3) in [0, 1], as torchvision's ToTensor gives them.", "half of them"]
        assert notes[0] in told.stderr


def test_the_result_is_alone_on_stdout_and_the_page_is_written(place: Path, recorder: Recorder) -> None:
    lf.save(lf.VAE(latent_dim=2, max_steps=2).fit(np.load("rows.npy")), "saved")
    told = invoke("diagnose", "saved", "--data", "rows.npy", "--json", "--report", "r.html", "--lang", "vi")
    assert json.loads(told.stdout) == {"gap": 1.0, "notes": ["half of them"]}
    assert "r.html" in told.stderr
    assert (place / "r.html").read_text(encoding="utf-8") == "vi False"
    invoke("diagnose", "saved", "--data", "rows.npy", "--report", "r.html", "--show-data")
    assert (place / "r.html").read_text(encoding="utf-8") == "en True"


@pytest.mark.parametrize(("limit", "code"), [(0.79, 1), (0.81, 0)])
def test_the_gate_is_the_lower_bound(limit: float, code: int, place: Path, recorder: Recorder) -> None:
    lf.save(lf.VAE(latent_dim=2, max_steps=2).fit(np.load("rows.npy")), "saved")
    told = invoke("diagnose", "saved", "--data", "rows.npy", "--fail-above", limit, code=code)
    assert "interval begins at 0.8 nats" in told.stderr


@pytest.mark.parametrize("command", ["diagnose", "retrofit"])
def test_interrupting_says_what_is_left(command: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"latentfit.{command}", interrupted)
    before = {path.name for path in place.iterdir()}
    told = invoke(command, "--model", "mine.py:vae", "--data", "rows.npy", code=INTERRUPTED)
    assert "Interrupted: nothing is half-written" in told.stderr
    assert {path.name for path in place.iterdir()} - {"__pycache__"} == before


# the rest


def test_parts_are_lines_with_their_time_and_a_terminal_sees_the_one_under_way() -> None:
    def shown(live: bool, lang: str = "en") -> str:
        text: list[str] = []
        stream = SimpleNamespace(write=text.append, flush=lambda: None, isatty=lambda: live)
        with Parts(stream, lang) as parts:  # type: ignore[arg-type]  # what it uses of one
            parts("prior gap", 0, 0)
            parts("mixture", 1, 20)
            parts("mixture", 2, 20)
        return "".join(text)

    assert [line.split()[:-2] for line in shown(False).splitlines()] == [["prior", "gap"], ["mixture"]]
    assert "\r  mixture             1 of 20" in shown(True)
    assert shown(False, "vi").startswith("  độ hụt tiên nghiệm")


@pytest.mark.parametrize(
    ("message", "typed"),
    [
        ("as labels: labels_key='b'.", "as labels: --labels b."),
        ("or give X_train=", "or give --train-data"),
        ('it is free: device="cuda".', "it is free: --device cuda."),
        ("(kl_weight=, reconstruction=): unknown", "(--kl-weight, --reconstruction): unknown"),
        ("Pass it as logvar=.", "Pass it as logvar=."),
    ],
)
def test_messages_name_options(message: str, typed: str) -> None:
    assert typed_words(message) == typed


def test_the_names_of_data_are_those_there_are() -> None:
    assert tuple(entry["name"] for entry in json.loads(invoke("datasets", "--json").stdout)) == NAMED_DATA


def test_what_is_mistyped_is_said_before_torch_is_imported(tmp_path: Path) -> None:
    lines = [
        ("diagnose", "--latents", "none.npz"),
        ("retrofit", "nowhere"),
        ("diagnose", "--model", "none.py:vae", "--data", "digits"),
        ("compare", "none.npy"),
        ("train", "digits", "--out", str(tmp_path / "x"), "--device", "tpu"),
    ]
    code = "import sys\nfrom latentfit.cli import app\n"
    code += f"for words in {lines!r}:\n    try:\n        app(list(words))\n"
    code += "    except SystemExit as end:\n        assert end.code == 2\nprint('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "False", done.stderr
    assert len(done.stderr.strip().splitlines()) == len(lines)
