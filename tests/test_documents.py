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
    code = code.replace("latents(mean, std=std)", "latents(mean, std=std, depth='quick')")
    code = code.replace("fit(mean, std=std)", "fit(mean, std=std, max_steps=60)")
    return code.replace("random_state=0)", "random_state=0, max_steps=60)")


#: what a reader has at hand: binary rows, the codes of a VAE, its decoder
AT_HAND = """
import numpy as np
import torch
from sklearn.datasets import load_digits

X = (load_digits().data > 7).astype(np.float32)
torch.manual_seed(0)
mean, std = torch.randn(400, 8), torch.full((400, 8), 0.5)
z, log_q = mean, torch.zeros(400)
encode = decode = torch.as_tensor
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


def command_lines(name: str) -> list[list[str]]:
    """The words of each line that starts the program, comments dropped."""
    lines = "\n".join(blocks(name, "sh")).splitlines()
    return [line.split("#")[0].split()[1:] for line in lines if line.startswith("latentfit ")]


@pytest.mark.parametrize("name", READMES)
def test_every_command_and_option_is_one_the_program_knows(name: str) -> None:
    import typer

    from latentfit.cli import app

    program = typer.main.get_command(app)
    known = program.commands
    lines = command_lines(name)
    assert {"compare", "train", "sample", "evaluate", "encode", "diagnose"} <= {words[0] for words in lines}
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
    assert shown - set(priors.names()) <= {"student_t"}  # the worked example of CONTRIBUTING


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
