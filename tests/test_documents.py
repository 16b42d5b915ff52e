"""What the documents say works: their code runs, their links lead somewhere, a stranger can follow them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from latentfit import methods, priors

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
READMES = ("README.md", "README.vi.md")
#: pages read from top to bottom, each on a VAE trained on the page, and what they say of its numbers
PAGES = {
    "docs/is-my-prior-wrong.md": """
assert dx.prior_gap.interval[0] > 0.1
assert 0.3 < dx.inference_gap.value / dx.prior_gap.value < 3
assert dx.holes.share.value > 0.05
""",
    "docs/good-reconstructions-bad-samples.md": """
before, after, floor = (float(number) for number in fix.samples)
assert same > 0.9 and after < before / 2 and after < floor + 0.5
assert fix.changed and fix.weights_unchanged
assert 0 < fix.log_px_gain.value < fix.gain.value and fix.gain.interval[0] > 3
assert fix.holes[0] < 0.02
""",
    "docs/my-embedding-is-a-blob.md": """
assert dx_blob.prior_gap.value < 0.1 and dx_blob.kl.value < 1
assert dx_blob.first.code == "LF-DECODER-01" and dx_blob.effective_beta == 4
assert dx.probe.presses and dx.probe.pressure.interval[0] > 0.1
""",
    "docs/why-not-thirty-lines-of-zuko.md": """
quick, little = (
    lf.diagnose_latents(mean_test, std=std_test, train=(mean[:n], std[:n]), depth="quick").prior_gap for n in (1200, 80)
)
assert quick.value > gap(flow).value > 0.2
assert gap(on_means).interval[1] < -10 < 2 < believed
assert gap(few).interval[1] < 0 and -0.1 < little.value < 0.1
shifted_gap = gap(units, loc + scale * mean_test, scale * std_test, lf.priors.as_prior(shifted))
assert shifted_gap.interval[1] < -1
assert not fix.model.training
""",
    "docs/which-prior-when.md": """
for n in (60, 120):
    for name in ("hierarchical", "dp_mixture"):
        assert table[n][name].interval[1] > -0.02 and table[n][name].value > -0.02
    assert table[n]["mixture of 10"].value < table[n]["hierarchical"].value
assert table[1200]["dp_mixture"].interval[0] > 0.2
""",
    "docs/clusters-without-choosing-k.md": """
assert found == {1: 1, 3: 3, 12: 12}
assert prior.n_clusters >= 5 and agreement > 0.4
assert len(pictures) == share.shape[1]
""",
    "docs/when-bayesian.md": """
gain = lf.Estimate.of(ensemble.score_samples(test) - plain.score_samples(test))
assert gain.interval[0] > 1
assert max(values.mean() for values in alone) < ensemble.score_samples(test).mean()
assert auroc(near.score, far.score) > 0.8 and auroc(-near.log_p, -far.log_p) > 0.8
assert inside.share < 0.5 < outside.share
""",
    "docs/adapters.md": "assert m.weights_sha256()",
}


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(name: str, language: str = "python") -> list[str]:
    """The fenced blocks of a language, from top to bottom."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text(name), re.MULTILINE | re.DOTALL)


def run(arguments: list[str], folder: Path, timeout: float) -> str:
    """Standard output of Python in a folder, or the test's failure with all that it printed."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUTF8": "1"}
    environment.pop("PYTEST_ADDOPTS", None)
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


# CONTRIBUTING: a stranger adds a prior


def test_the_page_is_short() -> None:
    (prior,) = blocks("CONTRIBUTING.md")
    assert len(text("CONTRIBUTING.md").splitlines()) < 100
    assert len(prior.splitlines()) < 80


def test_a_stranger_adds_a_prior(tmp_path: Path) -> None:
    """Do what the page says, in a folder of one's own, and run the contract's laws on the new line."""
    page = text("CONTRIBUTING.md")
    (component,) = blocks("CONTRIBUTING.md")
    register = re.search(r"`(registry\.register\(.*?\))`", page)
    line = re.search(r"`(\"student_t\": lambda .*?,)`", page)
    assert register is not None
    assert line is not None

    (tmp_path / "student_t.py").write_text(component, encoding="utf-8")
    (tmp_path / "conftest.py").write_text(
        "import sys\n"
        f"sys.path.insert(0, {str(tmp_path)!r})\n"
        "from latentfit.registry import registry\n"
        "from student_t import StudentTPrior\n"
        f"{register.group(1)}\n",
        encoding="utf-8",
    )
    contract = (ROOT / "tests" / "contracts" / "test_priors.py").read_text(encoding="utf-8")
    table = "PRIORS = {\n"
    assert contract.count(table) == 1
    contract = contract.replace(table, f"{table}    {line.group(1)}\n")
    (tmp_path / "test_priors.py").write_text(contract, encoding="utf-8")

    options = ["-q", "-W", "error", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), "-k", "student_t"]
    out = run(["-m", "pytest", *options, "--doctest-modules", "."], tmp_path, timeout=300)
    passed = re.search(r"(\d+) passed", out)
    assert passed is not None
    assert int(passed.group(1)) >= 15, out  # the laws, and the page's own example
    assert "skipped" not in out


def test_the_page_keeps_the_rules_of_the_house(tmp_path: Path) -> None:
    """The worked example is formatted, linted and typed like the package."""
    path = tmp_path / "student_t.py"
    path.write_text(blocks("CONTRIBUTING.md")[0], encoding="utf-8")
    settings = str(ROOT / "pyproject.toml")
    run(["-m", "ruff", "check", "--no-cache", "--config", settings, str(path)], tmp_path, 60)
    run(["-m", "ruff", "format", "--check", "--no-cache", "--config", settings, str(path)], tmp_path, 60)


# README


def test_the_readmes_show_the_same_code() -> None:
    """Only the words are translated: same blocks of code, comments aside, and the same numbers."""

    def bare(name: str) -> list[str]:
        return [re.sub(r"[ \t]*#.*", "", block) for block in blocks(name)]

    assert bare("README.md") == bare("README.vi.md")
    numbers = [re.findall(r"\{MNIST_\w+\}|\b\d{2}\.\d{2}\b", text(name)) for name in READMES]
    assert numbers[0] == numbers[1]


def small(code: str) -> str:
    """A README block with settings that take seconds instead of minutes: what is shown, only less of it."""
    code = re.sub(r"n_seeds=\d+", "n_seeds=1, max_steps=60, methods='standard,mixture'", code)
    code = code.replace("latents(mean, logvar=logvar)", "latents(mean, logvar=logvar, depth='quick')")
    code = re.sub(r"((diagnose|retrofit)\(m, .*?)\)", r"\1, **QUICK['\2'])", code)
    code = code.replace("fit(mean, std=std)", "fit(mean, std=std, max_steps=60)")
    return code.replace("random_state=0)", "random_state=0, max_steps=60)")


#: what a reader has at hand: binary rows, a VAE of one's own, its codes
AT_HAND = """
import numpy as np
import torch
from sklearn.datasets import load_digits

import latentfit

X = np.unique(load_digits().data > 7, axis=0).astype(np.float32)
torch.manual_seed(0)
mean, std = torch.randn(400, 8), torch.full((400, 8), 0.5)
logvar = 2 * std.log()
z, log_q = mean, torch.zeros(400)
encode = decode = torch.as_tensor


class MyVAE(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.out = torch.nn.Linear(64, 16), torch.nn.Linear(8, 64)

    def encode(self, x):
        return self.body(x).chunk(2, 1)

    def decode(self, z):
        return self.out(z)


vae = MyVAE()
X_train, X_test = torch.as_tensor(X[:800]), torch.as_tensor(X[800:1200])
x = X_train[:256]
m = latentfit.adapt(vae, example=x, likelihood="bernoulli")
QUICK = {"diagnose": {"depth": "quick"}, "retrofit": {"priors": ["learned_gaussian", "mixture"]}}
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "number"),
    [(name, i) for name in ("README.md", "docs/autoencoders.md") for i in range(len(blocks(name)))],
)
def test_the_python_of_the_documents_runs(name: str, number: int, tmp_path: Path) -> None:
    script = f"{AT_HAND}\n{small(blocks(name)[number])}"
    (tmp_path / "block.py").write_text(script, encoding="utf-8")
    run(["block.py"], tmp_path, timeout=550)


@pytest.mark.slow
@pytest.mark.parametrize("name", PAGES)
def test_a_page_can_be_followed_from_top_to_bottom(name: str, tmp_path: Path) -> None:
    """Its blocks in one process, on real data, and what it says of the numbers."""
    script = "\n".join([*blocks(name), PAGES[name]])
    (tmp_path / "page.py").write_text(script, encoding="utf-8")
    run(["page.py"], tmp_path, timeout=550)


def test_the_pages_use_one_vae() -> None:
    """The first block of each, data and VAE, is the same: who has read one page can skip it on the next."""
    first = {blocks(name)[0] for name in PAGES if name != "docs/adapters.md"}
    assert len(first) == 1


@pytest.mark.slow
def test_the_commands_for_a_model_of_ones_own_run(tmp_path: Path) -> None:
    """README's lines of diagnose and retrofit that need no run, at quick depth, in a folder with what they name."""
    save = 'np.save("X_test.npy", X_test); np.save("X_train.npy", X_train); np.savez("codes.npz", mean=mean, std=std)\n'
    (tmp_path / "my_vae.py").write_text(AT_HAND + save, encoding="utf-8")
    run(["my_vae.py"], tmp_path, timeout=120)
    lines = [words for words in command_lines("README.md") if words[0] in ("diagnose", "retrofit")]
    assert len(lines) >= 4
    for words in lines:
        assert run(["-m", "latentfit", *words, "--quick"], tmp_path, timeout=300)
    assert (tmp_path / "prior" / "config.json").exists()


def command_lines(name: str) -> list[list[str]]:
    """The words of each line that starts the program, comments dropped."""
    lines = "\n".join(blocks(name, "sh")).splitlines()
    return [line.split("#")[0].split()[1:] for line in lines if line.startswith("latentfit ")]


@pytest.mark.parametrize("name", [*READMES, "docs/is-my-prior-wrong.md"])
def test_every_command_and_option_is_one_the_program_knows(name: str) -> None:
    import typer

    from latentfit.cli import app

    program = typer.main.get_command(app)
    known = program.commands
    lines = command_lines(name)
    expected = {"compare", "train", "sample", "evaluate", "encode", "diagnose", "retrofit"}
    assert (expected if name in READMES else {"diagnose"}) <= {words[0] for words in lines}
    for command, *words in lines:
        assert command in known
        options = {option for parameter in known[command].params for option in parameter.opts}
        assert {word for word in words if word.startswith("-")} - options == set(), command


@pytest.mark.parametrize("name", READMES)
def test_every_method_is_in_the_table(name: str) -> None:
    listed = set(re.findall(r"^\|[^|]*\|\s*`(\w+)`", text(name), re.MULTILINE))
    assert listed == set(methods.METHODS)


def test_every_prior_that_is_shown_exists() -> None:
    pages = "\n".join(path.read_text(encoding="utf-8") for path in DOCUMENTS)
    shown = set(re.findall(r"priors\.create\(\"(\w+)\"", pages))
    assert {"realnvp", "mixture"} <= shown
    # "student_t" is the worked example of CONTRIBUTING, "flow" chooses one by dimension
    assert shown - set(priors.names()) <= {"student_t", "flow"}


@pytest.mark.parametrize("name", READMES)
def test_no_number_is_left_to_fill_in(name: str) -> None:
    assert re.findall(r"\{[A-Z_]+\}", text(name)) == []


# all documents


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(path: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8"))
    local = [target for target in targets if not re.match(r"https?:|mailto:", target)]
    missing = [target for target in local if not (path.parent / target).exists()]
    assert missing == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_examples_in_the_docs_are_python(path: Path) -> None:
    for block in blocks(path.relative_to(ROOT).as_posix()):
        compile(block, str(path), "exec")
